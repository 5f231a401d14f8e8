#!/usr/bin/env python3
"""q35-convert mlx against mlx-lm's conversion of the same checkpoint, in alternating runs.

    python scripts/bench/convert.py CHECKPOINT --q35 target/release/q35-convert --python PYTHON [--rounds 5]

PYTHON is an interpreter with mlx and mlx-lm. Both sides quantize to 4 bits in groups of 64 and write to a temporary
directory, which is removed. q35 also hashes source and output, but runs without its parity check, which has no
counterpart. Reports the median and all times, the peaks of anonymous resident memory (RssAnon) and of mapped file pages
(RssFile, reclaimable), sampled from /proc every 5 ms (Linux only), and the equality of the tensors. Needs only Python.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MLX_LM = """
import sys
from pathlib import Path
import mlx.core as mx
from mlx_lm.utils import load_model, quantize_model, save_config, save_model
mx.set_default_device(mx.cpu)
out = Path(sys.argv[2])
model, config = quantize_model(*load_model(Path(sys.argv[1]), lazy=True), 64, 4)
out.mkdir()
save_model(out, model, donate_model=True)
save_config(config, out / "config.json")
"""


def measure(command):
    """Seconds, and peaks of RssAnon and RssFile in MB."""
    peaks = {"RssAnon": 0, "RssFile": 0}
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        try:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                field, _, value = line.partition(":")
                if field in peaks:
                    peaks[field] = max(peaks[field], int(value.split()[0]) / 1024 * 1.048576)
        except (FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.005)
    seconds = time.monotonic() - start
    if process.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{process.stderr.read().decode()}")
    return seconds, peaks["RssAnon"], peaks["RssFile"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--q35", required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="bench-convert-"))
    try:
        outputs = {"q35": work / "q35", "mlx-lm": work / "mlx-lm"}
        commands = {
            "q35": [arguments.q35, "mlx", "--recipe", "rtn", "--model", arguments.checkpoint, "--out", str(outputs["q35"]), "--no-verify", "--json"],
            "mlx-lm": [arguments.python, "-c", MLX_LM, arguments.checkpoint, str(outputs["mlx-lm"])],
        }
        runs = {name: [] for name in commands}
        for _ in range(arguments.rounds):
            for name, command in commands.items():
                shutil.rmtree(outputs[name], ignore_errors=True)
                runs[name].append(measure(command))
        for name, measured in runs.items():
            seconds = [run[0] for run in measured]
            print(f"{name:7} median {statistics.median(seconds):6.2f} s of {[round(s, 2) for s in seconds]}, "
                  f"own memory {max(run[1] for run in measured):5.0f} MB, mapped {max(run[2] for run in measured):5.0f} MB")
        ratio = statistics.median(r[0] for r in runs["q35"]) / statistics.median(r[0] for r in runs["mlx-lm"])
        print(f"time of q35 / mlx-lm: {ratio:.2f}")
        compare = Path(__file__).parent.parent / "judge/compare_tensors.py"
        sys.stdout.flush()
        sys.exit(subprocess.run([sys.executable, compare, *map(str, outputs.values())]).returncode)
    finally:
        shutil.rmtree(work)


main()
