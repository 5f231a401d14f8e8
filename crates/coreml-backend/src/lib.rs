//! Runs Core ML packages of a Qwen3.5 model: one driver over anything that can predict.
