#!/usr/bin/env python3
"""Assembles the built-in calibration text of crates/calibrate from this repository alone.

    calibration_text.py > crates/calibrate/text/default.txt

Hand-written text (crates/calibrate/text/written.txt: prose, letters, many languages, JSON, code, chats), seeded chats of
scripts/nano/dialogues.py, the documentation in our own sources as prose, and some of these sources as code. Documents
are shuffled with a fixed seed and end with <|endoftext|>. The result is committed; artefacts depend on its bytes.
"""
import random
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts/nano"))
import dialogues  # noqa: E402

END = "<|endoftext|>"
CHAT_BYTES, PROSE_BYTES, CODE_BYTES = 90_000, 110_000, 70_000


def written():
    return (ROOT / "crates/calibrate/text/written.txt").read_text("utf-8").split(END)


def chats():
    maker, size = dialogues.Maker(4711, "train"), 0
    while size < CHAT_BYTES:
        text = "".join(part for part, _ in dialogues.segments(maker.conversation())).removesuffix(END)
        size += len(text)
        yield text


def prose_of(source):
    """The documentation comments of a Rust file as paragraphs."""
    lines = [re.sub(r"^\s*//[/!] ?", "", line) if re.match(r"\s*//[/!]", line) else None for line in source.split("\n")]
    blocks, block = [], []
    for line in lines + [None]:
        if line is None:
            if len(" ".join(block)) > 200 and not any(l.startswith("```") for l in block):
                blocks.append("\n".join(block))
            block = []
        else:
            block.append(line)
    return "\n\n".join(blocks)


def limited(pieces, limit):
    size = 0
    for piece in pieces:
        if size > limit:
            return
        size += len(piece)
        yield piece


def main():
    rng = random.Random(4711)
    rust = sorted(ROOT.glob("crates/*/src/**/*.rs"))
    rng.shuffle(rust)
    sources = [path.read_text("utf-8") for path in rust]
    prose = [text for text in map(prose_of, sources) if len(text) > 300]
    prose += [path.read_text("utf-8") for path in sorted(ROOT.glob("docs/*.md"))]
    rng.shuffle(prose)
    code = [text for text in sources if 1_000 < len(text) < 9_000]
    python = [path.read_text("utf-8") for path in sorted(ROOT.glob("scripts/nano/*.py")) if path.stat().st_size < 8_000]
    pieces = [*written(), *chats(), *limited(prose, PROSE_BYTES), *limited(code, CODE_BYTES * 3 // 4),
              *limited(python, CODE_BYTES // 4)]
    pieces = [piece.strip("\n") for piece in pieces if piece.strip()]
    rng.shuffle(pieces)
    sys.stdout.write("".join(piece + END + "\n" for piece in pieces))


if __name__ == "__main__":
    main()
