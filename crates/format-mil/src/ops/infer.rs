//! Type inference: argument types to result types.

use std::collections::BTreeMap;

use super::call::{Call, Constant, Operand, Problem, fail};
use super::{Need, Signature, signature};
use crate::{DType, Type};

/// An invalid operation and the types of its arguments.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{op}`({inputs}): {problem}")]
pub struct InferError {
    /// The operator.
    pub op: String,
    /// The arguments' types for display.
    pub inputs: String,
    /// The defect.
    pub problem: Problem,
}

/// Infers the result types of the operator `op` from `arguments` by parameter name. For operators with
/// [`Signature::in_attributes`], the attributes are arguments.
///
/// ```
/// use std::collections::BTreeMap;
/// use q35_format_mil::{DType, Type, ops::{Constant, Operand, infer}};
///
/// let x = Type::tensor(DType::F16, &[2, 1, 8]);
/// let y = Type::tensor(DType::F16, &[4, 8]);
/// let operand = |ty| vec![Operand { ty, constant: Constant::Runtime }];
/// let arguments = BTreeMap::from([("x".to_owned(), operand(&x)), ("y".to_owned(), operand(&y))]);
/// assert_eq!(infer("add", &arguments), Ok(vec![Type::tensor(DType::F16, &[2, 4, 8])]));
/// assert!(infer("matmul", &arguments).unwrap_err().to_string().contains("8 against 4"));
/// ```
///
/// # Errors
/// The operator is unknown, or its arguments do not satisfy its signature.
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
            return fail(format!("the result {result} is too large"));
        }
    }
    Ok(results.into_iter().map(Type::Tensor).collect())
}

/// Largest rank that Core ML accepts.
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
                    if parameter.constant && matches!(value.constant, Constant::Runtime) {
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
