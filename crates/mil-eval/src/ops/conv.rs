//! Convolution.

use std::sync::Arc;

use super::matmul::rows_times_weight;
use super::shape::transposed;
use super::{Call, Floats, Table};
use crate::Fault;
use crate::tensor::{Data, Odometer, Tensor, elements, strides};
use crate::weight::Value;

pub(super) const TABLE: Table = &[("conv", conv)];

/// Convolution of x [batch, in, spatial..] with weight [out, in / groups, kernel..].
fn conv(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.floats("x")?;
    let weight = call.value("weight").ok_or_else(|| Fault::Missing("weight".to_owned()))?;
    let bias = call.optional_floats("bias")?;
    let geometry = Geometry::new(call, &x.shape, weight.shape())?;
    if bias.as_ref().is_some_and(|bias| bias.values.len() != geometry.outputs) {
        return Err(Fault::invalid(format!(
            "the bias needs one value for each of {} outputs",
            geometry.outputs
        )));
    }
    let mut out = if geometry.is_pointwise() {
        pointwise(x, &weight, &geometry)?
    } else {
        let weight = weight.into_dense()?;
        let taps = weight.floats().ok_or_else(|| super::kind("weight", "float", &weight))?;
        windows(&x, taps, &geometry)?
    };
    if let Some(bias) = bias {
        let inner = geometry.out_size.iter().product::<usize>().max(1);
        for (i, row) in out.chunks_exact_mut(inner).enumerate() {
            let bias = bias.values[i % geometry.outputs];
            row.iter_mut().for_each(|v| *v += bias);
        }
    }
    let shape = [&[geometry.batch, geometry.outputs], &geometry.out_size[..]].concat();
    super::float(&shape, out)
}

struct Geometry {
    batch: usize,
    groups: usize,
    outputs: usize,
    inputs_per_group: usize,
    size: Vec<usize>,
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    before: Vec<usize>,
    after: Vec<usize>,
    out_size: Vec<usize>,
}

impl Geometry {
    fn new(call: &mut Call, x: &[usize], weight: &[usize]) -> Result<Self, Fault> {
        let misfit = || Fault::invalid(format!("a convolution of {x:?} with {weight:?}"));
        let ([batch, inputs, size @ ..], [outputs, inputs_per_group, kernel @ ..]) = (x, weight) else {
            return Err(misfit());
        };
        let spatial = size.len();
        let positive = |values: Option<Vec<i64>>, default: usize| -> Result<Vec<usize>, Fault> {
            let Some(values) = values else { return Ok(vec![default; spatial]) };
            let values: Vec<usize> = values.iter().map(|&v| usize::try_from(v).unwrap_or(0)).collect();
            if values.len() == spatial && !values.contains(&0) { Ok(values) } else { Err(misfit()) }
        };
        let strides = positive(call.optional_ints("strides")?, 1)?;
        let dilations = positive(call.optional_ints("dilations")?, 1)?;
        let groups = usize::try_from(call.int_or("groups", 1)?).unwrap_or(0);
        let pad_type = call.text_or("pad_type", "valid")?;
        let pad = call.optional_ints("pad")?;
        if spatial == 0
            || kernel.len() != spatial
            || kernel.contains(&0)
            || groups == 0
            || inputs_per_group.checked_mul(groups) != Some(*inputs)
            || !outputs.is_multiple_of(groups)
        {
            return Err(misfit());
        }
        let (mut before, mut after, mut out_size) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..spatial {
            let span = (kernel[i] - 1)
                .checked_mul(dilations[i])
                .and_then(|s| s.checked_add(1))
                .ok_or_else(misfit)?;
            let (low, high) = match pad_type.as_str() {
                "valid" => (0, 0),
                "same" | "same_lower" => {
                    let covered = (size[i].div_ceil(strides[i]).max(1) - 1) * strides[i] + span;
                    let total = covered.saturating_sub(size[i]);
                    let (small, large) = (total / 2, total - total / 2);
                    if pad_type == "same" { (small, large) } else { (large, small) }
                }
                "custom" => {
                    let pad = pad.as_deref().filter(|pad| pad.len() == 2 * spatial).ok_or_else(misfit)?;
                    let amount = |v: i64| usize::try_from(v).map_err(|_| misfit());
                    (amount(pad[2 * i])?, amount(pad[2 * i + 1])?)
                }
                other => return Err(Fault::invalid(format!("conv has no pad_type `{other}`"))),
            };
            let padded = size[i].checked_add(low).and_then(|s| s.checked_add(high)).ok_or_else(misfit)?;
            let room = padded.checked_sub(span).ok_or_else(misfit)?;
            out_size.push(room / strides[i] + 1);
            before.push(low);
            after.push(high);
        }
        Ok(Self {
            batch: *batch,
            groups,
            outputs: *outputs,
            inputs_per_group: *inputs_per_group,
            size: size.to_vec(),
            kernel: kernel.to_vec(),
            strides,
            dilations,
            before,
            after,
            out_size,
        })
    }

    /// True for a 1x1 kernel without padding and stride, equivalent to a linear layer.
    fn is_pointwise(&self) -> bool {
        self.groups == 1
            && self.kernel.iter().all(|&k| k == 1)
            && self.strides.iter().all(|&s| s == 1)
            && self.before.iter().chain(&self.after).all(|&p| p == 0)
    }
}

/// Convolution with a 1x1 kernel as a matrix product, for which the weight may stay packed.
fn pointwise(x: Floats, weight: &Value, geometry: &Geometry) -> Result<Vec<f32>, Fault> {
    let positions: usize = geometry.size.iter().product();
    let image = Tensor::from_parts(
        vec![geometry.batch, geometry.inputs_per_group, positions],
        Data::Float(x.values),
    )?;
    let (shape, Data::Float(values)) = transposed(&image, &[0, 2, 1])?.into_parts() else {
        return Err(Fault::invalid("a convolution needs float inputs"));
    };
    let product = rows_times_weight(&Floats { shape, values }, weight)?;
    let product = transposed(&Tensor::from_parts(product.shape, Data::Float(product.values))?, &[0, 2, 1])?;
    let Data::Float(values) = product.into_parts().1 else {
        return Err(Fault::invalid("a convolution needs float inputs"));
    };
    Ok(Arc::unwrap_or_clone(values))
}

/// General convolution: adds the shifted, weighted input for each kernel tap.
fn windows(x: &Floats, taps: &[f32], geometry: &Geometry) -> Result<Vec<f32>, Fault> {
    let g = geometry;
    let spatial = g.size.len();
    let (positions, image) = (g.out_size.iter().product::<usize>(), g.size.iter().product::<usize>());
    let taps_per_filter: usize = g.kernel.iter().product();
    let mut out = vec![0.0; elements(&[g.batch, g.outputs, positions])?];
    if out.is_empty() || x.values.is_empty() {
        return Ok(out);
    }
    let (in_steps, kernel_steps, out_steps) = (strides(&g.size), strides(&g.kernel), strides(&g.out_size));
    // Pairs of input and output positions per tap; the same for all channels.
    let mut meetings: Vec<Vec<(usize, usize)>> = Vec::with_capacity(taps_per_filter);
    for tap in 0..taps_per_filter {
        let mut pairs = Vec::new();
        for ([to], flat) in Odometer::new(&g.out_size, [out_steps.clone()]).zip(0..) {
            let from = (0..spatial).try_fold(0, |from, i| {
                let at = flat / out_steps[i] % g.out_size[i] * g.strides[i]
                    + tap / kernel_steps[i] % g.kernel[i] * g.dilations[i];
                let at = at.checked_sub(g.before[i])?;
                (at < g.size[i]).then_some(from + at * in_steps[i])
            });
            pairs.extend(from.map(|from| (from, to)));
        }
        meetings.push(pairs);
    }
    let outputs_per_group = g.outputs / g.groups;
    for (flat, filter_out) in out.chunks_exact_mut(positions).enumerate() {
        let (batch, output) = (flat / g.outputs, flat % g.outputs);
        let first_input = output / outputs_per_group * g.inputs_per_group;
        for input in 0..g.inputs_per_group {
            let plane = (batch * g.groups * g.inputs_per_group + first_input + input) * image;
            let plane = &x.values[plane..plane + image];
            for (tap, pairs) in meetings.iter().enumerate() {
                let weight = taps[(output * g.inputs_per_group + input) * taps_per_filter + tap];
                pairs.iter().for_each(|&(from, to)| filter_out[to] += weight * plane[from]);
            }
        }
    }
    Ok(out)
}
