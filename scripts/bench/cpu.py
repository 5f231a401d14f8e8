#!/usr/bin/env python3
"""CPU speed against llama.cpp on the same checkpoint and machine, in alternating runs.

    scripts/bench/cpu.py CHECKPOINT WORK [--peer DIR] [--peer-script SCRIPT] [--threads 1 2] [--rounds 5] [--out FILE]

CHECKPOINT: a float checkpoint in Hugging Face layout. WORK: directory of the conversions (created when absent).
--peer: llama.cpp: DIR/build/bin/llama-bench and DIR/model-{Q4_0,Q4_K_M,Q8_0}.gguf of the same checkpoint.
--peer-script: builds that directory when absent, called as SCRIPT PYTHON DIR CHECKPOINT.

Every round runs each side once, one right after the other, so that a change of the machine's speed affects both; a long
and a short context are decoded alternately in one process. Model files are dropped from the page cache before, as after
a reboot: how a file was read determines the size of its pages, and with it up to a third of the speed.
Prints medians over rounds and the median of the rounds' ratios; the file holds every measurement. The read bandwidth is
the maximum over all rounds, since no disturbance can raise it.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PREFILL, DECODE = 512, 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--peer-script", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-depth", action="store_true", help="leave out the context of 8,192 tokens")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    build()
    models = {bits: convert(options.checkpoint, options.work, bits) for bits in (4, 8)}
    peer = find_peer(options)
    forget([*options.work.glob("*/*.safetensors"), *(peer.glob("*.gguf") if peer else [])])
    report = {
        "machine": machine(),
        "checkpoint": options.checkpoint.name,
        "rounds": options.rounds,
        "threads": {},
    }
    for threads in options.threads:
        report["threads"][threads] = measure(options, models, peer, threads)
    report["first_token"] = first_token(models, peer, max(options.threads), options.rounds)
    report["memory"] = memory(models[4], max(options.threads))
    report["fast_against_exact"] = modes(models[4])
    show(report)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def build():
    # The whole workspace, as everyone builds it: parts of it are built with other features, from the beginning.
    command = ["cargo", "build", "--release", "--quiet", "--workspace", "--bins", "--examples"]
    subprocess.run(command, cwd=ROOT, check=True)


def program(name):
    target = json.loads(
        subprocess.run(
            ["cargo", "metadata", "--format-version", "1", "--no-deps"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout
    )["target_directory"]
    return Path(target) / "release" / name


def convert(checkpoint, work, bits):
    out = work / f"int{bits}-g64"
    if not out.exists():
        work.mkdir(parents=True, exist_ok=True)
        command = [program("q35-convert"), "mlx", "--model", checkpoint, "--out", out, "--bits", bits, "--no-verify"]
        subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
    return out


def forget(files):
    """Has the system drop what it holds of files."""
    for file in files:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def find_peer(options):
    if not options.peer:
        return None
    bench = options.peer / "build/bin/llama-bench"
    if not bench.exists() and options.peer_script:
        subprocess.run(
            ["bash", options.peer_script, sys.executable, options.peer, options.checkpoint], check=True
        )
    if not bench.exists():
        sys.exit(f"{bench} is not there; give --peer-script to build it")
    return options.peer


def ours(model, threads, prefill, decode):
    command = [program("q35-chat"), "bench", "--model", model, "-p", prefill, "-n", decode]
    command += ["-t", threads, "-r", 1, "--json"]
    return json.loads(run(command))


def llama(peer, name, threads, prefill, decode):
    """Tokens per second, prefill and decode; None where nothing was asked for."""
    command = [peer / "build/bin/llama-bench", "-m", peer / f"model-{name}.gguf", "-t", threads]
    command += ["-p", prefill, "-n", decode, "-r", 1, "-o", "json"]
    speeds = {"prefill_tok_s": None, "decode_tok_s": None}
    for row in json.loads(run(command)):
        speeds["prefill_tok_s" if row["n_prompt"] else "decode_tok_s"] = row["avg_ts"]
    return speeds


def run(command):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


def bandwidth(threads):
    return json.loads(run([program("examples/bandwidth"), threads]))


def measure(options, models, peer, threads):
    sides = {
        "int4": lambda: ours(models[4], threads, PREFILL, DECODE),
        "int8": lambda: ours(models[8], threads, PREFILL, DECODE),
    }
    if peer:
        for name in ("Q4_0", "Q8_0", "Q4_K_M"):
            sides[name] = lambda name=name: llama(peer, name, threads, PREFILL, DECODE)
    order = ["int4", "Q4_0", "int8", "Q8_0", "Q4_K_M"]
    result = {"bandwidth": [], "sides": {name: [] for name in order if name in sides}, "contexts": []}
    for number in range(options.rounds):
        result["bandwidth"].append(bandwidth(threads))
        for name, samples in result["sides"].items():
            samples.append(sides[name]())
        if not options.skip_depth:
            result["contexts"].append(json.loads(run([program("examples/contexts"), models[4], threads, 9])))
        print(f"{threads} threads: round {number + 1} of {options.rounds}", file=sys.stderr)
    result["summary"] = summary(result)
    return result


def summary(result):
    read = max(sample["read_gb_s"] for sample in result["bandwidth"])
    sides = result["sides"]
    speeds = {
        name: {
            key: statistics.median(sample[key] for sample in samples)
            for key in ("prefill_tok_s", "decode_tok_s")
            if samples[0][key] is not None
        }
        for name, samples in sides.items()
    }

    def ratio(mine, theirs, key):
        if mine not in sides or any(name not in sides for name in theirs):
            return None
        rounds = range(len(sides[mine]))
        return statistics.median(
            sides[mine][i][key] / max(sides[name][i][key] for name in theirs) for i in rounds
        )

    peers = ["Q4_0", "Q8_0", "Q4_K_M"]
    out = {"read_gb_s": read, "speeds": speeds, "ratios": {}}
    for name, counterpart in (("int4", "Q4_0"), ("int8", "Q8_0")):
        limit = read * 1e9 / sides[name][0]["weight_bytes_per_token"]
        out["ratios"][f"{name} decode / {counterpart}"] = ratio(name, [counterpart], "decode_tok_s")
        out["ratios"][f"{name} decode / bandwidth limit"] = speeds[name]["decode_tok_s"] / limit
        out["ratios"][f"{name} prefill / best of llama.cpp"] = ratio(name, peers, "prefill_tok_s")
    if result["contexts"]:
        out["ratios"]["int4 decode at 8192 / at 128"] = statistics.median(sample["ratio"] for sample in result["contexts"])
    return out


def first_token(models, peer, threads, rounds):
    """Seconds from the start of the process to its end after a prompt of 32 tokens and one new one."""
    mine = [program("q35-chat"), "bench", "--model", models[4], "-p", 32, "-n", 1, "-r", 1]
    sides = {"int4": [*mine, "-t", threads, "--no-warmup", "--json"]}
    if peer:
        theirs = [peer / "build/bin/llama-bench", "-m", peer / "model-Q4_0.gguf", "-t", threads]
        sides["Q4_0"] = [*theirs, "-p", 32, "-n", 1, "-r", 1, "--no-warmup", "-o", "json"]
    seconds = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, command in sides.items():
            start = time.perf_counter()
            run(command)
            seconds[name].append(time.perf_counter() - start)
    # The first round warms the file cache.
    return {name: {"median_s": statistics.median(all_[1:]), "all_s": all_[1:]} for name, all_ in seconds.items()}


def memory(model, threads):
    """Resident memory after filling a context of 2,048 tokens."""
    sample = ours(model, threads, 2048, 0)
    over = sample["resident_bytes"] - sample["mapped_bytes"] if sample["resident_bytes"] else None
    keys = ("resident_bytes", "mapped_bytes", "owned_bytes", "cache_bytes", "scratch_bytes")
    return {"over_weights_bytes": over, **{key: sample[key] for key in keys}}


def modes(model):
    return json.loads(run([program("examples/modes"), model, 128]))


def machine():
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return {"system": platform.platform(), "processor": names[0] if names else platform.processor(), "cores": len(names)}


def show(report):
    print(f"{report['machine']['processor']}, {report['machine']['cores']} cores; {report['rounds']} rounds")
    for threads, result in report["threads"].items():
        values = result["summary"]
        print(f"\n{threads} thread(s), memory read at {values['read_gb_s']:.1f} GB/s")
        print(f"  {'':14}{'prefill':>9}{'decode':>9}  tokens/s, median")
        for name, speeds in values["speeds"].items():
            cells = (speeds.get(key) for key in ("prefill_tok_s", "decode_tok_s"))
            print(f"  {name:14}" + "".join(f"{cell:9.1f}" if cell else f"{'':9}" for cell in cells))
        for name, ratio in values["ratios"].items():
            if ratio is not None:
                print(f"  {name:34}{ratio:6.2f}")
    print("\nprocess start to first token, 32-token prompt")
    for name, times in report["first_token"].items():
        print(f"  {name:14}{times['median_s']:9.3f} s")
    held = report["memory"]
    if held["over_weights_bytes"] is not None:
        print(f"resident beyond the weights at 2,048 tokens: {held['over_weights_bytes'] / 1e6:.1f} MB")
    print(f"fast against exact: mean KL {report['fast_against_exact']['kl_mean']:.2e}")


if __name__ == "__main__":
    main()
