//! Model files for the backend tests.

use std::sync::{Mutex, Weak};

use q35_backend_tests::{Backend, ModelFiles, nano_source};
use q35_format_coreml::Options;
use q35_runtime::Chat;
use tempfile::TempDir;

/// A backend under test that opens `files`.
pub fn backend(name: &'static str, files: ModelFiles) -> Backend {
    Backend::new(name, move |options| Chat::open(files.path_str(), options, &|_| {}))
}

/// The embedded model as a Core ML package with 512 tokens of context.
#[allow(dead_code, reason = "not every test uses it")]
pub fn nano_coreml() -> ModelFiles {
    static SHARED: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    ModelFiles::shared(&SHARED, |dir| {
        let source = nano_source();
        let checkpoint = q35_checkpoint::Checkpoint::open(source.path()).unwrap();
        let options = Options { context: 512, ..Options::default() };
        q35_format_coreml::write(&checkpoint, &options, dir, &|_| {}).unwrap();
        q35_checkpoint::copy_auxiliary_files(&checkpoint, dir).unwrap();
    })
}
