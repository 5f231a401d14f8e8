//! Is a package what it claims to be? Names, types, records, versions, and the description against the functions.
//!
//! [`check`] reads everything and stops at nothing: it returns all findings, each with its place. Errors are what Core
//! ML or coremltools would refuse, or run wrongly; notes are what they would let pass but nobody should write.

mod description;
mod files;
mod program;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::ops::{self, InferError};
use crate::{DType, Package, RecordError, Type, TypeError, ValueError};

/// What a check found.
#[derive(Debug, Default)]
pub struct Report {
    /// What makes the package wrong.
    pub errors: Vec<Finding>,
    /// What is merely unusual.
    pub notes: Vec<Finding>,
}

/// A defect and where it is.
#[derive(Debug)]
pub struct Finding {
    /// Function and operation, feature, or file.
    pub place: String,
    /// What is wrong there.
    pub defect: Defect,
}

/// What is wrong with a package.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// The program's version is not 1.
    #[error("program version {found}, expected 1")]
    ProgramVersion {
        /// As stated.
        found: i64,
    },
    /// No version of Core ML's mlprogram format.
    #[error("specificationVersion {found} has no mlprogram, expected 6 to 10")]
    SpecificationVersion {
        /// As stated.
        found: i32,
    },
    /// Needs a later version than the package states.
    #[error("{what} needs specificationVersion {needed}, the package states {found}")]
    TooOld {
        /// The operator or feature.
        what: String,
        /// The first version that has it.
        needed: i32,
        /// As stated.
        found: i32,
    },
    /// An operator set that does not exist, or not in the stated version.
    #[error("operator set {found:?} is not one of specificationVersion {version}")]
    Opset {
        /// As written.
        found: String,
        /// As stated.
        version: i32,
    },
    /// An older operator set than the version allows (a note).
    #[error("operator set {found}, specificationVersion allows {allowed}")]
    OlderOpset {
        /// As written.
        found: String,
        /// The newest.
        allowed: &'static str,
    },
    /// No block for the function's operator set.
    #[error("no block for the operator set {opset:?}")]
    NoBlock {
        /// The function's operator set.
        opset: String,
    },
    /// Not `[A-Za-z_][A-Za-z0-9_@]*`.
    #[error("{name:?} is not a valid identifier")]
    Identifier {
        /// The name.
        name: String,
    },
    /// Defined twice in one scope.
    #[error("`{name}` is defined twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// Used, but not defined before.
    #[error("`{parameter}` uses `{name}`, which is not defined before it")]
    Undefined {
        /// Which input.
        parameter: String,
        /// The name.
        name: String,
    },
    /// A block results in something that it does not have.
    #[error("the output `{name}` is not defined")]
    UndefinedOutput {
        /// The name.
        name: String,
    },
    /// An argument that is neither a name nor a value.
    #[error("an argument of `{parameter}` is empty")]
    EmptyArgument {
        /// Which input.
        parameter: String,
    },
    /// A type that is none.
    #[error("`{name}`: {source}")]
    Type {
        /// Of which value.
        name: String,
        /// Why.
        source: TypeError,
    },
    /// A value that is none.
    #[error("`{parameter}`: {source}")]
    Value {
        /// Of which attribute or input.
        parameter: String,
        /// Why.
        source: ValueError,
    },
    /// A `const` without `val`, or with inputs.
    #[error("a const needs exactly one output and an attribute `val`, and no inputs")]
    Const,
    /// A constant's declared type is not that of its value.
    #[error("the constant is declared {declared}, its value is {value}")]
    ConstType {
        /// As declared.
        declared: Type,
        /// Of its value.
        value: Type,
    },
    /// The operator refuses its arguments.
    #[error(transparent)]
    Operation(#[from] InferError),
    /// Declared results differ from what the operator gives.
    #[error("`{name}` is declared {declared}, the operator gives {inferred}")]
    Declared {
        /// Which result.
        name: String,
        /// As declared.
        declared: Type,
        /// As inferred.
        inferred: Type,
    },
    /// More or fewer results than the operator gives.
    #[error("{declared} results are declared, the operator gives {inferred}")]
    ResultCount {
        /// As declared.
        declared: usize,
        /// As inferred.
        inferred: usize,
    },
    /// Control flow with another number of blocks than it takes.
    #[error("{found} blocks, expected {expected}")]
    Blocks {
        /// As written.
        found: usize,
        /// What the operator takes.
        expected: usize,
    },
    /// No `name` attribute (a note).
    #[error("the operation has no `name`")]
    Unnamed,
    /// Parameters with a default that coremltools always writes out (a note).
    #[error("`{parameters}` left out, which coremltools always writes")]
    Omitted {
        /// Which.
        parameters: String,
    },
    /// Many elements in the message rather than in the weight file (a note).
    #[error("{count} elements of {dtype} stand in the message rather than in the weight file")]
    Inline {
        /// How many.
        count: usize,
        /// Of which type.
        dtype: DType,
    },
    /// A reference that leads nowhere.
    #[error("refers to {file:?}, which is no weight file of the package")]
    Reference {
        /// As written.
        file: String,
    },
    /// A weight record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A record that nobody refers to (a note).
    #[error("the record at {offset} is not referenced")]
    Unreferenced {
        /// Its header's place.
        offset: u64,
    },
    /// A reference into the middle of another record.
    #[error("{offset} is no record of the file's chain")]
    NoRecord {
        /// As written.
        offset: u64,
    },
    /// No description at all.
    #[error("the model has no description")]
    NoDescription,
    /// Features stand both at the model's level and at functions.
    #[error("both functions and model-level features are described")]
    BothLevels,
    /// Described functions are not the program's.
    #[error("described functions: {described}; the program has: {actual}")]
    Functions {
        /// As described.
        described: String,
        /// As they are.
        actual: String,
    },
    /// `defaultFunctionName` names none, or stands where there is only one.
    #[error("defaultFunctionName {found:?}, expected {expected}")]
    DefaultFunction {
        /// As written.
        found: String,
        /// What would do.
        expected: String,
    },
    /// Described features are not the function's.
    #[error("described {role}s: {described}; the function has: {actual}")]
    Features {
        /// input, output or state.
        role: &'static str,
        /// As described.
        described: String,
        /// As they are.
        actual: String,
    },
    /// A feature is described with another type.
    #[error("described as {described}, the function has {actual}")]
    Feature {
        /// As described.
        described: String,
        /// As it is.
        actual: String,
    },
    /// Outputs are described in another order (a note).
    #[error("the description lists the outputs in another order than the function")]
    OutputOrder,
}

/// A package with defects.
#[derive(Debug)]
pub struct CheckError {
    /// What was found, at least one.
    pub findings: Vec<Finding>,
}

impl Defect {
    /// Whether it is an operator that is merely not known here.
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
    /// Nothing, if there are no errors.
    ///
    /// # Errors
    /// The errors that were found.
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

/// Checks a package that was read.
pub fn check(package: &Package) -> Report {
    let mut report = Report::default();
    program::check(package, &mut report);
    files::check(package, &mut report);
    description::check(package, &mut report);
    report
}
