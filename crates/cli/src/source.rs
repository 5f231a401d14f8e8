//! The source of a model: a directory, a repository on the hub, or the model embedded in this program.

pub use q35_convert::{NANO, Source};
use q35_hub::HubOptions;

use crate::progress::{DownloadProgress, Watcher};

/// `--model` and `--revision`.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArgs {
    /// A local directory, a Hugging Face hub id, or q35-nano for the small model in this program
    #[arg(long, value_name = "DIR|ID", default_value = "Qwen/Qwen3.5-0.8B")]
    pub model: String,

    /// Branch, tag or commit on the hub
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
}

impl ModelArgs {
    /// Finds the model, fetching the files that the cache lacks.
    ///
    /// # Errors
    /// There is no such directory, and the hub does not serve the model.
    pub fn resolve(&self, watcher: Watcher) -> anyhow::Result<Source> {
        resolve(&self.model, self.revision.as_deref(), None, watcher)
    }
}

/// Finds `model`, fetching the files of the requested `variant` that the cache lacks.
///
/// # Errors
/// There is no such directory, and the hub does not serve the model.
pub fn resolve(
    model: &str,
    revision: Option<&str>,
    variant: Option<&str>,
    watcher: Watcher,
) -> anyhow::Result<Source> {
    let downloads = DownloadProgress::new(watcher);
    Ok(Source::resolve(model, variant, &hub_options(revision), &|event| downloads.show(event))?)
}

/// Options of the hub client from the environment.
pub fn hub_options(revision: Option<&str>) -> HubOptions {
    let options = HubOptions::from_lookup(|name| std::env::var(name).ok());
    match revision {
        Some(revision) => options.with_revision(revision),
        None => options,
    }
}
