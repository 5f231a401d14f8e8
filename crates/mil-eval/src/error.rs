//! What can go wrong when a program is loaded or run.

use q35_format_mil::{CheckError, ReadError};

/// Why a program cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The package cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The package is malformed.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// An operator that the evaluator does not know.
    #[error("operation `{operation}` of function `{function}`: operator `{operator}` is not supported")]
    Unsupported {
        /// The function it stands in.
        function: String,
        /// The operation's name.
        operation: String,
        /// Its operator.
        operator: String,
    },
    /// Something else in a program that the evaluator cannot run.
    #[error("function `{function}`: {what}")]
    Program {
        /// The function.
        function: String,
        /// What is wrong with it.
        what: String,
    },
    /// A function that the package does not have.
    #[error("the package has no function `{asked}`\n  it has: {known}")]
    NoFunction {
        /// Asked for.
        asked: String,
        /// Those there are, separated by commas.
        known: String,
    },
    /// The inputs of a call do not fit the function.
    #[error("input `{input}` of function `{function}`\n  expected: {expected}\n  found:    {found}")]
    Input {
        /// The function.
        function: String,
        /// The input.
        input: String,
        /// What the function declares.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A state is unknown, does not fit, or was lost by a call that failed half way.
    #[error("state `{state}`\n  expected: {expected}\n  found:    {found}")]
    State {
        /// The state.
        state: String,
        /// What the program declares.
        expected: String,
        /// What was found.
        found: String,
    },
    /// An operation failed.
    #[error("operation `{operation}` ({operator}) of function `{function}`: {fault}")]
    Operation {
        /// The function it stands in.
        function: String,
        /// The operation's name.
        operation: String,
        /// Its operator.
        operator: String,
        /// What went wrong.
        fault: Fault,
    },
}

/// Why one operation failed; [`EvalError::Operation`] says which.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A required input is absent.
    #[error("input `{0}` is missing")]
    Missing(String),
    /// An input has another type than the operator takes.
    #[error("input `{input}` is {found}, expected {expected}")]
    Kind {
        /// The input.
        input: String,
        /// What the operator takes.
        expected: &'static str,
        /// What stands there.
        found: &'static str,
    },
    /// Shapes that do not fit together, or a parameter outside its range.
    #[error("{0}")]
    Invalid(String),
    /// An index into a tensor that lies outside of it.
    #[error("index {index} is outside of an axis of {size}")]
    Index {
        /// The index.
        index: i64,
        /// Length of the axis.
        size: usize,
    },
    /// A result differs from the type that the program declares for it.
    #[error("computed {found}, but the program declares {declared}")]
    Result {
        /// What came out.
        found: String,
        /// What the program says.
        declared: String,
    },
}

impl Fault {
    /// A fault told in words.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }
}
