//! Reads Hugging Face checkpoints tensor by tensor from memory-mapped files and accounts for every tensor.
