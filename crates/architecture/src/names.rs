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
    /// A stored buffer that the model computes itself, such as `rotary_emb.inv_freq`.
    Buffer,
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
    } else if name.contains("rotary_emb.") {
        NamedPart::Buffer
    } else {
        let stripped = TEXT_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
        NamedPart::TextModel(stripped.unwrap_or(name))
    }
}

/// Name prefixes of one checkpoint: the known ones, or one unknown but unambiguous one.
///
/// Training frameworks wrap a model and leave their own prefix in the names, as in `module.model.layers.0...` or
/// `_orig_mod.model.layers.0...`. The name of the embedding shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameScheme {
    /// Prefix of the text model's tensors, where it is an unknown one.
    text: Option<String>,
    /// Part of that prefix before a known one, shared by all tensors.
    wrapper: String,
}

impl NameScheme {
    /// Finds the prefix of the text model among the names of all tensors. If there are several unknown ones, none is
    /// stripped, and the tensors stay unknown.
    pub fn detect<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        const EMBEDDING: &str = "embed_tokens.weight";
        let mut unknown = Vec::new();
        for name in names {
            match part_of(name) {
                NamedPart::TextModel(EMBEDDING) => return Self::default(),
                NamedPart::TextModel(_) if !name.contains("mtp.") && !name.contains("visual.") => {
                    unknown.extend(name.strip_suffix(EMBEDDING));
                }
                _ => {}
            }
        }
        let [text] = unknown.as_slice() else { return Self::default() };
        let wrapper = TEXT_PREFIXES.iter().find_map(|prefix| text.strip_suffix(prefix)).unwrap_or_default();
        Self { text: Some((*text).to_owned()), wrapper: wrapper.to_owned() }
    }

    /// As [`part_of`], with this checkpoint's prefix.
    pub fn part_of<'a>(&self, name: &'a str) -> NamedPart<'a> {
        match self.text.as_deref().and_then(|prefix| name.strip_prefix(prefix)) {
            Some(stripped) => part_of(stripped),
            None => part_of(name.strip_prefix(&self.wrapper).unwrap_or(name)),
        }
    }

    /// The unknown prefix of the text model, if it has one.
    pub fn unknown_prefix(&self) -> Option<&str> {
        self.text.as_deref()
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
            ("model.layers.3.self_attn.rotary_emb.inv_freq", NamedPart::Buffer),
        ];
        for (name, expected) in cases {
            assert_eq!(part_of(name), expected, "{name}");
        }
    }

    #[test]
    fn one_unknown_prefix_is_stripped() {
        let parts = |embedding: &str, names: [&'static str; 3]| {
            let scheme = NameScheme::detect([embedding, names[0]].into_iter());
            names.map(|name| scheme.part_of(name))
        };
        let expected =
            |vision| [NamedPart::TextModel("norm.weight"), NamedPart::TextModel("lm_head.weight"), vision];
        let wrapped =
            ["module.model.language_model.norm.weight", "module.lm_head.weight", "module.model.visual.x"];
        let found = parts("module.model.language_model.embed_tokens.weight", wrapped);
        assert_eq!(found, expected(NamedPart::Vision));
        let renamed = ["llm.norm.weight", "lm_head.weight", "mtp.norm.weight"];
        assert_eq!(parts("llm.embed_tokens.weight", renamed), expected(NamedPart::MultiToken));
        let ambiguous = ["a.embed_tokens.weight", "b.embed_tokens.weight"].into_iter();
        assert_eq!(NameScheme::detect(ambiguous).unknown_prefix(), None);
    }

    #[test]
    fn names_of_mlx_lm_are_read_back() {
        for name in ["layers.0.mlp.up_proj.weight", "lm_head.weight", "norm.weight"] {
            assert_eq!(part_of(&mlx_lm_name(name)), NamedPart::TextModel(name));
        }
    }
}
