//! Conversion between states and snapshots. Snapshot tensors are f32 for every activation type.

use mlx_rs::error::Result;
use mlx_rs::{Array, Dtype};
use q35_inference::{Snapshot, SnapshotTensor, StateType};

use crate::host::to_host;
use crate::kv_cache::KeyValueCache;
use crate::state::{LayerState, State};

/// Layout string of snapshots; names the activation type, because a state computed in one type must not be continued in
/// another.
pub(crate) fn layout(dtype: Dtype) -> String {
    format!("mlx-2 {dtype:?}").to_lowercase()
}

/// The snapshot tensors of a state.
pub(crate) fn save(state: &State) -> Result<Vec<SnapshotTensor>> {
    let mut tensors = Vec::new();
    for (index, layer) in state.layers.iter().enumerate() {
        let named = match layer {
            LayerState::Linear { conv, recurrent } => {
                [("conv", conv.clone()), ("recurrent", recurrent.clone())]
            }
            LayerState::Full(cache) => {
                let (keys, values) = cache.used()?;
                [("keys", keys), ("values", values)]
            }
        };
        for (name, array) in named {
            tensors.push(SnapshotTensor {
                name: format!("{name}.{index}"),
                dtype: StateType::F32,
                shape: array.shape().iter().map(|size| *size as usize).collect(),
                data: to_host(&array)?.iter().flat_map(|value| value.to_le_bytes()).collect(),
            });
        }
    }
    Ok(tensors)
}

/// Overwrites an empty state with the saved one. The inner result is `Err` with a description of the expected tensor if
/// one is missing or does not fit.
pub(crate) fn restore(
    state: &mut State,
    snapshot: &Snapshot,
    dtype: Dtype,
) -> Result<std::result::Result<(), String>> {
    state.position = snapshot.position;
    for (index, layer) in state.layers.iter_mut().enumerate() {
        let names = match layer {
            LayerState::Linear { .. } => ["conv", "recurrent"],
            LayerState::Full(_) => ["keys", "values"],
        };
        let mut found = Vec::new();
        for (name, like) in names.into_iter().zip(layer.arrays()) {
            let mut shape = like.shape().to_vec();
            if let LayerState::Full(_) = layer {
                shape[2] = snapshot.position as i32;
            }
            match find(snapshot, &format!("{name}.{index}"), &shape) {
                Some(array) => found.push(array),
                None => return Ok(Err(format!("tensor `{name}.{index}` of shape {shape:?}"))),
            }
        }
        let (Some(second), Some(first)) = (found.pop(), found.pop()) else {
            unreachable!("two names, two arrays")
        };
        *layer = match layer {
            LayerState::Linear { .. } => {
                LayerState::Linear { conv: first.as_dtype(dtype)?, recurrent: second }
            }
            LayerState::Full(_) => LayerState::Full(KeyValueCache {
                length: first.dim(2),
                keys: first.as_dtype(dtype)?,
                values: second.as_dtype(dtype)?,
            }),
        };
    }
    Ok(Ok(()))
}

fn find(snapshot: &Snapshot, name: &str, shape: &[i32]) -> Option<Array> {
    let tensor = snapshot.tensor(name)?;
    let same = tensor.shape.iter().map(|size| *size as i32).eq(shape.iter().copied());
    let count: usize = tensor.shape.iter().product();
    if !same || tensor.dtype != StateType::F32 || tensor.data.len() != 4 * count {
        return None;
    }
    let number = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let values: Vec<f32> = tensor.data.chunks_exact(4).map(number).collect();
    Some(Array::from_slice(&values, shape))
}
