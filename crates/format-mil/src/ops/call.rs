//! An operation's arguments, as the shape functions read them.

use std::collections::BTreeMap;

use crate::{TensorType, Type, Value};

/// One argument of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// Type of the value.
    pub ty: &'a Type,
    /// Contents, as far as known at compile time.
    pub constant: Constant<'a>,
}

/// Compile-time knowledge of an argument's contents.
#[derive(Clone, Copy, Debug)]
pub enum Constant<'a> {
    /// The value is computed at run time.
    Runtime,
    /// The value is the result of a `constexpr_*` operation.
    Expression,
    /// The value is a literal.
    Value(&'a Value),
}

/// A defect of an operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The operator is unknown.
    #[error("unknown operator")]
    Operator,
    /// A required parameter has no argument.
    #[error("`{parameter}` is missing")]
    Missing {
        /// Name of the parameter.
        parameter: String,
    },
    /// An argument's parameter does not exist.
    #[error("there is no parameter `{parameter}`")]
    Parameter {
        /// Name of the parameter.
        parameter: String,
    },
    /// A parameter does not have exactly one value, or a variadic parameter has none.
    #[error("`{parameter}` has {found} values")]
    Values {
        /// Name of the parameter.
        parameter: String,
        /// Number of values.
        found: usize,
    },
    /// An argument must be known at compile time.
    #[error("`{parameter}` must be a constant")]
    NotConstant {
        /// Name of the parameter.
        parameter: String,
    },
    /// An argument has the wrong element type, or is or is not a state.
    #[error("`{parameter}` is {found}, expected {expected}")]
    Type {
        /// Name of the parameter.
        parameter: String,
        /// Accepted types.
        expected: String,
        /// Type found.
        found: String,
    },
    /// Shapes or values are incompatible.
    #[error("{0}")]
    Shape(String),
}

pub(super) fn fail<T>(message: String) -> Result<T, Problem> {
    Err(Problem::Shape(message))
}

/// The arguments of an operation, whose presence and types have been checked against the signature.
pub struct Call<'a> {
    pub(super) arguments: &'a BTreeMap<String, Vec<Operand<'a>>>,
}

impl Call<'_> {
    fn operand(&self, parameter: &str) -> Option<&Operand<'_>> {
        self.arguments.get(parameter).and_then(|values| values.first())
    }

    /// The type of a required argument.
    pub(super) fn tensor(&self, parameter: &str) -> Result<&TensorType, Problem> {
        self.optional(parameter).ok_or_else(|| Problem::Missing { parameter: parameter.to_owned() })
    }

    /// The type of an optional argument.
    pub(super) fn optional(&self, parameter: &str) -> Option<&TensorType> {
        self.operand(parameter).map(|operand| operand.ty.inner())
    }

    /// The types of a variadic argument.
    pub(super) fn tensors(&self, parameter: &str) -> Vec<&TensorType> {
        self.arguments.get(parameter).into_iter().flatten().map(|operand| operand.ty.inner()).collect()
    }

    /// The immediate contents of an optional argument; an error if they are not immediate.
    fn value<T>(&self, parameter: &str, read: fn(&Value) -> Option<T>) -> Result<Option<T>, Problem> {
        let Some(operand) = self.operand(parameter) else { return Ok(None) };
        let value = match operand.constant {
            Constant::Value(value) => read(value),
            Constant::Runtime | Constant::Expression => None,
        };
        value.map(Some).ok_or_else(|| Problem::NotConstant { parameter: parameter.to_owned() })
    }

    pub(super) fn int(&self, parameter: &str) -> Result<Option<i64>, Problem> {
        self.value(parameter, Value::as_int)
    }

    pub(super) fn ints(&self, parameter: &str) -> Result<Option<Vec<i64>>, Problem> {
        self.value(parameter, Value::as_ints)
    }

    pub(super) fn float(&self, parameter: &str) -> Result<Option<f64>, Problem> {
        self.value(parameter, |value| value.as_float().or_else(|| value.as_int().map(|int| int as f64)))
    }

    pub(super) fn flag(&self, parameter: &str) -> Result<Option<bool>, Problem> {
        self.value(parameter, Value::as_bool)
    }

    pub(super) fn flags(&self, parameter: &str, rank: usize) -> Result<Vec<bool>, Problem> {
        let flags = self.value(parameter, |value| value.as_bools().map(<[bool]>::to_vec))?;
        match flags {
            None => Ok(vec![false; rank]),
            Some(flags) if flags.len() == rank => Ok(flags),
            Some(flags) => fail(format!("`{parameter}` has {} entries for {rank} dimensions", flags.len())),
        }
    }

    pub(super) fn text(&self, parameter: &str) -> Result<Option<String>, Problem> {
        self.value(parameter, |value| value.as_str().map(str::to_owned))
    }

    /// True if the contents are immediate.
    pub(super) fn is_known(&self, parameter: &str) -> bool {
        matches!(self.operand(parameter).map(|o| o.constant), Some(Constant::Value(v)) if v.elements().is_some())
    }

    /// A resolved axis; `slots` is the rank, or one more for operators that insert an axis.
    pub(super) fn axis(&self, parameter: &str, default: i64, slots: usize) -> Result<usize, Problem> {
        axis(self.int(parameter)?.unwrap_or(default), slots)
    }

    /// Distinct resolved axes in ascending order; all axes if the argument is absent.
    pub(super) fn axes(&self, parameter: &str, slots: usize) -> Result<Vec<usize>, Problem> {
        let Some(axes) = self.ints(parameter)? else { return Ok((0..slots).collect()) };
        let mut axes = axes.into_iter().map(|index| axis(index, slots)).collect::<Result<Vec<_>, _>>()?;
        axes.sort_unstable();
        if axes.windows(2).any(|pair| pair[0] == pair[1]) {
            return fail(format!("`{parameter}` names an axis twice"));
        }
        Ok(axes)
    }
}

fn axis(axis: i64, slots: usize) -> Result<usize, Problem> {
    let counted = if axis < 0 { axis.saturating_add(slots as i64) } else { axis };
    match usize::try_from(counted) {
        Ok(axis) if axis < slots => Ok(axis),
        _ => fail(format!("axis {axis} of {slots} dimensions")),
    }
}
