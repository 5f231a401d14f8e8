#!/usr/bin/env bash
# The Arm kernels, cross-compiled and run under qemu: with the instructions of an Apple M1, and without dot products.
#
# On Debian and Ubuntu: apt-get install qemu-user gcc-aarch64-linux-gnu
set -euo pipefail
cd "$(dirname "$0")/../.."
target=aarch64-unknown-linux-gnu
for tool in qemu-aarch64 aarch64-linux-gnu-gcc; do
  if ! command -v "$tool" >/dev/null; then
    echo "skipped: $tool is not installed (apt-get install qemu-user gcc-aarch64-linux-gnu)"
    exit 0
  fi
done
if ! rustup target add "$target"; then
  echo "skipped: the target $target cannot be added"
  exit 0
fi
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
for cpu in max cortex-a53; do
  echo "-- $cpu"
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $cpu -L /usr/aarch64-linux-gnu"
  cargo test --target "$target" --locked -p q35-kernels
done
