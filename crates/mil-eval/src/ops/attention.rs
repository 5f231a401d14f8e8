//! Fused attention.

use super::elementwise::broadcast_steps;
use super::normalize::softmax_row;
use super::{Call, Table};
use crate::Fault;
use crate::product::matrix_product;
use crate::tensor::{Data, Odometer, Tensor, broadcast, elements};

pub(super) const TABLE: Table = &[("scaled_dot_product_attention", attention)];

/// `softmax(query key^T / sqrt(width) + mask) value`; a boolean mask excludes positions where it is false.
fn attention(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let (query, key, value) = (call.floats("query")?, call.floats("key")?, call.floats("value")?);
    let mask = call.optional("attn_mask")?;
    let ([q_batch @ .., rows, width], [k_batch @ .., length, k_width], [v_batch @ .., v_length, v_width]) =
        (&query.shape[..], &key.shape[..], &value.shape[..])
    else {
        return Err(Fault::invalid("attention needs matrices"));
    };
    if width != k_width || length != v_length {
        return Err(Fault::invalid(format!(
            "queries of {:?}, keys of {:?}, values of {:?}",
            query.shape, key.shape, value.shape
        )));
    }
    let batch = broadcast(&broadcast(q_batch, k_batch)?, v_batch)?;
    let offsets = |a: &[usize], b: &[usize]| -> Vec<[usize; 2]> {
        Odometer::new(&batch, [broadcast_steps(a, &batch), broadcast_steps(b, &batch)]).collect()
    };
    let score_shape = [&batch[..], &[*rows, *length]].concat();
    let mut scores = vec![0.0; elements(&score_shape)?];
    matrix_product(
        (&query.values, false),
        (&key.values, true),
        (*rows, *width, *length),
        &offsets(q_batch, k_batch),
        &mut scores,
    )?;
    let scale = 1.0 / (*width as f32).sqrt();
    scores.iter_mut().for_each(|score| *score *= scale);
    if let Some(mask) = mask {
        if broadcast(mask.shape(), &score_shape)? != score_shape {
            return Err(Fault::invalid(format!(
                "a mask of {:?} for scores of {score_shape:?}",
                mask.shape()
            )));
        }
        let places = Odometer::new(&score_shape, [broadcast_steps(mask.shape(), &score_shape)]);
        match mask.data() {
            Data::Float(mask) => scores.iter_mut().zip(places).for_each(|(score, [i])| *score += mask[i]),
            Data::Bool(mask) => scores.iter_mut().zip(places).for_each(|(score, [i])| {
                if !mask[i] {
                    *score = f32::NEG_INFINITY;
                }
            }),
            _ => return Err(super::kind("attn_mask", "float or bool", &mask)),
        }
    }
    scores.chunks_exact_mut((*length).max(1)).for_each(softmax_row);
    let shape = [&batch[..], &[*rows, *v_width]].concat();
    let mut out = vec![0.0; elements(&shape)?];
    matrix_product(
        (&scores, false),
        (&value.values, false),
        (*rows, *length, *v_width),
        &offsets(&batch, v_batch),
        &mut out,
    )?;
    super::float(&shape, out)
}
