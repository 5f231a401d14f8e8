#!/usr/bin/env bash
# Converts the embedded model to every kind of artefact and checks the parity of each.
#   scripts/ci/embedded_parity.sh [REPORT_DIR]        reports: Markdown, JSON and HTML per artefact
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cargo build --release --locked --quiet --manifest-path "$root/Cargo.toml" --workspace --bins
convert=$root/target/release/q35-convert
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
reports=${1:-$work/reports}
mkdir -p "$reports"

gate() { # NAME SUITE, then the arguments of the conversion
  local name=$1 suite=$2 status=0
  shift 2
  "$convert" "$@" --model q35-nano --out "$work/$name" --no-verify --quiet > /dev/null 2> "$work/$name.log" \
    || { cat "$work/$name.log"; exit 1; }
  "$convert" verify "$work/$name" --quiet > /dev/null
  local -a how=()
  if [ "$suite" = short ]; then
    # The float reference is the same for every artefact: it runs once.
    how=(--short --save-reference "$work/reference.safetensors")
    if [ -f "$work/reference.safetensors" ]; then how=(--short --use-reference "$work/reference.safetensors"); fi
  fi
  "$convert" parity --reference q35-nano --candidate "$work/$name" ${how[@]+"${how[@]}"} --quiet \
    --json "$reports/$name.json" --markdown "$reports/$name.md" --html "$reports/$name.html" \
    > "$work/$name.txt" || status=$?
  printf '%-24s %s\n' "$name" "$(tail -n 1 "$work/$name.txt")"
  if [ "$status" != 0 ]; then
    cat "$work/$name.txt"
    exit "$status"
  fi
}

# The whole suite, with its prompt of 2,000 tokens, for one; the evaluator of packages takes half a minute for that.
gate mlx-int4 whole mlx --recipe rtn
gate mlx-int8 short mlx --bits 8
gate mlx-speech-swift short mlx --for speech-swift
gate coreml-int8 short coreml
gate coreml-block32-io short coreml --encoding block32 --cache io --layout split
gate coreml-speech-swift short coreml --for speech-swift
