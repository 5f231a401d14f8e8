#!/usr/bin/env python3
"""Makes seeds for the target `mlpackage` from packages on disk.

    make_corpus.py OUT_DIR PACKAGE.mlpackage...
"""
import struct
import sys
from pathlib import Path

out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
for package in map(Path, sys.argv[2:]):
    model = next(package.glob("Data/**/model.mlmodel")).read_bytes()
    weights = b"".join(path.read_bytes() for path in package.glob("Data/**/weight.bin"))
    (out / package.stem).write_bytes(struct.pack("<I", len(model)) + model + weights)
