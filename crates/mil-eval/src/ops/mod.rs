//! The operators: a dispatch table, and one small function per operator, grouped in files by kind.
//!
//! An operator receives a [`Call`] and returns its results in f32, i32 or bool; the interpreter rounds them to the
//! declared type. Operators check all shapes and parameters, because a program may compute them.

mod attention;
mod conv;
mod create;
mod elementwise;
mod gather;
mod matmul;
mod normalize;
mod reduce;
mod scatter;
mod shape;
mod slice;
mod sort;

use crate::Fault;
use crate::tensor::{Data, Tensor};
use crate::weight::Value;

/// Implementation of an operator.
pub(crate) type Operator = fn(&mut Call) -> Result<Vec<Tensor>, Fault>;

/// The implementation of the operator named `name`.
pub(crate) fn operator(name: &str) -> Option<Operator> {
    [
        elementwise::TABLE,
        reduce::TABLE,
        normalize::TABLE,
        matmul::TABLE,
        conv::TABLE,
        attention::TABLE,
        shape::TABLE,
        slice::TABLE,
        gather::TABLE,
        scatter::TABLE,
        sort::TABLE,
        create::TABLE,
    ]
    .iter()
    .flat_map(|table| table.iter())
    .find(|(operator, _)| *operator == name)
    .map(|(_, implementation)| *implementation)
}

/// True if an operator only moves elements, so that its results need no rounding.
pub(crate) fn only_moves(name: &str) -> bool {
    let tables = [shape::TABLE, slice::TABLE, gather::TABLE];
    tables.iter().flat_map(|table| table.iter()).any(|(operator, _)| *operator == name) || name == "select"
}

/// One file's part of the dispatch table: operator names and implementations.
type Table = &'static [(&'static str, Operator)];

/// The arguments of an operation: its inputs by parameter name, and the number of results.
pub(crate) struct Call {
    inputs: Vec<(String, Vec<Value>)>,
    /// Number of declared results.
    pub(crate) results: usize,
}

impl Call {
    pub(crate) fn new(inputs: Vec<(String, Vec<Value>)>, results: usize) -> Self {
        Self { inputs, results }
    }

    /// Removes an input, packed or dense.
    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        let at = self.inputs.iter().position(|(input, _)| input == name)?;
        let (_, mut values) = self.inputs.swap_remove(at);
        if values.len() == 1 { values.pop() } else { None }
    }

    /// Removes a required input as a dense tensor, which the operator may overwrite if its elements are not shared.
    pub(crate) fn take(&mut self, name: &str) -> Result<Tensor, Fault> {
        self.optional(name)?.ok_or_else(|| Fault::Missing(name.to_owned()))
    }

    /// Removes an optional input.
    pub(crate) fn optional(&mut self, name: &str) -> Result<Option<Tensor>, Fault> {
        self.value(name).map(Value::into_dense).transpose()
    }

    /// Removes all values of a variadic input.
    pub(crate) fn many(&mut self, name: &str) -> Result<Vec<Tensor>, Fault> {
        let at = self
            .inputs
            .iter()
            .position(|(input, _)| input == name)
            .ok_or_else(|| Fault::Missing(name.to_owned()))?;
        self.inputs.swap_remove(at).1.into_iter().map(Value::into_dense).collect()
    }

    /// Removes a required float input.
    pub(crate) fn floats(&mut self, name: &str) -> Result<Floats, Fault> {
        let tensor = self.take(name)?;
        Floats::new(name, tensor)
    }

    /// Removes an optional float input.
    pub(crate) fn optional_floats(&mut self, name: &str) -> Result<Option<Floats>, Fault> {
        self.optional(name)?.map(|tensor| Floats::new(name, tensor)).transpose()
    }

    /// Integers of an optional parameter.
    pub(crate) fn optional_ints(&mut self, name: &str) -> Result<Option<Vec<i64>>, Fault> {
        let Some(tensor) = self.optional(name)? else { return Ok(None) };
        match tensor.ints() {
            Some(values) => Ok(Some(values.iter().map(|&v| i64::from(v)).collect())),
            None => Err(kind(name, "int", &tensor)),
        }
    }

    /// Integers of a required parameter.
    pub(crate) fn ints(&mut self, name: &str) -> Result<Vec<i64>, Fault> {
        self.optional_ints(name)?.ok_or_else(|| Fault::Missing(name.to_owned()))
    }

    /// A single integer, or `default` if it is absent.
    pub(crate) fn int_or(&mut self, name: &str, default: i64) -> Result<i64, Fault> {
        match self.optional_ints(name)?.as_deref() {
            None => Ok(default),
            Some([value]) => Ok(*value),
            Some(values) => {
                Err(Fault::invalid(format!("`{name}` has {} values, one is needed", values.len())))
            }
        }
    }

    /// A single float (integers are converted), or `default` if it is absent.
    pub(crate) fn float_or(&mut self, name: &str, default: f32) -> Result<f32, Fault> {
        let Some(tensor) = self.optional(name)? else { return Ok(default) };
        match tensor.to_floats().as_deref() {
            Some([value]) => Ok(*value),
            _ => Err(kind(name, "one number", &tensor)),
        }
    }

    /// Booleans of an optional parameter.
    pub(crate) fn optional_bools(&mut self, name: &str) -> Result<Option<Vec<bool>>, Fault> {
        let Some(tensor) = self.optional(name)? else { return Ok(None) };
        match tensor.bools() {
            Some(values) => Ok(Some(values.to_vec())),
            None => Err(kind(name, "bool", &tensor)),
        }
    }

    /// A single boolean, or `default` if it is absent.
    pub(crate) fn bool_or(&mut self, name: &str, default: bool) -> Result<bool, Fault> {
        match self.optional_bools(name)?.as_deref() {
            None => Ok(default),
            Some([value]) => Ok(*value),
            Some(values) => {
                Err(Fault::invalid(format!("`{name}` has {} values, one is needed", values.len())))
            }
        }
    }

    /// A string, or `default` if it is absent.
    pub(crate) fn text_or(&mut self, name: &str, default: &str) -> Result<String, Fault> {
        let Some(tensor) = self.optional(name)? else { return Ok(default.to_owned()) };
        match tensor.data() {
            Data::Text(text) => Ok(text.to_string()),
            _ => Err(kind(name, "string", &tensor)),
        }
    }
}

/// Shape and elements of a float tensor.
pub(crate) struct Floats {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: std::sync::Arc<Vec<f32>>,
}

impl Floats {
    fn new(name: &str, tensor: Tensor) -> Result<Self, Fault> {
        let found = tensor.kind();
        match tensor.into_parts() {
            (shape, Data::Float(values)) => Ok(Self { shape, values }),
            _ => Err(Fault::Kind { input: name.to_owned(), expected: "float", found }),
        }
    }
}

fn kind(input: &str, expected: &'static str, found: &Tensor) -> Fault {
    Fault::Kind { input: input.to_owned(), expected, found: found.kind() }
}

/// A single float result.
fn float(shape: &[usize], values: Vec<f32>) -> Result<Vec<Tensor>, Fault> {
    Ok(vec![Tensor::float(shape, values)])
}
