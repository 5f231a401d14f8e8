//! Tensor names: from the prefixes of every known layout to the names of [`crate::tensor_table`], and back.
//!
//! | layout | text model | head | vision tower | MTP block |
//! |---|---|---|---|---|
//! | Hugging Face, multimodal | `model.language_model.` | `lm_head` | `model.visual.` | `mtp.` |
//! | Hugging Face, text only | `model.` or none | `lm_head` | | `mtp.`, `model.mtp.` |
//! | mlx-lm, mlx-vlm | `language_model.model.` | `language_model.lm_head` | `vision_tower.` | `language_model.mtp.` |
//! | speech-swift | none | none, always tied | | |

/// The part of a checkpoint that a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedPart<'a> {
    /// The text model or its head, with the name that [`crate::tensor_table`] uses.
    TextModel(&'a str),
    /// The vision tower.
    Vision,
    /// The multi-token-prediction block.
    MultiToken,
}

const VISION_PREFIXES: [&str; 4] = ["model.visual.", "visual.", "model.vision_tower.", "vision_tower."];
const MULTI_TOKEN_PREFIXES: [&str; 4] =
    ["mtp.", "model.mtp.", "language_model.mtp.", "language_model.model.mtp."];
/// Prefixes of the text model. A prefix comes before those that it starts with.
const TEXT_PREFIXES: [&str; 4] =
    ["model.language_model.", "language_model.model.", "language_model.", "model."];

/// Prefix of the text model's tensors in mlx-lm's directories.
const MLX_LM_TEXT_MODEL: &str = "language_model.model.";
/// Prefix of the head in mlx-lm's directories.
const MLX_LM_HEAD: &str = "language_model.";

/// The part that the tensor (or module) called `name` belongs to, in any of the known layouts.
pub fn part_of(name: &str) -> NamedPart<'_> {
    let has_prefix = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    if has_prefix(&VISION_PREFIXES) {
        NamedPart::Vision
    } else if has_prefix(&MULTI_TOKEN_PREFIXES) {
        NamedPart::MultiToken
    } else {
        let stripped = TEXT_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
        NamedPart::TextModel(stripped.unwrap_or(name))
    }
}

/// The name that mlx-lm uses for the tensor (or module) `name` of the text model.
pub fn mlx_lm_name(name: &str) -> String {
    let prefix = if name.starts_with("lm_head") { MLX_LM_HEAD } else { MLX_LM_TEXT_MODEL };
    format!("{prefix}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_every_known_layout() {
        use NamedPart::{MultiToken, TextModel, Vision};
        let cases = [
            ("model.language_model.layers.0.mlp.up_proj.weight", TextModel("layers.0.mlp.up_proj.weight")),
            ("language_model.model.layers.0.mlp.up_proj.weight", TextModel("layers.0.mlp.up_proj.weight")),
            ("model.layers.0.mlp.up_proj.weight", TextModel("layers.0.mlp.up_proj.weight")),
            ("layers.0.mlp.up_proj.weight", TextModel("layers.0.mlp.up_proj.weight")),
            ("layers.7.self_attn.k_proj.biases", TextModel("layers.7.self_attn.k_proj.biases")),
            ("model.norm.weight", TextModel("norm.weight")),
            ("lm_head.weight", TextModel("lm_head.weight")),
            ("language_model.lm_head.scales", TextModel("lm_head.scales")),
            ("model.visual.blocks.0.attn.qkv.weight", Vision),
            ("vision_tower.blocks.0.norm1.weight", Vision),
            ("mtp.layers.0.self_attn.q_proj.weight", MultiToken),
            ("language_model.mtp.fc.weight", MultiToken),
        ];
        for (name, expected) in cases {
            assert_eq!(part_of(name), expected, "{name}");
        }
    }

    #[test]
    fn names_of_mlx_lm_are_read_back() {
        for name in ["layers.0.mlp.up_proj.weight", "lm_head.weight", "norm.weight"] {
            assert_eq!(part_of(&mlx_lm_name(name)), NamedPart::TextModel(name));
        }
    }
}
