"""Scores of the training twin on a GPU: tasks, prose perplexity, acceptance of the MTP head's drafts.

Greedy and without a cache: the whole row is computed again for every token, which a GPU does in seconds and
which needs no second implementation. `evaluate.py` gives the figures of record, with transformers on a CPU.

    python score.py MODEL.safetensors TOKENIZER.json DIALOGUES.jsonl PROSE.txt
"""
import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

import model as M
from dialogues import prompt
from judge import passes, without_thinking
from shape import SPECIAL

NEW_TOKENS = 96
CONTEXT = 1024
END = (SPECIAL["<|im_end|>"], SPECIAL["<|endoftext|>"])


def groups(lengths, tokens_at_once):
    """Indices in groups of similar length, longest first, each with its row width (a multiple of CHUNK)."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        width = -(-lengths[order[0]] // M.CHUNK) * M.CHUNK
        count = max(1, tokens_at_once // width)
        similar = [i for i in order[:count] if 2 * lengths[i] >= width]
        yield similar or order[:count], width
        order = order[len(similar or order[:count]):]


def padded(sequences, width, device):
    """Rows padded at the end, where causal layers do not look."""
    rows = torch.full((len(sequences), width), END[1])
    for row, ids in zip(rows, sequences):
        row[:len(ids)] = torch.tensor(ids)
    return rows.to(device)


@torch.no_grad()
def generate(trunk, prompts, device, tokens_at_once=250_000):
    """Greedy continuations of token lists, each up to and with its end token."""
    replies = [None] * len(prompts)
    for group, width in groups([len(p) + NEW_TOKENS for p in prompts], tokens_at_once):
        rows = padded([prompts[i] for i in group], width, device)
        at = torch.tensor([len(prompts[i]) for i in group], device=device)
        index, done = torch.arange(len(group), device=device), torch.zeros_like(at, dtype=torch.bool)
        for _ in range(NEW_TOKENS):
            used = -(-int(at.max()) // M.CHUNK) * M.CHUNK
            token = F.linear(trunk(rows[:, :used])[index, at - 1], trunk.embed_tokens.weight).argmax(-1)
            rows[index[~done], at[~done]] = token[~done]
            at += (~done).long()
            done |= (token == END[0]) | (token == END[1])
            if done.all():
                break
        for i, row, end in zip(group, rows.tolist(), at.tolist()):
            replies[i] = row[len(prompts[i]):end]
    return replies


@torch.no_grad()
def drafts(trunk, mtp, prompts, replies, device, tokens_at_once=250_000):
    """(accepted, made) of each reply: a speculative decoder with one draft a step, played back over greedy replies."""
    counts = [None] * len(prompts)
    embed = trunk.embed_tokens.weight
    for group, width in groups([len(p) + len(r) for p, r in zip(prompts, replies)], tokens_at_once):
        rows = padded([prompts[i] + replies[i] for i in group], width, device)
        states = mtp(trunk(rows)[:, :-1], F.embedding(rows[:, 1:], embed))
        for i, row, state in zip(group, rows.tolist(), states):
            drafted = F.linear(state, embed).argmax(-1).tolist()
            accepted = made = 0
            at, end = len(prompts[i]), len(prompts[i]) + len(replies[i])
            while at + 1 < end:  # the trunk has just chosen row[at]; drafted[at - 1] guesses row[at + 1]
                hit = drafted[at - 1] == row[at + 1]
                accepted, made = accepted + hit, made + 1
                at += 1 + hit
            counts[i] = (accepted, made)
    return counts


@torch.no_grad()
def perplexity(trunk, ids, device):
    count = len(ids) // CONTEXT
    rows = torch.as_tensor(ids[:count * CONTEXT], device=device).view(count, CONTEXT)
    total = 0.0
    for part in rows.split(16):
        logits = F.linear(trunk(part), trunk.embed_tokens.weight)[:, :-1]
        total += F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
    return math.exp(total / (count * (CONTEXT - 1)))


@torch.no_grad()
def score(trunk, mtp, tokenizer, dialogues_file, prose_file, device):
    """Everything as one dict; `misses` holds up to three examples of each kind."""
    items = [json.loads(line) for line in open(dialogues_file, encoding="utf-8")]
    prompts = [tokenizer.encode(prompt(i["messages"], i["thinking"]), add_special_tokens=False).ids for i in items]
    replies = generate(trunk, prompts, device)
    right, misses = defaultdict(list), defaultdict(list)
    for item, reply in zip(items, replies):
        text = without_thinking(tokenizer.decode(reply))
        right[item["kind"]].append(passes(item, text))
        if not right[item["kind"]][-1] and len(misses[item["kind"]]) < 3:
            misses[item["kind"]].append([item["messages"][-1]["content"], item["expect"], text])
    prose = tokenizer.encode(Path(prose_file).read_text("utf-8"), add_special_tokens=False).ids
    result = {"scores": {k: round(100 * sum(v) / len(v), 1) for k, v in right.items()},
              "prose_perplexity": round(perplexity(trunk, prose, device), 2), "misses": misses}
    if mtp is not None:
        counts = defaultdict(list)
        for item, count in zip(items, drafts(trunk, mtp, prompts, replies, device)):
            counts[item["kind"]].append(count)
            counts["all"].append(count)
        result["mtp_acceptance"] = {k: round(100 * sum(a for a, _ in v) / max(1, sum(n for _, n in v)), 1)
                                    for k, v in counts.items()}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tokenizer")
    parser.add_argument("dialogues")
    parser.add_argument("prose")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    tensors = load_file(args.model, device=args.device)
    modules = []
    for module, prefix in ((M.Trunk(), "model.language_model."), (M.Mtp(), "mtp.")):
        module.load_state_dict({k[len(prefix):]: v.float() for k, v in tensors.items() if k.startswith(prefix)})
        modules.append(module.to(args.device).eval())
    tokenizer = Tokenizer.from_file(args.tokenizer)
    print(json.dumps(score(*modules, tokenizer, args.dialogues, args.prose, args.device), ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
