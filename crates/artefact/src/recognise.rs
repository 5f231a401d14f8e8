//! Recognition of a model directory by its files.

use std::path::{Path, PathBuf};

use q35_format_mlx::MlxDirectory;

use crate::files::{is_compiled, is_package, is_variant};
use crate::{ArtefactError, ArtefactKind};

/// A recognised model directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtefactDir {
    /// The kind of model.
    pub kind: ArtefactKind,
    /// The directory with the model's files: the variant's, where there are variants.
    pub dir: PathBuf,
}

impl ArtefactDir {
    /// Recognises the model in `dir` or, with `variant`, in its sub-directory of that name. Without `variant` a model in
    /// `dir` itself comes first, then the only one of its sub-directories `int4`, `int8` and the like.
    ///
    /// Only names, config.json and the header of a weight file are read: opening the model may still fail.
    ///
    /// # Errors
    /// No model, not the requested variant, or several variants and none requested.
    pub fn recognise(dir: &Path, variant: Option<&str>) -> Result<Self, ArtefactError> {
        if is_package(&name_of(dir)) || is_compiled(&name_of(dir)) {
            return Err(ArtefactError::SinglePackage { path: dir.to_owned() });
        }
        let variants = variants(dir);
        if let Some(variant) = variant {
            let chosen = dir.join(variant);
            let is_plain = !variant.is_empty() && !variant.contains(['/', '\\']) && !variant.starts_with('.');
            return match kind_of(&chosen).filter(|_| is_plain && has_model(&chosen)) {
                Some(kind) => Ok(Self { kind, dir: chosen }),
                None => Err(ArtefactError::NoVariant {
                    dir: dir.to_owned(),
                    variant: variant.to_owned(),
                    found: list(&variants),
                }),
            };
        }
        let dir = match variants.as_slice() {
            [] => dir.to_owned(),
            _ if has_weights(dir) => dir.to_owned(),
            [only] => dir.join(only),
            _ => return Err(ArtefactError::SeveralVariants { dir: dir.to_owned(), found: variants }),
        };
        match kind_of(&dir) {
            Some(kind) => Ok(Self { kind, dir }),
            None => {
                let mut found = names(&dir);
                found.truncate(8);
                Err(ArtefactError::NoModel { dir, found: list(&found) })
            }
        }
    }

    /// The Core ML packages in the directory, sorted by name.
    pub fn packages(&self) -> Vec<PathBuf> {
        names(&self.dir).iter().filter(|name| is_package(name)).map(|name| self.dir.join(name)).collect()
    }
}

/// The kind of model whose files lie in `dir` itself.
fn kind_of(dir: &Path) -> Option<ArtefactKind> {
    let names = names(dir);
    let has = |matches: fn(&str) -> bool| names.iter().any(|name| matches(name));
    if has(is_package) {
        return Some(ArtefactKind::CoreMl);
    }
    if has(is_compiled) {
        return Some(ArtefactKind::CompiledCoreMl);
    }
    if MlxDirectory::matches(dir) {
        return Some(ArtefactKind::Mlx);
    }
    // Also weights in a format that is not read: the checkpoint's error says what to do about it.
    has(looks_like_checkpoint).then_some(ArtefactKind::Checkpoint)
}

fn looks_like_checkpoint(name: &str) -> bool {
    let weights = [".safetensors", ".gguf", ".bin", ".pth", ".pt"];
    name == "config.json"
        || name == "adapter_config.json"
        || name.ends_with("safetensors.index.json")
        || weights.iter().any(|end| name.ends_with(end))
}

/// True if `dir` itself holds weights or packages.
fn has_weights(dir: &Path) -> bool {
    let weights = |name: &String| {
        name.ends_with(".safetensors")
            || name == "model.safetensors.index.json"
            || is_package(name)
            || is_compiled(name)
    };
    names(dir).iter().any(weights)
}

/// True if `dir` holds a model, whole or not.
fn has_model(dir: &Path) -> bool {
    dir.join("config.json").is_file() || has_weights(dir)
}

/// The sub-directories that hold a variant, in the order of their names.
fn variants(dir: &Path) -> Vec<String> {
    names(dir).into_iter().filter(|name| is_variant(name) && has_model(&dir.join(name))).collect()
}

/// The names in `dir`, sorted; none if it cannot be listed.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    // macOS writes `._name` beside `name` on foreign file systems.
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    names
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

pub(crate) fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}
