#!/usr/bin/env bash
# Type-checks and lints the macOS and iOS builds of the whole workspace, Apple features on, from any machine. Nothing is
# linked or run.
#
#   scripts/check_apple.sh        (needs rustup, to add the targets)
#
# mlx-sys's build script wants a Mac; a cargo configuration gives it the generated bindings instead (see scripts/mlx).
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/target/apple-check
mkdir -p "$out/bindings"
cp scripts/mlx/bindings.rs "$out/bindings/"
rustup target add aarch64-apple-darwin aarch64-apple-ios
for target in aarch64-apple-darwin aarch64-apple-ios; do
  printf '[target.%s.mlx]\nrustc-env = { OUT_DIR = "%s/bindings" }\n' "$target" "$out"
done >"$out/cargo.toml"

for target in aarch64-apple-darwin aarch64-apple-ios; do
  echo "-- $target"
  cargo clippy --config "$out/cargo.toml" --workspace --all-targets --features mlx --locked --target "$target" -- -D warnings
done
