//! Shape functions of the operators, in the order of the signature table.

use super::call::{Call, Problem, fail};
use crate::{DType, TensorType};

type Shapes = Result<Vec<TensorType>, Problem>;

fn one(dtype: DType, shape: Vec<usize>) -> Shapes {
    Ok(vec![TensorType { dtype, shape }])
}

pub(super) fn like_x(call: &Call<'_>) -> Shapes {
    Ok(vec![call.tensor("x")?.clone()])
}

pub(super) fn like_x_with_axis(call: &Call<'_>) -> Shapes {
    let default = if call.optional("exclusive").is_some() { 0 } else { -1 };
    let x = call.tensor("x")?;
    call.axis("axis", default, x.rank())?;
    like_x(call)
}

/// Checks that `blocks` divides each axis of `whole` into equal parts.
fn divides(what: &str, whole: &[usize], blocks: &[usize]) -> Result<(), Problem> {
    let fits = |(&size, &count): (&usize, &usize)| count != 0 && size % count == 0;
    if whole.is_empty() || whole.len() != blocks.len() || !whole.iter().zip(blocks).all(fits) {
        return fail(format!("{what} {blocks:?} does not divide {whole:?}"));
    }
    Ok(())
}

pub(super) fn blockwise_shift_scale(call: &Call<'_>) -> Shapes {
    let (data, scale) = (call.tensor("data")?, call.tensor("scale")?);
    divides("scale", &data.shape, &scale.shape)?;
    if let Some(offset) = call.optional("offset") {
        if offset.shape != scale.shape {
            return fail(format!("offset {offset} must have the shape of scale {scale}"));
        }
        if !offset.dtype.is_float() && offset.dtype != data.dtype {
            return fail(format!("offset {offset} must have the type of data {data}, or a float's"));
        }
    }
    one(scale.dtype, data.shape.clone())
}

pub(super) fn lut_to_dense(call: &Call<'_>) -> Shapes {
    let (indices, lut) = (call.tensor("indices")?, call.tensor("lut")?);
    let rank = indices.rank();
    if lut.rank() != rank + 2 {
        return fail(format!("lut {lut} must have two dimensions more than indices {indices}"));
    }
    divides("lut", &indices.shape, &lut.shape[..rank])?;
    if lut.shape[rank] != 1 << indices.dtype.bits() {
        return fail(format!("lut {lut} must have 2^bits entries for {indices}"));
    }
    let mut shape = indices.shape.clone();
    let vector = lut.shape[rank + 1];
    if vector != 1 {
        if call.optional("vector_axis").is_none() {
            return fail("vector_axis is needed for vectors".into());
        }
        let axis = call.axis("vector_axis", 0, rank)?;
        shape[axis] = shape[axis].saturating_mul(vector);
    }
    one(lut.dtype, shape)
}

pub(super) fn affine_dequantize(call: &Call<'_>) -> Shapes {
    let (data, scale) = (call.tensor("quantized_data")?, call.tensor("scale")?);
    let axis = call.axis("axis", 0, data.rank())?;
    for (name, tensor) in [("scale", scale), ("zero_point", call.tensor("zero_point")?)] {
        if tensor.rank() > 1 || (tensor.rank() == 1 && tensor.shape[0] != data.shape[axis]) {
            return fail(format!(
                "{name} {tensor} must be a scalar or one per entry of axis {axis} of {data}"
            ));
        }
    }
    one(scale.dtype, data.shape.clone())
}

pub(super) fn linear(call: &Call<'_>) -> Shapes {
    let (x, weight) = (call.tensor("x")?, call.tensor("weight")?);
    if weight.rank() != 2 || x.shape.last() != Some(&weight.shape[1]) {
        return fail(format!("the last dimension of x {x} must be that of weight {weight}"));
    }
    let rows = weight.shape[0];
    if let Some(bias) = call.optional("bias")
        && bias.shape != [rows]
    {
        return fail(format!("bias {bias} must be [{rows}]"));
    }
    let mut shape = x.shape.clone();
    shape[x.rank() - 1] = rows;
    one(x.dtype, shape)
}

pub(super) fn matmul(call: &Call<'_>) -> Shapes {
    let (x, y) = (call.tensor("x")?, call.tensor("y")?);
    if x.rank() < 2 || y.rank() < 2 {
        return fail("both factors need at least two dimensions".into());
    }
    let matrix = |tensor: &TensorType, transposed: bool| {
        let (rows, columns) = (tensor.shape[tensor.rank() - 2], tensor.shape[tensor.rank() - 1]);
        if transposed { (columns, rows) } else { (rows, columns) }
    };
    let (rows, inner) = matrix(x, call.flag("transpose_x")?.unwrap_or(false));
    let (other, columns) = matrix(y, call.flag("transpose_y")?.unwrap_or(false));
    if inner != other {
        return fail(format!("inner dimensions differ: {inner} against {other}"));
    }
    let mut shape = broadcast_shapes(&x.shape[..x.rank() - 2], &y.shape[..y.rank() - 2])?;
    shape.extend([rows, columns]);
    one(x.dtype, shape)
}

pub(super) fn conv(call: &Call<'_>) -> Shapes {
    let (x, weight) = (call.tensor("x")?, call.tensor("weight")?);
    let spatial = x.rank().saturating_sub(2);
    if !(1..=3).contains(&spatial) || weight.rank() != x.rank() {
        return fail(format!("x {x} and weight {weight} must have 3 to 5 dimensions, as many as each other"));
    }
    let groups = call.int("groups")?.unwrap_or(1);
    let whole = |size: usize| groups > 0 && (size as u64).is_multiple_of(groups as u64);
    if !whole(x.shape[1])
        || !whole(weight.shape[0])
        || weight.shape[1] as u64 != x.shape[1] as u64 / groups as u64
    {
        return fail(format!("x {x} and weight {weight} do not fit in {groups} groups"));
    }
    if let Some(bias) = call.optional("bias")
        && bias.shape != [weight.shape[0]]
    {
        return fail(format!("bias {bias} must be [{}]", weight.shape[0]));
    }
    let sizes = |parameter: &str| -> Result<Vec<i64>, Problem> {
        let values = call.ints(parameter)?.unwrap_or_else(|| vec![1; spatial]);
        if values.len() != spatial || values.iter().any(|value| !(1..=1 << 31).contains(value)) {
            return fail(format!("`{parameter}` must be {spatial} positive numbers"));
        }
        Ok(values)
    };
    let (strides, dilations) = (sizes("strides")?, sizes("dilations")?);
    let pads = call.ints("pad")?.unwrap_or_else(|| vec![0; 2 * spatial]);
    if pads.len() != 2 * spatial || pads.iter().any(|pad| !(0..=1 << 31).contains(pad)) {
        return fail(format!("`pad` must be {} numbers, none negative", 2 * spatial));
    }
    let pad_type = call.text("pad_type")?.unwrap_or_else(|| "valid".into());
    let mut shape = vec![x.shape[0], weight.shape[0]];
    for axis in 0..spatial {
        let (size, kernel) = (x.shape[2 + axis] as i128, weight.shape[2 + axis] as i128);
        let (stride, span) = (strides[axis] as i128, (kernel - 1) * dilations[axis] as i128 + 1);
        let padding = match pad_type.as_str() {
            "valid" => 0,
            "custom" => pads[2 * axis] as i128 + pads[2 * axis + 1] as i128,
            "same" | "same_lower" => ((size + stride - 1) / stride - 1) * stride + span - size,
            other => return fail(format!("unknown pad_type {other:?}")),
        };
        let room = size + padding.max(0) - span;
        if room < 0 || kernel == 0 {
            return fail(format!("the kernel of weight {weight} is larger than the padded x {x}"));
        }
        shape.push((room / stride + 1) as usize);
    }
    one(x.dtype, shape)
}

pub(super) fn attention(call: &Call<'_>) -> Shapes {
    let (query, key, value) = (call.tensor("query")?, call.tensor("key")?, call.tensor("value")?);
    let rank = query.rank();
    let batch = rank.saturating_sub(2);
    let fits = rank >= 3
        && key.rank() == rank
        && value.rank() == rank
        && query.shape[..batch] == key.shape[..batch]
        && query.shape[..batch] == value.shape[..batch]
        && query.shape[rank - 1] == key.shape[rank - 1]
        && key.shape[batch] == value.shape[batch];
    if !fits {
        return fail("query [.., L, E], key [.., S, E], value [.., S, V] do not fit".into());
    }
    if let Some(mask) = call.optional("attn_mask") {
        if mask.dtype != DType::Bool && mask.dtype != query.dtype {
            return fail(format!("attn_mask {mask} must be bool or {}", query.dtype));
        }
        let mut scores = query.shape[..batch].to_vec();
        scores.extend([query.shape[batch], key.shape[batch]]);
        if broadcast_shapes(&scores, &mask.shape)? != scores {
            return fail(format!("attn_mask {mask} does not fit {scores:?}"));
        }
    }
    let mut shape = query.shape.clone();
    shape[rank - 1] = value.shape[rank - 1];
    one(query.dtype, shape)
}

/// The broadcast shape by numpy's rules.
fn broadcast_shapes(x: &[usize], y: &[usize]) -> Result<Vec<usize>, Problem> {
    let rank = x.len().max(y.len());
    let size = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    (0..rank)
        .map(|axis| match (size(x, axis), size(y, axis)) {
            (a, b) if a == b => Ok(a),
            (1, b) => Ok(b),
            (a, 1) => Ok(a),
            _ => fail(format!("{x:?} and {y:?} cannot be broadcast to each other")),
        })
        .collect()
}

pub(super) fn broadcast(call: &Call<'_>) -> Shapes {
    let (x, y) = (call.tensor("x")?, call.tensor("y")?);
    one(x.dtype, broadcast_shapes(&x.shape, &y.shape)?)
}

pub(super) fn comparison(call: &Call<'_>) -> Shapes {
    let (x, y) = (call.tensor("x")?, call.tensor("y")?);
    one(DType::Bool, broadcast_shapes(&x.shape, &y.shape)?)
}

pub(super) fn cast(call: &Call<'_>) -> Shapes {
    let name = call.text("dtype")?.unwrap_or_default();
    match DType::from_name(&name) {
        Some(dtype) if dtype != DType::String && dtype.bits() >= 8 => {
            one(dtype, call.tensor("x")?.shape.clone())
        }
        _ => fail(format!("cannot cast to {name:?}")),
    }
}

pub(super) fn select(call: &Call<'_>) -> Shapes {
    let (cond, a, b) = (call.tensor("cond")?, call.tensor("a")?, call.tensor("b")?);
    // As in coremltools: the result's shape is the broadcast of `a` and `b`; `cond` has no influence.
    let shape = broadcast_shapes(&a.shape, &b.shape)?;
    if broadcast_shapes(&cond.shape, &shape)? != shape {
        return fail(format!("cond {cond} is larger than what it chooses from, {shape:?}"));
    }
    one(a.dtype, shape)
}

fn without(shape: &[usize], axes: &[usize], keep_dims: bool) -> Vec<usize> {
    let kept = |(axis, &size): (usize, &usize)| match (axes.contains(&axis), keep_dims) {
        (false, _) => Some(size),
        (true, true) => Some(1),
        (true, false) => None,
    };
    shape.iter().enumerate().filter_map(kept).collect()
}

pub(super) fn reduce(call: &Call<'_>) -> Shapes {
    let x = call.tensor("x")?;
    let axes = call.axes("axes", x.rank())?;
    one(x.dtype, without(&x.shape, &axes, call.flag("keep_dims")?.unwrap_or(false)))
}

pub(super) fn argument(call: &Call<'_>) -> Shapes {
    let x = call.tensor("x")?;
    let axis = call.axis("axis", -1, x.rank())?;
    let keep_dims = call.flag("keep_dims")?.unwrap_or(false);
    one(index_type(call, "output_dtype")?, without(&x.shape, &[axis], keep_dims))
}

fn index_type(call: &Call<'_>, parameter: &str) -> Result<DType, Problem> {
    let name = call.text(parameter)?.unwrap_or_else(|| "int32".into());
    match DType::from_name(&name) {
        Some(dtype @ (DType::I32 | DType::U16 | DType::I16)) => Ok(dtype),
        _ => fail(format!("`{parameter}` cannot be {name:?}")),
    }
}

pub(super) fn topk(call: &Call<'_>) -> Shapes {
    let x = call.tensor("x")?;
    let axis = call.axis("axis", -1, x.rank())?;
    let mut shape = x.shape.clone();
    match call.int("k")?.unwrap_or(1) {
        -1 => {}
        k if k >= 0 && k as u64 <= shape[axis] as u64 => shape[axis] = k as usize,
        k => return fail(format!("the largest {k} of {}", shape[axis])),
    }
    let mut results = vec![TensorType { dtype: x.dtype, shape: shape.clone() }];
    if call.flag("return_indices")?.unwrap_or(true) {
        results.push(TensorType { dtype: index_type(call, "output_indices_dtype")?, shape });
    }
    Ok(results)
}

pub(super) fn layer_norm(call: &Call<'_>) -> Shapes {
    let x = call.tensor("x")?;
    let axes = call.axes("axes", x.rank())?;
    let normed: Vec<usize> = axes.iter().map(|&axis| x.shape[axis]).collect();
    for name in ["gamma", "beta"] {
        if let Some(tensor) = call.optional(name)
            && tensor.shape != normed
        {
            return fail(format!("{name} {tensor} must be {normed:?}"));
        }
    }
    like_x(call)
}

pub(super) fn concat(call: &Call<'_>) -> Shapes {
    let values = call.tensors("values");
    let first = values[0];
    let axis = call.axis("axis", 0, first.rank())?;
    let mut shape = first.shape.clone();
    for value in &values[1..] {
        let fits = value.rank() == first.rank()
            && (0..first.rank()).all(|i| i == axis || value.shape[i] == first.shape[i]);
        if !fits {
            return fail(format!("{value} cannot be joined to {first} along axis {axis}"));
        }
        shape[axis] = shape[axis].saturating_add(value.shape[axis]);
    }
    one(first.dtype, shape)
}

pub(super) fn split(call: &Call<'_>) -> Shapes {
    let x = call.tensor("x")?;
    let axis = call.axis("axis", 0, x.rank())?;
    let size = x.shape[axis];
    let sizes: Vec<usize> = match (call.ints("split_sizes")?, call.int("num_splits")?) {
        (Some(sizes), count) => {
            if count.is_some_and(|count| count != sizes.len() as i64) {
                return fail("`num_splits` and `split_sizes` disagree".into());
            }
            sizes.iter().map(|&part| usize::try_from(part).unwrap_or(usize::MAX)).collect()
        }
        (None, Some(count)) if (1..=size.max(1) as i64).contains(&count) && size % count as usize == 0 => {
            vec![size / count as usize; count as usize]
        }
        _ => return fail(format!("{size} cannot be split this way")),
    };
    if sizes.iter().try_fold(0usize, |sum, &part| sum.checked_add(part)) != Some(size) {
        return fail(format!("parts {sizes:?} do not make {size}"));
    }
    let part = |&part: &usize| {
        let mut shape = x.shape.clone();
        shape[axis] = part;
        TensorType { dtype: x.dtype, shape }
    };
    Ok(sizes.iter().map(part).collect())
}

pub(super) fn stack(call: &Call<'_>) -> Shapes {
    let values = call.tensors("values");
    let axis = call.axis("axis", 0, values[0].rank() + 1)?;
    if let Some(other) = values.iter().find(|value| value.shape != values[0].shape) {
        return fail(format!("{other} cannot be stacked on {}", values[0]));
    }
    let mut shape = values[0].shape.clone();
    shape.insert(axis, values.len());
    one(values[0].dtype, shape)
}

/// The shape of a slice of `x` by begin, end, stride and masks; `None` for lengths known only at run time.
fn sliced(call: &Call<'_>, x: &TensorType) -> Result<Vec<Option<usize>>, Problem> {
    let rank = x.rank();
    for name in ["begin", "end", "stride"] {
        if let Some(bounds) = call.optional(name)
            && bounds.shape != [rank]
        {
            return fail(format!("`{name}` {bounds} must have one entry per dimension of {x}"));
        }
    }
    let known = |name: &str| if call.is_known(name) { call.ints(name) } else { Ok(None) };
    let (begin, end) = (known("begin")?, known("end")?);
    let stride = call.ints("stride")?.unwrap_or_else(|| vec![1; rank]);
    let begin_mask = call.flags("begin_mask", rank)?;
    let end_mask = call.flags("end_mask", rank)?;
    let squeeze_mask = call.flags("squeeze_mask", rank)?;
    let mut shape = Vec::new();
    for axis in 0..rank {
        let (size, step) = (x.shape[axis] as i64, stride[axis]);
        if step == 0 {
            return fail("a stride of 0".into());
        }
        let counted = |bound: i64| if bound < 0 { bound.saturating_add(size) } else { bound };
        let bound = |masked: bool, bounds: &Option<Vec<i64>>, whole: i64| match bounds {
            _ if masked => Some(whole),
            Some(bounds) => Some(counted(bounds[axis])),
            None => None,
        };
        let (first, past) = if step > 0 { (0, size) } else { (size - 1, -1) };
        let from = bound(begin_mask[axis], &begin, first);
        if squeeze_mask[axis] {
            if from.is_some_and(|from| !(0..size).contains(&from)) {
                return fail(format!("index {} of dimension {axis} of {x}", from.unwrap_or(0)));
            }
            continue;
        }
        let to = bound(end_mask[axis], &end, past);
        shape.push(match (from, to) {
            (Some(from), Some(to)) => {
                // Bounds beyond the tensor are clamped, as in numpy.
                let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
                let (from, to) = (from.clamp(low, high) as i128, to.clamp(low, high) as i128);
                let length = if step > 0 { to - from } else { from - to };
                let step = (step as i128).abs();
                Some(((length + step - 1) / step).max(0) as usize)
            }
            _ => None,
        });
    }
    Ok(shape)
}

pub(super) fn slice_by_index(call: &Call<'_>) -> Shapes {
    let x = call.tensor("x")?;
    match sliced(call, x)?.into_iter().collect::<Option<Vec<usize>>>() {
        Some(shape) => one(x.dtype, shape),
        None => fail("`begin` and `end` must be constants where they decide the result's size".into()),
    }
}

pub(super) fn slice_by_size(call: &Call<'_>) -> Shapes {
    let (x, begin) = (call.tensor("x")?, call.tensor("begin")?);
    let sizes = call.ints("size")?.unwrap_or_default();
    if begin.shape != [x.rank()] || sizes.len() != x.rank() {
        return fail(format!("`begin` and `size` must have one entry per dimension of {x}"));
    }
    let begins = if call.is_known("begin") { call.ints("begin")? } else { None };
    let mut shape = Vec::new();
    for (axis, (&size, &whole)) in sizes.iter().zip(&x.shape).enumerate() {
        let start = begins.as_ref().map(|begins| begins[axis]);
        let size = match (size, start) {
            (-1, Some(start)) => (whole as i64).saturating_sub(start),
            (-1, None) => return fail("`begin` must be a constant where `size` is -1".into()),
            (size, _) => size,
        };
        let fits = start.is_none_or(|start| start >= 0 && start.saturating_add(size) <= whole as i64);
        if size < 0 || size > whole as i64 || !fits {
            return fail(format!("{size} entries from {start:?} of dimension {axis} of {x}"));
        }
        shape.push(size as usize);
    }
    one(x.dtype, shape)
}

pub(super) fn slice_update(call: &Call<'_>) -> Shapes {
    let (x, update) = (call.tensor("x")?, call.tensor("update")?);
    let shape = sliced(call, x)?;
    let fits = shape.len() == update.rank()
        && update.rank() > 0
        && shape.iter().zip(&update.shape).all(|(known, &size)| known.is_none_or(|known| known == size));
    if !fits {
        return fail(format!("update {update} does not fit the slice {shape:?} of {x}"));
    }
    like_x(call)
}

pub(super) fn reshape(call: &Call<'_>) -> Shapes {
    let x = call.tensor("x")?;
    let wanted = call.ints("shape")?.unwrap_or_default();
    let mut shape = Vec::new();
    for (axis, &size) in wanted.iter().enumerate() {
        shape.push(match size {
            0 if wanted.len() == x.rank() => x.shape[axis],
            -1 => 1,
            size if size > 0 => size as usize,
            _ => return fail(format!("shape {wanted:?} for {x}")),
        });
    }
    let known = TensorType { dtype: x.dtype, shape: shape.clone() }.count();
    let holes: Vec<usize> = (0..wanted.len()).filter(|&axis| wanted[axis] == -1).collect();
    match holes.as_slice() {
        [] if known == x.count() => {}
        &[hole] if known > 0 && x.count().is_multiple_of(known) => shape[hole] = x.count() / known,
        _ => return fail(format!("{x} cannot be reshaped to {wanted:?}")),
    }
    one(x.dtype, shape)
}

pub(super) fn transpose(call: &Call<'_>) -> Shapes {
    let x = call.tensor("x")?;
    let perm = call.ints("perm")?.unwrap_or_default();
    let rank = x.rank() as i64;
    let counted: Vec<i64> =
        perm.iter().map(|&axis| if axis < 0 { axis.saturating_add(rank) } else { axis }).collect();
    let mut sorted = counted.clone();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..rank) {
        return fail(format!("{perm:?} does not permute the dimensions of {x}"));
    }
    one(x.dtype, counted.iter().map(|&axis| x.shape[axis as usize]).collect())
}

pub(super) fn expand_dims(call: &Call<'_>) -> Shapes {
    let x = call.tensor("x")?;
    let count = call.optional("axes").map_or(0, TensorType::count);
    if count > 8 {
        return fail(format!("{count} axes"));
    }
    let axes = call.axes("axes", x.rank() + count)?;
    let mut shape = x.shape.clone();
    for axis in axes {
        shape.insert(axis, 1);
    }
    one(x.dtype, shape)
}

pub(super) fn squeeze(call: &Call<'_>) -> Shapes {
    let x = call.tensor("x")?;
    let axes = match call.optional("axes") {
        Some(_) => call.axes("axes", x.rank())?,
        None => (0..x.rank()).filter(|&axis| x.shape[axis] == 1).collect(),
    };
    if let Some(&axis) = axes.iter().find(|&&axis| x.shape[axis] != 1) {
        return fail(format!("dimension {axis} of {x} is not 1"));
    }
    one(x.dtype, without(&x.shape, &axes, false))
}

pub(super) fn tile(call: &Call<'_>) -> Shapes {
    let x = call.tensor("x")?;
    let reps = call.ints("reps")?.unwrap_or_default();
    if reps.len() != x.rank() || reps.iter().any(|&rep| rep < 1) {
        return fail(format!("reps {reps:?} for {x}"));
    }
    one(x.dtype, x.shape.iter().zip(&reps).map(|(&size, &rep)| size.saturating_mul(rep as usize)).collect())
}

pub(super) fn pad(call: &Call<'_>) -> Shapes {
    let x = call.tensor("x")?;
    let pads = call.ints("pad")?.unwrap_or_default();
    let axes = pads.len() / 2;
    if pads.len() % 2 != 0 || axes > x.rank() || pads.iter().any(|pad| !(0..=1 << 31).contains(pad)) {
        return fail(format!("pad {pads:?} for {x}"));
    }
    let mut shape = x.shape.clone();
    for (size, pair) in shape[x.rank() - axes..].iter_mut().zip(pads.chunks_exact(2)) {
        *size = size.saturating_add((pair[0] + pair[1]) as usize);
    }
    one(x.dtype, shape)
}

pub(super) fn gather(call: &Call<'_>) -> Shapes {
    let (x, indices) = (call.tensor("x")?, call.tensor("indices")?);
    let axis = call.axis("axis", 0, x.rank())?;
    let batch = usize::try_from(call.int("batch_dims")?.unwrap_or(0)).unwrap_or(usize::MAX);
    if batch > axis || batch > indices.rank() || x.shape[..batch] != indices.shape[..batch] {
        return fail(format!("batch_dims {batch} does not fit x {x} and indices {indices}"));
    }
    let mut shape = x.shape[..axis].to_vec();
    shape.extend(&indices.shape[batch..]);
    shape.extend(&x.shape[axis + 1..]);
    one(x.dtype, shape)
}

pub(super) fn gather_along_axis(call: &Call<'_>) -> Shapes {
    let (x, indices) = (call.tensor("x")?, call.tensor("indices")?);
    let axis = call.axis("axis", 0, x.rank())?;
    let fits =
        x.rank() == indices.rank() && (0..x.rank()).all(|i| i == axis || x.shape[i] == indices.shape[i]);
    if !fits {
        return fail(format!("indices {indices} do not fit x {x}"));
    }
    one(x.dtype, indices.shape.clone())
}

pub(super) fn scatter_nd(call: &Call<'_>) -> Shapes {
    let (data, indices, updates) = (call.tensor("data")?, call.tensor("indices")?, call.tensor("updates")?);
    let depth = indices.shape.last().copied().unwrap_or(usize::MAX);
    if depth > data.rank() {
        return fail(format!("indices {indices} for data {data}"));
    }
    let mut shape = indices.shape[..indices.rank() - 1].to_vec();
    shape.extend(&data.shape[depth..]);
    if shape != updates.shape {
        return fail(format!("updates {updates} must be {shape:?}"));
    }
    Ok(vec![data.clone()])
}

pub(super) fn one_hot(call: &Call<'_>) -> Shapes {
    let indices = call.tensor("indices")?;
    let axis = call.axis("axis", -1, indices.rank() + 1)?;
    let size = call.int("one_hot_vector_size")?.unwrap_or(-1);
    let (on, off) = (call.optional("on_value"), call.optional("off_value"));
    let dtype = on.or(off).map_or(DType::I32, |value| value.dtype);
    match usize::try_from(size) {
        Ok(size) if on.is_none_or(|value| value.dtype == dtype) => {
            let mut shape = indices.shape.clone();
            shape.insert(axis, size);
            one(dtype, shape)
        }
        _ => fail(format!("one_hot_vector_size {size}")),
    }
}

pub(super) fn range_1d(call: &Call<'_>) -> Shapes {
    let bound = |name: &str| Ok::<f64, Problem>(call.float(name)?.unwrap_or(f64::NAN));
    let (start, end, step) = (bound("start")?, bound("end")?, bound("step")?);
    let count = ((end - start) / step).ceil();
    if step == 0.0 || !count.is_finite() || count > (1u64 << 40) as f64 {
        return fail(format!("from {start} to {end} by {step}"));
    }
    one(call.tensor("end")?.dtype, vec![count.max(0.0) as usize])
}

pub(super) fn fill(call: &Call<'_>) -> Shapes {
    let sizes = call.ints("shape")?.unwrap_or_default();
    let shape: Option<Vec<usize>> = sizes.iter().map(|&size| usize::try_from(size).ok()).collect();
    match shape {
        Some(shape) => one(call.optional("value").map_or(DType::F32, |value| value.dtype), shape),
        None => fail(format!("shape {sizes:?}")),
    }
}

pub(super) fn shape(call: &Call<'_>) -> Shapes {
    one(DType::I32, vec![call.tensor("x")?.rank()])
}

pub(super) fn read_state(call: &Call<'_>) -> Shapes {
    Ok(vec![call.tensor("input")?.clone()])
}

pub(super) fn write_state(call: &Call<'_>) -> Shapes {
    let (state, data) = (call.tensor("input")?, call.tensor("data")?);
    if state != data {
        return fail(format!("data {data} does not fit the state {state}"));
    }
    Ok(Vec::new())
}
