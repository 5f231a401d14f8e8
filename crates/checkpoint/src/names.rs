//! From a tensor's name in a file to what part of the model it belongs to.

/// Where a tensor belongs, by its name in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// The text tower or its head: the name below the tower.
    Text(&'a str),
    /// The vision tower.
    Vision,
    /// The multi-token-prediction block.
    MultiToken,
}

/// Prefixes of the vision tower, in Hugging Face's multimodal layout and the text models' sibling exports.
const VISION: [&str; 3] = ["model.visual.", "visual.", "model.vision_tower."];
/// Prefixes of the multi-token-prediction block.
const MULTI_TOKEN: [&str; 2] = ["mtp.", "model.mtp."];
/// Prefixes of the text tower: multimodal, text-only with a head, text-only bare. The longest comes first.
const TEXT: [&str; 2] = ["model.language_model.", "model."];

pub(crate) fn place(name: &str) -> Place<'_> {
    if VISION.iter().any(|prefix| name.starts_with(prefix)) {
        Place::Vision
    } else if MULTI_TOKEN.iter().any(|prefix| name.starts_with(prefix)) {
        Place::MultiToken
    } else {
        Place::Text(TEXT.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_every_known_layout() {
        let cases = [
            ("model.language_model.layers.0.mlp.up_proj.weight", Place::Text("layers.0.mlp.up_proj.weight")),
            ("model.layers.0.mlp.up_proj.weight", Place::Text("layers.0.mlp.up_proj.weight")),
            ("layers.0.mlp.up_proj.weight", Place::Text("layers.0.mlp.up_proj.weight")),
            ("model.norm.weight", Place::Text("norm.weight")),
            ("lm_head.weight", Place::Text("lm_head.weight")),
            ("model.visual.blocks.0.attn.qkv.weight", Place::Vision),
            ("mtp.layers.0.self_attn.q_proj.weight", Place::MultiToken),
        ];
        for (name, expected) in cases {
            assert_eq!(place(name), expected, "{name}");
        }
    }
}
