//! Errors and progress of a check.

use q35_inference::{RunError, WeightError};
use q35_metrics::RowError;

/// A check that could not be completed. A candidate outside its limits is not an error: see
/// [`crate::ParityReport::passed`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParityError {
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A tensor could not be read.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A model could not be run.
    #[error("{participant} failed at token {position} of prompt `{prompt}`: {source}")]
    Run {
        /// "the float reference", "the candidate".
        participant: &'static str,
        /// The prompt.
        prompt: String,
        /// Position of the sequence.
        position: usize,
        /// The failure.
        source: RunError,
    },
    /// The float reference failed.
    #[error("{participant} failed: {source}")]
    Float {
        /// "the float reference", "the float reference on the candidate's weights".
        participant: &'static str,
        /// The failure.
        source: RunError,
    },
    /// Logits that hold NaN, or of another number than the vocabulary has tokens.
    #[error(
        "{participant} returned logits that cannot be compared, at token {position} of prompt `{prompt}`: {source}"
    )]
    Row {
        /// "the float reference on the candidate's weights", "the candidate".
        participant: &'static str,
        /// The prompt.
        prompt: String,
        /// The position.
        position: usize,
        /// The reason.
        source: RowError,
    },
    /// Reference and candidate are different models.
    #[error("the candidate is another model: `{field}`\n  reference: {reference}\n  candidate: {candidate}")]
    AnotherModel {
        /// The field of config.json.
        field: String,
        /// The reference's value.
        reference: String,
        /// The candidate's value.
        candidate: String,
    },
    /// A saved reference pass of another source or other prompts.
    #[error(
        "the saved reference pass is of another {what}\n  expected: {expected}\n  found:    {found}\n\
         hint: make it again with --save-reference"
    )]
    StaleReference {
        /// "source", "suite" or "shape".
        what: &'static str,
        /// Value of this check.
        expected: String,
        /// Value in the file.
        found: String,
    },
    /// The file of a reference pass could not be written or read.
    #[error("{path}: {message}")]
    ReferenceFile {
        /// The file.
        path: String,
        /// The failure.
        message: String,
    },
    /// No prompt of at least two tokens.
    #[error("the suite has no prompt of at least two tokens")]
    EmptySuite,
}

/// A stage of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Comparing tensors.
    Weights,
    /// Greedy continuations by the candidate.
    Greedy,
    /// The float reference on the original weights.
    Reference,
    /// The float reference on the candidate's weights.
    Dequantized,
    /// The candidate, compared with both passes of the float reference.
    Candidate,
    /// Greedy continuations by the float model.
    ReferenceGreedy,
    /// Prefill against decode, split prompts and a snapshot.
    Consistency,
    /// Search for the cause of a failure.
    Diagnosis,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Weights => "comparing weights",
            Self::Greedy => "greedy tokens",
            Self::Reference => "float reference",
            Self::Dequantized => "candidate's weights in float",
            Self::Candidate => "candidate",
            Self::ReferenceGreedy => "float model's greedy tokens",
            Self::Consistency => "prefill, decode and cuts",
            Self::Diagnosis => "looking for the cause",
        })
    }
}

/// Progress of a stage. Stages come in the order of [`Stage`]; each begins with `done` = 0 and ends with
/// `done` = `total` unless it fails. Called from any thread; must not block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The stage.
    pub stage: Stage,
    /// Units done.
    pub done: u64,
    /// Total units.
    pub total: u64,
}
