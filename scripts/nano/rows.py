"""Training rows: prose windows and packed chats, the chats made by worker processes while training runs.

A row is length + 1 tokens. Its weights say how much each token counts as a target: assistant turns 1,
other chat text and prose less. Order and content depend on the seed only, not on the number of workers' speed.
"""
import lzma
import multiprocessing
import os
import queue
import random
import threading
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

import dialogues
from shape import SPECIAL

ROWS_IN_SHARD = 256
OTHER_WEIGHT = 0.1  # user and system text
PROSE_WEIGHT = 0.5


def prose_tokens(path, tokenizer):
    """All prose documents, shuffled, as one array with end-of-text between them."""
    path = Path(path)
    text = lzma.open(path, "rt", encoding="utf-8").read() if path.suffix == ".xz" else path.read_text("utf-8")
    docs = [d for d in text.split("\n\x1e\n") if d.strip()]
    random.Random(7).shuffle(docs)
    parts = []
    for at in range(0, len(docs), 256):
        for e in tokenizer.encode_batch_fast(docs[at:at + 256], add_special_tokens=False):
            parts.append(np.array(e.ids + [SPECIAL["<|endoftext|>"]], dtype=np.int32))
    return np.concatenate(parts)


def chat_tokens(maker, tokenizer):
    """Endless (tokens, weights) of one conversation each; weights are bytes, 255 for 1."""
    while True:
        segments = [dialogues.segments(maker.conversation()) for _ in range(64)]
        encoded = iter(tokenizer.encode_batch_fast([t for s in segments for t, _ in s], add_special_tokens=False))
        for conversation in segments:
            ids, weights = [], []
            for _, is_target in conversation:
                piece = next(encoded).ids
                ids += piece
                weights += [255 if is_target else round(255 * OTHER_WEIGHT)] * len(piece)
            yield ids, weights


def pack(conversations, length):
    """One shard [ROWS_IN_SHARD, length + 1] of tokens and weights; a row begins where a conversation does.

    A conversation that does not fit the rest of a row is cut there and begins the next row in full.
    """
    tokens = np.zeros((ROWS_IN_SHARD, length + 1), dtype=np.uint16)
    weights = np.zeros((ROWS_IN_SHARD, length + 1), dtype=np.uint8)
    held = None
    for row in range(ROWS_IN_SHARD):
        at = 0
        while at < length + 1:
            ids, w = held or next(conversations)
            held = None
            room = length + 1 - at
            tokens[row, at:at + len(ids)] = ids[:room]
            weights[row, at:at + len(ids)] = w[:room]
            if len(ids) > room and at > 0:
                held = (ids, w)
            at += len(ids)
    return tokens, weights


def work(tokenizer_file, length, seeds, shards):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    for seed in seeds:
        shards.put(pack(chat_tokens(dialogues.Maker(seed), tokenizer), length))


class Rows:
    """Batches on the device: the first `prose` rows are windows of prose, the rest the next rows of chat."""

    def __init__(self, tokenizer_file, prose_file, length, prose_part, seed, workers, device):
        context = multiprocessing.get_context("spawn")
        self.queues = [context.Queue(2) for _ in range(workers)]
        self.processes = [
            context.Process(target=work, daemon=True, args=(
                tokenizer_file, length, range(seed * 1_000_000 + i, (seed + 1) * 1_000_000, workers), q))
            for i, q in enumerate(self.queues)]
        for process in self.processes:
            process.start()
        self.ready = queue.Queue(4)
        threading.Thread(target=self._receive, args=(device,), daemon=True).start()
        self.tokens = self.weights = None
        self.at = 0
        self.length, self.prose_part, self.device = length, prose_part, device
        self.rng = np.random.default_rng(seed)
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.prose = torch.from_numpy(prose_tokens(prose_file, tokenizer)).to(device)

    def _receive(self, device):
        while True:
            for q in self.queues:
                tokens, weights = q.get()
                self.ready.put((torch.from_numpy(tokens.astype(np.int32)).to(device),
                                torch.from_numpy(weights).to(device)))

    def chat(self, count):
        """The next `count` rows: tokens [count, length + 1], weights as bytes."""
        parts = []
        while count > 0:
            if self.tokens is None or self.at == len(self.tokens):
                self.tokens, self.weights = self.ready.get(timeout=120)
                self.at = 0
            part = slice(self.at, min(self.at + count, len(self.tokens)))
            parts.append((self.tokens[part], self.weights[part]))
            count -= part.stop - part.start
            self.at = part.stop
        return tuple(torch.cat(p) for p in zip(*parts))

    def batch(self, count):
        """tokens [count, length + 1] and the target weights of tokens 1.., [count, length] in float32."""
        prose = round(count * self.prose_part)
        starts = torch.from_numpy(self.rng.integers(0, len(self.prose) - self.length - 1, (prose, 1)))
        offsets = torch.arange(self.length + 1, device=self.device)
        windows = self.prose[starts.to(self.device) + offsets]
        chat, weights = self.chat(count - prose)
        weights = torch.cat([torch.full((prose, self.length), PROSE_WEIGHT, device=self.device), weights[:, 1:] / 255])
        return torch.cat([windows, chat]).long(), weights

    def close(self):
        for process in self.processes:
            process.terminate()
