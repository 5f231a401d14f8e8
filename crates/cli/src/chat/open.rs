//! From `--model` to a loaded model.

use std::cell::RefCell;

use anyhow::Context as _;
use q35_checkpoint::Checkpoint;
use q35_format_mlx::{RoundToNearest, WriteOptions};
use q35_hub::{Event, HubOptions};
use q35_quant::affine::AffineSpec;
use q35_runtime::{Backend, LoadOptions, OpenEvent, WindowPolicy};
use tempfile::TempDir;

use super::args::Chat;
use crate::output::note;
use crate::progress::{Step, Watcher};
use crate::source::NANO;

/// A loaded model.
pub(super) struct Opened {
    pub(super) chat: q35_runtime::Chat,
    /// Holds the embedded model's files as long as they are used.
    _converted: Option<TempDir>,
}

pub(super) fn open(args: &Chat) -> anyhow::Result<Opened> {
    let watcher = Watcher::detect(args.quiet || args.json);
    let model = args.model.as_deref().unwrap_or(NANO);
    let converted = match model == NANO && !std::path::Path::new(model).exists() {
        true => Some(convert_nano().context("cannot convert the embedded model")?),
        false => None,
    };
    let place = match &converted {
        Some(dir) => dir.path().to_str().context("the temporary directory has no UTF-8 name")?,
        None => model,
    };
    let step: RefCell<Option<Step>> = RefCell::new(None);
    let chat = q35_runtime::Chat::open(place, &options(args)?, &|event| match event {
        OpenEvent::Hub(Event::Started { file, size_bytes, resumed_at_bytes }) => {
            let bar = watcher.bytes_step(file, size_bytes.unwrap_or(0));
            bar.advance(resumed_at_bytes);
            step.replace(Some(bar));
        }
        OpenEvent::Hub(Event::Progress { bytes, .. }) => {
            if let Some(bar) = &*step.borrow() {
                bar.advance(bytes);
            }
        }
        OpenEvent::Hub(Event::Finished { .. }) => drop(step.take()),
        OpenEvent::Hub(Event::Cached { commit }) => {
            note(format!("the hub cannot be reached; using commit {commit} from the cache"));
        }
        OpenEvent::Ready(description) if watcher == Watcher::Terminal => {
            note(format!("{model}: {description}"))
        }
        _ => {}
    })?;
    Ok(Opened { chat, _converted: converted })
}

fn options(args: &Chat) -> anyhow::Result<LoadOptions> {
    let mut hub = HubOptions::from_lookup(|name| std::env::var(name).ok());
    if let Some(revision) = &args.revision {
        hub = hub.with_revision(revision);
    }
    let template = match &args.chat_template {
        Some(path) => {
            Some(std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?)
        }
        None => None,
    };
    let how = args.backend.options(Backend::Auto, args.threads, args.exact)?;
    let defaults = LoadOptions::default();
    Ok(LoadOptions {
        backend: how.backend,
        device: how.device,
        compute_units: how.compute_units,
        compiled_cache: how.compiled_cache,
        variant: args.variant.clone(),
        threads: how.threads,
        max_context: args.max_context,
        memory_limit_bytes: args.memory_limit.map(|megabytes| megabytes.saturating_mul(1_000_000)),
        exact: how.exact,
        prompt_cache_bytes: if args.no_prompt_cache { 0 } else { defaults.prompt_cache_bytes },
        window: if args.drop_oldest { WindowPolicy::DropOldest } else { WindowPolicy::Refuse },
        chat_template: template,
        hub,
        ..defaults
    })
}

/// The embedded model as an INT4 MLX directory.
pub(super) fn convert_nano() -> anyhow::Result<TempDir> {
    let (source, target) = (tempfile::tempdir()?, tempfile::tempdir()?);
    q35_nano::write_to(source.path())?;
    let checkpoint = Checkpoint::open(source.path())?;
    let recipe = RoundToNearest(AffineSpec::new(4, 64)?);
    q35_format_mlx::write(&checkpoint, &recipe, &WriteOptions::default(), target.path(), &|_| {})?;
    Ok(target)
}
