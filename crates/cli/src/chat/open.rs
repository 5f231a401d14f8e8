//! Opens the model of `--model`.

use anyhow::Context as _;
use q35_backend::{Backend, Precision};
use q35_convert::{ConvertOptions, Mlx, Source, convert};
use q35_runtime::{LoadOptions, OpenEvent, WindowPolicy};
use tempfile::TempDir;

use super::args::Chat;
use crate::output::note;
use crate::progress::{DownloadProgress, Watcher};
use crate::source::{NANO, hub_options};

/// A loaded model.
pub(super) struct Opened {
    pub(super) chat: q35_runtime::Chat,
    /// Removes the embedded model's files when dropped.
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
    let downloads = DownloadProgress::new(watcher);
    let chat = q35_runtime::Chat::open(place, &options(args)?, &|event| match event {
        OpenEvent::Hub(event) => downloads.show(event),
        OpenEvent::Ready(description) if watcher == Watcher::Terminal => {
            note(format!("{model}: {description}"))
        }
        _ => {}
    })?;
    Ok(Opened { chat, _converted: converted })
}

fn options(args: &Chat) -> anyhow::Result<LoadOptions> {
    let template = match &args.chat_template {
        Some(path) => {
            Some(std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?)
        }
        None => None,
    };
    let precision = if args.exact { Precision::Exact } else { Precision::Fast };
    let defaults = LoadOptions::default();
    Ok(LoadOptions {
        run: args.backend.options(Backend::Auto, args.threads, precision),
        variant: args.variant.variant.clone(),
        max_context: args.max_context,
        memory_limit_bytes: args.memory_limit.map(|megabytes| megabytes.saturating_mul(1_000_000)),
        prompt_cache_bytes: if args.no_prompt_cache { 0 } else { defaults.prompt_cache_bytes },
        window: if args.drop_oldest { WindowPolicy::DropOldest } else { WindowPolicy::Refuse },
        chat_template: template,
        hub: hub_options(args.revision.as_deref()),
        ..defaults
    })
}

/// The embedded model as an INT4 MLX directory.
pub(super) fn convert_nano() -> anyhow::Result<TempDir> {
    let dir = tempfile::tempdir()?;
    let options = ConvertOptions::new(dir.path()).replacing().without_verification();
    convert(&Source::embedded()?, &Mlx::round_to_nearest(4, 64)?, &options, &|_| {})?;
    Ok(dir)
}
