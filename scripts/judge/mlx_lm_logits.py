#!/usr/bin/env python3
"""Compare logits of an MLX directory with mlx-lm's, in f32: exit code 1 if the mean KL of one is above the limit.

    scripts/judge/mlx_lm_logits.py DIR IDS.json LOGITS.safetensors... [--limit 1e-6]

The files are written by `q35-convert logits --model DIR --ids-file IDS.json --out FILE`. Needs mlx-lm and safetensors.
"""
import argparse
import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model
from safetensors.numpy import load_file


def log_softmax(rows):
    rows = rows.astype(np.float64)
    rows = rows - rows.max(-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dir", type=Path)
parser.add_argument("ids", type=Path)
parser.add_argument("logits", type=Path, nargs="+")
parser.add_argument("--limit", type=float, default=1e-6)
args = parser.parse_args()

mx.set_default_device(mx.cpu)
model, _ = load_model(args.dir, lazy=False, strict=True)
model.set_dtype(mx.float32)
ids = json.loads(args.ids.read_text())
expected = log_softmax(np.array(model(mx.array([ids]))[0].astype(mx.float32)))
worst = 0.0
for path in args.logits:
    found = log_softmax(load_file(path)["logits"][: len(ids)])
    kl = (np.exp(expected) * (expected - found)).sum(-1)
    same = (expected.argmax(-1) == found.argmax(-1)).mean()
    print(f"{path.name}: mean KL {kl.mean():.2e}, largest {kl.max():.2e}, top-1 {100 * same:.1f} %, {len(ids)} positions")
    worst = max(worst, kl.mean())
sys.exit(0 if worst <= args.limit else 1)
