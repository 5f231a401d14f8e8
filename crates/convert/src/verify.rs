//! The check after a conversion: a short parity run of the output against its source.

use std::path::Path;
use std::sync::Arc;

use q35_backend::{Backend, Precision, RunOptions, Running};
use q35_checkpoint::Checkpoint;
use q35_inference::CancelToken;
use q35_parity::{
    Artefact, Candidate, CheckOptions, CheckpointText, DEFAULT_SUITE, DEFAULT_THRESHOLDS, ParityError,
    ParityReport, Prompt, Source as ParitySource, Suite, Thresholds, check,
};
use serde_json::{Map, Value};

use crate::ConvertError;
use crate::progress::{Progress, ProgressCallback, Stage};

/// Positions to compare, spread evenly over the short prompts of the suite.
const POSITIONS: usize = 128;
/// Tokens to decode one by one. One step of the Core ML evaluator takes a second at full size.
const DECODED_TOKENS: usize = 6;

/// Result of [`verify`].
pub(crate) struct Verified {
    pub(crate) report: ParityReport,
    /// False if the source has no usable tokenizer, so that arbitrary token ids were compared.
    pub(crate) on_text: bool,
}

/// Checks the model in `out`, converted with `settings`, against `checkpoint`. The checkpoint is the conversion's own:
/// a second mapping of the files would count twice as memory.
pub(crate) fn verify(
    checkpoint: &Arc<Checkpoint>,
    source_name: &str,
    out: &Path,
    settings: &Map<String, Value>,
    progress: ProgressCallback<'_>,
    cancel: &CancelToken,
) -> Result<Verified, ConvertError> {
    let failed = |error: &dyn std::fmt::Display| ConvertError::Verification { message: error.to_string() };
    let reference = Artefact::of_checkpoint(Arc::clone(checkpoint));
    let candidate = Artefact::open_with_settings(out, settings).map_err(|error| failed(&error))?;
    let text = CheckpointText::open(checkpoint.dir());
    let prompts = match &text {
        Ok(text) => Suite::from_json(DEFAULT_SUITE)
            .and_then(|suite| suite.quick_prompts(text, POSITIONS))
            .map_err(|error| failed(&error))?,
        Err(_) => vec![arbitrary_prompt(checkpoint.config().vocab_size)],
    };
    let thresholds = Thresholds::from_json(DEFAULT_THRESHOLDS).map_err(|error| failed(&error))?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let run = RunOptions {
        backend: Backend::Cpu,
        threads: Some(threads),
        precision: Precision::Declared,
        ..RunOptions::default()
    };
    let Running { model, activations } = candidate.open_model(&run).map_err(|error| failed(&error))?;
    let source = ParitySource { name: source_name.to_owned(), hash: None, weights: reference.weights() };
    let candidate = Candidate {
        name: "the conversion".to_owned(),
        kind: candidate.kind(),
        recipe: settings.get("recipe").and_then(Value::as_str).map(str::to_owned),
        size_bytes: Some(candidate.weight_bytes()),
        weights: candidate.weights(),
        storage: &|spec| candidate.storage(spec),
        model: Some(&*model),
        activations,
    };
    let options = CheckOptions {
        tool: format!("q35-convert {}", env!("CARGO_PKG_VERSION")),
        threads,
        greedy_tokens: 0,
        decoded_tokens: DECODED_TOKENS,
        thorough: false,
        ..CheckOptions::default()
    };
    let report = check(&source, &candidate, &prompts, &thresholds, options, cancel, &|stage| {
        progress(Progress { stage: Stage::Verification(stage.stage), done: stage.done, total: stage.total });
    });
    match report {
        Ok(report) => Ok(Verified { report, on_text: text.is_ok() }),
        Err(ParityError::Cancelled) => Err(ConvertError::Cancelled { resume_dir: None }),
        Err(error) => Err(failed(&error)),
    }
}

/// Token ids spread over the vocabulary.
fn arbitrary_prompt(vocab_size: usize) -> Prompt {
    let ids = (1..=POSITIONS).map(|i| (i * 7919 % vocab_size) as u32).collect();
    Prompt::new("arbitrary", "ids", ids)
}

/// The outcome of the check, for report and model card; [`None`] is a conversion that was not verified.
pub fn describe_parity(report: Option<&ParityReport>) -> String {
    let Some(report) = report else { return "unverified".into() };
    if report.fidelity.is_none() {
        return "weights differ from the source beyond their encoding; nothing was run".into();
    }
    report.sentence()
}
