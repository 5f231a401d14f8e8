//! MLX model directories: written from a checkpoint, read back from any maker.
