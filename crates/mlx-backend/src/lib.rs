//! Runs an MLX model directory through MLX itself (mlx-rs).
