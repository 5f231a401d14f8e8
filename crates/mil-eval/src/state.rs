//! States that persist between calls.

use std::collections::BTreeMap;

use q35_format_mil::TensorType;

use crate::rounding::to_port;
use crate::tensor::Tensor;
use crate::{EvalError, Precision};

/// The states of a program, by name. Functions of one package share states of the same name.
#[derive(Clone, Debug)]
pub struct State {
    precision: Precision,
    values: BTreeMap<String, StateValue>,
}

#[derive(Clone, Debug)]
struct StateValue {
    ty: TensorType,
    /// `None` between a read that moves the value out and the next write, and after a failure in between.
    value: Option<Tensor>,
}

impl State {
    /// Creates zeroed states.
    pub(crate) fn zeros(types: &BTreeMap<String, TensorType>, precision: Precision) -> Self {
        let zero = |ty: &TensorType| StateValue { ty: ty.clone(), value: Some(zeros(ty)) };
        Self { precision, values: types.iter().map(|(name, ty)| (name.clone(), zero(ty))).collect() }
    }

    /// Names and types, ordered by name.
    pub fn types(&self) -> impl Iterator<Item = (&str, &TensorType)> {
        self.values.iter().map(|(name, entry)| (name.as_str(), &entry.ty))
    }

    /// A state's value; `None` if there is no such state or a failed call lost it.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.values.get(name)?.value.as_ref()
    }

    /// Replaces a state's value.
    ///
    /// # Errors
    /// There is no such state, or the value's shape or kind differs.
    pub fn set(&mut self, name: &str, value: Tensor) -> Result<(), EvalError> {
        let found = value.describe();
        let Some(entry) = self.values.get_mut(name) else { return Err(unknown(name)) };
        match to_port(value, &entry.ty, self.precision) {
            Some(value) => entry.value = Some(value),
            None => {
                let (state, expected) = (name.to_owned(), entry.ty.to_string());
                return Err(EvalError::State { state, expected, found });
            }
        }
        Ok(())
    }

    /// Sets all states to zero.
    pub fn reset(&mut self) {
        for entry in self.values.values_mut() {
            entry.value = Some(zeros(&entry.ty));
        }
    }

    /// Size of the values in bytes.
    pub fn size_bytes(&self) -> usize {
        self.values.values().filter_map(|entry| entry.value.as_ref()).map(Tensor::size_bytes).sum()
    }

    pub(crate) fn read(&mut self, name: &str, take: bool) -> Result<Tensor, EvalError> {
        let entry = self.values.get_mut(name).ok_or_else(|| unknown(name))?;
        let value = if take { entry.value.take() } else { entry.value.clone() };
        value.ok_or_else(|| EvalError::State {
            state: name.to_owned(),
            expected: entry.ty.to_string(),
            found: "no value: a failed call has lost it".to_owned(),
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
