//! What a directory holds.

use std::path::{Path, PathBuf};

use q35_format_mlx::MlxDirectory;
use serde_json::Value;

use super::OpenError;

/// The form of a model on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArtefactKind {
    /// An MLX directory: ours, mlx-lm's or the origin's.
    Mlx,
    /// Core ML packages.
    CoreMl,
}

impl ArtefactKind {
    /// The form in words.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Mlx => "an MLX model",
            Self::CoreMl => "Core ML packages",
        }
    }
}

/// A model on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artefact {
    /// Its form.
    pub kind: ArtefactKind,
    /// The directory with its files: of the variant, where there are several.
    pub dir: PathBuf,
}

/// Sub-directories in which the origin publishes one model in several precisions, smallest first.
const VARIANTS: [&str; 3] = ["int4", "int5", "int8"];

impl Artefact {
    /// Recognises what `dir` holds: by its manifest, or else by its files.
    ///
    /// # Errors
    /// Nothing known, a float checkpoint, or not the variant asked for.
    pub fn recognise(dir: &Path, variant: Option<&str>) -> Result<Self, OpenError> {
        let there: Vec<&str> = VARIANTS.into_iter().filter(|name| is_model(&dir.join(name))).collect();
        let here = is_model(dir);
        let dir = match variant {
            Some(name) if is_model(&dir.join(name)) => dir.join(name),
            Some(name) => {
                let (dir, variant) = (dir.to_owned(), name.to_owned());
                return Err(OpenError::NoVariant { dir, variant, found: listed(&there) });
            }
            None if here => dir.to_owned(),
            None => match there.first() {
                Some(smallest) => dir.join(smallest),
                None => return Err(OpenError::NoModel { dir: dir.to_owned(), found: contents(dir) }),
            },
        };
        match kind_of(&dir) {
            Some(kind) => Ok(Self { kind, dir }),
            None => Err(OpenError::NotConverted { dir }),
        }
    }
}

/// Which files of a hub repository a chat needs.
pub(super) fn is_wanted(name: &str, variant: Option<&str>) -> bool {
    let inside = match name.split_once('/') {
        None => name,
        Some((folder, rest)) if VARIANTS.contains(&folder) || Some(folder) == variant => {
            if folder != variant.unwrap_or(VARIANTS[0]) {
                return false;
            }
            rest
        }
        Some((folder, _)) if folder.ends_with(".mlpackage") => return true,
        Some(_) => return false,
    };
    let weights = inside.starts_with("model") && inside.ends_with(".safetensors");
    let text = ["config.json", "tokenizer.json", "manifest.json", "chat_template.jinja", "chat_config.json"];
    weights
        || text.contains(&inside)
        || inside.contains(".mlpackage/")
        || inside.ends_with("_config.json")
        || inside.ends_with("index.json")
}

fn kind_of(dir: &Path) -> Option<ArtefactKind> {
    let manifest = std::fs::read(dir.join("manifest.json")).ok();
    let manifest: Option<Value> = manifest.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match manifest.as_ref().and_then(|manifest| manifest.get("kind")).and_then(Value::as_str) {
        Some("mlx") => Some(ArtefactKind::Mlx),
        Some("coreml") => Some(ArtefactKind::CoreMl),
        _ if has_packages(dir) => Some(ArtefactKind::CoreMl),
        _ if MlxDirectory::recognises(dir) => Some(ArtefactKind::Mlx),
        _ => None,
    }
}

/// Whether there are weights of some kind.
fn is_model(dir: &Path) -> bool {
    let weights = |name: &str| name.ends_with(".safetensors") || name == "model.safetensors.index.json";
    dir.join("config.json").is_file() && names(dir).iter().any(|name| weights(name)) || has_packages(dir)
}

fn has_packages(dir: &Path) -> bool {
    names(dir).iter().any(|name| name.ends_with(".mlpackage") || name.ends_with(".mlmodelc"))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn contents(dir: &Path) -> String {
    let mut names = names(dir);
    names.truncate(8);
    listed(&names)
}

fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, contents) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, contents).unwrap();
        }
        root
    }

    const QUANTIZED: &str = r#"{"model_type": "qwen3_5", "quantization": {"bits": 4, "group_size": 64}}"#;

    #[test]
    fn directories_are_recognised() {
        let mlx = tree(&[("config.json", QUANTIZED), ("model.safetensors", "")]);
        let artefact = Artefact::recognise(mlx.path(), None).unwrap();
        assert_eq!((artefact.kind, artefact.dir.as_path()), (ArtefactKind::Mlx, mlx.path()));
        let coreml = tree(&[("decoder.mlpackage/Manifest.json", "{}"), ("chat_config.json", "{}")]);
        assert_eq!(Artefact::recognise(coreml.path(), None).unwrap().kind, ArtefactKind::CoreMl);
        let several = tree(&[
            ("int8/config.json", QUANTIZED),
            ("int8/model.safetensors", ""),
            ("int5/config.json", QUANTIZED),
            ("int5/model.safetensors", ""),
        ]);
        let smallest = Artefact::recognise(several.path(), None).unwrap();
        assert!(smallest.dir.ends_with("int5"));
        assert!(Artefact::recognise(several.path(), Some("int8")).unwrap().dir.ends_with("int8"));
        let error = Artefact::recognise(several.path(), Some("int4")).unwrap_err();
        assert!(error.to_string().ends_with("found:    int5, int8"), "{error}");
    }

    #[test]
    fn what_is_no_converted_model_says_so() {
        let float = tree(&[("config.json", r#"{"model_type": "qwen3_5"}"#), ("model.safetensors", "")]);
        let error = Artefact::recognise(float.path(), None).unwrap_err();
        assert!(error.to_string().contains("hint: q35-convert mlx --model"), "{error}");
        let other = tree(&[("notes.txt", "")]);
        let error = Artefact::recognise(other.path(), None).unwrap_err();
        assert!(error.to_string().ends_with("found:    notes.txt"), "{error}");
        let empty = tree(&[]);
        assert!(
            Artefact::recognise(empty.path(), None).unwrap_err().to_string().ends_with("found:    nothing")
        );
    }

    #[test]
    fn only_what_is_needed_is_fetched() {
        let wanted = [
            "config.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "tokenizer.json",
            "model.safetensors.index.json",
            "generation_config.json",
            "int4/config.json",
            "int4/model.safetensors",
            "decoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
        ];
        let unwanted = ["README.md", "int8/model.safetensors", "onnx/model.safetensors", "pytorch_model.bin"];
        assert!(wanted.iter().all(|name| is_wanted(name, None)));
        assert!(!unwanted.iter().any(|name| is_wanted(name, None)));
        assert!(
            is_wanted("int8/model.safetensors", Some("int8")) && !is_wanted("int4/config.json", Some("int8"))
        );
    }
}
