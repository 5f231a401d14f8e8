//! Settings that all commands of `q35-convert` share.

use crate::progress::Watcher;

/// Settings that all commands share.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// True if results are printed as JSON.
    pub json: bool,
    /// The display of progress.
    pub watcher: Watcher,
}
