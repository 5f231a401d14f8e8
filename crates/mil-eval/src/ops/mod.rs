//! The operators: a dispatch table and, in one file per idea, a small function each.
//!
//! An operator takes a [`Call`] and returns its results in f32, i32 or bool; rounding to the declared type is not its
//! business but the interpreter's. Every shape and parameter is checked here, since a program may compute them.

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

/// Computes one operation.
pub(crate) type Operator = fn(&mut Call) -> Result<Vec<Tensor>, Fault>;

/// The operator of that name.
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
    .find(|(known, _)| *known == name)
    .map(|(_, operator)| *operator)
}

/// Whether an operator only moves elements, so that its results need no rounding if its inputs had none.
pub(crate) fn only_moves(name: &str) -> bool {
    let tables = [shape::TABLE, slice::TABLE, gather::TABLE];
    tables.iter().flat_map(|table| table.iter()).any(|(known, _)| *known == name) || name == "select"
}

/// A file's part of the dispatch table.
type Table = &'static [(&'static str, Operator)];

/// One operation about to be computed: its inputs by parameter, and how many results it must give.
pub(crate) struct Call {
    inputs: Vec<(String, Vec<Value>)>,
    /// Number of declared results.
    pub(crate) results: usize,
}

impl Call {
    pub(crate) fn new(inputs: Vec<(String, Vec<Value>)>, results: usize) -> Self {
        Self { inputs, results }
    }

    /// The input as given, packed or dense.
    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        let at = self.inputs.iter().position(|(input, _)| input == name)?;
        let (_, mut values) = self.inputs.swap_remove(at);
        if values.len() == 1 { values.pop() } else { None }
    }

    /// A required input; the operator owns it and may compute in its place if nobody else holds it.
    pub(crate) fn take(&mut self, name: &str) -> Result<Tensor, Fault> {
        self.optional(name)?.ok_or_else(|| Fault::Missing(name.to_owned()))
    }

    /// An input that may be absent.
    pub(crate) fn optional(&mut self, name: &str) -> Result<Option<Tensor>, Fault> {
        self.value(name).map(Value::into_dense).transpose()
    }

    /// All values of a variadic input.
    pub(crate) fn many(&mut self, name: &str) -> Result<Vec<Tensor>, Fault> {
        let at = self
            .inputs
            .iter()
            .position(|(input, _)| input == name)
            .ok_or_else(|| Fault::Missing(name.to_owned()))?;
        self.inputs.swap_remove(at).1.into_iter().map(Value::into_dense).collect()
    }

    /// A required float input: shape and elements.
    pub(crate) fn floats(&mut self, name: &str) -> Result<Floats, Fault> {
        let tensor = self.take(name)?;
        Floats::new(name, tensor)
    }

    /// A float input that may be absent.
    pub(crate) fn optional_floats(&mut self, name: &str) -> Result<Option<Floats>, Fault> {
        self.optional(name)?.map(|tensor| Floats::new(name, tensor)).transpose()
    }

    /// Integers of a parameter, if given.
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

    /// One integer, or `default` when it is not given.
    pub(crate) fn int_or(&mut self, name: &str, default: i64) -> Result<i64, Fault> {
        match self.optional_ints(name)?.as_deref() {
            None => Ok(default),
            Some([value]) => Ok(*value),
            Some(values) => {
                Err(Fault::invalid(format!("`{name}` has {} values, one is needed", values.len())))
            }
        }
    }

    /// One float (an integer is converted), or `default` when it is not given.
    pub(crate) fn float_or(&mut self, name: &str, default: f32) -> Result<f32, Fault> {
        let Some(tensor) = self.optional(name)? else { return Ok(default) };
        match tensor.to_floats().as_deref() {
            Some([value]) => Ok(*value),
            _ => Err(kind(name, "one number", &tensor)),
        }
    }

    /// Truth values of a parameter, if given.
    pub(crate) fn optional_bools(&mut self, name: &str) -> Result<Option<Vec<bool>>, Fault> {
        let Some(tensor) = self.optional(name)? else { return Ok(None) };
        match tensor.bools() {
            Some(values) => Ok(Some(values.to_vec())),
            None => Err(kind(name, "bool", &tensor)),
        }
    }

    /// One truth value, or `default` when it is not given.
    pub(crate) fn bool_or(&mut self, name: &str, default: bool) -> Result<bool, Fault> {
        match self.optional_bools(name)?.as_deref() {
            None => Ok(default),
            Some([value]) => Ok(*value),
            Some(values) => {
                Err(Fault::invalid(format!("`{name}` has {} values, one is needed", values.len())))
            }
        }
    }

    /// A string, or `default` when it is not given.
    pub(crate) fn text_or(&mut self, name: &str, default: &str) -> Result<String, Fault> {
        let Some(tensor) = self.optional(name)? else { return Ok(default.to_owned()) };
        match tensor.data() {
            Data::Text(text) => Ok(text.to_string()),
            _ => Err(kind(name, "string", &tensor)),
        }
    }
}

/// A float tensor taken apart.
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

/// One float result.
fn float(shape: &[usize], values: Vec<f32>) -> Result<Vec<Tensor>, Fault> {
    Ok(vec![Tensor::float(shape, values)])
}
