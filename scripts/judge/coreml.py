#!/usr/bin/env python3
"""Check Core ML packages of q35-convert with coremltools and transformers.

    coreml.py one CHECKPOINT DIR [--tokens N] [--steps N] [--fp16] [--text FILE] [--runner BIN]
    coreml.py matrix CONVERT CHECKPOINT... [--subset small|full|cover] [--runner BIN] [--keep DIR]

`one` checks a converted directory, `matrix` converts with every combination of options and checks each result, by
coremltools' loader, type inference and operator definitions (eval_mlpackage.py in this directory, or --evaluator with
another file of the same interface) and by transformers with the package's dequantized weights:

  check     findings of the loader, its type inference and the checks of names, records and descriptions; notes that
            apply to every package of a kind (see EXPECTED) are not counted
  KL        against transformers on the same weights: a prompt in chunks, the last one short and padded, then steps
  padding   garbage in padded positions must not change one bit of logits and caches
  chunks    the prompt by chunks against the same prompt token by token, logits and caches
  ours      --runner (the example `evaluate` of crates/mil-eval): the same calls in q35's own evaluator, largest
            difference of logits and caches relative to the largest value of each

A combination fails if it breaks a limit; the exit status is then 1. Needs torch, transformers, coremltools,
safetensors, numpy.
"""
import argparse
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file as load_numpy, save_file
from safetensors.torch import load_file
from transformers import Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration

# Limits: what the numbers may be at most. Two evaluators in float32 differ by their own rounding, which random weights
# amplify: on models whose float32 evaluation is itself further than that from float64, give --ours.
KL_LIMIT = {False: 1e-6, True: 1e-4}  # in f32, in fp16
OURS_LIMIT = 1e-5
CHUNKS_LIMIT = 1e-3

# Notes that every package of a kind has, whatever it is written like: the count of operations, and what the
# arrangement itself asks for (fp32 arithmetic, logits as wide as the vocabulary, speech-swift's many states).
EXPECTED = [r"\d+ ops, \d+ states, "]
EXPECTED_F32 = [r"\d+ float32 outputs"]
EXPECTED_WIDE = [r"activations with a dimension over 16384: (logits|head_\w+)\[[^\]]*\](, (logits|head_\w+)\[[^\]]*\])*$"]
EXPECTED_SWIFT = [r"state conv_state_\d+\[.*\]: last dimension is not a multiple of 32", r"\d+ states \(three or more",
                  r"\d+ float32 outputs"]


def module(path):
    spec = importlib.util.spec_from_file_location("evaluator", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class Package:
    """The functions of a directory behind one way to feed tokens."""

    def __init__(self, evaluator, directory, fp16):
        self.dir, self.fp16 = Path(directory), fp16
        programs, self.places = {}, {}
        for package in sorted(self.dir.glob("*.mlpackage")):
            spec = evaluator.read_spec(evaluator.package_paths(str(package))[0])
            for name in spec.mlProgram.functions:
                key = package.stem if name == "main" else name
                programs[key] = evaluator.Program(str(package), name, fp16)
                self.places[key] = (package, name)
        self.lookup = programs.pop("embedding", None)
        self.programs = programs
        self.prefill = programs.get("prefill")
        self.decode = programs.get("decode") or programs.get("decoder")
        table = self.dir / "embedding.safetensors"
        self.table = self.host_table(load_file(table)) if table.exists() else None
        self.recorded = None
        self.reset()

    @staticmethod
    def host_table(tensors):
        codes, scales = tensors["embed_tokens.weight"].float(), tensors["embed_tokens.scales"].float()
        return (codes * scales.repeat_interleave(codes.shape[1] // scales.shape[1], 1)).numpy()

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
        if self.recorded is not None:
            self.recorded.append((program, inputs))
        if self.state is None:
            self.state = program.initial_state()
        outputs = program.run(inputs, self.state)
        self.position += real
        for name in shapes:
            source = self.carried_from(name, outputs)
            if source:
                self.carried[name] = outputs[source]
        return outputs["logits"].reshape(-1)

    @staticmethod
    def carried_from(name, outputs):
        """The output that is the input `name` of the next call."""
        stem, _, number = name.rpartition("_")
        return next((known for known in (f"{name}_out", f"{stem}_out_{number}") if known in outputs), None)

    def everything(self):
        """All caches, for comparisons."""
        return {**self.carried, **{f"state.{name}": value for name, value in (self.state or {}).items()}}

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
        if self.table is not None:
            found.setdefault("embed_tokens_weight", self.table)
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


class Reference:
    """transformers on a checkpoint: its own weights, then any package's."""

    def __init__(self, checkpoint):
        nested = "text_config" in json.loads((Path(checkpoint) / "config.json").read_text())
        kind = Qwen3_5ForConditionalGeneration if nested else Qwen3_5ForCausalLM
        self.model = kind.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.vocab = self.model.get_input_embeddings().num_embeddings

    def logits(self, ids, constants=None):
        with torch.no_grad():
            model = self.model if constants is None else with_weights(self.model, constants)
            return model(input_ids=torch.tensor([ids])).logits[0].numpy()


def compare(reference, rows):
    """Mean and largest KL, largest difference relative to the largest logit, top-1 agreement."""
    positions = sorted(rows)
    found = np.stack([rows[p] for p in positions]).astype(np.float64)
    wanted = np.stack([reference[p] for p in positions]).astype(np.float64)
    log = lambda x: x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)  # noqa: E731
    p, q = log(wanted), log(found)
    kl = (np.exp(p) * (p - q)).sum(-1)
    return {
        "kl": float(kl.mean()), "largest_kl": float(kl.max()),
        "relative": float(np.abs(found - wanted).max() / np.abs(wanted).max()),
        "top1": float((found.argmax(-1) == wanted.argmax(-1)).mean()), "rows": len(positions),
    }


def relative(found, wanted):
    """Largest difference relative to the largest value."""
    scale = float(np.abs(wanted).max())
    return float(np.abs(np.asarray(found, np.float32) - wanted).max()) / max(scale, 1e-30)


def largest_relative(a, b):
    return max((relative(a[name], b[name]) for name in b if np.abs(b[name]).max() > 0), default=0.0)


class Runner:
    """q35's own evaluator on the calls that a package has recorded."""

    def __init__(self, binary, package, fp16):
        self.binary, self.package, self.fp16 = binary, package, fp16

    def differences(self, recorded, rows, caches):
        """Runs what was recorded, function by function in order, and compares logits and final caches."""
        worst, carried, state_file = 0.0, {}, None
        logits = []
        with tempfile.TemporaryDirectory() as work:
            for index, (program, group) in enumerate(itertools.groupby(recorded, key=lambda call: call[0])):
                calls = [inputs for _, inputs in group]
                outputs = self.run(Path(work), index, program, calls, carried, state_file)
                logits.extend(outputs["logits"].reshape(len(calls), -1))
                carried = {name: outputs[source] for name in calls[0]
                           if (source := Package.carried_from(name, outputs))}
                state_file = Path(work) / f"out{index}.safetensors"
            found = {**carried, **{name: value for name, value in outputs.items() if name.startswith("state.")}}
        for row, wanted in zip(logits, rows):
            worst = max(worst, relative(row, wanted))
        return worst, largest_relative({name: found[name] for name in caches}, caches)

    def run(self, work, index, program, calls, carried, state_file):
        key = next(key for key, known in self.package.programs.items() if known is program)
        package, function = self.package.places[key]
        names = [v.name for v in program.function.outputs] + list(program.output_names)
        carries = {name: source for name in calls[0] if (source := Package.carried_from(name, names))}
        tensors = {}
        for name in calls[0]:
            if name in carries:
                tensors[name] = np.ascontiguousarray(carried.get(name, calls[0][name]), np.float32)
            else:
                tensors[name] = np.ascontiguousarray(np.stack([call[name] for call in calls]))
        given, result = work / f"in{index}.safetensors", work / f"out{index}.safetensors"
        save_file(tensors, str(given))
        command = [self.binary, package, "--function", function, "--inputs", given, "--outputs", result]
        command += [part for name, source in carries.items() for part in ("--carry", f"{source}:{name}")]
        command += ["--state-in", state_file] if state_file else []
        command += ["--half"] if self.fp16 else []
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{package.name}: {done.stderr.strip()}")
        return load_numpy(result)


def findings(evaluator, directory, f32, swift):
    """What the checks say of all packages: errors, and notes that are not expected of such a package."""
    expected = EXPECTED + EXPECTED_WIDE + (EXPECTED_F32 if f32 else []) + (EXPECTED_SWIFT if swift else [])
    errors, notes = [], []
    for package in sorted(Path(directory).glob("*.mlpackage")):
        checker = evaluator.Checker(str(package)).run()
        errors += [f"{package.name}: {text}" for text in checker.errors]
        notes += [f"{package.name}: {text}" for text in checker.notes
                  if not any(re.search(pattern, text) for pattern in expected)]
    return errors, notes


def judge(evaluator, reference_of, directory, ids, steps, fp16, runner, caches_by_token=True):
    """All figures of one directory. `reference_of(constants)` gives transformers' logits of `ids`."""
    package = Package(evaluator, directory, fp16)
    prompt, rest = ids[: len(ids) - steps], ids[len(ids) - steps :]
    package.recorded = []
    rows = package.read(prompt)
    after_prompt = {name: value.copy() for name, value in package.everything().items()}
    for token in rest:
        logits = package.step(token)
        rows[package.position - 1] = logits
    recorded, package.recorded = package.recorded, None
    figures = {}
    if runner:
        ordered = [rows[position] for position in sorted(rows)]
        figures["ours"], figures["ours_caches"] = Runner(runner, package, fp16).differences(
            recorded, ordered, package.everything())
    figures |= compare(reference_of(package.weights()), rows)
    figures["rows_by_position"] = rows
    if package.prefill is not None:
        package.reset()
        vocab = len(next(iter(rows.values())))
        last = package.read(prompt, garbage=[(37 * i + 11) % vocab for i in range(1024)])[len(prompt) - 1]
        same = np.array_equal(last, rows[len(prompt) - 1])
        figures["padding"] = same and all(np.array_equal(after_prompt[n], v) for n, v in package.everything().items())
        if caches_by_token:
            package.reset()
            for token in prompt:
                logits = package.step(token)
            figures["chunks"] = relative(logits, last)
            figures["chunks_caches"] = largest_relative(package.everything(), after_prompt)
    return figures


def complaints(figures, errors, notes, fp16, ours=OURS_LIMIT):
    """Which limits are broken."""
    found = [f"error: {text}" for text in errors] + [f"note: {text}" for text in notes]
    if figures["kl"] > KL_LIMIT[fp16]:
        found.append(f"KL {figures['kl']:.2e} against its own weights, at most {KL_LIMIT[fp16]:.0e}")
    if not fp16:
        found += [f"{name} {figures[name]:.2e}, at most {ours:.0e}"
                  for name in ("ours", "ours_caches") if figures.get(name, 0) > ours]
        found += [f"{name} {figures[name]:.2e}, at most {CHUNKS_LIMIT:.0e}"
                  for name in ("chunks", "chunks_caches") if figures.get(name, 0) > CHUNKS_LIMIT]
    if figures.get("padding") is False:
        found.append("garbage in padded positions changes the result")
    return found


def random_ids(vocab, count):
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(0)).tolist()


# ------------------------------------------------------------------------------ the matrix

CHOICES = {
    "layout": ["multifunction", "split"],
    "cache": ["state", "io"],
    "encoding": ["channel", "block32", "lut", "affine"],
    "embedding": ["model", "host"],
    "compute": ["f16", "f32"],
    "head_splits": [None, 3],
}


def combinations(subset):
    """Options of every conversion to judge. `full` has all of them; `cover` every pair of two options' values at least
    once or twice; `small` each value once or twice."""
    names = list(CHOICES)
    every = [dict(zip(names, values)) for values in itertools.product(*CHOICES.values())]
    swift = [{"for": "speech-swift", "encoding": encoding, "compute": compute, "head_splits": splits}
             for encoding in CHOICES["encoding"] for compute in CHOICES["compute"] for splits in CHOICES["head_splits"]]
    if subset == "full":
        return every + swift
    if subset == "cover":
        return pairs(every) + [swift[0], swift[3], swift[9], swift[-2]]
    chosen, seen = [], set()
    for options in every:
        fresh = {item for item in options.items() if item not in seen}
        if len(fresh) > 1 or not chosen:
            chosen.append(options)
            seen |= fresh
    missing = [options for options in every for item in options.items() if item not in seen][:2]
    return chosen + missing + [swift[0], swift[-1]]


def pairs(every):
    """Greedily, until every two values of two options have met."""
    met = lambda options: set(itertools.combinations(options.items(), 2))  # noqa: E731
    left = set().union(*map(met, every))
    chosen = []
    while left:
        best = max(every, key=lambda options: len(met(options) & left))
        chosen.append(best)
        left -= met(best)
    return chosen


def arguments(options):
    return [part for name, value in options.items() if value is not None
            for part in (f"--{name.replace('_', '-')}", str(value))]


def label(options):
    return " ".join(str(value) for name, value in options.items() if value is not None and name != "head_splits") + (
        f" splits={options['head_splits']}" if options.get("head_splits") else "")


def matrix(a, evaluator):
    failed = 0
    cells = combinations(a.subset)
    work = Path(a.keep or tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    for checkpoint in a.checkpoints:
        reference = None if a.check_only else Reference(checkpoint)
        ids = [] if a.check_only else random_ids(reference.vocab, a.tokens + a.steps)
        known = {}
        print(f"{checkpoint}: {len(cells)} combinations", flush=True)
        for number, options in enumerate(cells):
            started = time.time()
            out = work / f"{Path(checkpoint).name}-{number}"
            command = [a.convert, "coreml", "--model", checkpoint, "--out", out, "--context", str(a.context),
                       "--no-verify", "--quiet", "--force", *arguments(options)]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
            if done.returncode != 0:
                failed += 1
                print(f"FAIL {label(options)}: {done.stderr.strip()}", flush=True)
                continue
            swift, f32 = "for" in options, options["compute"] == "f32"

            def logits_of(constants):
                # All encodings but block32 stand for the same numbers.
                key = (options["encoding"] == "block32", options["compute"])
                if key not in known or a.every_weight:
                    fresh = reference.logits(ids, constants)
                    assert key not in known or np.array_equal(known[key], fresh), "the encodings' numbers differ"
                    known[key] = fresh
                return known[key]

            errors, notes = findings(evaluator, out, f32, swift)
            if a.check_only:
                broken = [f"error: {text}" for text in errors] + [f"note: {text}" for text in notes]
                failed += bool(broken)
                print("\n       ".join([f"{'FAIL' if broken else 'ok  '} {label(options)}", *broken]), flush=True)
                if not a.keep:
                    shutil.rmtree(out)
                continue
            figures = judge(evaluator, logits_of, out, ids, a.steps, a.fp16, a.runner)
            broken = complaints(figures, errors, notes, a.fp16, a.ours)
            failed += bool(broken)
            number_of = lambda name: f"{figures[name]:.1e}" if name in figures else "-"  # noqa: E731
            print(f"{'FAIL' if broken else 'ok  '} {label(options):58} KL {number_of('kl')}  ours {number_of('ours')} / "
                  f"{number_of('ours_caches')}  chunks {number_of('chunks')} / {number_of('chunks_caches')}  "
                  f"padding {'-' if 'padding' not in figures else 'same' if figures['padding'] else 'DIFFERS'}  "
                  f"top-1 {100 * figures['top1']:.0f} %  {time.time() - started:.0f} s", flush=True)
            for text in broken:
                print(f"       {text}", flush=True)
            if not a.keep:
                shutil.rmtree(out)
    if not a.keep:
        shutil.rmtree(work)
    print(f"{failed} of {len(cells) * len(a.checkpoints)} failed")
    return failed == 0


def one(a, evaluator):
    reference = Reference(a.checkpoint)
    total = a.tokens + a.steps
    if a.text:
        from transformers import PreTrainedTokenizerFast
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(a.checkpoint) / "tokenizer.json"))
        ids = tokenizer(Path(a.text).read_text()[: 40 * total])["input_ids"][:total]
    else:
        ids = [7] * total if a.repeat else random_ids(reference.vocab, total)
    original = reference.logits(ids)
    swift = (Path(a.directory) / "decoder.mlpackage").exists()
    errors, notes = findings(evaluator, a.directory, a.f32, swift)
    figures = judge(evaluator, lambda constants: reference.logits(ids, constants), a.directory, ids, a.steps, a.fp16,
                    a.runner, not a.by_chunk_only)
    rows = figures.pop("rows_by_position")
    own = {name: figures.pop(name) for name in ("kl", "largest_kl", "relative", "top1", "rows")}
    for title, numbers in (("its dequantized weights", own), ("the original weights", compare(original, rows))):
        print(f"against {title}: mean KL {numbers['kl']:.3e}, largest {numbers['largest_kl']:.3e}, relative difference "
              f"{numbers['relative']:.2e}, top-1 {100 * numbers['top1']:.2f} % of {numbers['rows']}")
    for name, value in figures.items():
        print(f"{name}: {value if isinstance(value, bool) else f'{value:.2e}'}")
    broken = complaints({**figures, **own}, errors, notes, a.fp16, a.ours)
    print("\n".join(broken))
    return not broken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    single, several = commands.add_parser("one"), commands.add_parser("matrix")
    for command in (single, several):
        command.add_argument("--evaluator", default=Path(__file__).with_name("eval_mlpackage.py"))
        command.add_argument("--runner", help="q35's evaluator as a program")
        command.add_argument("--ours", type=float, default=OURS_LIMIT, help="largest difference to the runner allowed")
        command.add_argument("--tokens", type=int, default=150)
        command.add_argument("--steps", type=int, default=16)
        command.add_argument("--fp16", action="store_true", help="round what the package declares as fp16")
    single.add_argument("checkpoint")
    single.add_argument("directory")
    single.add_argument("--text", help="read these characters, tokenized, instead of random tokens")
    single.add_argument("--repeat", action="store_true", help="one token again and again: the hardest keys")
    single.add_argument("--f32", action="store_true", help="converted with --compute f32")
    single.add_argument("--by-chunk-only", action="store_true", help="leave out the comparison with single tokens")
    several.add_argument("convert", help="the program q35-convert")
    several.add_argument("checkpoints", nargs="+")
    several.add_argument("--subset", choices=["small", "cover", "full"], default="full")
    several.add_argument("--context", type=int, default=256)
    several.add_argument("--check-only", action="store_true", help="only what the loader and the checks find")
    several.add_argument("--every-weight", action="store_true", help="ask transformers for every combination anew")
    several.add_argument("--keep", help="leave the packages in this directory")
    a = parser.parse_args()
    evaluator = module(a.evaluator)
    sys.exit(0 if (matrix if a.command == "matrix" else one)(a, evaluator) else 1)


if __name__ == "__main__":
    main()
