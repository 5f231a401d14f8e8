#!/usr/bin/env python3
"""Compare the tensors of two MLX directories bit for bit: names, dtypes, shapes, bytes, metadata.

    python scripts/judge/compare_tensors.py DIR_A DIR_B

Exit code 1 when they differ. Needs nothing but Python.
"""

import json
import struct
import sys
from pathlib import Path


def tensors(directory):
    found, metadata = {}, []
    for file in sorted(Path(directory).glob("model*.safetensors")):
        data = file.read_bytes()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:start])
        metadata.append(header.pop("__metadata__", None))
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            found[name] = (entry["dtype"], entry["shape"], data[start + begin : start + end])
    return found, metadata


def main():
    (a, meta_a), (b, meta_b) = map(tensors, sys.argv[1:3])
    problems = [f"only in {sys.argv[1]}: {name}" for name in sorted(a.keys() - b.keys())]
    problems += [f"only in {sys.argv[2]}: {name}" for name in sorted(b.keys() - a.keys())]
    for name in sorted(a.keys() & b.keys()):
        if a[name][:2] != b[name][:2]:
            problems.append(f"{name}: {a[name][:2]} and {b[name][:2]}")
        elif a[name][2] != b[name][2]:
            count = sum(x != y for x, y in zip(a[name][2], b[name][2]))
            problems.append(f"{name}: {count} of {len(a[name][2])} bytes differ")
    if meta_a[:1] != meta_b[:1]:
        problems.append(f"metadata: {meta_a[:1]} and {meta_b[:1]}")
    print("\n".join(problems) or f"{len(a)} tensors, {sum(len(t[2]) for t in a.values())} bytes, equal")
    sys.exit(bool(problems))


main()
