#!/usr/bin/env bash
# The second stage of CI: what mlx-lm and MLX itself say of our files. Installs what it needs into .judges and .mlx.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
convert=$root/target/release/q35-convert
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

[ -x .judges/bin/python ] || python3 -m venv .judges
.judges/bin/pip install --quiet numpy safetensors 'mlx[cpu]==0.32.4' mlx-lm==0.32.2

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
.judges/bin/python scripts/compare_tensors.py "$work/theirs" "$work/ours"

echo "-- mlx-lm opens ours strictly"
.judges/bin/python - "$work/ours" <<'PYTHON'
import sys
from pathlib import Path
import mlx.core as mx
from mlx_lm.utils import load_model
mx.set_default_device(mx.cpu)
model, _ = load_model(Path(sys.argv[1]), lazy=False, strict=True)
logits = model(mx.array([[1, 2, 3]]))
assert mx.isfinite(logits).all().item(), logits
print("logits", logits.shape)
PYTHON

echo "-- the MLX backend on MLX's CPU"
scripts/mlx/setup_linux.sh
cargo --config .mlx/cargo.toml test -p q35-mlx-backend --features mlx --locked
