//! Why parity could not be judged, and how far it is.

use q35_inference::{RunError, WeightError};
use q35_metrics::RowError;

/// Why a check could not be done. That a candidate is outside its thresholds is no error: see
/// [`crate::Report::passed`].
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
    #[error("{who} failed at token {position} of prompt `{prompt}`: {source}")]
    Run {
        /// "the float reference", "the candidate".
        who: &'static str,
        /// The prompt.
        prompt: String,
        /// Where the sequence stood.
        position: usize,
        /// What went wrong.
        source: RunError,
    },
    /// The float reference failed.
    #[error("{who} failed: {source}")]
    Float {
        /// "the float reference", "the float reference on the candidate's weights".
        who: &'static str,
        /// What went wrong.
        source: RunError,
    },
    /// Logits that are not numbers, or not as many as there are tokens.
    #[error("{who} gives logits that cannot be compared, at token {position} of prompt `{prompt}`: {source}")]
    Row {
        /// Whose.
        who: &'static str,
        /// The prompt.
        prompt: String,
        /// The position.
        position: usize,
        /// What is wrong with them.
        source: RowError,
    },
    /// The two are different models.
    #[error("the candidate is another model: `{field}`\n  reference: {reference}\n  candidate: {candidate}")]
    AnotherModel {
        /// The field of config.json.
        field: String,
        /// The reference's value.
        reference: String,
        /// The candidate's.
        candidate: String,
    },
    /// A saved reference pass that is not of this source and these prompts.
    #[error(
        "the saved reference pass is of another {what}\n  expected: {expected}\n  found:    {found}\n\
         hint: make it again with --save-reference"
    )]
    StaleReference {
        /// "source", "suite" or "shape".
        what: &'static str,
        /// What it must be.
        expected: String,
        /// What the file says.
        found: String,
    },
    /// The file of a reference pass could not be written or read.
    #[error("{path}: {message}")]
    ReferenceFile {
        /// The file.
        path: String,
        /// What went wrong.
        message: String,
    },
    /// Nothing to compare.
    #[error("the suite has no prompt of at least two tokens")]
    EmptySuite,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Comparing tensors.
    Weights,
    /// What the candidate says by itself.
    Greedy,
    /// The float reference on the original weights.
    Reference,
    /// The float reference on the candidate's weights.
    OwnFloat,
    /// The candidate, compared with both.
    Candidate,
    /// Prefill against decode, cuts, a snapshot.
    Consistency,
    /// Looking for the cause of a failure.
    Diagnosis,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Weights => "comparing weights",
            Self::Greedy => "greedy tokens",
            Self::Reference => "float reference",
            Self::OwnFloat => "candidate's weights in float",
            Self::Candidate => "candidate",
            Self::Consistency => "prefill, decode and cuts",
            Self::Diagnosis => "looking for the cause",
        })
    }
}

/// How far a stage is. Stages come in the order of [`Stage`]; each begins with `done` = 0 and ends with
/// `done` = `total` unless it fails. Called from any thread; must not block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The stage.
    pub stage: Stage,
    /// Units done.
    pub done: u64,
    /// Units in all.
    pub total: u64,
}
