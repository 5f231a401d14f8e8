//! The part that all conversions share: output arguments, progress bars, and the printed report.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use q35_convert::{
    ConversionReport, ConvertError, ConvertOptions, Details, Progress, Source, Stage, Target, convert,
};
use q35_inference::CancelToken;
use q35_output_dir::{Existing, Staging};
use q35_parity::ParityReport;
use serde_json::{Value, json};

use crate::context::Context;
use crate::dropped_tensors;
use crate::exit::Outcome;
use crate::output::{bytes, grouped, json as print_json, line, note};
use crate::progress::{Step, Watcher};
use crate::source::ModelArgs;

/// Arguments of every conversion's output.
#[derive(Debug, clap::Args)]
pub struct OutputArgs {
    /// The directory to write; it appears when everything in it is complete
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Replace DIR if it exists
    #[arg(long)]
    pub force: bool,

    /// Skip the short parity check that follows; the manifest then says that nothing was verified
    #[arg(long)]
    pub no_verify: bool,
}

/// Converts `model` to the target that `target` chooses for it, and prints the report.
///
/// # Errors
/// The source cannot be used, or the output cannot be written.
pub fn run(
    model: &ModelArgs,
    output: &OutputArgs,
    context: Context,
    target: impl FnOnce(&Source) -> anyhow::Result<Box<dyn Target>>,
) -> anyhow::Result<Outcome> {
    let existing = if output.force { Existing::Replace } else { Existing::Refuse };
    // Refused before anything is downloaded.
    Staging::check(&output.out, existing)?;
    let source = model.resolve(context.watcher)?;
    let target = target(&source)?;
    let options = ConvertOptions {
        existing,
        verify: !output.no_verify,
        cancel: interrupt_token(&output.out)?,
        ..ConvertOptions::new(&output.out)
    };
    let bars = StageBars::new(context.watcher);
    let report = match convert(&source, &*target, &options, &|progress| bars.show(progress)) {
        Err(error @ ConvertError::Cancelled { .. }) => {
            drop(bars);
            note(format!("interrupted: {error}"));
            return Ok(Outcome::Interrupted);
        }
        report => report?,
    };
    drop(bars);
    if context.json {
        print_json(&to_json(&report))?
    } else {
        print(&report)?
    }
    Ok(outcome(report.parity.as_ref()))
}

/// The token that Ctrl-C cancels. A second Ctrl-C removes what was staged.
fn interrupt_token(out: &Path) -> anyhow::Result<CancelToken> {
    let resume_dir = q35_convert::resume_dir(out);
    crate::interrupt::token_with(move || {
        q35_output_dir::remove_unpublished();
        let resume_dir = q35_convert::has_resume_files(&resume_dir).then(|| resume_dir.clone());
        note(format!("interrupted: {}", ConvertError::Cancelled { resume_dir }));
    })
}

/// The progress bar of the current stage.
pub struct StageBars {
    watcher: Watcher,
    current: Mutex<Option<(Progress, Step)>>,
}

impl StageBars {
    /// Bars in the style of `watcher`.
    pub fn new(watcher: Watcher) -> Self {
        Self { watcher, current: Mutex::new(None) }
    }

    /// Shows progress; a new stage replaces the bar of the last.
    pub fn show(&self, progress: Progress) {
        let Ok(mut current) = self.current.lock() else { return };
        if current.as_ref().is_none_or(|(last, _)| last.stage != progress.stage) {
            // The old bar is cleared before the new one is drawn.
            *current = None;
            let title = progress.stage.to_string();
            let bar = match progress.stage {
                Stage::Quantization => self.watcher.bytes_step(&title, progress.total),
                Stage::Calibration(_) => self.watcher.long_step(&title, progress.total),
                _ => self.watcher.counted_step(&title, progress.total),
            };
            *current = Some((Progress { done: 0, ..progress }, bar));
        }
        if let Some((last, bar)) = &mut *current {
            bar.advance(progress.done.saturating_sub(last.done));
            last.done = progress.done.max(last.done);
        }
    }
}

fn to_json(report: &ConversionReport) -> Value {
    let mut json = json!({ "out": report.out });
    if let Value::Object(json) = &mut json {
        json.extend(report.summary.details.to_json());
    }
    json["parameters"] = report.summary.parameters.into();
    json["source_bytes"] = report.summary.source_bytes.into();
    json["output_bytes"] = report.output_bytes().into();
    json["left_out"] = dropped_tensors::to_json(&report.inventory).into();
    json["companions"] = report.auxiliary_files.clone().into();
    json["seconds"] = report.elapsed.as_secs_f64().into();
    json["parity"] = report.parity.as_ref().map_or(Value::Null, ParityReport::summary);
    json
}

fn print(report: &ConversionReport) -> anyhow::Result<()> {
    let summary = &report.summary;
    line(format!(
        "{}: {} in {:.1} s",
        report.out.display(),
        bytes(report.output_bytes()),
        report.elapsed.as_secs_f64()
    ))?;
    match &summary.details {
        Details::Mlx { spec, recipe, bits_per_weight, tensor_bytes, .. } => line(format!(
            "  {} weights, {} bits in groups of {} ({recipe}), {bits_per_weight:.3} bits per weight\n  \
             {} of tensors, from {}",
            grouped(summary.parameters),
            spec.bits(),
            spec.group_size(),
            bytes(*tensor_bytes),
            bytes(summary.source_bytes),
            recipe = if recipe == "best" { "calibrated" } else { recipe },
        ))?,
        Details::CoreMl { options, packages, quantized_weights, .. } => line(format!(
            "  {}: {} weights, {} of them INT8 ({}), activations {}, {} tokens of context",
            packages.join(", "),
            grouped(summary.parameters),
            grouped(*quantized_weights),
            options.encoding.name(),
            options.compute.name(),
            options.context,
        ))?,
        _ => {}
    }
    line(format!("  parity: {}", report.describe_parity()))?;
    dropped_tensors::print(&report.inventory, "  left out")?;
    report.notes.iter().for_each(|text| note(format!("note: {text}")));
    Ok(())
}

/// The outcome of a conversion: no if its parity check failed, whose findings are printed.
fn outcome(report: Option<&ParityReport>) -> Outcome {
    let Some(report) = report.filter(|report| !report.passed) else { return Outcome::Done };
    for finding in &report.findings {
        note(format!("{}: {}", finding.scope, finding.message));
    }
    for check in report.checks.iter().filter(|check| !check.passed) {
        note(format!("outside its limit: {} is {:e}, limit {:e}", check.name, check.value, check.limit));
    }
    Outcome::No
}
