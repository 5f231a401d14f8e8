//! Quantization of a float checkpoint as it is opened, with a cache of the results.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use q35_checkpoint::{Checkpoint, SafetensorsFile, copy_auxiliary_files};
use q35_format_mlx::{Plan, RoundToNearest, WriteOptions};
use q35_quant::affine::AffineSpec;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::{ArtefactDir, ArtefactError, ArtefactKind};

/// Weights that share a scale and a bias.
const GROUP_SIZE: usize = 64;
/// Bytes that are hashed at once.
const HASH_CHUNK: usize = 8 << 20;

/// Options of quantizing a float checkpoint as it is opened: to an MLX model, each weight rounded to nearest.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// Bits of a weight: 2, 3, 4, 5, 6 or 8. 8, which costs next to no accuracy.
    pub bits: u32,
    /// Directory that caches quantized models, in sub-directories named by a hash of the checkpoint's files. `q35/quantized`
    /// in the user's cache directory. `None`: a temporary directory each time.
    pub cache_dir: Option<PathBuf>,
}

impl Default for QuantizeOptions {
    fn default() -> Self {
        Self { bits: 8, cache_dir: dirs::cache_dir().map(|dir| dir.join("q35").join("quantized")) }
    }
}

/// Progress of quantizing a checkpoint: `Started`, any number of `Converted`, then `Finished`; of a cached model
/// `Finished` alone.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum QuantizeEvent<'a> {
    /// The quantization begins.
    Started {
        /// Bits of a weight.
        bits: u32,
        /// Bytes of the checkpoint's text model.
        bytes: u64,
    },
    /// Part of a tensor is quantized.
    Converted {
        /// Bytes of the checkpoint since the last event.
        bytes: u64,
    },
    /// The quantized model is on disk.
    Finished {
        /// Bits of a weight.
        bits: u32,
        /// Its directory.
        dir: &'a Path,
        /// True if it was quantized before.
        cached: bool,
        /// True if it is removed when it is no longer used, because the cache cannot be written.
        temporary: bool,
        /// Time since the call.
        elapsed: Duration,
    },
}

/// A quantized checkpoint on disk.
#[derive(Debug)]
pub struct QuantizedModel {
    /// The MLX model.
    pub artefact: ArtefactDir,
    /// Removes the files when dropped, where they are not cached.
    _temporary: Option<TempDir>,
}

/// Quantizes the float checkpoint in `dir`, unless the cache has it.
///
/// The cache's key is a hash of the contents of all files that go into the result. Processes that quantize the same
/// checkpoint at the same time do not disturb each other: each writes a temporary sibling and renames it.
///
/// # Errors
/// The checkpoint cannot be read, or the result not be written.
pub fn quantize_checkpoint(
    dir: &Path,
    options: &QuantizeOptions,
    events: &dyn Fn(QuantizeEvent<'_>),
) -> Result<QuantizedModel, ArtefactError> {
    let started = Instant::now();
    let bits = options.bits;
    let failed = |message: String| ArtefactError::Quantize { dir: dir.to_owned(), message };
    let recipe =
        RoundToNearest(AffineSpec::new(bits, GROUP_SIZE).map_err(|error| failed(error.to_string()))?);
    let checkpoint = Checkpoint::open(dir)?;
    let key = source_key(&checkpoint, bits).map_err(|error| failed(error.to_string()))?;
    let finished = |dir: &Path, cached: bool, temporary: Option<TempDir>| {
        let elapsed = started.elapsed();
        events(QuantizeEvent::Finished { bits, dir, cached, temporary: temporary.is_some(), elapsed });
        let artefact = ArtefactDir { kind: ArtefactKind::Mlx, dir: dir.to_owned() };
        QuantizedModel { artefact, _temporary: temporary }
    };
    let target = options.cache_dir.as_ref().map(|cache| cache.join(format!("int{bits}-{}", &key[..32])));
    if let Some(target) = target.as_ref().filter(|target| target.join("config.json").is_file()) {
        return Ok(finished(target, true, None));
    }
    let staging = options.cache_dir.as_deref().and_then(|cache| staging_in(cache).ok());
    let (staging, target) = match (staging, target) {
        (Some(staging), Some(target)) => (staging, Some(target)),
        _ => (tempfile::tempdir().map_err(|error| failed(error.to_string()))?, None),
    };
    let plan = Plan::new(&checkpoint, &recipe, &WriteOptions::default())
        .map_err(|error| failed(error.to_string()))?;
    events(QuantizeEvent::Started { bits, bytes: plan.summary().source_bytes });
    let progress = |bytes| {
        events(QuantizeEvent::Converted { bytes });
        ControlFlow::Continue(())
    };
    plan.write(staging.path(), &progress).map_err(|error| failed(error.to_string()))?;
    copy_auxiliary_files(&checkpoint, staging.path())?;
    let Some(target) = target else {
        let dir = staging.path().to_owned();
        return Ok(finished(&dir, false, Some(staging)));
    };
    sync_files(staging.path()).map_err(|error| failed(error.to_string()))?;
    // If two processes race, the first rename wins; the other result is equal and is dropped.
    match std::fs::rename(staging.path(), &target) {
        Ok(()) => drop(staging.keep()),
        Err(_) if target.join("config.json").is_file() => drop(staging),
        Err(error) => return Err(failed(format!("cannot write {}: {error}", target.display()))),
    }
    Ok(finished(&target, false, None))
}

/// A new directory beside the cached models.
fn staging_in(cache: &Path) -> io::Result<TempDir> {
    std::fs::create_dir_all(cache)?;
    tempfile::Builder::new().prefix(".quantizing-").tempdir_in(cache)
}

/// Flushes the files, so that a rename never publishes a file whose contents a crash may lose.
fn sync_files(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() {
            File::open(path)?.sync_all()?;
        }
    }
    Ok(())
}

/// SHA-256 over everything that determines the result: the files of the checkpoint by name and contents, the bits, and
/// this program's version.
fn source_key(checkpoint: &Checkpoint, bits: u32) -> io::Result<String> {
    let mut key = Sha256::new();
    key.update(format!("q35 {} mlx rtn {bits} {GROUP_SIZE}\n", env!("CARGO_PKG_VERSION")));
    for file in checkpoint.source_files() {
        let hash = match blob_hash(&file.path) {
            Some(hash) => hash,
            None => match checkpoint.weight_files().iter().find(|weights| weights.path() == file.path) {
                Some(weights) => hash_weights(weights),
                None => hex(Sha256::digest(std::fs::read(&file.path)?)),
            },
        };
        key.update(format!("{} {hash}\n", file.name));
    }
    Ok(hex(key.finalize()))
}

/// The hash by which the hub's cache names a large file, so that it need not be read.
fn blob_hash(path: &Path) -> Option<String> {
    let blob = path.canonicalize().ok()?;
    let in_blobs = blob.parent()?.file_name()? == "blobs";
    let name = blob.file_name()?.to_str()?;
    (in_blobs && name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())).then(|| name.to_owned())
}

/// SHA-256 over the SHA-256 of each chunk, computed in parallel.
fn hash_weights(file: &SafetensorsFile) -> String {
    let chunks: Vec<_> = file
        .bytes()
        .par_chunks(HASH_CHUNK)
        .map(|chunk| {
            let hash = Sha256::digest(chunk);
            file.release(chunk);
            hash
        })
        .collect();
    let mut all = Sha256::new();
    chunks.iter().for_each(|hash| all.update(hash));
    hex(all.finalize())
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
