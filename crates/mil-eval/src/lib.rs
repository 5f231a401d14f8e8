//! Interprets Core ML mlprogram packages on the CPU, from the files that Core ML would load.
//!
//! [`Program::load`] reads and checks a package with `q35_format_mil` and compiles its functions: names become slots,
//! constants are decoded once, quantized weights stay packed in the mapped file. [`Program::run`] then executes a call,
//! in f32 throughout ([`Precision::Exact`]) or with every fp16 value rounded as the program declares it
//! ([`Precision::Half`]).
//!
//! The evaluator is a reference implementation, not a fast engine: each operator is a small function that follows the
//! operator's definition, and results do not depend on the number of threads. Only matrix products use the fast kernels
//! of `q35_kernels`. Unsupported operators are errors ([`EvalError::Unsupported`]). The crate must not know about any
//! particular model.
//!
//! ```no_run
//! use std::collections::BTreeMap;
//! use q35_mil_eval::{Precision, Program, Tensor};
//!
//! let program = Program::load("model.mlpackage".as_ref(), Precision::Exact)?;
//! let mut state = program.new_state();
//! let inputs = BTreeMap::from([("x".to_owned(), Tensor::float(&[1, 2], vec![1.0, 2.0]))]);
//! let outputs = program.run("main", inputs, &mut state)?;
//! # Ok::<(), q35_mil_eval::EvalError>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod constant;
mod error;
mod ops;
mod plan;
mod precision;
mod product;
mod program;
mod rounding;
mod run;
mod state;
mod tensor;
mod weight;

pub use error::{EvalError, Fault};
pub use plan::{Function, Port};
pub use precision::Precision;
pub use program::{Program, WeightBytes};
pub use run::Watcher;
pub use state::State;
pub use tensor::{Data, MAX_ELEMENTS, Tensor};
