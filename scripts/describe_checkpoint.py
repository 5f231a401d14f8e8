#!/usr/bin/env python3
"""Describe a checkpoint for manifests/: its sizes and the names and shapes of its tensors.

    python scripts/describe_checkpoint.py CHECKPOINT ID [--pin] > manifests/NAME.json

With --pin the SHA-256 of every weight file is recorded too. Reads headers only; needs nothing but Python.
"""

import hashlib
import json
import struct
import sys
from pathlib import Path

SIZES = [
    "hidden_size", "num_hidden_layers", "layer_types", "vocab_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim",
    "linear_value_head_dim", "linear_conv_kernel_dim", "rms_norm_eps", "tie_word_embeddings",
]
LEFT_OUT = ("model.visual.", "mtp.")


def main():
    directory, identity = Path(sys.argv[1]), sys.argv[2]
    config = json.loads((directory / "config.json").read_text())
    text = {**config, **config.get("text_config", {})}
    tensors, left_out, hashes = {}, 0, {}
    for file in sorted(directory.glob("model*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if name.startswith(LEFT_OUT):
                left_out += 1
            else:
                tensors[name] = entry["shape"]
        if "--pin" in sys.argv:
            hashes[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    order = lambda name: [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(tensors[name])}" for name in sorted(tensors, key=order))
    fields = {"id": identity, "dimensions": {field: text[field] for field in SIZES}, "left_out": left_out}
    if hashes:
        fields["sha256"] = hashes
    head = json.dumps(fields, indent=2)[:-2]
    print(f'{head},\n  "tensors": {{\n{lines}\n  }}\n}}')


main()
