#!/usr/bin/env bash
# Type-checks and lints the macOS and iOS builds of the whole workspace, Apple features on, from any machine. Nothing is
# linked or run.
#
#   scripts/apple/check.sh        (needs rustup, to add the targets; without it the check is skipped)
#
# mlx-sys's build script wants a Mac; a cargo configuration gives it the generated bindings instead (see scripts/mlx).
set -euo pipefail
cd "$(dirname "$0")/../.."
targets=(aarch64-apple-darwin aarch64-apple-ios)
out=$PWD/target/apple-check
mkdir -p "$out/bindings"
cp scripts/mlx/bindings.rs "$out/bindings/"
if ! rustup target add "${targets[@]}"; then
  echo "skipped: the targets ${targets[*]} cannot be added (needs rustup and a network)"
  exit 0
fi
for target in "${targets[@]}"; do
  printf '[target.%s.mlx]\nrustc-env = { OUT_DIR = "%s/bindings" }\n' "$target" "$out"
done >"$out/cargo.toml"

for target in "${targets[@]}"; do
  echo "-- $target"
  cargo clippy --config "$out/cargo.toml" --workspace --all-targets --features mlx --locked --target "$target" -- -D warnings
done
