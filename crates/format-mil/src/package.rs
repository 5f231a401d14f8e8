//! Writer of `.mlpackage` directories.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use prost::Message;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{WeightWriteError, WeightWriter, proto};

/// Writer of a package's weight file.
pub type PackageWeights = WeightWriter<BufWriter<File>>;

/// Writes a package: first its weights, then its model.
///
/// Files are written in place; for an atomic result, write to a temporary directory and rename it.
#[derive(Debug)]
pub struct PackageWriter {
    dir: PathBuf,
    weights: PackageWeights,
}

/// Failure to write a package.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackageWriteError {
    /// A file or directory cannot be written.
    #[error("cannot write `{path}`")]
    Io {
        /// Path of the file or directory.
        path: PathBuf,
        /// Cause of the failure.
        source: io::Error,
    },
    /// The weights could not be written.
    #[error("cannot write the weights of `{path}`")]
    Weights {
        /// The package.
        path: PathBuf,
        /// Cause of the failure.
        source: WeightWriteError,
    },
}

const MODEL: &str = "com.apple.CoreML/model.mlmodel";
const WEIGHTS: &str = "com.apple.CoreML/weights";

impl PackageWriter {
    /// Creates the directory and an empty weight file.
    ///
    /// # Errors
    /// A file or directory cannot be written.
    pub fn create(dir: &Path) -> Result<Self, PackageWriteError> {
        let folder = dir.join("Data").join(WEIGHTS);
        fs::create_dir_all(&folder)
            .map_err(|source| PackageWriteError::Io { path: folder.clone(), source })?;
        let path = folder.join("weight.bin");
        let file = File::create(&path).map_err(|source| PackageWriteError::Io { path, source })?;
        let weights = WeightWriter::new(BufWriter::with_capacity(1 << 16, file))
            .map_err(|source| PackageWriteError::Weights { path: dir.to_owned(), source })?;
        Ok(Self { dir: dir.to_owned(), weights })
    }

    /// The weight file.
    pub fn weights(&mut self) -> &mut PackageWeights {
        &mut self.weights
    }

    /// Completes the package with its model and manifest.
    ///
    /// # Errors
    /// A file or directory cannot be written.
    pub fn finish(self, model: &proto::Model) -> Result<(), PackageWriteError> {
        let Self { dir, weights } = self;
        weights.finish().map_err(|source| PackageWriteError::Weights { path: dir.clone(), source })?;
        let bytes = model.encode_to_vec();
        let manifest = serde_json::to_vec_pretty(&manifest(&bytes)).unwrap_or_default();
        for (path, content) in
            [(dir.join("Data").join(MODEL), &bytes), (dir.join("Manifest.json"), &manifest)]
        {
            fs::write(&path, content).map_err(|source| PackageWriteError::Io { path, source })?;
        }
        Ok(())
    }
}

fn manifest(model: &[u8]) -> serde_json::Value {
    let (model_id, weights_id) = (identifier(model, MODEL), identifier(model, WEIGHTS));
    let item = |path: &str, name: &str, description: &str| json!({ "author": "com.apple.CoreML", "description": description, "name": name, "path": path });
    json!({
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            model_id.as_str(): item(MODEL, "model.mlmodel", "CoreML Model Specification"),
            weights_id.as_str(): item(WEIGHTS, "weights", "CoreML Model Weights"),
        },
        "rootModelIdentifier": model_id,
    })
}

/// An identifier in the form of a UUID, derived from the model so that equal models yield equal packages.
fn identifier(model: &[u8], path: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(path.as_bytes());
    hash.update(model);
    let mut bytes: [u8; 32] = hash.finalize().into();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes[..16].iter().map(|byte| format!("{byte:02X}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
