//! Runs an MLX model directory on the CPU, straight from the mapped file.
