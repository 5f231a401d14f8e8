//! Where a model comes from: a directory, a repository on the hub, or this program itself.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use q35_hub::{Event, HubOptions};
use tempfile::TempDir;

use crate::output::note;
use crate::progress::{Step, Watcher};

/// The name of the embedded model.
pub const NANO: &str = "q35-nano";

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

/// A model on disk.
#[derive(Debug)]
pub struct Source {
    /// Its directory.
    pub dir: PathBuf,
    /// Its hub id, or [`NANO`]; nothing for a local directory.
    pub id: Option<String>,
    /// Its commit on the hub.
    pub revision: Option<String>,
    /// Holds the embedded model as long as it is used.
    _unpacked: Option<TempDir>,
}

impl Source {
    /// Whether it came from the hub.
    pub fn is_from_hub(&self) -> bool {
        self.revision.is_some()
    }
}

impl ModelArgs {
    /// Finds the model, fetching what the cache lacks.
    ///
    /// # Errors
    /// It is neither a directory nor to be had from the hub.
    pub fn resolve(&self, watcher: Watcher) -> anyhow::Result<Source> {
        resolve(&self.model, self.revision.as_deref(), watcher)
    }
}

/// As [`ModelArgs::resolve`].
///
/// # Errors
/// It is neither a directory nor to be had from the hub.
pub fn resolve(model: &str, revision: Option<&str>, watcher: Watcher) -> anyhow::Result<Source> {
    if model == NANO && !Path::new(model).exists() {
        let unpacked = tempfile::tempdir().context("cannot unpack the embedded model")?;
        q35_nano::write_to(unpacked.path()).context("cannot unpack the embedded model")?;
        let (dir, id) = (unpacked.path().to_owned(), Some(NANO.to_owned()));
        return Ok(Source { dir, id, revision: None, _unpacked: Some(unpacked) });
    }
    let mut options = HubOptions::from_lookup(|name| std::env::var(name).ok());
    if let Some(revision) = revision {
        options = options.with_revision(revision);
    }
    let download: RefCell<Option<Step>> = RefCell::new(None);
    let found = q35_hub::resolve(model, &options, &is_wanted, &|event| match event {
        Event::Started { file, size_bytes, resumed_at_bytes } => {
            let step = watcher.bytes_step(file, size_bytes.unwrap_or(0));
            step.advance(resumed_at_bytes);
            download.replace(Some(step));
        }
        Event::Progress { bytes, .. } => {
            if let Some(step) = &*download.borrow() {
                step.advance(bytes);
            }
        }
        Event::Finished { .. } => drop(download.take()),
        Event::Cached { commit } => {
            note(format!("the hub cannot be reached; using commit {commit} from the cache"))
        }
        _ => {}
    })?;
    Ok(Source { dir: found.dir, id: found.id, revision: found.commit, _unpacked: None })
}

/// The files that a text conversion uses.
fn is_wanted(name: &str) -> bool {
    let weights = name.starts_with("model") && name.ends_with(".safetensors") && !name.contains('/');
    const OTHERS: [&str; 10] = [
        "config.json",
        "model.safetensors.index.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
    ];
    weights || OTHERS.contains(&name)
}
