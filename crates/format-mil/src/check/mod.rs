//! Validation of packages: names, types, weight records, versions, and consistency of the description with the functions.
//!
//! [`check`] continues after a defect and returns all findings with their location. Errors are defects that Core ML or
//! coremltools reject or compute wrongly; notes are unusual features that they accept.

mod description;
mod files;
mod program;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::ops::{self, InferError};
use crate::{DType, Package, RecordError, Type, TypeError, ValueError};

/// Result of a check.
#[derive(Debug, Default)]
pub struct Report {
    /// Defects that make the package invalid.
    pub errors: Vec<Finding>,
    /// Unusual but valid features.
    pub notes: Vec<Finding>,
}

/// A defect and its location.
#[derive(Debug)]
pub struct Finding {
    /// Location: function and operation, feature, or file.
    pub place: String,
    /// The defect.
    pub defect: Defect,
}

/// A defect of a package.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// The program's version is not 1.
    #[error("program version {found}, expected 1")]
    ProgramVersion {
        /// Version found.
        found: i64,
    },
    /// The specification version does not support mlprograms.
    #[error("specificationVersion {found} has no mlprogram, expected 6 to 10")]
    SpecificationVersion {
        /// Value found.
        found: i32,
    },
    /// A feature needs a later specification version than the package's.
    #[error("{feature} needs specificationVersion {needed}, the package states {found}")]
    TooOld {
        /// The operator or feature.
        feature: String,
        /// First version with the feature.
        needed: i32,
        /// Value found.
        found: i32,
    },
    /// The operator set does not exist, or not in the package's version.
    #[error("operator set {found:?} is not one of specificationVersion {version}")]
    Opset {
        /// Value found.
        found: String,
        /// Specification version of the package.
        version: i32,
    },
    /// The operator set is older than the version allows (a note).
    #[error("operator set {found}, specificationVersion allows {allowed}")]
    OlderOpset {
        /// Value found.
        found: String,
        /// Newest operator set of the version.
        allowed: &'static str,
    },
    /// The function has no block for its operator set.
    #[error("no block for the operator set {opset:?}")]
    NoBlock {
        /// The function's operator set.
        opset: String,
    },
    /// A name does not match `[A-Za-z_][A-Za-z0-9_@]*`.
    #[error("{name:?} is not a valid identifier")]
    Identifier {
        /// The name.
        name: String,
    },
    /// A name is defined twice in one scope.
    #[error("`{name}` is defined twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A name is used before its definition.
    #[error("`{parameter}` uses `{name}`, which is not defined before it")]
    Undefined {
        /// Name of the parameter.
        parameter: String,
        /// The name.
        name: String,
    },
    /// A block's output is not defined.
    #[error("the output `{name}` is not defined")]
    UndefinedOutput {
        /// The name.
        name: String,
    },
    /// An argument is neither a name nor a value.
    #[error("an argument of `{parameter}` is empty")]
    EmptyArgument {
        /// Name of the parameter.
        parameter: String,
    },
    /// A type is malformed.
    #[error("`{name}`: {source}")]
    Type {
        /// Name of the value.
        name: String,
        /// Why.
        source: TypeError,
    },
    /// A value is malformed.
    #[error("`{parameter}`: {source}")]
    Value {
        /// Name of the attribute or input.
        parameter: String,
        /// Why.
        source: ValueError,
    },
    /// A `const` has no `val`, or has inputs.
    #[error("a const needs exactly one output and an attribute `val`, and no inputs")]
    Const,
    /// A constant's declared type differs from its value's.
    #[error("the constant is declared {declared}, its value is {value}")]
    ConstType {
        /// Declared type.
        declared: Type,
        /// Type of the value.
        value: Type,
    },
    /// The arguments do not satisfy the operator's signature.
    #[error(transparent)]
    Operation(#[from] InferError),
    /// A result's declared type differs from the inferred one.
    #[error("`{name}` is declared {declared}, the operator returns {inferred}")]
    Declared {
        /// Name of the result.
        name: String,
        /// Declared type.
        declared: Type,
        /// Inferred type.
        inferred: Type,
    },
    /// The number of declared results differs from the operator's.
    #[error("{declared} results are declared, the operator returns {inferred}")]
    ResultCount {
        /// Number of declared results.
        declared: usize,
        /// Number of inferred results.
        inferred: usize,
    },
    /// A control-flow operation has the wrong number of blocks.
    #[error("{found} blocks, expected {expected}")]
    Blocks {
        /// Value found.
        found: usize,
        /// Number of blocks that the operator needs.
        expected: usize,
    },
    /// An operation has no `name` attribute (a note).
    #[error("the operation has no `name`")]
    Unnamed,
    /// Parameters are absent whose default coremltools always writes (a note).
    #[error("`{parameters}` omitted, which coremltools always writes")]
    Omitted {
        /// Which.
        parameters: String,
    },
    /// A large constant is in the message instead of the weight file (a note).
    #[error("{count} elements of {dtype} are in the message instead of the weight file")]
    Inline {
        /// Number of elements.
        count: usize,
        /// Element type.
        dtype: DType,
    },
    /// A value refers to a missing file.
    #[error("refers to {file:?}, which is not a weight file of the package")]
    Reference {
        /// File name in the program.
        file: String,
    },
    /// A weight record is malformed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A record is not referenced (a note).
    #[error("the record at {offset} is not referenced")]
    Unreferenced {
        /// Offset of its header.
        offset: u64,
    },
    /// A value refers to the middle of another record.
    #[error("{offset} is not the start of a record")]
    NoRecord {
        /// Offset in the program.
        offset: u64,
    },
    /// The model has no description.
    #[error("the model has no description")]
    NoDescription,
    /// Features are described both for the model and for functions.
    #[error("both functions and model-level features are described")]
    BothLevels,
    /// The described functions differ from the program's.
    #[error("described functions: {described}; the program has: {actual}")]
    Functions {
        /// Described value.
        described: String,
        /// Actual value.
        actual: String,
    },
    /// `defaultFunctionName` does not name a function, or is set for a single function.
    #[error("defaultFunctionName {found:?}, expected {expected}")]
    DefaultFunction {
        /// Value found.
        found: String,
        /// Valid values.
        expected: String,
    },
    /// The described features differ from the function's.
    #[error("described {role}s: {described}; the function has: {actual}")]
    Features {
        /// input, output or state.
        role: &'static str,
        /// Described value.
        described: String,
        /// Actual value.
        actual: String,
    },
    /// A feature's described type differs from the function's.
    #[error("described as {described}, the function has {actual}")]
    Feature {
        /// Described value.
        described: String,
        /// Actual value.
        actual: String,
    },
    /// The outputs are described in another order (a note).
    #[error("the description lists the outputs in another order than the function")]
    OutputOrder,
}

/// A package with defects.
#[derive(Debug)]
pub struct CheckError {
    /// The errors, at least one.
    pub findings: Vec<Finding>,
}

impl Defect {
    /// True if the defect is only an operator that this crate does not support.
    pub fn is_unknown_operator(&self) -> bool {
        matches!(self, Self::Operation(InferError { problem: ops::Problem::Operator, .. }))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.defect)
    }
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        f.write_str("the package is malformed")?;
        for finding in self.findings.iter().take(SHOWN) {
            write!(f, "\n  {finding}")?;
        }
        if self.findings.len() > SHOWN {
            write!(f, "\n  and {} more", self.findings.len() - SHOWN)?;
        }
        Ok(())
    }
}

impl std::error::Error for CheckError {}

impl Report {
    /// Converts the report to a result.
    ///
    /// # Errors
    /// [`CheckError`] if the report contains errors.
    pub fn into_result(self) -> Result<(), CheckError> {
        if self.errors.is_empty() { Ok(()) } else { Err(CheckError { findings: self.errors }) }
    }

    fn error(&mut self, place: &str, defect: impl Into<Defect>) {
        self.errors.push(Finding { place: place.to_owned(), defect: defect.into() });
    }

    fn note(&mut self, place: &str, defect: Defect) {
        self.notes.push(Finding { place: place.to_owned(), defect });
    }
}

/// Checks an opened package.
pub fn check(package: &Package) -> Report {
    let mut report = Report::default();
    program::check(package, &mut report);
    files::check(package, &mut report);
    description::check(package, &mut report);
    report
}
