#!/usr/bin/env bash
# Converts the embedded model to every artefact that the project writes and gates each on parity.
#   scripts/ci/embedded_parity.sh [REPORT_DIR]        reports: Markdown, JSON and HTML per artefact
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cargo build --release --locked --quiet --manifest-path "$root/Cargo.toml" --bin q35-convert
convert=$root/target/release/q35-convert
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
reports=${1:-$work/reports}
mkdir -p "$reports"

"$convert" mlx --model q35-nano --out "$work/mlx-int4" --no-verify
"$convert" mlx --model q35-nano --out "$work/mlx-int8" --bits 8 --no-verify
"$convert" coreml --model q35-nano --out "$work/coreml-int8" --no-verify
for artefact in mlx-int4 mlx-int8 coreml-int8; do
  echo "-- parity: $artefact"
  "$convert" verify "$work/$artefact"
  "$convert" parity --reference q35-nano --candidate "$work/$artefact" \
    --json "$reports/$artefact.json" --markdown "$reports/$artefact.md" --html "$reports/$artefact.html"
done
