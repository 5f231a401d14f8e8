//! Caches as tensors of a snapshot.

use q35_inference::{SnapshotTensor, StateType};
use q35_mil_eval::Port;

use crate::Tensor;
use crate::forms::{is_token_cache, token_axis_length};

/// How many tokens' rows of a cache a snapshot holds, if it is a cache of tokens: (blocks, tokens, row).
fn rows(port: &Port) -> Option<(usize, usize, usize)> {
    let tokens = token_axis_length(port).filter(|_| is_token_cache(&port.name))?;
    let row = *port.ty.shape.last()?;
    Some((port.ty.count() / (tokens * row).max(1), tokens, row))
}

fn saved_shape(port: &Port, position: usize) -> Vec<usize> {
    let mut shape = port.ty.shape.clone();
    if rows(port).is_some() {
        let axis = shape.len() - 2;
        shape[axis] = shape[axis].min(position);
    }
    shape
}

/// A cache after `position` tokens: in f32, which holds whatever the execution keeps; of keys and values only the
/// rows that tokens have filled.
pub(crate) fn saved(port: &Port, value: &Tensor, position: usize) -> SnapshotTensor {
    let values = value.floats().unwrap_or_default();
    let mut data = Vec::new();
    let mut push = |values: &[f32]| data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    match rows(port) {
        Some((_, tokens, row)) => {
            values
                .chunks_exact((tokens * row).max(1))
                .for_each(|block| push(&block[..position.min(tokens) * row]));
        }
        None => push(values),
    }
    SnapshotTensor {
        name: port.name.clone(),
        dtype: StateType::F32,
        shape: saved_shape(port, position),
        data,
    }
}

/// The cache that was saved; zero where nothing was.
pub(crate) fn restored(port: &Port, tensor: &SnapshotTensor, position: usize) -> Option<Tensor> {
    let shape = saved_shape(port, position);
    let count: usize = shape.iter().product();
    if tensor.dtype != StateType::F32 || tensor.shape != shape || tensor.data.len() != 4 * count {
        return None;
    }
    let mut saved = tensor.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let mut values = vec![0.0; port.ty.count()];
    match rows(port) {
        Some((_, tokens, row)) => {
            for block in values.chunks_exact_mut((tokens * row).max(1)) {
                block[..position.min(tokens) * row].iter_mut().zip(&mut saved).for_each(|(v, s)| *v = s);
            }
        }
        None => values.iter_mut().zip(saved).for_each(|(v, s)| *v = s),
    }
    Some(Tensor::float(&port.ty.shape, values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use q35_format_mil::{DType, TensorType};

    #[test]
    fn only_filled_rows_are_kept_and_all_comes_back() {
        let port = Port { name: "kv_cache".to_owned(), ty: TensorType::new(DType::F16, &[2, 1, 4, 3]) };
        let mut values = vec![0.0; 24];
        (0..6).for_each(|i| (values[i], values[12 + i]) = (i as f32 + 1.0, -(i as f32)));
        let value = Tensor::float(&[2, 1, 4, 3], values);
        let snapshot = saved(&port, &value, 2);
        assert_eq!((snapshot.shape.as_slice(), snapshot.data.len()), (&[2, 1, 2, 3][..], 48));
        assert_eq!(restored(&port, &snapshot, 2), Some(value));
        assert_eq!(restored(&port, &snapshot, 3), None);
        let state = Port { name: "conv_state".to_owned(), ty: TensorType::new(DType::F16, &[3, 4]) };
        let value = Tensor::float(&[3, 4], (0..12).map(|i| i as f32).collect());
        assert_eq!(restored(&state, &saved(&state, &value, 1), 1), Some(value));
    }
}
