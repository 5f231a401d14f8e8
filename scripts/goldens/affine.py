#!/usr/bin/env python3
"""Golden files of MLX's affine quantization, made by mlx.

    python scripts/goldens/affine.py crates/quant/tests/golden

One file per source type: `source` [rows, 256] and, for every supported pair of bits and group size, the results of
mx.quantize and of mx.dequantize (as the bits of the source type). Rows are random with a fixed
seed, then the hard cases: all zero, constant (either sign), one outlier, only negative, only positive, minus zeros,
subnormals, values near the ends of the type's range, ties. Made with mlx 0.32.4 on the CPU. Needs mlx and numpy.
"""

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

COLS = 256
TYPES = {"bf16": mx.bfloat16, "f16": mx.float16, "f32": mx.float32}


def rows(name, rng):
    tiny = {"bf16": 1e-39, "f16": 1e-7, "f32": 1e-40}[name]
    huge = {"bf16": 1e30, "f16": 6e4, "f32": 1e30}[name]
    normal = lambda scale=1.0: rng.standard_normal(COLS) * scale
    outlier = normal(0.02)
    outlier[::32] = 40.0
    low_outlier = normal(0.02)
    low_outlier[5::64] = -3.0
    signs = np.where(rng.random(COLS) < 0.5, 1.0, -1.0)
    return np.stack([
        normal(0.02), normal(1.0), normal(0.02) + 0.1, rng.uniform(-1, 1, COLS),
        np.zeros(COLS), -np.zeros(COLS), np.full(COLS, 0.75), np.full(COLS, -0.013), np.full(COLS, 1e-6),
        outlier, low_outlier, np.abs(normal(0.3)), -np.abs(normal(0.3)),
        normal(tiny), np.abs(normal(tiny)), normal(1e-7), normal(5e-6), np.clip(normal(huge / 4), -huge, huge),
        np.repeat(normal(), COLS)[:COLS] * signs, np.arange(COLS) / 2 - 32, np.tile([0.5, 1.5, 2.5, -15.0], COLS // 4),
        np.where(np.arange(COLS) % 7 == 0, normal(1.0), 0.0), np.linspace(-1, 15, COLS), np.linspace(15, -1, COLS),
    ]).astype(np.float32)


def main():
    out = Path(sys.argv[1])
    mx.set_default_device(mx.cpu)
    for name, dtype in TYPES.items():
        source = mx.array(rows(name, np.random.default_rng(35))).astype(dtype)
        tensors = {"source": source}
        for bits in (2, 3, 4, 5, 6, 8):
            for group_size in (32, 64, 128):
                words, scales, biases = mx.quantize(source, group_size=group_size, bits=bits)
                back = mx.dequantize(words, scales, biases, group_size=group_size, bits=bits)
                key = f"{bits}.{group_size}."
                digest = back.view(mx.uint32 if dtype == mx.float32 else mx.uint16).astype(mx.uint32)
                # A checksum per row keeps the file small: position-weighted, so that exchanged values show.
                weights = (mx.arange(COLS, dtype=mx.uint32) * 2 + 1) * mx.array(2654435761, dtype=mx.uint32)
                tensors |= {key + "weight": words, key + "scales": scales, key + "biases": biases,
                            key + "dequantized": (digest * weights).sum(-1)}
        mx.save_safetensors(str(out / f"affine-{name}.safetensors"), tensors, metadata={"mlx": mx.__version__})


main()
