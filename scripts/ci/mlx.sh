#!/usr/bin/env bash
# Builds MLX's backend against the CPU build of MLX, runs its tests and the runtime's suite over it, and the commands.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "skipped: the CPU build of MLX is set up on x86-64 Linux only"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "-- the Metal kernel's text, on the CPU"
scripts/mlx/check_kernel.sh

scripts/mlx/setup_linux.sh
mlx=(--config .mlx/cargo.toml --features mlx --locked)

echo "-- lints"
cargo clippy --release "${mlx[@]}" --workspace --all-targets -- -D warnings

echo "-- tests: against the float reference, the CPU backend, and the suite over all backends"
cargo test --release "${mlx[@]}" --workspace --test 'mlx_*'

echo "-- the commands"
cargo build --release "${mlx[@]}" --workspace --bins
bin=target/release
"$bin/q35-convert" mlx --model q35-nano --recipe rtn --out "$work/int4" --no-verify --quiet
"$bin/q35-convert" parity --reference q35-nano --candidate "$work/int4" --backend mlx --short
"$bin/q35-chat" --model "$work/int4" --backend mlx --prompt "My name is Ada. What is my name?" --seed 1 --quiet

echo "-- the same logits as mlx-lm's, on the same directory"
[ -x .judges/bin/python ] || python3 -m venv .judges
.judges/bin/pip install --quiet numpy safetensors 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
python3 -c 'import json; print(json.dumps([(i * i * 31 + i * 7 + 3) % 4000 for i in range(200)]))' >"$work/ids.json"
for backend in mlx cpu; do
  "$bin/q35-convert" logits --model "$work/int4" --ids-file "$work/ids.json" --backend "$backend" --exact \
    --out "$work/$backend.safetensors"
done
.judges/bin/python scripts/judge/mlx_lm_logits.py "$work/int4" "$work/ids.json" "$work/mlx.safetensors" "$work/cpu.safetensors"

echo "-- devices that this MLX has not are refused: MLX itself would end the process"
for device in metal cuda; do
  status=0
  "$bin/q35-chat" --model "$work/int4" --backend mlx --device "$device" --prompt Hi --quiet 2>"$work/refusal" || status=$?
  cat "$work/refusal"
  if [ "$status" != 2 ]; then
    echo "--device $device: exit code $status, expected 2" >&2
    exit 1
  fi
done
