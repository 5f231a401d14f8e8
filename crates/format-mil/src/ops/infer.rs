//! Type inference: arguments in, types of the results or a reason out.

use std::collections::BTreeMap;

use super::{Need, Signature, signature};
use crate::{DType, TensorType, Type, Value};

/// One argument of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// Its type.
    pub ty: &'a Type,
    /// What is known of its content.
    pub constant: Constant<'a>,
}

/// What is known of an argument's content when a program is compiled.
#[derive(Clone, Copy, Debug)]
pub enum Constant<'a> {
    /// Nothing: it is computed at run time.
    No,
    /// It is the result of a `constexpr_*` operation.
    Expression,
    /// Its value.
    Value(&'a Value),
}

/// Why an operation is wrong, with what it was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{op}`({inputs}): {problem}")]
pub struct InferError {
    /// The operator.
    pub op: String,
    /// Its arguments' types, for people.
    pub inputs: String,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with an operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// No such operator.
    #[error("unknown operator")]
    Operator,
    /// A required parameter has no argument.
    #[error("`{parameter}` is missing")]
    Missing {
        /// Which.
        parameter: String,
    },
    /// An argument for a parameter that does not exist.
    #[error("there is no parameter `{parameter}`")]
    Parameter {
        /// Its name.
        parameter: String,
    },
    /// Not exactly one value, or none for a variadic parameter.
    #[error("`{parameter}` has {found} values")]
    Values {
        /// Which.
        parameter: String,
        /// How many.
        found: usize,
    },
    /// Must be known at compile time.
    #[error("`{parameter}` must be a constant")]
    NotConstant {
        /// Which.
        parameter: String,
    },
    /// Another element type is needed, or a state.
    #[error("`{parameter}` is {found}, expected {expected}")]
    Type {
        /// Which.
        parameter: String,
        /// What would do.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Shapes or values that do not fit.
    #[error("{0}")]
    Shape(String),
}

/// Types of the results of the operation `op` on `arguments` by parameter name. Attributes of operators whose
/// signature says so are given here as well.
///
/// ```
/// use std::collections::BTreeMap;
/// use q35_format_mil::{DType, Type, ops::{Constant, Operand, infer}};
///
/// let x = Type::tensor(DType::F16, &[2, 1, 8]);
/// let y = Type::tensor(DType::F16, &[4, 8]);
/// let of = |ty| vec![Operand { ty, constant: Constant::No }];
/// let arguments = BTreeMap::from([("x".to_owned(), of(&x)), ("y".to_owned(), of(&y))]);
/// assert_eq!(infer("add", &arguments), Ok(vec![Type::tensor(DType::F16, &[2, 4, 8])]));
/// assert!(infer("matmul", &arguments).unwrap_err().to_string().contains("8 against 4"));
/// ```
///
/// # Errors
/// Whatever makes the operation wrong.
pub fn infer(op: &str, arguments: &BTreeMap<String, Vec<Operand<'_>>>) -> Result<Vec<Type>, InferError> {
    infer_types(op, arguments).map_err(|problem| {
        let describe = |(name, values): (&String, &Vec<Operand<'_>>)| {
            let types: Vec<String> = values.iter().take(4).map(|value| value.ty.to_string()).collect();
            format!("{name}: {}", types.join(" "))
        };
        let inputs = arguments.iter().map(describe).collect::<Vec<_>>().join(", ");
        InferError { op: op.to_owned(), inputs, problem }
    })
}

fn infer_types(op: &str, arguments: &BTreeMap<String, Vec<Operand<'_>>>) -> Result<Vec<Type>, Problem> {
    let signature = signature(op).ok_or(Problem::Operator)?;
    check_arguments(signature, arguments)?;
    let results = (signature.infer)(&Call { arguments })?;
    for result in &results {
        if result.rank() > LARGEST_RANK {
            return fail(format!("the result {result} has more than {LARGEST_RANK} dimensions"));
        }
        if result
            .shape
            .iter()
            .try_fold(1usize, |n, &size| n.checked_mul(size.max(1)))
            .is_none_or(|n| n >> 48 != 0)
        {
            return fail(format!("the result {result} is absurdly large"));
        }
    }
    Ok(results.into_iter().map(Type::Tensor).collect())
}

/// Core ML refuses tensors of more dimensions.
const LARGEST_RANK: usize = 5;

fn check_arguments(
    signature: &Signature,
    arguments: &BTreeMap<String, Vec<Operand<'_>>>,
) -> Result<(), Problem> {
    if let Some(name) = arguments.keys().find(|name| signature.parameter(name).is_none()) {
        return Err(Problem::Parameter { parameter: name.clone() });
    }
    let mut domains: BTreeMap<char, DType> = BTreeMap::new();
    for parameter in signature.parameters {
        let name = || parameter.name.to_owned();
        let Some(values) = arguments.get(parameter.name) else {
            if parameter.need == Need::Required {
                return Err(Problem::Missing { parameter: name() });
            }
            continue;
        };
        if values.is_empty() || (values.len() != 1 && !parameter.variadic) {
            return Err(Problem::Values { parameter: name(), found: values.len() });
        }
        for value in values {
            let is_state = matches!(value.ty, Type::State(_));
            let dtype = value.ty.inner().dtype;
            let expected = match domains.get(&parameter.domain) {
                Some(&other) if other != dtype => other.to_string(),
                _ if is_state != parameter.state => {
                    if parameter.state { "a state" } else { "a tensor" }.to_owned()
                }
                _ if !parameter.types.contains(&dtype) => {
                    parameter.types.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
                }
                _ => {
                    if parameter.domain != '-' {
                        domains.insert(parameter.domain, dtype);
                    }
                    if parameter.constant && matches!(value.constant, Constant::No) {
                        return Err(Problem::NotConstant { parameter: name() });
                    }
                    continue;
                }
            };
            return Err(Problem::Type { parameter: name(), expected, found: value.ty.to_string() });
        }
    }
    Ok(())
}

pub(super) fn fail<T>(message: String) -> Result<T, Problem> {
    Err(Problem::Shape(message))
}

/// Arguments that passed [`check_arguments`].
pub struct Call<'a> {
    arguments: &'a BTreeMap<String, Vec<Operand<'a>>>,
}

impl Call<'_> {
    fn operand(&self, parameter: &str) -> Option<&Operand<'_>> {
        self.arguments.get(parameter).and_then(|values| values.first())
    }

    /// The type of a required argument.
    pub(super) fn tensor(&self, parameter: &str) -> Result<&TensorType, Problem> {
        self.optional(parameter).ok_or_else(|| Problem::Missing { parameter: parameter.to_owned() })
    }

    /// The type of an argument that may be absent.
    pub(super) fn optional(&self, parameter: &str) -> Option<&TensorType> {
        self.operand(parameter).map(|operand| operand.ty.inner())
    }

    /// The types of a variadic argument: at least one.
    pub(super) fn tensors(&self, parameter: &str) -> Vec<&TensorType> {
        self.arguments.get(parameter).into_iter().flatten().map(|operand| operand.ty.inner()).collect()
    }

    /// The content of an argument, if given: an error if it is not in the message.
    fn value<T>(&self, parameter: &str, read: fn(&Value) -> Option<T>) -> Result<Option<T>, Problem> {
        let Some(operand) = self.operand(parameter) else { return Ok(None) };
        let value = match operand.constant {
            Constant::Value(value) => read(value),
            Constant::No | Constant::Expression => None,
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

    /// Whether the content is known here.
    pub(super) fn is_known(&self, parameter: &str) -> bool {
        matches!(self.operand(parameter).map(|o| o.constant), Some(Constant::Value(v)) if v.elements().is_some())
    }

    /// An axis, counted from the front; `slots` is the rank, or one more where an axis is inserted.
    pub(super) fn axis(&self, parameter: &str, default: i64, slots: usize) -> Result<usize, Problem> {
        axis(self.int(parameter)?.unwrap_or(default), slots)
    }

    /// Distinct axes, counted from the front, ascending; all if none are given.
    pub(super) fn axes(&self, parameter: &str, slots: usize) -> Result<Vec<usize>, Problem> {
        let Some(given) = self.ints(parameter)? else { return Ok((0..slots).collect()) };
        let mut axes = given.into_iter().map(|one| axis(one, slots)).collect::<Result<Vec<_>, _>>()?;
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
