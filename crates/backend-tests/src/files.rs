//! The embedded model on disk, shared by the tests of a process and removed after the last of them.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use q35_checkpoint::Checkpoint;
use q35_format_mlx::{RoundToNearest, WriteOptions};
use q35_quant::affine::AffineSpec;
use tempfile::TempDir;

/// A model's directory, removed with the last clone.
#[derive(Clone, Debug)]
pub struct ModelFiles(Arc<TempDir>);

impl ModelFiles {
    /// Creates a directory that `write` fills.
    ///
    /// # Panics
    /// The directory cannot be created.
    pub fn new(write: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write(dir.path());
        Self(Arc::new(dir))
    }

    /// The files in `shared` if they still exist, otherwise new ones, which are then shared.
    pub fn shared(shared: &Mutex<Weak<TempDir>>, write: impl FnOnce(&Path)) -> Self {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let files = shared.upgrade().map_or_else(|| Self::new(write), Self);
        *shared = Arc::downgrade(&files.0);
        files
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The directory as a model name.
    ///
    /// # Panics
    /// The system's temporary directory has a name that is not UTF-8.
    pub fn path_str(&self) -> &str {
        self.path().to_str().expect("a UTF-8 path")
    }
}

/// The embedded model as a Hugging Face checkpoint.
///
/// # Panics
/// It cannot be written.
pub fn nano_source() -> ModelFiles {
    static SHARED: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    ModelFiles::shared(&SHARED, |dir| q35_nano::write_to(dir).expect("the embedded model"))
}

/// The embedded model as an INT4 MLX directory.
///
/// # Panics
/// It cannot be converted.
pub fn nano_mlx() -> ModelFiles {
    static SHARED: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    ModelFiles::shared(&SHARED, |dir| {
        let source = nano_source();
        let checkpoint = Checkpoint::open(source.path()).expect("the embedded checkpoint");
        let recipe = RoundToNearest(AffineSpec::new(4, 64).expect("4 bits in groups of 64"));
        q35_format_mlx::write(&checkpoint, &recipe, &WriteOptions::default(), dir, &|_| {})
            .expect("a conversion");
        q35_checkpoint::copy_auxiliary_files(&checkpoint, dir).expect("the tokenizer's files");
    })
}
