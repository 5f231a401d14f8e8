#!/usr/bin/env bash
# On a Mac: converts the embedded model, checks it, compiles the Core ML packages with Apple's own compiler, and gathers
# the reports into one folder to send back.
#
#   scripts/apple/report.sh REPORT_DIR        (needs Xcode's command line tools and Rust)
#
# Not yet run on a Mac.
set -euo pipefail
[ "$(uname -s)" = Darwin ] || { echo "this needs macOS; on other systems use scripts/ci/embedded_parity.sh" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
report=${1:?where to write the report}
mkdir -p "$report"
report=$(cd "$report" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sw_vers >"$report/system.txt"
sysctl -n machdep.cpu.brand_string hw.memsize >>"$report/system.txt"
"$root/scripts/ci/embedded_parity.sh" "$report"

convert=$root/target/release/q35-convert
for form in default speech-swift; do
  options=()
  [ "$form" = default ] || options=(--for "$form")
  "$convert" coreml --model q35-nano --out "$work/$form" --no-verify --quiet "${options[@]+"${options[@]}"}"
  for package in "$work/$form"/*.mlpackage; do
    echo "-- $form: $(basename "$package")" >>"$report/coremlcompiler.txt"
    xcrun coremlcompiler compile "$package" "$work" >>"$report/coremlcompiler.txt" 2>&1 || echo "refused" >>"$report/coremlcompiler.txt"
  done
done
"$convert" mlx --model q35-nano --out "$work/mlx" --no-verify --quiet
(cd "$root" && cargo test -p q35-mlx-backend --features mlx --locked) >"$report/mlx-backend.txt" 2>&1 || echo "failed" >>"$report/mlx-backend.txt"
echo "the report is in $report"
