#!/usr/bin/env bash
# Trains q35-nano within one time box on a machine with a CUDA GPU and 16 cores: data, trunk, MTP head, scores.
# Needs python3 with torch >= 2.11, safetensors, tokenizers and numpy; leaves everything in $OUT (default trained/).
#   scripts/nano/run_on_gpu.sh                 from nothing
#   scripts/nano/run_on_gpu.sh --init FILE     go on from weights; any option of train.py can follow
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-trained}
mkdir -p "$out"
export PYTHONUNBUFFERED=1
python3 "$here/train.py" --prose "$here/data/prose.txt.xz" --out "$out" --deadline "${DEADLINE:-560}" "$@" 2>&1 | tee "$out/train.txt"
