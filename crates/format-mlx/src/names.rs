//! Between the names of MLX files and those below the text tower.

/// The prefix that mlx-lm gives the tensors of the text tower.
pub(crate) const TOWER: &str = "language_model.model.";
/// The prefix that mlx-lm gives the head.
pub(crate) const HEAD: &str = "language_model.";

/// The name below the text tower, or nothing for parts that a text model does not have. Known are mlx-lm's prefixes
/// of multimodal and of text-only architectures, and the origin's bare names.
pub(crate) fn below_tower(name: &str) -> Option<&str> {
    const FOREIGN: [&str; 5] =
        ["vision_tower.", "model.visual.", "mtp.", "language_model.mtp.", "language_model.model.mtp."];
    if FOREIGN.iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    let prefixes = [TOWER, "model.language_model.", HEAD, "model."];
    Some(prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name))
}

/// The name that mlx-lm gives the tensor (or module) called `name` below the tower.
pub(crate) fn in_mlx_lm(name: &str) -> String {
    if name.starts_with("lm_head") { format!("{HEAD}{name}") } else { format!("{TOWER}{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_maker() {
        for (name, expected) in [
            ("language_model.model.layers.0.mlp.up_proj.weight", Some("layers.0.mlp.up_proj.weight")),
            ("language_model.lm_head.scales", Some("lm_head.scales")),
            ("model.norm.weight", Some("norm.weight")),
            ("layers.7.self_attn.k_proj.biases", Some("layers.7.self_attn.k_proj.biases")),
            ("vision_tower.blocks.0.norm1.weight", None),
        ] {
            assert_eq!(below_tower(name), expected, "{name}");
        }
        for name in ["layers.0.mlp.up_proj.weight", "lm_head.weight", "norm.weight"] {
            assert_eq!(below_tower(&in_mlx_lm(name)), Some(name));
        }
    }
}
