//! States that outlive a call.

use std::collections::BTreeMap;

use q35_format_mil::TensorType;

use crate::run::accepted;
use crate::tensor::Tensor;
use crate::{EvalError, Precision};

/// The states of a program between calls, by name. Functions of one package share a state of the same name.
#[derive(Clone, Debug)]
pub struct State {
    precision: Precision,
    values: BTreeMap<String, Held>,
}

#[derive(Clone, Debug)]
struct Held {
    ty: TensorType,
    /// Absent while an operation changes it, and after a call that failed there.
    value: Option<Tensor>,
}

impl State {
    /// All states zero.
    pub(crate) fn zeros(types: &BTreeMap<String, TensorType>, precision: Precision) -> Self {
        let zero = |ty: &TensorType| Held { ty: ty.clone(), value: Some(zeros(ty)) };
        Self { precision, values: types.iter().map(|(name, ty)| (name.clone(), zero(ty))).collect() }
    }

    /// Names and types, ordered by name.
    pub fn types(&self) -> impl Iterator<Item = (&str, &TensorType)> {
        self.values.iter().map(|(name, held)| (name.as_str(), &held.ty))
    }

    /// A state's value; none if there is no such state, or a failed call lost it.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.values.get(name)?.value.as_ref()
    }

    /// Replaces a state's value.
    ///
    /// # Errors
    /// There is no such state, or the value has another shape or kind.
    pub fn set(&mut self, name: &str, value: Tensor) -> Result<(), EvalError> {
        let found = format!("{} {:?}", value.kind(), value.shape());
        let Some(held) = self.values.get_mut(name) else { return Err(unknown(name)) };
        match accepted(value, &held.ty, self.precision) {
            Some(value) => held.value = Some(value),
            None => {
                let (state, expected) = (name.to_owned(), held.ty.to_string());
                return Err(EvalError::State { state, expected, found });
            }
        }
        Ok(())
    }

    /// All states zero again.
    pub fn reset(&mut self) {
        for held in self.values.values_mut() {
            held.value = Some(zeros(&held.ty));
        }
    }

    /// Bytes held in memory.
    pub fn size_bytes(&self) -> usize {
        self.values.values().filter_map(|held| held.value.as_ref()).map(Tensor::size_bytes).sum()
    }

    pub(crate) fn read(&mut self, name: &str, take: bool) -> Result<Tensor, EvalError> {
        let held = self.values.get_mut(name).ok_or_else(|| unknown(name))?;
        let value = if take { held.value.take() } else { held.value.clone() };
        value.ok_or_else(|| EvalError::State {
            state: name.to_owned(),
            expected: held.ty.to_string(),
            found: "nothing: a call that failed half way has lost it".to_owned(),
        })
    }

    pub(crate) fn write(&mut self, name: &str, value: Tensor) -> Result<(), EvalError> {
        self.set(name, value)
    }
}

fn zeros(ty: &TensorType) -> Tensor {
    Tensor::float(&ty.shape, vec![0.0; ty.count()])
}

fn unknown(name: &str) -> EvalError {
    let (state, expected) = (name.to_owned(), "a state of the program".to_owned());
    EvalError::State { state, expected, found: "no such state".to_owned() }
}
