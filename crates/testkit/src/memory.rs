//! Weights in memory.

use std::collections::BTreeMap;
use std::ops::Range;

use q35_architecture::TextConfig;
use q35_inference::{WeightError, Weights};

/// Shape and values of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MemoryTensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// Weights held in memory, under the names of [`q35_architecture::tensor_table`].
#[derive(Clone, Debug)]
pub struct MemoryWeights {
    pub(crate) config: TextConfig,
    pub(crate) tensors: BTreeMap<String, MemoryTensor>,
}

impl MemoryWeights {
    /// The values of one tensor, for a test to change.
    ///
    /// # Panics
    /// There is no such tensor.
    pub fn values_mut(&mut self, name: &str) -> &mut [f32] {
        &mut self.tensors.get_mut(name).unwrap_or_else(|| panic!("no tensor `{name}`")).values
    }

    /// The values of one tensor, row-major.
    ///
    /// # Panics
    /// There is no such tensor.
    pub fn values(&self, name: &str) -> &[f32] {
        &self.tensors.get(name).unwrap_or_else(|| panic!("no tensor `{name}`")).values
    }
}

impl Weights for MemoryWeights {
    fn config(&self) -> &TextConfig {
        &self.config
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), WeightError> {
        let fail = |message: String| WeightError { name: name.to_owned(), message };
        let tensor = self.tensors.get(name).ok_or_else(|| fail("no such tensor".into()))?;
        let width: usize = tensor.shape[1..].iter().product();
        let part = tensor
            .values
            .get(rows.start * width..rows.end * width)
            .ok_or_else(|| fail(format!("rows {rows:?} of {:?}", tensor.shape)))?;
        out.clear();
        out.extend_from_slice(part);
        Ok(())
    }
}
