#!/usr/bin/env python3
"""Golden file for crates/reference: logits and hidden states of transformers in float32.

    reference.py CHECKPOINT OUT.safetensors --rows 8

A prompt of 150 fixed tokens (chunks of 64, and a rest), then 64 greedy tokens with the cache.
Tensors: input_ids [150], decoded_ids [64]; rows [n] and logits [n, vocab], row r predicting token r + 1, spread
evenly over both parts; hidden.{i} [hidden], the residual stream after layer i at the prompt's last token.
The metadata holds the SHA-256 of the checkpoint's first weight file.

Needs: torch, transformers (>= 5.2), safetensors.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkpoint", type=Path)
    ap.add_argument("out", type=Path)
    ap.add_argument("--rows", type=int, default=24)
    a = ap.parse_args()

    nested = "text_config" in json.loads((a.checkpoint / "config.json").read_text())
    cls = Qwen3_5ForConditionalGeneration if nested else Qwen3_5ForCausalLM
    torch.set_num_threads(1)
    model = cls.from_pretrained(a.checkpoint, dtype=torch.float32).eval()
    vocab = model.get_input_embeddings().num_embeddings
    ids = torch.randint(0, vocab, (150,), generator=torch.Generator().manual_seed(0))
    ids[100:120] = ids[99]  # a stretch of equal keys

    with torch.no_grad():
        out = model(input_ids=ids[None], use_cache=True, output_hidden_states=True)
        logits, cache, decoded = [out.logits[0]], out.past_key_values, []
        for _ in range(64):
            decoded.append(int(logits[-1][-1].argmax()))
            step = model(input_ids=torch.tensor([[decoded[-1]]]), past_key_values=cache, use_cache=True)
            logits.append(step.logits[0])
    logits = torch.cat(logits)
    rows = torch.linspace(0, len(logits) - 1, a.rows).round().long()
    tensors = {"input_ids": ids, "decoded_ids": torch.tensor(decoded), "rows": rows, "logits": logits[rows].contiguous()}
    # The last one is after the final norm; the layers' own outputs come before it.
    for i, h in enumerate(out.hidden_states[1:-1]):
        tensors[f"hidden.{i}"] = h[0, -1].contiguous()
    first = sorted(a.checkpoint.glob("model*.safetensors"))[0]
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    save_file(tensors, a.out, metadata={"checkpoint_sha256": digest})


if __name__ == "__main__":
    main()
