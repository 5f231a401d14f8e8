//! Provenance: the source's name, revision and file hashes, and the tool's version, for manifest and model card.

use std::sync::atomic::{AtomicBool, Ordering};

use q35_checkpoint::{Checkpoint, SafetensorsFile, SourceFile};
use q35_output_dir::{FileRecord, hash_file};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{ConvertError, Source};

/// Origin of a conversion.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// Hub id or name of the embedded model; [`None`] for a directory.
    pub id: Option<String>,
    /// True if `id` is a repository on the hub.
    pub is_from_hub: bool,
    /// Commit on the hub.
    pub revision: Option<String>,
    /// Name in the manifest: `id`, or the name of the directory.
    pub name: String,
    /// Version of q35.
    pub tool_version: &'static str,
}

impl Provenance {
    /// The provenance of a conversion of `source`.
    pub(crate) fn new(source: &Source) -> Self {
        let directory = source.dir.file_name().map(|name| name.to_string_lossy().into_owned());
        Self {
            id: source.id.clone(),
            is_from_hub: source.is_from_hub(),
            revision: source.revision.clone(),
            name: source.id.clone().or(directory).unwrap_or_default(),
            tool_version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// Records of all source files, or [`None`] if `stop` was set meanwhile. Weight files are hashed where they are mapped;
/// with `release`, their pages are given back to the system after they were hashed, so that they do not count as this
/// process's memory.
pub(crate) fn hash_sources(
    checkpoint: &Checkpoint,
    release: bool,
    stop: &AtomicBool,
) -> Result<Option<Vec<FileRecord>>, ConvertError> {
    let record = |source: &SourceFile| -> Option<Result<FileRecord, ConvertError>> {
        match checkpoint.weight_files().iter().find(|file| file.path() == source.path) {
            Some(file) => {
                let sha256 = hash_mapped(file, release, stop)?;
                Some(Ok(FileRecord { path: source.name.clone(), bytes: source.bytes, sha256 }))
            }
            None => Some(hash_file(&source.path, &source.name).map_err(ConvertError::from)),
        }
    };
    checkpoint.source_files().par_iter().map(record).collect::<Option<Result<_, _>>>().transpose()
}

fn hash_mapped(file: &SafetensorsFile, release: bool, stop: &AtomicBool) -> Option<String> {
    const CHUNK_BYTES: usize = 16 << 20;
    let mut hash = Sha256::new();
    for chunk in file.bytes().chunks(CHUNK_BYTES) {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        hash.update(chunk);
        if release {
            file.release(chunk);
        }
    }
    Some(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
