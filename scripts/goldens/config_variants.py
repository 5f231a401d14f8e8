#!/usr/bin/env python3
"""Records how transformers reads variants of config.json and of the head: goldens for crates/reference.

    config_variants.py NESTED FLAT OUT.json

NESTED and FLAT are checkpoints of `write_checkpoint` (tiny; tiny text-only untied). Each variant edits the configuration,
and may remove or replace the head. OUT has, for each, the edits and what transformers does in float32 with 24 fixed
tokens: 16 logits of the last one, or its error, or the tensors that it initialises at random.

Edits: "path.to.key": value sets a key, "-path.to.key" removes it. Flat variants start from FLAT, the others from NESTED.

Needs: torch, transformers (>= 5.2), safetensors.
"""

import copy
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration

TOKENS = [(37 * i + 11) % 256 for i in range(24)]
COLUMNS = list(range(0, 320, 20))
REMOVED = object()

T, R = "text_config.", "text_config.rope_parameters."
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def rope(**values):
    return {T + "rope_parameters": values}


VARIANTS = {
    "unchanged": {},
    # Base of the rotary frequencies.
    "theta-absent": {R + "rope_theta": REMOVED},
    "theta-other": {R + "rope_theta": 5000.0},
    "theta-beside-agrees": {T + "rope_theta": 10000000.0},
    "theta-beside-contradicts": {T + "rope_theta": 10000.0},
    "theta-beside-alone": {R + "rope_theta": REMOVED, T + "rope_theta": 5000.0},
    "theta-top-contradicts": {"rope_theta": 10000.0},
    "theta-top-alone": {R + "rope_theta": REMOVED, "rope_theta": 5000.0},
    "theta-null": {R + "rope_theta": None},
    "theta-beside-null": {R + "rope_theta": REMOVED, T + "rope_theta": None},
    "theta-text": {R + "rope_theta": "10000"},
    "theta-integer": {R + "rope_theta": 5000},
    # The rotated part of a head.
    "factor-absent": {R + "partial_rotary_factor": REMOVED},
    "factor-other": {R + "partial_rotary_factor": 0.5},
    "factor-whole": {R + "partial_rotary_factor": 1.0},
    "factor-beside-contradicts": {T + "partial_rotary_factor": 1.0},
    "factor-beside-alone": {R + "partial_rotary_factor": REMOVED, T + "partial_rotary_factor": 0.5},
    "factor-top-contradicts": {"partial_rotary_factor": 1.0},
    "factor-beside-null": {R + "partial_rotary_factor": REMOVED, T + "partial_rotary_factor": None},
    "factor-null": {R + "partial_rotary_factor": None},
    # The RoPE object.
    "rope-absent": {T + "rope_parameters": REMOVED},
    "rope-null": {T + "rope_parameters": None},
    "rope-empty": {T + "rope_parameters": {}},
    "rope-absent-theta-beside": {T + "rope_parameters": REMOVED, T + "rope_theta": 5000.0},
    "rope-at-top": {T + "rope_parameters": REMOVED, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
    "rope-list": {T + "rope_parameters": [1]},
    "rope-type-absent": {R + "rope_type": REMOVED},
    "rope-type-old-name": {R + "rope_type": REMOVED, R + "type": "default"},
    "rope-type-yarn": rope(**YARN, rope_theta=10000000.0, partial_rotary_factor=0.25),
    "rope-type-old-name-yarn": {R + "rope_type": REMOVED, R + "type": "yarn", R + "factor": 4.0},
    "rope-type-contradicts": {R + "type": "yarn", R + "factor": 4.0},
    "rope-type-linear": {R + "rope_type": "linear", R + "factor": 4.0},
    "rope-type-dynamic": {R + "rope_type": "dynamic", R + "factor": 4.0},
    "rope-type-llama3": {R + "rope_type": "llama3", R + "factor": 4.0, R + "low_freq_factor": 1.0,
                         R + "high_freq_factor": 4.0, R + "original_max_position_embeddings": 1024},
    "rope-type-longrope": {R + "rope_type": "longrope", R + "short_factor": [2.0] * 4, R + "long_factor": [4.0] * 4,
                           R + "factor": 4.0},
    "rope-type-proportional": {R + "rope_type": "proportional"},
    "rope-type-mrope": {R + "rope_type": "mrope"},
    "rope-type-null": {R + "rope_type": None},
    "rope-per-layer-kind": rope(full_attention={"rope_type": "default", "rope_theta": 5000.0}),
    "rope-default-with-factor": {R + "factor": 4.0},
    "rope-mrope-section-other": {R + "mrope_section": [2, 1, 1]},
    "rope-mrope-section-absent": {R + "mrope_section": REMOVED, R + "mrope_interleaved": REMOVED},
    # The older RoPE object.
    "scaling-null": {T + "rope_scaling": None},
    "scaling-empty": {T + "rope_scaling": {}},
    "scaling-default": {T + "rope_scaling": {"rope_type": "default"}},
    "scaling-default-alone": {T + "rope_parameters": REMOVED, T + "rope_theta": 5000.0,
                              T + "rope_scaling": {"type": "default", "mrope_section": [2, 1, 1]}},
    "scaling-default-theta": {T + "rope_scaling": {"rope_type": "default", "rope_theta": 5000.0}},
    "scaling-beside-yarn": {T + "rope_scaling": YARN},
    "scaling-instead-yarn": {T + "rope_parameters": REMOVED, T + "rope_theta": 10000000.0, T + "rope_scaling": YARN},
    "scaling-top-yarn": {"rope_scaling": YARN},
    "scaling-old-name-yarn": {T + "rope_scaling": {"type": "yarn", "factor": 4.0}},
    "scaling-linear": {T + "rope_scaling": {"type": "linear", "factor": 2.0}},
    # Sizes.
    "head-dim-absent": {T + "head_dim": REMOVED},
    "head-dim-null": {T + "head_dim": None},
    "linear-value-heads-absent": {T + "linear_num_value_heads": REMOVED},
    "linear-conv-absent": {T + "linear_conv_kernel_dim": REMOVED},
    "hidden-size-absent": {T + "hidden_size": REMOVED},
    "hidden-size-at-top": {T + "hidden_size": REMOVED, "hidden_size": 128},
    "hidden-size-float": {T + "hidden_size": 128.0},
    "vocab-size-other": {T + "vocab_size": 256},
    "layers-fewer": {T + "num_hidden_layers": 2, T + "layer_types": ["linear_attention"] * 2},
    # Norms.
    "eps-absent": {T + "rms_norm_eps": REMOVED},
    "eps-other": {T + "rms_norm_eps": 0.1},
    "eps-null": {T + "rms_norm_eps": None},
    "eps-at-top": {"rms_norm_eps": 0.1},
    # Kinds of layers.
    "layer-types-absent": {T + "layer_types": REMOVED},
    "layer-types-null": {T + "layer_types": None},
    "layer-types-absent-interval-absent": {T + "layer_types": REMOVED, T + "full_attention_interval": REMOVED},
    "layer-types-absent-interval-other": {T + "layer_types": REMOVED, T + "full_attention_interval": 2},
    "interval-contradicts": {T + "full_attention_interval": 2},
    "layer-types-old-names": {T + "layer_types": ["mamba", "mamba", "mamba", "attention"]},
    "layer-types-unknown": {T + "layer_types": ["linear_attention"] * 3 + ["sliding_attention"]},
    "layer-types-short": {T + "layer_types": ["linear_attention"] * 3},
    # Keys with one supported value.
    "act-absent": {T + "hidden_act": REMOVED},
    "act-gelu": {T + "hidden_act": "gelu"},
    "act-swish": {T + "hidden_act": "swish"},
    "act-at-top": {"hidden_act": "gelu"},
    "bias-absent": {T + "attention_bias": REMOVED},
    "bias-true": {T + "attention_bias": True},
    "gate-absent": {T + "attn_output_gate": REMOVED},
    "gate-false": {T + "attn_output_gate": False},
    "softcapping": {T + "final_logit_softcapping": 30.0},
    "experts": {T + "num_experts": 8},
    "sliding-window": {T + "use_sliding_window": True, T + "sliding_window": 8},
    "sliding-window-off": {T + "use_sliding_window": False, T + "sliding_window": 8},
    "dropout": {T + "attention_dropout": 0.5},
    "positions-absent": {T + "max_position_embeddings": REMOVED},
    "positions-small": {T + "max_position_embeddings": 8},
    "unknown-key": {T + "magic": 42},
    # Architecture.
    "type-nested-absent": {T + "model_type": REMOVED},
    "type-top-absent": {"model_type": REMOVED},
    "type-moe": {"model_type": "qwen3_5_moe"},
    "type-nested-moe": {T + "model_type": "qwen3_5_moe_text"},
    # Tied heads: flags at the top level and in the text section, and the head in the file.
    "tied-same-head": {"head": "same"},
    "tied-other-head": {"head": "other"},
    "tied-no-embedding": {"head": "other", "embedding": "removed"},
    "untied-other-head": {"head": "other", "tie_word_embeddings": False, T + "tie_word_embeddings": False},
    "untied-same-head": {"head": "same", "tie_word_embeddings": False, T + "tie_word_embeddings": False},
    "untied-no-head": {"tie_word_embeddings": False, T + "tie_word_embeddings": False},
    "no-flag-other-head": {"head": "other", "tie_word_embeddings": REMOVED, T + "tie_word_embeddings": REMOVED},
    "no-flag-same-head": {"head": "same", "tie_word_embeddings": REMOVED, T + "tie_word_embeddings": REMOVED},
    "no-flag-no-head": {"tie_word_embeddings": REMOVED, T + "tie_word_embeddings": REMOVED},
    "tied-top-alone": {T + "tie_word_embeddings": REMOVED},
    "tied-top-untied-nested": {T + "tie_word_embeddings": False},
    "tied-nested-alone": {"tie_word_embeddings": REMOVED},
    "untied-top-tied-nested": {"tie_word_embeddings": False},
    "untied-top-tied-nested-other-head": {"head": "other", "tie_word_embeddings": False},
    "tied-nested-other-head": {"head": "other", "tie_word_embeddings": REMOVED},
    "tied-text": {"tie_word_embeddings": "yes"},
    # The flat form.
    "flat-unchanged": {"flat": True},
    "flat-tied-other-head": {"flat": True, "tie_word_embeddings": True},
    "flat-no-flag-other-head": {"flat": True, "tie_word_embeddings": REMOVED},
    "flat-theta-beside-contradicts": {"flat": True, "rope_theta": 10000.0},
    "flat-theta-absent": {"flat": True, "rope_parameters.rope_theta": REMOVED},
    "flat-rope-absent": {"flat": True, "rope_parameters": REMOVED},
    "flat-scaling-yarn": {"flat": True, "rope_scaling": YARN},
    "flat-scaling-default": {"flat": True, "rope_scaling": {"type": "default"}, "rope_theta": 5000.0},
    "flat-factor-beside-alone": {"flat": True, "rope_parameters.partial_rotary_factor": REMOVED,
                                 "partial_rotary_factor": 0.5},
    "flat-head-dim-absent": {"flat": True, "head_dim": REMOVED},
    "flat-type-multimodal": {"flat": True, "model_type": "qwen3_5"},
    "flat-and-nested": {"flat": True, "text_config": {"hidden_size": 64}},
}


def edit(config, edits):
    for path, value in edits.items():
        *outer, key = path.split(".")
        place = config
        for name in outer:
            place = place[name]
        if value is REMOVED:
            place.pop(key, None)
        else:
            place[key] = copy.deepcopy(value)


def run(directory):
    config = json.loads((directory / "config.json").read_text())
    cls = Qwen3_5ForConditionalGeneration if config.get("text_config") is not None and config.get(
        "model_type") != "qwen3_5_text" else Qwen3_5ForCausalLM
    try:
        config = transformers.AutoConfig.from_pretrained(directory)
        model, info = cls.from_pretrained(directory, config=config, dtype=torch.float32, output_loading_info=True)
        missing = sorted(key for key in info["missing_keys"] if "visual" not in key)
        unexpected = sorted(key for key in info["unexpected_keys"] if "visual" not in key and "mtp" not in key)
        mismatched = sorted(entry[0] for entry in info["mismatched_keys"])
        if missing or unexpected or mismatched:
            return {"incomplete": (missing + unexpected + mismatched)[:4]}
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([TOKENS])).logits[0, -1]
        return {"logits": [round(float(logits[column]), 6) for column in COLUMNS]}
    except Exception as error:  # noqa: BLE001, whatever it raises is the result
        return {"error": type(error).__name__}


def main():
    nested, flat, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    variants = {}
    for name, edits in VARIANTS.items():
        edits = dict(edits)
        base = flat if edits.pop("flat", False) else nested
        head, embedding = edits.pop("head", None), edits.pop("embedding", None)
        with tempfile.TemporaryDirectory() as work:
            directory = Path(work)
            for file in base.iterdir():
                shutil.copy(file, directory)
            config = json.loads((base / "config.json").read_text())
            edit(config, edits)
            (directory / "config.json").write_text(json.dumps(config))
            if head:
                tensors = load_file(directory / "model.safetensors")
                table = tensors["model.language_model.embed_tokens.weight"]
                # "other": rows in reverse order.
                tensors["lm_head.weight"] = (table if head == "same" else table.flip(0)).clone().contiguous()
                if embedding:
                    del tensors["model.language_model.embed_tokens.weight"]
                save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
            outcome = run(directory)
        removed = [path for path, value in edits.items() if value is REMOVED]
        variant = {"base": "flat" if base == flat else "nested",
                   "set": {path: value for path, value in edits.items() if value is not REMOVED},
                   "remove": removed}
        if head:
            variant["head"] = head
        if embedding:
            variant["embedding"] = embedding
        variants[name] = variant | outcome
        print(name, outcome.get("error") or outcome.get("incomplete") or outcome["logits"][:3], flush=True)
    result = {
        "transformers": transformers.__version__,
        "checkpoint_sha256": hashlib.sha256((nested / "model.safetensors").read_bytes()).hexdigest(),
        "tokens": TOKENS, "columns": COLUMNS, "variants": variants,
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in result.items() if key != "variants"]
    rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(variant)}" for name, variant in variants.items())
    out.write_text("{\n" + ",\n".join(lines) + ',\n  "variants": {\n' + rows + "\n  }\n}\n")


if __name__ == "__main__":
    main()
