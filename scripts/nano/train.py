"""Train q35-nano's trunk, then its MTP head on the frozen trunk, then score both. One GPU, one time box.

    python train.py --prose data/prose.txt.xz --out TRAINED --deadline 560

Writes trunk.safetensors and mtp.safetensors (as export.py wants them), log.jsonl and scores.json to --out.
The rate falls with the share of the time box that has passed; with --steps it falls with the steps instead,
and a run can be repeated on a machine of another speed.
"""
import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import model as M
from optimiser import Optimiser
from rows import Rows
from score import score

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "crates/nano/model"
EVAL = ROOT / "crates/nano/eval"
FLOAT32 = ("A_log", "linear_attn.norm.weight")  # kept in float32, as Qwen3.5's checkpoints keep them
SCORING_SEC = 20
SAVE_EVERY_SEC = 120


def rate_at(progress, peak, warmup):
    """Linear up over `warmup` of the run, then linear down to one hundredth."""
    if progress < warmup:
        return peak * (progress + 1e-4) / warmup
    return peak * (0.01 + 0.99 * (1 - progress) / (1 - warmup))


def token_loss(states, embedding, targets, weights):
    logits = F.linear(states, embedding).float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def imitation_loss(states, own, embedding, weights):
    """Cross-entropy of the head's distribution against the trunk's own: what decides whether a draft is taken."""
    drafted = F.linear(states, embedding).float().log_softmax(-1)
    wanted = F.linear(own, embedding).float().softmax(-1)
    return (-(wanted * drafted).sum(-1) * weights).sum() / weights.sum()


def save(module, path):
    state = {k: v.detach().to("cpu", torch.float32 if k.endswith(FLOAT32) else torch.bfloat16).contiguous()
             for k, v in module.state_dict().items()}
    save_file(state, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


def load_into(module, path, prefix):
    """Weights from a file of its own or, below `prefix`, from a whole checkpoint."""
    given = load_file(path)
    if any(k.startswith(prefix) for k in given):
        given = {k[len(prefix):]: v for k, v in given.items() if k.startswith(prefix)}
    module.load_state_dict({k: v.float() for k, v in given.items()})


class Run:
    """One module's training within a time box (or a number of steps)."""

    def __init__(self, name, module, loss, rows, args, seconds, steps):
        self.name, self.module, self.loss, self.rows, self.args = name, module, loss, rows, args
        self.seconds, self.steps = seconds, steps
        self.optimiser = Optimiser(module, args.decay)
        self.log = open(args.out / "log.jsonl", "a")

    def go(self):
        start = saved = time.time()
        step, recent = 0, []
        while True:
            elapsed = time.time() - start
            progress = step / self.steps if self.steps else elapsed / self.seconds
            if progress >= 1 or elapsed >= self.seconds:
                break
            loss = self.loss(*self.rows.batch(self.args.rows))
            loss.backward()
            self.optimiser.step(rate_at(progress, self.args.rate, self.args.warmup))
            step += 1
            recent.append(loss.detach())
            if step % self.args.log_every == 0:
                mean = torch.stack(recent).mean().item()  # waits for the device: the clock is honest here
                self.note(step, time.time() - start, mean)
                recent = []
                if time.time() - saved > SAVE_EVERY_SEC:
                    save(self.module, self.args.out / f"{self.name}.safetensors")
                    saved = time.time()
        save(self.module, self.args.out / f"{self.name}.safetensors")
        torch.cuda.is_available() and torch.cuda.synchronize()
        self.note(step, time.time() - start, float("nan") if not recent else torch.stack(recent).mean().item())

    def note(self, step, seconds, loss):
        row = {"what": self.name, "step": step, "tokens": step * self.args.rows * self.args.length,
               "seconds": round(seconds, 1), "loss": round(loss, 4)}
        print(row, flush=True)
        self.log.write(json.dumps(row) + "\n")
        self.log.flush()


def compiled(trunk, loss, batch):
    """Compile layer by layer (two kinds of code) and the loss, before the clock starts; eager where that fails."""
    fast_loss = torch.compile(loss, dynamic=False)
    torch._dynamo.config.recompile_limit = 64
    for layer in trunk.layers:
        layer.compile(dynamic=False)
    try:
        batch(fast_loss).backward()
    except Exception as error:  # whatever the compiler raises: training slowly beats not training
        print("compiling failed, running eager:", repr(error)[:400], flush=True)
        for layer in trunk.layers:
            layer._compiled_call_impl = None
        fast_loss = loss
    trunk.zero_grad(set_to_none=True)
    return fast_loss


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=MODEL / "tokenizer.json")
    parser.add_argument("--dialogues", type=Path, default=EVAL / "dialogues.jsonl")
    parser.add_argument("--eval-prose", type=Path, default=EVAL / "prose.txt")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--deadline", type=float, default=560, help="seconds for everything")
    parser.add_argument("--steps", type=int, default=0, help="trunk steps; 0 fills the time box")
    parser.add_argument("--mtp-seconds", type=float, default=60)
    parser.add_argument("--mtp-steps", type=int, default=0)
    parser.add_argument("--length", type=int, default=2048, help="tokens in a row")
    parser.add_argument("--rows", type=int, default=32, help="rows in a step")
    parser.add_argument("--prose-part", type=float, default=0.4, help="share of rows")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--warmup", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--init", type=Path, help="trunk.safetensors or model.safetensors to go on from")
    parser.add_argument("--init-mtp", type=Path)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--no-score", action="store_true")
    args = parser.parse_args()

    began = time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")  # the delta rule's float32 products may use TF32
    rows = Rows(args.tokenizer, args.prose, args.length, args.prose_part, args.seed, args.workers, args.device)
    print(f"{len(rows.prose)} tokens of prose after {time.time() - began:.0f} s", flush=True)

    trunk, mtp = M.Trunk().to(args.device), M.Mtp().to(args.device)
    if args.init:
        load_into(trunk, args.init, "model.language_model.")
    if args.init_mtp:
        load_into(mtp, args.init_mtp, "mtp.")
    embedding = trunk.embed_tokens.weight

    def trunk_loss(tokens, weights, loss=token_loss):
        with torch.autocast(args.device, dtype=torch.bfloat16):
            return loss(trunk(tokens[:, :-1]), embedding, tokens[:, 1:], weights)

    fast_loss = token_loss if args.eager else compiled(
        trunk, token_loss, lambda loss: trunk_loss(*rows.batch(args.rows), loss))
    print(f"training from {time.time() - began:.0f} s on", flush=True)
    scoring = 0 if args.no_score else SCORING_SEC
    left = args.deadline - (time.time() - began) - args.mtp_seconds - scoring
    Run("trunk", trunk, lambda t, w: trunk_loss(t, w, fast_loss), rows, args, left, args.steps).go()

    trunk.requires_grad_(False)
    for layer in trunk.layers:  # compiled for training; the head's run is too short to compile once more
        layer._compiled_call_impl = None

    def mtp_loss(tokens, weights):
        with torch.autocast(args.device, dtype=torch.bfloat16):
            with torch.no_grad():
                states = trunk(tokens[:, :-1])
            drafted = mtp(states[:, :-1], F.embedding(tokens[:, 1:-1], embedding))
            return imitation_loss(drafted, states[:, 1:], embedding, weights[:, 1:])

    if args.mtp_seconds > 0:
        left = args.deadline - (time.time() - began) - scoring
        Run("mtp", mtp, mtp_loss, rows, args, min(left, args.mtp_seconds), args.mtp_steps).go()
    rows.close()

    if not args.no_score:
        torch.set_float32_matmul_precision("highest")
        result = score(trunk.eval(), mtp.eval() if args.mtp_seconds > 0 else None, Tokenizer.from_file(str(args.tokenizer)),
                       args.dialogues, args.eval_prose, args.device)
        (args.out / "scores.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")
        print(json.dumps(result, ensure_ascii=False))
    print(f"done after {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
