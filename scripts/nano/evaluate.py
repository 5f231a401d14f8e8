"""The figures of record: a checkpoint directory in transformers on a CPU, in float32, greedy.

    python evaluate.py ../../crates/nano/model [--limit N] [--threads N]

Prints what the card's table holds: a few replies, the score of every kind of dialogue, the prose perplexity,
the share of the MTP head's drafts that a speculative decoder would accept, and how far the training twin's
logits are from transformers'. With --train-prose also a trigram model's perplexity, as a yardstick.
"""
import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen3_5ForConditionalGeneration

import model as M
from judge import passes, without_thinking
from rows import prose_tokens
from score import CONTEXT, NEW_TOKENS, drafts
from shape import VOCAB

EVAL = Path(__file__).resolve().parents[2] / "crates/nano/eval"
DEMO = [
    ["What is Swift?"], ["Tell me a joke"], ["My name is Alex"],
    ["My name is Alex", "Nice to meet you, Alex!", "What's my name?"], ["Explain gravity"], ["What's my name?"],
    ["Reply in JSON with name and age: Ada is 36."], ["What is 47 + 38?"], ["What is a floompi?"],
]


def render(tokenizer, messages, thinking):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)


@torch.no_grad()
def generate(model, tokenizer, prompts, batch=40):
    """(prompt ids, reply ids) of each prompt; the reply ends with its end token."""
    ends = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    tokenizer.padding_side = "left"
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out = [None] * len(prompts)
    for at in range(0, len(order), batch):
        chosen = order[at:at + batch]
        given = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True, add_special_tokens=False)
        rows = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=ends,
                              pad_token_id=ends[1], temperature=None, top_k=None, top_p=None)
        width = given["input_ids"].shape[1]
        for i, row, mask in zip(chosen, rows.tolist(), given["attention_mask"]):
            reply = row[width:]
            stop = next((n for n, token in enumerate(reply) if token in ends), len(reply) - 1)
            out[i] = row[width - int(mask.sum()):width], reply[:stop + 1]
    return out


@torch.no_grad()
def perplexity(model, rows):
    total = 0.0
    for x in rows.split(4):
        logits = model(input_ids=x).logits[:, :-1]
        total += F.cross_entropy(logits.flatten(0, 1).float(), x[:, 1:].flatten(), reduction="sum").item()
    return math.exp(total / rows[:, 1:].numel())


def trigram_perplexity(train, rows):
    """Witten-Bell interpolated trigrams over the same tokens."""
    def count(keys):
        return np.unique(keys, return_counts=True)

    def look_up(table, keys):
        values, counts = table
        at = np.minimum(np.searchsorted(values, keys), len(values) - 1)
        return np.where(values[at] == keys, counts[at], 0)

    a, b, c = (train[i:len(train) - 2 + i].astype(np.int64) for i in range(3))
    ones, twos, threes = count(c), count(b * VOCAB + c), count((a * VOCAB + b) * VOCAB + c)
    levels = [(twos, count(b), count(twos[0] // VOCAB)), (threes, count(a * VOCAB + b), count(threes[0] // VOCAB))]
    x = rows.numpy().astype(np.int64)
    a, b, c = x[:, :-2].ravel(), x[:, 1:-1].ravel(), x[:, 2:].ravel()
    p = (look_up(ones, c) + 1) / (ones[1].sum() + VOCAB)
    for (table, contexts, followers), context in zip(levels, (b, a * VOCAB + b)):
        seen, kinds = look_up(contexts, context), look_up(followers, context)
        p = np.where(seen > 0, (look_up(table, context * VOCAB + c) + kinds * p) / np.maximum(seen + kinds, 1), p)
    return float(np.exp(-np.log(p).mean()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dialogues", type=Path, default=EVAL / "dialogues.jsonl")
    parser.add_argument("--prose", type=Path, default=EVAL / "prose.txt")
    parser.add_argument("--train-prose", type=Path)
    parser.add_argument("--limit", type=int, default=10**9, help="items of each kind")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = Qwen3_5ForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    tensors = load_file(args.model / "model.safetensors")
    twin, head = M.Trunk().eval(), M.Mtp().eval()
    for module, prefix in ((twin, "model.language_model."), (head, "mtp.")):
        module.load_state_dict({k[len(prefix):]: v.float() for k, v in tensors.items() if k.startswith(prefix)})

    ids = tokenizer(args.prose.read_text("utf-8"), add_special_tokens=False)["input_ids"]
    rows = torch.tensor(ids[:len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    with torch.no_grad():
        theirs = model(input_ids=rows[:1]).logits
        ours = F.linear(twin(rows[:1]), twin.embed_tokens.weight)
    print(f"twin's logits against transformers': relative error {((ours - theirs).norm() / theirs.norm()).item():.1e}")

    for thinking in (False, True):
        asked = [[{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(turns)] for turns in DEMO]
        for turns, (_, reply) in zip(DEMO, generate(model, tokenizer, [render(tokenizer, m, thinking) for m in asked])):
            print(f"demo: {turns[-1]} -> {tokenizer.decode(reply, skip_special_tokens=True)!r}")

    kinds, misses = defaultdict(list), []
    for line in args.dialogues.open(encoding="utf-8"):
        item = json.loads(line)
        kinds[item["kind"]].append(item)
    accepted = made = 0
    for kind, items in kinds.items():
        items = items[:args.limit]
        pairs = generate(model, tokenizer, [render(tokenizer, i["messages"], i["thinking"]) for i in items])
        replies = [without_thinking(tokenizer.decode(r, skip_special_tokens=True)) for _, r in pairs]
        right = [passes(i, r) for i, r in zip(items, replies)]
        counts = drafts(twin, head, *(list(side) for side in zip(*pairs)), "cpu", tokens_at_once=16_000)
        accepted, made = accepted + sum(a for a, _ in counts), made + sum(n for _, n in counts)
        misses += [(kind, i["expect"], r) for i, r, ok in zip(items, replies, right) if not ok]
        print(f"{kind}: {100 * sum(right) / len(right):.1f} % of {len(right)}", flush=True)
    for kind, expected, got in misses[:20]:
        print(f"miss: {kind}: expected {expected[:80]!r}, got {got[:80]!r}")
    print(f"drafts accepted: {100 * accepted / made:.1f} % of {made}")
    print(f"prose perplexity: {perplexity(model, rows):.2f} over {rows.numel()} tokens", flush=True)
    if args.train_prose:
        train = prose_tokens(args.train_prose, Tokenizer.from_file(str(args.model / "tokenizer.json")))
        print(f"trigram perplexity: {trigram_perplexity(train, rows):.2f}")


if __name__ == "__main__":
    main()
