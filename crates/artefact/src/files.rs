//! The files of a model, by their names in a repository.

use std::collections::BTreeSet;

/// The files besides weights and packages that a conversion, a check or a conversation reads.
const AUXILIARY_FILES: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "chat_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "manifest.json",
];

/// Selects the files of a hub repository that its model needs, of all its `files`.
///
/// A model in the repository's root comes before variants in sub-directories, unless `variant` is requested. Of several
/// variants without a request only the config.json files are selected: enough for
/// [`ArtefactDir::recognise`](crate::ArtefactDir::recognise) to name them. Of compiled packages without their sources
/// only the metadata is selected, since they are refused.
///
/// ```
/// let files = ["README.md", "config.json", "model.safetensors", "onnx/model.onnx"];
/// assert_eq!(q35_artefact::select_files(&files, None), ["config.json", "model.safetensors"]);
/// ```
pub fn select_files(files: &[&str], variant: Option<&str>) -> Vec<String> {
    let folder = |file: &str| file.split_once('/').map(|(folder, _)| folder.to_owned());
    let has_model = |prefix: &str| {
        let inside =
            |file: &&&str| file.strip_prefix(prefix).is_some_and(|name| is_weights(name) || in_package(name));
        files.iter().find(inside).is_some()
    };
    let variants: BTreeSet<String> = files
        .iter()
        .filter_map(|file| folder(file))
        .filter(|name| (is_variant(name) || Some(name.as_str()) == variant) && has_model(&format!("{name}/")))
        .collect();
    let root = variant.is_none() && has_model("");
    let packages = files.iter().any(|file| file.contains(".mlpackage/"));
    let is_selected = |file: &str| {
        let (prefix, name) = match folder(file) {
            Some(folder) if variants.contains(&folder) => (Some(folder.clone()), &file[folder.len() + 1..]),
            _ => (None, file),
        };
        match prefix {
            Some(_) if root => return false,
            Some(prefix) if variant.is_some_and(|variant| variant != prefix) => return false,
            Some(_) if variant.is_none() && variants.len() > 1 => return name == "config.json",
            Some(_) => {}
            None if !root && !variants.is_empty() => return AUXILIARY_FILES.contains(&name),
            None => {}
        }
        AUXILIARY_FILES.contains(&name)
            || is_weights(name)
            || name == "model.safetensors.index.json"
            || (is_table(name) && packages)
            || name.split_once('/').is_some_and(|(first, rest)| {
                is_package(first) || (is_compiled(first) && !packages && rest == "metadata.json")
            })
    };
    files.iter().filter(|file| is_selected(file)).map(|file| (*file).to_owned()).collect()
}

/// True for a sub-directory in which one of several precisions of a model is published: `int4`, `int8`.
pub(crate) fn is_variant(name: &str) -> bool {
    name.strip_prefix("int").is_some_and(|bits| bits.len() == 1 && bits.bytes().all(|b| b.is_ascii_digit()))
}

pub(crate) fn is_package(name: &str) -> bool {
    name.ends_with(".mlpackage")
}

pub(crate) fn is_compiled(name: &str) -> bool {
    name.ends_with(".mlmodelc")
}

/// True for a weight file in the model's own directory.
fn is_weights(name: &str) -> bool {
    name.starts_with("model") && name.ends_with(".safetensors") && !name.contains('/')
}

/// True for the embedding table that Core ML packages with token embeddings as input keep beside them.
fn is_table(name: &str) -> bool {
    name == "embedding.safetensors"
}

fn in_package(name: &str) -> bool {
    name.split_once('/').is_some_and(|(first, _)| is_package(first) || is_compiled(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_model_are_selected() {
        let cases: &[(&[&str], Option<&str>, &[&str])] = &[
            // A checkpoint with files of other tools.
            (
                &[
                    "README.md",
                    "config.json",
                    "model-00001-of-00002.safetensors",
                    "model-00002-of-00002.safetensors",
                    "model.safetensors.index.json",
                    "tokenizer.json",
                    "generation_config.json",
                    "onnx/model.safetensors",
                    "pytorch_model.bin",
                    "consolidated.safetensors",
                ],
                None,
                &[
                    "config.json",
                    "model-00001-of-00002.safetensors",
                    "model-00002-of-00002.safetensors",
                    "model.safetensors.index.json",
                    "tokenizer.json",
                    "generation_config.json",
                ],
            ),
            // The only variant, and one of several.
            (
                &["int4/config.json", "int4/model.safetensors", "README.md"],
                None,
                &["int4/config.json", "int4/model.safetensors"],
            ),
            (
                &["int4/config.json", "int4/model.safetensors", "int8/config.json", "int8/model.safetensors"],
                None,
                &["int4/config.json", "int8/config.json"],
            ),
            (
                &["int4/config.json", "int4/model.safetensors", "int8/config.json", "int8/model.safetensors"],
                Some("int8"),
                &["int8/config.json", "int8/model.safetensors"],
            ),
            // A model beside variants.
            (
                &["config.json", "model.safetensors", "int4/config.json", "int4/model.safetensors"],
                None,
                &["config.json", "model.safetensors"],
            ),
            (
                &["config.json", "model.safetensors", "int4/config.json", "int4/model.safetensors"],
                Some("int4"),
                &["config.json", "int4/config.json", "int4/model.safetensors"],
            ),
            // Core ML packages, and compiled ones.
            (
                &[
                    "chat_config.json",
                    "decoder.mlpackage/Manifest.json",
                    "decoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
                    "decoder.mlmodelc/weights/weight.bin",
                    "embedding.safetensors",
                ],
                None,
                &[
                    "chat_config.json",
                    "decoder.mlpackage/Manifest.json",
                    "decoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
                    "embedding.safetensors",
                ],
            ),
            (
                &["decoder.mlmodelc/metadata.json", "decoder.mlmodelc/weights/weight.bin"],
                None,
                &["decoder.mlmodelc/metadata.json"],
            ),
            (&["model.gguf", "README.md"], None, &[]),
        ];
        for (files, variant, expected) in cases {
            assert_eq!(select_files(files, *variant), *expected, "{files:?} {variant:?}");
        }
    }
}
