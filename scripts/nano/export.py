"""Assemble the checkpoint in the Hugging Face layout from trunk.safetensors and mtp.safetensors.

    python export.py TRAINED ../../crates/nano/model

Writes config.json and model.safetensors; make_tokenizer.py writes the other files of a checkpoint. The vision
tower is the smallest that transformers builds, random and never trained: it is there so that converters meet one.
"""
import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import shape as S
from train import FLOAT32

CONFIG = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "image_token_id": S.SPECIAL["<|image_pad|>"],
    "model_type": "qwen3_5",
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "attn_output_gate": True, "dtype": "bfloat16",
        "eos_token_id": S.SPECIAL["<|endoftext|>"], "full_attention_interval": S.FULL_EVERY, "head_dim": S.HEAD_DIM,
        "hidden_act": "silu", "hidden_size": S.HIDDEN, "initializer_range": 0.02,
        "intermediate_size": S.INTERMEDIATE,
        "layer_types": ["full_attention" if S.is_full(i) else "linear_attention" for i in range(S.LAYERS)],
        "linear_conv_kernel_dim": S.CONV, "linear_key_head_dim": S.LINEAR_DIM,
        "linear_num_key_heads": S.LINEAR_HEADS, "linear_num_value_heads": S.LINEAR_HEADS,
        "linear_value_head_dim": S.LINEAR_DIM, "mamba_ssm_dtype": "float32",
        "max_position_embeddings": S.CONTEXT, "mlp_only_layers": [], "model_type": "qwen3_5_text",
        "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False, "num_attention_heads": S.HEADS,
        "num_hidden_layers": S.LAYERS, "num_key_value_heads": S.KV_HEADS, "rms_norm_eps": S.EPS,
        "rope_parameters": {
            "mrope_interleaved": True, "mrope_section": [3, 3, 2],
            "partial_rotary_factor": S.ROTARY / S.HEAD_DIM, "rope_theta": int(S.ROPE_THETA), "rope_type": "default"},
        "tie_word_embeddings": True, "use_cache": True, "vocab_size": S.VOCAB},
    "tie_word_embeddings": True,
    "video_token_id": S.SPECIAL["<|video_pad|>"],
    "vision_config": {
        "deepstack_visual_indexes": [], "depth": 1, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 16,
        "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 32, "model_type": "qwen3_5", "num_heads": 2,
        "num_position_embeddings": 16, "out_hidden_size": S.HIDDEN, "patch_size": 8, "spatial_merge_size": 2,
        "temporal_patch_size": 2},
    "vision_end_token_id": S.SPECIAL["<|vision_end|>"],
    "vision_start_token_id": S.SPECIAL["<|vision_start|>"],
}
PREFIXES = {"text": "model.language_model.", "mtp": "mtp.", "vision": "model.visual."}


def vision_tensors():
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
    torch.manual_seed(3)
    whole = Qwen3_5ForConditionalGeneration(Qwen3_5Config(**json.loads(json.dumps(CONFIG))))
    return {k: v for k, v in whole.state_dict().items() if k.startswith(PREFIXES["vision"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    tensors = vision_tensors()
    for part, file in (("text", "trunk.safetensors"), ("mtp", "mtp.safetensors")):
        tensors.update({PREFIXES[part] + k: v for k, v in load_file(args.trained / file).items()})
    tensors = {k: v.detach().to(torch.float32 if k.endswith(FLOAT32) else torch.bfloat16).contiguous()
               for k, v in sorted(tensors.items())}
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    for part, prefix in PREFIXES.items():
        print(part, sum(v.numel() for k, v in tensors.items() if k.startswith(prefix)), "parameters")
    print((args.out / "model.safetensors").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
