//! Errors of loading and running a program.

use q35_format_mil::{CheckError, ReadError};

/// Failure to load or run a program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The package cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The package is malformed.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The evaluator does not implement an operator.
    #[error("operation `{operation}` of function `{function}`: operator `{operator}` is not supported")]
    Unsupported {
        /// Name of the function that contains the operation.
        function: String,
        /// Name of the operation.
        operation: String,
        /// Name of the operator.
        operator: String,
    },
    /// A function has another defect or an unsupported feature.
    #[error("function `{function}`: {what}")]
    Program {
        /// The function.
        function: String,
        /// Description of the defect.
        what: String,
    },
    /// The package has no function of the requested name.
    #[error("the package has no function `{requested}`\n  it has: {existing}")]
    NoFunction {
        /// The requested name.
        requested: String,
        /// The existing names, separated by commas.
        existing: String,
    },
    /// The inputs of a call do not fit the function.
    #[error("input `{input}` of function `{function}`\n  expected: {expected}\n  found:    {found}")]
    Input {
        /// The function.
        function: String,
        /// The input.
        input: String,
        /// Type that the function declares.
        expected: String,
        /// Kind and shape of the caller's tensor.
        found: String,
    },
    /// A state does not exist, does not fit, or was lost by a failed call.
    #[error("state `{state}`\n  expected: {expected}\n  found:    {found}")]
    State {
        /// The state.
        state: String,
        /// Type that the program declares.
        expected: String,
        /// Kind and shape found.
        found: String,
    },
    /// An operation failed.
    #[error("operation `{operation}` ({operator}) of function `{function}`: {fault}")]
    Operation {
        /// Name of the function that contains the operation.
        function: String,
        /// Name of the operation.
        operation: String,
        /// Name of the operator.
        operator: String,
        /// Cause of the failure.
        fault: Fault,
    },
}

/// Failure of an operation; [`EvalError::Operation`] identifies it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A required input is absent.
    #[error("input `{0}` is missing")]
    Missing(String),
    /// An input has a kind that the operator does not accept.
    #[error("input `{input}` is {found}, expected {expected}")]
    Kind {
        /// The input.
        input: String,
        /// Kind that the operator accepts.
        expected: &'static str,
        /// Kind found.
        found: &'static str,
    },
    /// Shapes are incompatible, or a parameter is out of range.
    #[error("{0}")]
    Invalid(String),
    /// An index is out of bounds.
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
        /// Kind and shape of the result.
        found: String,
        /// Type that the program declares.
        declared: String,
    },
}

impl Fault {
    /// [`Fault::Invalid`] with a message.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }
}
