#!/usr/bin/env python3
"""Golden file of mlx-lm's conversion: name, dtype, shape and hash of every tensor that it writes.

    python scripts/goldens/mlx_conversion.py CHECKPOINT OUT.json BITS GROUP_SIZE

Its load_model, quantize_model and save_model do the work, on the CPU. Made with mlx 0.32.4 and mlx-lm 0.32.2.
"""

import hashlib
import json
import struct
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
from mlx_lm.utils import load_model, quantize_model, save_config, save_model


def main():
    mx.set_default_device(mx.cpu)
    source, out, bits, group_size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    with tempfile.TemporaryDirectory() as directory:
        model, config = quantize_model(*load_model(source, lazy=True), group_size, bits)
        save_model(directory, model, donate_model=True)
        save_config(config, Path(directory) / "config.json")
        config = json.loads((Path(directory) / "config.json").read_text())
        index = json.loads((Path(directory) / "model.safetensors.index.json").read_text())
        data = (Path(directory) / "model.safetensors").read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__")
    tensors = {}
    for name in sorted(header):
        begin, end = header[name]["data_offsets"]
        digest = hashlib.sha256(data[start + begin : start + end]).hexdigest()[:16]
        tensors[name] = [header[name]["dtype"], header[name]["shape"], digest]
    golden = {
        "mlx-lm": version("mlx-lm"), "bits": bits, "group_size": group_size, "metadata": metadata,
        "index_metadata": index["metadata"], "config": config,
    }
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in tensors.items())
    out.write_text(f'{json.dumps(golden, indent=2)[:-2]},\n  "tensors": {{\n{lines}\n  }}\n}}\n')


main()
