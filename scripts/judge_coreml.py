#!/usr/bin/env python3
"""Hold a directory of Core ML packages against transformers, by an outside evaluator.

    judge_coreml.py EVALUATOR CHECKPOINT DIR [--tokens N] [--steps N] [--fp16] [--text FILE]

EVALUATOR is a Python file with a class `Program(package, function, fp16)` whose `run(inputs, state)` computes a
call by coremltools' operator definitions. The package's weights, dequantized, are put into transformers' model of
CHECKPOINT; both then read the same tokens: a prompt in chunks, the last one short and padded with garbage, then
single tokens. Printed: mean and largest KL divergence, the largest difference relative to the largest logit, how
often the best token is the same; the same against CHECKPOINT's own weights; and what padding and the way of cutting
the prompt change.

Needs torch, transformers, coremltools, safetensors, numpy.
"""
import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration


def module(path):
    spec = importlib.util.spec_from_file_location("evaluator", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class Package:
    """The functions of a directory behind one way to feed tokens."""

    def __init__(self, evaluator, directory, fp16):
        self.dir, self.fp16 = Path(directory), fp16
        programs = {}
        for package in sorted(self.dir.glob("*.mlpackage")):
            spec = evaluator.read_spec(evaluator.package_paths(str(package))[0])
            for name in spec.mlProgram.functions:
                key = package.stem if name == "main" else name
                programs[key] = evaluator.Program(str(package), name, fp16)
        self.lookup = programs.pop("embedding", None)
        self.programs = programs
        self.prefill = programs.get("prefill")
        self.decode = programs.get("decode") or programs.get("decoder")
        table = self.dir / "embedding.safetensors"
        self.table = load_file(table)["embed_tokens.weight"].float().numpy() if table.exists() else None
        self.reset()

    def reset(self):
        self.position, self.state, self.carried = 0, None, {}

    def shapes(self, program):
        shape = lambda var: tuple(var.sym_type.get_shape())  # noqa: E731
        return {name: shape(var) for name, var in program.inputs.items()}

    def call(self, program, ids, real):
        shapes = self.shapes(program)
        inputs = {"position": np.array([self.position], np.int32)}
        for name, shape in shapes.items():
            if name == "input_ids":
                inputs[name] = np.array([ids], np.int32)
            elif name == "inputs_embeds":
                inputs[name] = self.table[np.array([ids]) % len(self.table)]
            elif name == "input_embeds":
                row = self.lookup.run({"token_id": np.array([ids], np.int32)}, {})["embedding"]
                inputs[name] = row.astype(np.float32)
            elif name == "attention_mask" and len(shape) == 2:
                inputs[name] = np.array([[1] * real + [0] * (len(ids) - real)], np.int32)
            elif name == "attention_mask":
                past = np.arange(shape[-1]) <= self.position
                inputs[name] = np.where(past, 0.0, -1e4).astype(np.float32).reshape(shape)
            elif name != "position":
                inputs[name] = self.carried.get(name, np.zeros(shape, np.float32))
        if self.state is None:
            self.state = program.initial_state()
        outputs = program.run(inputs, self.state)
        self.position += real
        for name in shapes:
            stem, _, number = name.rpartition("_")
            for candidate in (f"{name}_out", f"{stem}_out_{number}"):
                if candidate in outputs:
                    self.carried[name] = outputs[candidate]
        return outputs["logits"].reshape(-1)

    def everything(self):
        """All caches, for comparisons."""
        return {**self.carried, **{f"state {name}": value for name, value in (self.state or {}).items()}}

    def read(self, ids, garbage=None):
        """Feeds a prompt by chunks; the logits after each chunk by position."""
        rows = {}
        if self.prefill is None:
            for token in ids:
                logits = self.step(token)
                rows[self.position - 1] = logits
            return rows
        size = next(s for n, s in self.shapes(self.prefill).items() if n == "attention_mask")[1]
        for start in range(0, len(ids), size):
            chunk = list(ids[start : start + size])
            padding = [0] * (size - len(chunk)) if garbage is None else garbage[: size - len(chunk)]
            logits = self.call(self.prefill, chunk + list(padding), len(chunk))
            rows[self.position - 1] = logits
        return rows

    def step(self, token):
        return self.call(self.decode, [token], 1)

    def weights(self):
        """Dequantized constants by the name of the tensor with underscores."""
        found = {}
        for program in [*self.programs.values(), *([self.lookup] if self.lookup else [])]:
            for op in program.function.operations:
                if op.op_type.startswith("constexpr_") or op.op_type == "const":
                    name = op.outputs[0].name
                    if name in found or "weight" not in name and "dt_bias" not in name and "A_log" not in name:
                        continue
                    if op.op_type == "const":
                        found[name] = np.asarray(op.outputs[0].val, np.float32)
                    else:
                        env = {}
                        for var in op.get_flattened_inputs():
                            if var.op is not None and var.op.op_type.startswith("constexpr_"):
                                program.run_op(var.op, env)
                        program.run_op(op, env)
                        found[name] = program.constants[op.outputs[0]]
        return found


def with_weights(model, constants):
    """Puts the package's numbers into a model of transformers."""
    state = model.state_dict()
    for key, tensor in state.items():
        name = key.split("language_model.")[-1].removeprefix("model.")
        if not (key.startswith("model.") or key.startswith("lm_head")) or "visual" in key:
            continue
        name = name.replace(".", "_")
        value = constants.get(name)
        if value is None:
            parts = []
            while f"{name}_part_{len(parts)}" in constants:
                parts.append(constants[f"{name}_part_{len(parts)}"])
            value = np.concatenate(parts) if parts else None
        if value is None and name == "lm_head_weight":
            continue
        assert value is not None, f"the package has no {name}"
        if name.endswith("norm_weight") and "linear_attn" not in name:
            value = value - 1
        if name.endswith("A_log"):
            value = np.log(-value)
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(value)).reshape(tensor.shape))
    return model


def load(path):
    nested = "text_config" in json.loads((Path(path) / "config.json").read_text())
    kind = Qwen3_5ForConditionalGeneration if nested else Qwen3_5ForCausalLM
    return kind.from_pretrained(path, dtype=torch.float32).eval()


def compare(label, reference, rows):
    positions = sorted(rows)
    found = np.stack([rows[p] for p in positions]).astype(np.float64)
    wanted = np.stack([reference[p] for p in positions]).astype(np.float64)
    log = lambda x: x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)  # noqa: E731
    p, q = log(wanted), log(found)
    kl = (np.exp(p) * (p - q)).sum(-1)
    relative = np.abs(found - wanted).max() / np.abs(wanted).max()
    top = (found.argmax(-1) == wanted.argmax(-1)).mean()
    print(f"{label}: mean KL {kl.mean():.3e}, largest {kl.max():.3e}, relative difference {relative:.2e}, "
          f"top-1 {100 * top:.2f} % of {len(positions)}")


def largest_difference(a, b):
    return max((float(np.abs(a[name] - b[name]).max()) for name in a), default=0.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluator")
    parser.add_argument("checkpoint")
    parser.add_argument("directory")
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--text", help="read these characters, tokenized, instead of random tokens")
    parser.add_argument("--repeat", action="store_true", help="one token again and again: the hardest keys")
    parser.add_argument("--by-token", action="store_true", help="read everything by single tokens")
    options = parser.parse_args()
    evaluator = module(options.evaluator)
    package = Package(evaluator, options.directory, options.fp16)
    model = load(options.checkpoint)
    vocab = model.get_input_embeddings().num_embeddings
    total = options.tokens + options.steps
    if options.text:
        from transformers import PreTrainedTokenizerFast
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(options.checkpoint) / "tokenizer.json"))
        ids = tokenizer(Path(options.text).read_text()[: 40 * total])["input_ids"][:total]
    elif options.repeat:
        ids = [7] * total
    else:
        ids = torch.randint(0, vocab, (total,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        original = model(input_ids=torch.tensor([ids])).logits[0].numpy()
        dequantized = with_weights(model, package.weights())(input_ids=torch.tensor([ids])).logits[0].numpy()

    prompt, rest = ids[: options.tokens], ids[options.tokens :]
    rows = {}
    if options.by_token:
        for token in prompt:
            logits = package.step(token)
            rows[package.position - 1] = logits
    else:
        rows.update(package.read(prompt))
    states = {name: value.copy() for name, value in package.everything().items()}
    for token in rest:
        logits = package.step(token)
        rows[package.position - 1] = logits
    compare("against the dequantized weights", dequantized, rows)
    compare("against the original weights   ", original, rows)

    if package.prefill is not None and not options.by_token:
        package.reset()
        last = package.read(prompt, garbage=[(37 * i + 11) % vocab for i in range(1024)])
        same = np.array_equal(last[len(prompt) - 1], rows[len(prompt) - 1])
        same = same and all(np.array_equal(states[n], v) for n, v in package.everything().items())
        print(f"garbage in padding: {'not one bit differs' if same else 'DIFFERENCES'}")
        package.reset()
        for token in prompt:
            logits = package.step(token)
        scale = np.abs(logits).max()
        print(f"chunks against single tokens: logits {np.abs(logits - last[len(prompt) - 1]).max() / scale:.2e} relative, "
              f"caches {largest_difference(states, package.everything()):.2e}")
        if not same:
            sys.exit(1)


if __name__ == "__main__":
    main()
