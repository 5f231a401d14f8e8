//! Edits of safetensors files, for tests that expect a defect to be found.

use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// A stored tensor that a test changes.
#[derive(Clone, Debug, PartialEq)]
pub struct EditableTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// Reads the tensors of the file at `path`, applies `change` to them, and writes them back.
pub fn rewrite_tensors(path: &Path, change: impl FnOnce(&mut BTreeMap<String, EditableTensor>)) {
    let bytes = std::fs::read(path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: BTreeMap<String, EditableTensor> = file
        .iter()
        .map(|(name, view)| {
            let shape = view.shape().to_vec();
            (name.to_owned(), EditableTensor { dtype: view.dtype(), shape, data: view.data().to_vec() })
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, tensor)| {
        (name.as_str(), TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data).unwrap())
    });
    safetensors::serialize_to_file(views, metadata.metadata().clone(), path).unwrap();
}

impl EditableTensor {
    /// A bf16 tensor of `values` in `rows` rows.
    pub fn bf16(values: &[f32], rows: usize) -> Self {
        let data = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        Self { dtype: Dtype::BF16, shape: vec![rows, values.len() / rows], data }
    }

    /// The values of a bf16 tensor.
    pub fn values(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::BF16);
        self.data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
    }

    fn set(&mut self, values: Vec<f32>) {
        self.data = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    }

    /// Adds `amount` to every value.
    pub fn add(&mut self, amount: f32) {
        self.set(self.values().into_iter().map(|v| v + amount).collect());
    }

    /// Multiplies the value at `index`, row-major.
    pub fn multiply_element(&mut self, index: usize, factor: f32) {
        let mut values = self.values();
        values[index] *= factor;
        self.set(values);
    }

    /// Replaces row `r` by the former row `source(r)`.
    pub fn gather_rows(&mut self, source: impl Fn(usize) -> usize) {
        let (rows, size) = (self.shape[0], self.data.len() / self.shape[0]);
        let taken = |row| self.data[source(row) * size..(source(row) + 1) * size].to_vec();
        self.data = (0..rows).flat_map(taken).collect();
    }

    /// Reverses the values of every row.
    pub fn reverse_within_rows(&mut self) {
        let width = self.values().len() / self.shape[0];
        let mut values = self.values();
        values.chunks_exact_mut(width).for_each(<[f32]>::reverse);
        self.set(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_of_rows_and_values() {
        let mut tensor = EditableTensor::bf16(&[1.0, 2.0, 3.0, 4.0], 2);
        tensor.gather_rows(|row| 1 - row);
        assert_eq!(tensor.values(), [3.0, 4.0, 1.0, 2.0]);
        tensor.reverse_within_rows();
        assert_eq!(tensor.values(), [4.0, 3.0, 2.0, 1.0]);
        tensor.add(1.0);
        tensor.multiply_element(0, 2.0);
        assert_eq!(tensor.values(), [10.0, 4.0, 3.0, 2.0]);
    }
}
