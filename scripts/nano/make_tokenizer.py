"""Train the byte-level BPE and write a checkpoint's tokenizer files. A new tokenizer needs a new training run.

    python make_tokenizer.py PROSE.txt ../../crates/nano/model

The chat template is read from OUT/chat_template.jinja, which is written by hand, and repeated in tokenizer_config.json.
"""
import argparse
import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import dialogues
from shape import ADDED, CONTEXT, SPECIAL, VOCAB

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
PROSE_CHARACTERS = 10_000_000
CONVERSATIONS = 8000


def corpus(prose):
    docs = prose.read_text("utf-8").split("\n\x1e\n")
    random.Random(0).shuffle(docs)
    size = 0
    for doc in docs:
        size += len(doc)
        if size > PROSE_CHARACTERS:
            break
        yield doc
    maker = dialogues.Maker(123)
    for _ in range(CONVERSATIONS):
        for turn in maker.conversation()["turns"]:
            yield from (turn.user, turn.reply, turn.think)


def bpe(prose):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - len(ADDED), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus(prose), trainer)
    for name, special in ADDED:
        add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
        add([AddedToken(name, special=special, normalized=False)])
    assert tokenizer.get_vocab_size() == VOCAB and all(tokenizer.token_to_id(k) == v for k, v in SPECIAL.items())
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prose", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    bpe(args.prose).save(str(args.out / "tokenizer.json"))
    added = {str(SPECIAL[name]): {"content": name, "lstrip": False, "normalized": False, "rstrip": False,
                                  "single_word": False, "special": special} for name, special in ADDED}
    config = {"add_bos_token": False, "add_prefix_space": False, "bos_token": None, "eos_token": "<|im_end|>",
              "pad_token": "<|endoftext|>", "unk_token": None, "errors": "replace", "split_special_tokens": False,
              "clean_up_tokenization_spaces": False, "model_max_length": CONTEXT, "tokenizer_class": "Qwen2Tokenizer",
              "added_tokens_decoder": added, "additional_special_tokens": [name for name, _ in ADDED[1:14]],
              "chat_template": (args.out / "chat_template.jinja").read_text("utf-8")}
    (args.out / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    end = SPECIAL["<|endoftext|>"]
    generation = {"bos_token_id": end, "pad_token_id": end, "eos_token_id": [SPECIAL["<|im_end|>"], end],
                  "do_sample": True, "temperature": 1.0, "top_k": 20, "top_p": 0.95}
    (args.out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


if __name__ == "__main__":
    main()
