#!/usr/bin/env bash
# Checks our artefacts and logits with mlx-lm, coremltools and transformers, which it installs into .judges.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ -x .judges/bin/python ] || python3 -m venv .judges
.judges/bin/pip install --quiet numpy safetensors 'mlx[cpu]==0.32.4' mlx-lm==0.32.2 coremltools==9.0 \
  torch==2.15.0 transformers==5.23.0
cargo build --release --locked --quiet --workspace --bins --examples
convert=target/release/q35-convert

echo "-- mlx-lm's own conversion of the embedded model, tensor by tensor"
cat >"$work/convert.py" <<'PYTHON'
import sys
from pathlib import Path
import mlx.core as mx
from mlx_lm.utils import load_model, quantize_model, save_config, save_model
mx.set_default_device(mx.cpu)
source, out = map(Path, sys.argv[1:])
model, config = quantize_model(*load_model(source, lazy=True), 64, 4)
out.mkdir()
save_model(out, model, donate_model=True)
save_config(config, out / "config.json")
PYTHON
.judges/bin/python "$work/convert.py" crates/nano/model "$work/theirs"
"$convert" mlx --model q35-nano --recipe rtn --out "$work/ours" --no-verify --quiet
.judges/bin/python scripts/judge/compare_tensors.py "$work/theirs" "$work/ours"

echo "-- mlx-lm opens ours strictly, and its logits are ours"
python3 -c 'import json; print(json.dumps([(i * i * 31 + i * 7 + 3) % 4000 for i in range(200)]))' >"$work/ids.json"
"$convert" logits --model "$work/ours" --ids-file "$work/ids.json" --exact --out "$work/cpu.safetensors"
.judges/bin/python scripts/judge/mlx_lm_logits.py "$work/ours" "$work/ids.json" "$work/cpu.safetensors"

echo "-- Core ML packages: coremltools' loader and operator definitions, transformers' logits, our evaluator beside them"
.judges/bin/python scripts/judge/coreml.py matrix "$convert" crates/nano/model --subset small \
  --runner target/release/examples/evaluate
