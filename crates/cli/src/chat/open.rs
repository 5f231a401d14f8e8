//! Opens the model of `--model`.

use std::cell::RefCell;

use anyhow::Context as _;
use q35_artefact::{QuantizeEvent, QuantizeOptions};
use q35_backend::{Backend, Precision};
use q35_runtime::{LoadOptions, OpenEvent, WindowPolicy};

use super::args::LoadArgs;
use crate::output::note;
use crate::progress::{DownloadProgress, Step, Watcher};
use crate::source::{NANO, hub_options};

/// Opens `model`, the embedded one if none is named. Shows progress unless `quiet`.
pub(super) fn open(model: Option<&str>, args: &LoadArgs, quiet: bool) -> anyhow::Result<q35_runtime::Chat> {
    let watcher = Watcher::detect(quiet);
    let model = model.unwrap_or(NANO);
    let (downloads, quantization) = (DownloadProgress::new(watcher), QuantizeProgress::new(watcher));
    let chat = q35_runtime::Chat::open(model, &options(args)?, &|event| match event {
        OpenEvent::Hub(event) => downloads.show(event),
        OpenEvent::Quantize(event) => quantization.show(event),
        OpenEvent::Ready(description) if watcher == Watcher::Terminal => {
            note(format!("{model}: {description}"))
        }
        _ => {}
    })?;
    if args.chat_template.is_none() && chat.uses_built_in_template()? {
        note(format!("{model}: no chat template; the built-in template (ChatML as in Qwen3.5) is used"));
    }
    Ok(chat)
}

fn options(args: &LoadArgs) -> anyhow::Result<LoadOptions> {
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
        quantize: QuantizeOptions { bits: args.bits, ..defaults.quantize },
        max_context: args.max_context,
        memory_limit_bytes: args.memory_limit.map(|megabytes| megabytes.saturating_mul(1_000_000)),
        prompt_cache_bytes: if args.no_prompt_cache { 0 } else { defaults.prompt_cache_bytes },
        window: if args.drop_oldest { WindowPolicy::DropOldest } else { WindowPolicy::Refuse },
        chat_template: template,
        hub: hub_options(args.revision.as_deref()),
        ..defaults
    })
}

/// Progress of quantizing a float checkpoint as it is opened: a bar, then one line.
pub(super) struct QuantizeProgress {
    watcher: Watcher,
    step: RefCell<Option<Step>>,
}

impl QuantizeProgress {
    pub(super) fn new(watcher: Watcher) -> Self {
        Self { watcher, step: RefCell::new(None) }
    }

    pub(super) fn show(&self, event: QuantizeEvent<'_>) {
        match event {
            QuantizeEvent::Started { bits, bytes } => {
                let title = format!("quantizing to INT{bits}");
                // A log gets the line at the end only.
                let bar = if self.watcher == Watcher::Terminal { self.watcher } else { Watcher::Quiet };
                self.step.replace(Some(bar.bytes_step(&title, bytes)));
            }
            QuantizeEvent::Converted { bytes } => {
                if let Some(step) = &*self.step.borrow() {
                    step.advance(bytes);
                }
            }
            QuantizeEvent::Finished { bits, dir, cached: false, temporary, elapsed } => {
                drop(self.step.take());
                if self.watcher != Watcher::Quiet {
                    let place = match temporary {
                        true => "not cached, since the cache directory cannot be written".to_owned(),
                        false => format!("cached in {}", dir.display()),
                    };
                    let seconds = elapsed.as_secs_f64();
                    note(format!("float checkpoint quantized to INT{bits} in {seconds:.1} s, {place}"));
                }
            }
            _ => {}
        }
    }
}
