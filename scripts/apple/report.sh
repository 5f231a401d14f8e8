#!/usr/bin/env bash
# On a Mac, in one command: builds with MLX and Metal, converts the embedded model to every form, runs the parity check
# on MLX Metal and on Core ML's CPU, GPU and Neural Engine, asks Core ML what it would run where, runs the tests of both
# backends, measures speed, and writes one file to send back.
#
#   scripts/apple/report.sh [REPORT.md]                 default: q35-apple-report.md
#   MODEL=Qwen/Qwen3.5-0.8B scripts/apple/report.sh     the same for a real checkpoint besides (1.75 GB to download)
#
# Needs Xcode (its metal compiler), cmake and Rust. A step that fails is recorded, and the next one is run; the exit code
# is 1 then. Not yet run on a Mac.
set -uo pipefail
[ "$(uname -s)" = Darwin ] || { echo "this needs macOS; elsewhere there is .ci/run parity" >&2; exit 2; }
cd "$(dirname "$0")/../.." || exit 2
report=${1:-q35-apple-report.md}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
convert=target/release/q35-convert
chat=target/release/q35-chat
summary=$work/summary.md
body=$work/body.md
touch "$summary" "$body"
failed=0

# step TITLE COMMAND...: runs it; outcome to the summary, output to the body.
step() {
  local title=$1 code=0 start=$SECONDS
  shift
  echo "-- $title" >&2
  "$@" >"$work/output" 2>&1 || code=$?
  case $code in
    0) echo "| $title | ok | $((SECONDS - start)) s |" >>"$summary" ;;
    *) failed=1; echo "| $title | **exit code $code** | $((SECONDS - start)) s |" >>"$summary" ;;
  esac
  { printf '\n## %s\n\n    $ %s\n' "$title" "$*"; sed 's/^/    /' "$work/output"; } >>"$body"
}

system() {
  sw_vers
  sysctl -n machdep.cpu.brand_string hw.memsize hw.ncpu
  system_profiler SPDisplaysDataType 2>/dev/null | grep -E "Chipset|Cores|Metal" || true
  xcodebuild -version
  rustc --version
  git rev-parse HEAD || true
}

# Parity on every backend, then speed: NAME is a checkpoint, DIR has its conversions.
judge() {
  local name=$1 dir=$2 units form
  for form in mlx-int4 mlx-int8; do
    step "$name: parity, $form, our CPU backend" "$convert" parity --reference "$name" --candidate "$dir/$form" --backend cpu --exact
    step "$name: parity, $form, MLX on Metal" "$convert" parity --reference "$name" --candidate "$dir/$form" --backend mlx --device metal
    step "$name: parity, $form, MLX on the CPU" "$convert" parity --reference "$name" --candidate "$dir/$form" --backend mlx --device cpu
  done
  for form in coreml coreml-io coreml-split coreml-speech-swift; do
    [ -d "$dir/$form" ] || continue
    step "$name: parity, $form, our evaluator" "$convert" parity --reference "$name" --candidate "$dir/$form" --backend cpu
    for units in cpu cpu-and-gpu cpu-and-ne all; do
      step "$name: parity, $form, Core ML on $units" "$convert" parity --reference "$name" --candidate "$dir/$form" --backend coreml --compute-units "$units"
      step "$name: compute plan, $form on $units" "$convert" plan "$dir/$form" --compute-units "$units"
    done
    for package in "$dir/$form"/*.mlpackage; do
      step "$name: Apple's compiler, $form/$(basename "$package")" xcrun coremlcompiler compile "$package" "$work/compiled"
    done
  done
  for form in mlx-int4 mlx-int8; do
    step "$name: speed, $form, MLX on Metal" "$chat" bench --model "$dir/$form" --backend mlx --device metal
    step "$name: speed, $form, our CPU backend" "$chat" bench --model "$dir/$form" --backend cpu
  done
  for units in cpu cpu-and-gpu cpu-and-ne all; do
    step "$name: speed, coreml, Core ML on $units" "$chat" bench --model "$dir/coreml" --backend coreml --compute-units "$units"
  done
  step "$name: a conversation, MLX on Metal" "$chat" --model "$dir/mlx-int4" --backend mlx --device metal --seed 1 --prompt "My name is Ada. What is my name?"
  step "$name: a conversation, Core ML" "$chat" --model "$dir/coreml" --backend coreml --seed 1 --prompt "My name is Ada. What is my name?"
}

convert_all() {
  local name=$1 dir=$2
  mkdir -p "$dir" "$work/compiled"
  step "$name: convert, mlx-int4" "$convert" mlx --recipe rtn --model "$name" --out "$dir/mlx-int4" --no-verify
  step "$name: convert, mlx-int8" "$convert" mlx --model "$name" --bits 8 --out "$dir/mlx-int8" --no-verify
  step "$name: convert, coreml" "$convert" coreml --model "$name" --out "$dir/coreml" --no-verify
  step "$name: convert, caches as inputs" "$convert" coreml --model "$name" --cache io --out "$dir/coreml-io" --no-verify
  step "$name: convert, split" "$convert" coreml --model "$name" --layout split --out "$dir/coreml-split" --no-verify
  step "$name: convert, for speech-swift" "$convert" coreml --model "$name" --for speech-swift --out "$dir/coreml-speech-swift" --no-verify
}

step "the machine" system
step "build with MLX and Metal" cargo build --release --locked --bins
step "tests of MLX's backend, and the suite over it" cargo test --locked --workspace --features mlx --test 'mlx_*'
step "the suite over Core ML" cargo test --locked --workspace --test coreml_apple
convert_all q35-nano "$work/nano"
judge q35-nano "$work/nano"
if [ -n "${MODEL:-}" ]; then
  convert_all "$MODEL" "$work/real"
  judge "$MODEL" "$work/real"
fi

{
  printf '# q35 on Apple hardware\n\n| step | outcome | time |\n|---|---|---|\n'
  cat "$summary" "$body"
} >"$report"
echo "the report is $report"
exit "$failed"
