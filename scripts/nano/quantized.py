"""What mlx-lm's own round-to-nearest conversions (group 64) of a checkpoint lose, on prose and on replies.

    python quantized.py ../../crates/nano/model SCRATCH [--bits 8 5 4] [--threads N]

mlx-lm converts. Its CPU backend runs the delta rule token by token, so the quantized weights are dequantized by
MLX into the float32 training twin (evaluate.py compares that with transformers), which computes every figure.
"""
import argparse
import json
import math
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
import torch.nn.functional as F
from mlx_lm import convert
from safetensors.torch import load_file
from tokenizers import Tokenizer

import model as M
from dialogues import prompt
from evaluate import EVAL
from score import CONTEXT, padded

PREFIX = "model.language_model."
GROUP = 64


def float_state(source):
    tensors = load_file(source / "model.safetensors")
    return {k[len(PREFIX):]: v.float() for k, v in tensors.items() if k.startswith(PREFIX)}


def quantized_state(source, directory, bits):
    """(state dict, bits per quantized weight); tensors that mlx-lm leaves alone come from the float checkpoint."""
    state, packed = float_state(source), {}
    for file in sorted(directory.glob("*.safetensors")):
        packed.update(mx.load(str(file)))
    size = count = 0
    for key in [k for k in packed if k.endswith(".scales")]:
        base = key.removesuffix(".scales")
        parts = [packed[base + end] for end in (".weight", ".scales", ".biases")]
        value = mx.dequantize(*parts, group_size=GROUP, bits=bits)
        name = base.split("language_model.model.")[-1] + ".weight"
        assert state[name].shape == value.shape, name
        state[name] = torch.from_numpy(np.array(value.astype(mx.float32)))
        size, count = size + 8 * sum(p.nbytes for p in parts), count + value.size
    return state, size / count


def prose_rows(tokenizer, path):
    ids = tokenizer.encode(path.read_text("utf-8"), add_special_tokens=False).ids
    for at in range(0, len(ids) - CONTEXT + 1, CONTEXT):
        yield torch.tensor([ids[at:at + CONTEXT]]), 0, CONTEXT - 1


def reply_rows(tokenizer, path):
    for line in path.open(encoding="utf-8"):
        item = json.loads(line)
        head, reply = (tokenizer.encode(t, add_special_tokens=False).ids
                       for t in (prompt(item["messages"], item["thinking"]), item["reply"] + "<|im_end|>"))
        if not item["thinking"] and len(head) + len(reply) <= CONTEXT:
            ids = head + reply
            yield padded([ids], -(-len(ids) // M.CHUNK) * M.CHUNK, "cpu"), len(head) - 1, len(ids) - 1


@torch.no_grad()
def compare(models, rows):
    """Per model (the float one first): perplexity, mean KL(float || model), share of equal greedy tokens."""
    sums, count = [[0.0, 0.0, 0] for _ in models], 0
    for ids, first, last in rows:
        want, reference = ids[0, first + 1:last + 1], None
        count += len(want)
        for row, trunk in zip(sums, models):
            logits = F.linear(trunk(ids)[0, first:last], trunk.embed_tokens.weight).log_softmax(-1)
            reference = logits if reference is None else reference
            row[0] -= logits.gather(1, want[:, None]).sum().item()
            row[1] += (reference.exp() * (reference - logits)).sum().item()
            row[2] += (reference.argmax(-1) == logits.argmax(-1)).sum().item()
    return [(math.exp(nll / count), kl / count, same / count) for nll, kl, same in sums], count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 5, 4])
    parser.add_argument("--dialogues", type=Path, default=EVAL / "dialogues.jsonl")
    parser.add_argument("--prose", type=Path, default=EVAL / "prose.txt")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    mx.set_default_device(mx.cpu)
    named = [("float", 16.0, float_state(args.model))]
    for bits in args.bits:
        target = args.scratch / f"rtn{bits}"
        shutil.rmtree(target, ignore_errors=True)
        convert(str(args.model), str(target), quantize=True, q_group_size=GROUP, q_bits=bits)
        state, width = quantized_state(args.model, target, bits)
        named.append((f"INT{bits}", width, state))
    models = []
    for _, _, state in named:
        models.append(M.Trunk().eval())
        models[-1].load_state_dict(state)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    for what, rows in (("prose", prose_rows(tokenizer, args.prose)), ("replies", reply_rows(tokenizer, args.dialogues))):
        results, count = compare(models, rows)
        for (name, width, _), (ppl, kl, same) in zip(named, results):
            print(f"{what}, {count} tokens: {name} at {width:.3g} bits: perplexity {ppl:.4f} "
                  f"({100 * (ppl / results[0][0] - 1):+.2f} %), KL {kl:.2e}, top-1 {100 * same:.2f} %", flush=True)


if __name__ == "__main__":
    main()
