"""The one place that states q35-nano's shape; model, export and tokenizer read it here."""

VOCAB = 4096
HIDDEN = 256
LAYERS = 8
INTERMEDIATE = 576  # 640 would push the checkpoint over 16 MB
FULL_EVERY = 4  # layers 3 and 7 attend fully, the others are linear

LINEAR_HEADS = 4  # as many key as value heads
LINEAR_DIM = 64
CONV = 4

HEADS = 4
KV_HEADS = 2
HEAD_DIM = 64
ROTARY = 16
ROPE_THETA = 10_000_000.0
EPS = 1e-6
CONTEXT = 4096

# Qwen3.5's added tokens in Qwen's order; True where Qwen marks them special.
ADDED = [
    ("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True),
    ("<|object_ref_start|>", True), ("<|object_ref_end|>", True),
    ("<|box_start|>", True), ("<|box_end|>", True), ("<|quad_start|>", True), ("<|quad_end|>", True),
    ("<|vision_start|>", True), ("<|vision_end|>", True), ("<|vision_pad|>", True),
    ("<|image_pad|>", True), ("<|video_pad|>", True),
    ("<tool_call>", False), ("</tool_call>", False),
    ("<|fim_prefix|>", False), ("<|fim_middle|>", False), ("<|fim_suffix|>", False), ("<|fim_pad|>", False),
    ("<|repo_name|>", False), ("<|file_sep|>", False),
    ("<tool_response>", False), ("</tool_response>", False),
    ("<think>", False), ("</think>", False),
    ("<|audio_start|>", True), ("<|audio_end|>", True), ("<tts_pad>", True),
    ("<tts_text_bos>", True), ("<tts_text_eod>", True), ("<tts_text_bos_single>", True), ("<|audio_pad|>", True),
]
SPECIAL = {name: VOCAB - len(ADDED) + i for i, (name, _) in enumerate(ADDED)}


def is_full(layer):
    """Whether layer number `layer` attends fully."""
    return (layer + 1) % FULL_EVERY == 0
