//! Reading of packages: manifest, model message, weight files.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use prost::Message;
use serde::Deserialize;

use crate::records::{Bytes, RecordError, WeightFile};
use crate::visit::visit_values;
use crate::{BlobRef, Data, Immediate, Value, proto};

/// Largest accepted model message, in bytes. Programs are a few MB for models of any size, because weights are in a
/// separate file; decoding needs many times the message's length, so longer ones are rejected first.
pub const MAX_MODEL_BYTES: u64 = 64 << 20;
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
const WEIGHTS_PREFIX: &str = "@model_path/weights/";

/// An opened package: the decoded model message and the mapped weight files that it refers to.
///
/// Opening checks only what is needed to find the parts; [`crate::check`](fn@crate::check) checks their contents.
#[derive(Clone, Debug)]
pub struct Package {
    dir: PathBuf,
    model_path: PathBuf,
    weights_dir: PathBuf,
    model: proto::Model,
    files: BTreeMap<String, WeightFile>,
}

/// The elements of a constant.
#[derive(Clone, Debug)]
pub enum Content<'a> {
    /// Immediate elements in the message field of their kind.
    Elements(&'a proto::Elements),
    /// Packed elements in a weight file, or as immediate bytes.
    Packed(Bytes),
}

/// Failure to read a package.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// A file or directory cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// `Manifest.json` is malformed.
    #[error("{path}: {message}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Description of the defect.
        message: String,
    },
    /// A file exceeds the size limit.
    #[error("{path}: {found} bytes, at most {limit} are read")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Length in bytes.
        found: u64,
        /// Largest accepted length in bytes.
        limit: u64,
    },
    /// The model message cannot be decoded.
    #[error("{path} is no Core ML model: {source}")]
    Decode {
        /// The file.
        path: PathBuf,
        /// The decoding error.
        source: prost::DecodeError,
    },
    /// The model is not an `mlProgram`.
    #[error("{path} holds no mlprogram\n  expected: a model of type mlProgram (Core ML 5 or later)")]
    NoProgram {
        /// The file.
        path: PathBuf,
    },
    /// A value refers to a file outside of the package's weights directory.
    #[error("a value refers to {file:?}\n  expected: a file under {WEIGHTS_PREFIX}")]
    Reference {
        /// File name in the program.
        file: String,
    },
    /// A weight file or one of its records is malformed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    file_format_version: String,
    root_model_identifier: String,
    item_info_entries: BTreeMap<String, Item>,
}

#[derive(Deserialize)]
struct Item {
    name: String,
    path: String,
    #[serde(rename = "author")]
    _author: String,
    #[serde(rename = "description")]
    _description: String,
}

impl Package {
    /// Opens the package directory `dir` and maps the weight files that its program refers to.
    ///
    /// # Errors
    /// A part is missing, too long, or malformed; a value refers to a file outside of the package.
    pub fn open(dir: &Path) -> Result<Self, ReadError> {
        let manifest_path = dir.join("Manifest.json");
        let bytes = read_bounded(&manifest_path, MAX_MANIFEST_BYTES)?;
        let wrong = |message: String| ReadError::Manifest { path: manifest_path.clone(), message };
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        if manifest.file_format_version != "1.0.0" {
            let found = manifest.file_format_version;
            return Err(wrong(format!("fileFormatVersion {found:?}, expected \"1.0.0\"")));
        }
        let data = dir.join("Data");
        let root = manifest.item_info_entries.get(&manifest.root_model_identifier).ok_or_else(|| {
            wrong(format!("rootModelIdentifier {:?} names no item", manifest.root_model_identifier))
        })?;
        let inside = |path: &str| {
            let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
            if plain && !path.is_empty() {
                Ok(data.join(path))
            } else {
                Err(wrong(format!("the path {path:?} points outside of the package")))
            }
        };
        let model_path = inside(&root.path)?;
        let weights = manifest.item_info_entries.values().find(|item| item.name == "weights");
        let weights_dir = match weights {
            Some(item) => inside(&item.path)?,
            None => data.join("com.apple.CoreML/weights"),
        };
        let bytes = read_bounded(&model_path, MAX_MODEL_BYTES)?;
        let model =
            decode(&bytes).map_err(|source| ReadError::Decode { path: model_path.clone(), source })?;
        let Some(program) = &model.ml_program else {
            return Err(ReadError::NoProgram { path: model_path });
        };
        let mut files = BTreeMap::new();
        for name in referenced_files(program) {
            let file = name.strip_prefix(WEIGHTS_PREFIX).filter(|rest| is_plain_name(rest));
            let file = file.ok_or_else(|| ReadError::Reference { file: name.to_owned() })?;
            let file = weights_dir.join(file);
            files.insert(name.to_owned(), WeightFile::open(&file)?);
        }
        Ok(Self { dir: dir.to_owned(), model_path, weights_dir, model, files })
    }

    /// The package's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Path of the model message.
    pub fn model_path(&self) -> &Path {
        &self.model_path
    }

    /// Directory of the weight files.
    pub fn weights_dir(&self) -> &Path {
        &self.weights_dir
    }

    /// The model message.
    pub fn model(&self) -> &proto::Model {
        &self.model
    }

    /// The program.
    pub fn program(&self) -> &proto::Program {
        static EMPTY: std::sync::LazyLock<proto::Program> = std::sync::LazyLock::new(proto::Program::default);
        self.model.ml_program.as_ref().unwrap_or(&EMPTY)
    }

    /// The weight files by their name in the program.
    pub fn weight_files(&self) -> &BTreeMap<String, WeightFile> {
        &self.files
    }

    /// The elements of one of this package's constants.
    ///
    /// # Errors
    /// The record is missing, or its type or length differs from the value's.
    pub fn content<'a>(&self, value: &'a Value) -> Result<Content<'a>, ReadError> {
        match &value.data {
            Data::Immediate(proto::Elements::Bytes(bytes))
                if value.ty.dtype.immediate() == Immediate::Bytes =>
            {
                Ok(Content::Packed(Bytes::from_vec(bytes.values.clone())))
            }
            Data::Immediate(elements) => Ok(Content::Elements(elements)),
            Data::Blob(BlobRef { file, offset }) => {
                let weights =
                    self.files.get(file).ok_or_else(|| ReadError::Reference { file: file.clone() })?;
                Ok(Content::Packed(weights.data(*offset, &value.ty)?))
            }
        }
    }
}

/// True if a path consists of a single file name.
fn is_plain_name(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

/// Decodes a model message. The caller must bound the length of untrusted bytes.
///
/// # Errors
/// The bytes are not a model message, or messages are nested too deeply.
pub fn decode(bytes: &[u8]) -> Result<proto::Model, prost::DecodeError> {
    proto::Model::decode(bytes)
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    use std::io::Read;
    let io = |source| ReadError::Io { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();
    if found > limit {
        return Err(ReadError::TooLong { path: path.to_owned(), found, limit });
    }
    let mut bytes = Vec::with_capacity(found as usize);
    file.by_ref().take(limit).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Names of the weight files that a program's values refer to.
fn referenced_files(program: &proto::Program) -> std::collections::BTreeSet<&str> {
    let mut names = std::collections::BTreeSet::new();
    for function in program.functions.values() {
        for block in function.block_specializations.values() {
            visit_values(block, &mut |value| {
                if let Some(proto::ValueKind::BlobFile(blob)) = &value.kind {
                    names.insert(blob.file_name.as_str());
                }
            });
        }
    }
    names
}
