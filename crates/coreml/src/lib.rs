//! The Qwen3.5 graph as Core ML packages, written from a checkpoint.
