#!/usr/bin/env bash
# Converts the embedded model to artefacts of every kind that the project writes and requires parity of each: computed
# right, and of at least the given grade.
#   scripts/ci/embedded_parity.sh [REPORT_DIR]        reports: Markdown, JSON and HTML per artefact
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cargo build --release --locked --quiet --manifest-path "$root/Cargo.toml" --workspace --bins
convert=$root/target/release/q35-convert
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
reports=${1:-$work/reports}
mkdir -p "$reports"

gate() { # NAME SUITE GRADE, then the arguments of the conversion
  local name=$1 suite=$2 grade=$3 status=0
  shift 3
  "$convert" "$@" --model q35-nano --out "$work/$name" --no-verify --quiet > /dev/null 2> "$work/$name.log" \
    || { cat "$work/$name.log"; exit 1; }
  "$convert" verify "$work/$name" --quiet > /dev/null
  local -a how=()
  if [ "$suite" = short ]; then
    # The float reference's pass is the same for every artefact.
    how=(--short --save-reference "$work/reference.safetensors")
    if [ -f "$work/reference.safetensors" ]; then how=(--short --use-reference "$work/reference.safetensors"); fi
  fi
  "$convert" parity --reference q35-nano --candidate "$work/$name" ${how[@]+"${how[@]}"} \
    --require "$grade" --quiet \
    --json "$reports/$name.json" --markdown "$reports/$name.md" --html "$reports/$name.html" \
    > "$work/$name.txt" || status=$?
  printf '%-24s %s\n' "$name" "$(tail -n 1 "$work/$name.txt")"
  if [ "$status" != 0 ]; then
    cat "$work/$name.txt"
    exit "$status"
  fi
}

# INT4 to nearest loses too much of so small a model to be close to it; only its implementation is judged. The whole suite,
# with its prompt of 2,000 tokens, for one; the evaluator of packages takes half a minute for that.
gate mlx-int4 whole none mlx --recipe rtn
gate mlx-int8 short faithful mlx --bits 8
gate mlx-speech-swift short none mlx --for speech-swift
gate coreml-int8 short faithful coreml
gate coreml-block32-io short faithful coreml --encoding block32 --cache io --layout split
gate coreml-speech-swift short faithful coreml --for speech-swift
