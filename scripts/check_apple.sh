#!/usr/bin/env bash
# Type-checks the macOS and iOS builds, Apple features on, from any machine. Nothing is linked or run.
#
#   scripts/check_apple.sh
#
# mlx-sys's build script wants a Mac; a cargo configuration gives it the generated bindings instead (see scripts/mlx).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
config=target/apple-check/cargo.toml
mkdir -p target/apple-check/bindings
cp scripts/mlx/bindings.rs target/apple-check/bindings/
printf '[target.aarch64-apple-darwin.mlx]\nrustc-env = { OUT_DIR = "%s/target/apple-check/bindings" }\n' "$root" >"$config"

rustup target add aarch64-apple-darwin aarch64-apple-ios
cargo --config "$config" check --workspace --all-targets --features mlx --target aarch64-apple-darwin
cargo check --workspace --exclude q35-cli --target aarch64-apple-ios
