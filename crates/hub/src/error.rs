//! What can go wrong between a model's name and its files.

use std::path::PathBuf;

/// Why a model's files could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Neither a directory nor a hub id.
    #[error(
        "cannot find model `{model}`\n  expected: a directory, or a hub id such as Qwen/Qwen3.5-0.8B\n  found:    \
         no such directory, and not of the form owner/name"
    )]
    Name {
        /// What was asked for.
        model: String,
    },
    /// Offline, and not (wholly) in the cache.
    #[error(
        "offline, and `{id}` at revision `{revision}` is not in the cache {cache}\n\
         hint: unset HF_HUB_OFFLINE, or point HF_HOME at a cache that holds it"
    )]
    Offline {
        /// Hub id.
        id: String,
        /// Revision asked for.
        revision: String,
        /// Cache directory.
        cache: PathBuf,
    },
    /// The hub refused.
    #[error("the hub answered {status} to {url}\nhint: {hint}")]
    Status {
        /// HTTP status.
        status: u16,
        /// What was asked for.
        url: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The hub could not be reached, or the connection kept breaking.
    #[error("cannot fetch {url}: {message}\nhint: run the same command again: it goes on where it stopped")]
    Connection {
        /// What was asked for.
        url: String,
        /// The last failure.
        message: String,
    },
    /// An answer that is not the hub's protocol.
    #[error("the answer to {url} is not a hub's: {message}")]
    Protocol {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        message: String,
    },
    /// A file arrived with another size or hash than declared.
    #[error(
        "`{file}` of `{id}` arrived damaged\n  expected: {expected}\n  found:    {found}\nhint: run the command again; the damaged copy was removed"
    )]
    Damaged {
        /// Hub id.
        id: String,
        /// File in the repository.
        file: String,
        /// Declared size or hash.
        expected: String,
        /// Size or hash that arrived.
        found: String,
    },
    /// Another process is downloading the same file.
    #[error("another process is downloading {path}\nhint: wait for it, then run the command again")]
    Busy {
        /// The unfinished file.
        path: PathBuf,
    },
    /// The repository holds nothing of what is wanted.
    #[error("`{id}` holds none of the files that a model needs (found: {found})")]
    Nothing {
        /// Hub id.
        id: String,
        /// Names it does hold, shortened.
        found: String,
    },
    /// The file system failed.
    #[error("cannot write {path}: {source}")]
    Io {
        /// Path in question.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
}
