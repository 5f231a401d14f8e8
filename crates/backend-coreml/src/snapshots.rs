//! Conversion between caches and snapshot tensors.

use q35_inference::{SnapshotTensor, StateType};
use q35_mil_eval::Port;

use crate::Tensor;
use crate::stage::{is_kv_cache, token_axis_length};

/// Sizes of a KV cache's last two axes: capacity in tokens and width of a row. `None` for other states.
fn kv_sizes(port: &Port) -> Option<(usize, usize)> {
    let tokens = token_axis_length(port).filter(|_| is_kv_cache(&port.name))?;
    Some((tokens, *port.ty.shape.last()?))
}

/// The port's shape, with a KV cache's token axis cut to `position`.
fn saved_shape(port: &Port, position: usize) -> Vec<usize> {
    let mut shape = port.ty.shape.clone();
    if kv_sizes(port).is_some() {
        let axis = shape.len() - 2;
        shape[axis] = shape[axis].min(position);
    }
    shape
}

/// Snapshot of a cache or state after `position` tokens: f32, which represents every type that the packages use. For
/// keys and values only the rows of the tokens so far are stored.
pub(crate) fn save_cache(port: &Port, value: &Tensor, position: usize) -> SnapshotTensor {
    let values = value.floats().unwrap_or_default();
    let mut data = Vec::new();
    let mut push = |values: &[f32]| data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    match kv_sizes(port) {
        Some((tokens, row)) => {
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

/// The saved cache at full capacity, zero past `position`; `None` if the tensor's type or shape does not fit.
pub(crate) fn load_cache(port: &Port, tensor: &SnapshotTensor, position: usize) -> Option<Tensor> {
    let shape = saved_shape(port, position);
    let count: usize = shape.iter().product();
    if tensor.dtype != StateType::F32 || tensor.shape != shape || tensor.data.len() != 4 * count {
        return None;
    }
    let mut saved = tensor.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let mut values = vec![0.0; port.ty.count()];
    match kv_sizes(port) {
        Some((tokens, row)) => {
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
    fn snapshots_hold_only_filled_rows_and_restore_exactly() {
        let port = Port { name: "kv_cache".to_owned(), ty: TensorType::new(DType::F16, &[2, 1, 4, 3]) };
        let mut values = vec![0.0; 24];
        (0..6).for_each(|i| (values[i], values[12 + i]) = (i as f32 + 1.0, -(i as f32)));
        let value = Tensor::float(&[2, 1, 4, 3], values);
        let snapshot = save_cache(&port, &value, 2);
        assert_eq!((snapshot.shape.as_slice(), snapshot.data.len()), (&[2, 1, 2, 3][..], 48));
        assert_eq!(load_cache(&port, &snapshot, 2), Some(value));
        assert_eq!(load_cache(&port, &snapshot, 3), None);
        let state = Port { name: "conv_state".to_owned(), ty: TensorType::new(DType::F16, &[3, 4]) };
        let value = Tensor::float(&[3, 4], (0..12).map(|i| i as f32).collect());
        assert_eq!(load_cache(&state, &save_cache(&state, &value, 1), 1), Some(value));
    }
}
