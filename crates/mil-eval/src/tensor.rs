//! Dense tensors with copy-on-write elements: the values of a running program.

use std::sync::Arc;

use crate::Fault;

/// Largest number of elements of a tensor; larger declared shapes are rejected before allocation.
pub const MAX_ELEMENTS: usize = 1 << 32;

/// A dense row-major tensor. Clones share the elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

/// Elements of a tensor. Floats of all widths are stored as f32 and integers of all widths as i32; rounding and
/// wrapping follow the type that the program declares.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// fp16 and fp32.
    Float(Arc<Vec<f32>>),
    /// Integers of up to 32 bits.
    Int(Arc<Vec<i32>>),
    /// Booleans.
    Bool(Arc<Vec<bool>>),
    /// A string; occurs only as a parameter.
    Text(Arc<str>),
}

impl Tensor {
    /// A float tensor of `shape`.
    ///
    /// # Panics
    /// The length of `values` differs from the number of elements of `shape`.
    pub fn float(shape: &[usize], values: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?}");
        Self { shape: shape.to_vec(), data: Data::Float(Arc::new(values)) }
    }

    /// An integer tensor of `shape`.
    ///
    /// # Panics
    /// The length of `values` differs from the number of elements of `shape`.
    pub fn int(shape: &[usize], values: Vec<i32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?}");
        Self { shape: shape.to_vec(), data: Data::Int(Arc::new(values)) }
    }

    /// A boolean tensor of `shape`.
    ///
    /// # Panics
    /// The length of `values` differs from the number of elements of `shape`.
    pub fn bool(shape: &[usize], values: Vec<bool>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?}");
        Self { shape: shape.to_vec(), data: Data::Bool(Arc::new(values)) }
    }

    /// A string parameter.
    pub fn text(value: &str) -> Self {
        Self { shape: Vec::new(), data: Data::Text(value.into()) }
    }

    /// Lengths of the axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The elements, if they are floats.
    pub fn floats(&self) -> Option<&[f32]> {
        match &self.data {
            Data::Float(values) => Some(values),
            _ => None,
        }
    }

    /// The elements, if they are integers.
    pub fn ints(&self) -> Option<&[i32]> {
        match &self.data {
            Data::Int(values) => Some(values),
            _ => None,
        }
    }

    /// The elements, if they are booleans.
    pub fn bools(&self) -> Option<&[bool]> {
        match &self.data {
            Data::Bool(values) => Some(values),
            _ => None,
        }
    }

    /// Size of the elements in bytes.
    pub fn size_bytes(&self) -> usize {
        match &self.data {
            Data::Float(values) => 4 * values.len(),
            Data::Int(values) => 4 * values.len(),
            Data::Bool(values) => values.len(),
            Data::Text(text) => text.len(),
        }
    }

    /// "float", "int", "bool" or "string".
    pub fn kind(&self) -> &'static str {
        match &self.data {
            Data::Float(_) => "float",
            Data::Int(_) => "int",
            Data::Bool(_) => "bool",
            Data::Text(_) => "string",
        }
    }

    /// Kind and shape for messages, e.g. "float [1, 2]".
    pub(crate) fn describe(&self) -> String {
        format!("{} {:?}", self.kind(), self.shape)
    }

    /// The same elements with another shape of the same number of elements.
    pub(crate) fn reshaped(self, shape: Vec<usize>) -> Result<Self, Fault> {
        if elements(&shape)? != self.len() {
            return Err(Fault::invalid(format!("{:?} cannot be reshaped to {shape:?}", self.shape)));
        }
        Ok(Self { shape, data: self.data })
    }

    /// Splits the tensor into shape and elements.
    pub(crate) fn into_parts(self) -> (Vec<usize>, Data) {
        (self.shape, self.data)
    }

    /// A tensor of `shape` and `data`; an error if their numbers of elements differ.
    pub(crate) fn from_parts(shape: Vec<usize>, data: Data) -> Result<Self, Fault> {
        let count = match &data {
            Data::Float(values) => values.len(),
            Data::Int(values) => values.len(),
            Data::Bool(values) => values.len(),
            Data::Text(_) => 1,
        };
        if elements(&shape)? != count {
            return Err(Fault::invalid(format!("{count} elements for a shape of {shape:?}")));
        }
        Ok(Self { shape, data })
    }

    /// Elements converted to f32; `None` for strings.
    pub(crate) fn to_floats(&self) -> Option<Vec<f32>> {
        match &self.data {
            Data::Float(values) => Some(values.to_vec()),
            Data::Int(values) => Some(values.iter().map(|&v| v as f32).collect()),
            Data::Bool(values) => Some(values.iter().map(|&v| f32::from(v)).collect()),
            Data::Text(_) => None,
        }
    }
}

/// Number of elements of a shape; an error if it exceeds [`MAX_ELEMENTS`].
pub(crate) fn elements(shape: &[usize]) -> Result<usize, Fault> {
    shape
        .iter()
        .try_fold(1usize, |count, &size| count.checked_mul(size))
        .filter(|&count| count <= MAX_ELEMENTS)
        .ok_or_else(|| Fault::invalid(format!("a tensor of shape {shape:?} is too large")))
}

/// Row-major strides of a shape, in elements.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Resolves an axis index; negative ones count from the back.
pub(crate) fn axis(index: i64, rank: usize) -> Result<usize, Fault> {
    let from_front = if index < 0 { index + rank as i64 } else { index };
    match usize::try_from(from_front) {
        Ok(axis) if axis < rank => Ok(axis),
        _ => Err(Fault::invalid(format!("axis {index} of a tensor of rank {rank}"))),
    }
}

/// Broadcast of two shapes.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, Fault> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], i: usize| (i + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    let shape = (0..rank)
        .map(|i| match (size(a, i), size(b, i)) {
            (a, b) if a == b => Some(a),
            (1, b) => Some(b),
            (a, 1) => Some(a),
            _ => None,
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Fault::invalid(format!("shapes {a:?} and {b:?} do not broadcast")))?;
    elements(&shape)?;
    Ok(shape)
}

/// Iterator over the indices of a shape in row-major order that maintains `N` offsets with separate strides.
pub(crate) struct Odometer<const N: usize> {
    sizes: Vec<usize>,
    steps: [Vec<usize>; N],
    index: Vec<usize>,
    offsets: [usize; N],
    left: usize,
}

impl<const N: usize> Odometer<N> {
    /// Starts at offsets zero; each of `steps` has as many entries as `sizes`.
    pub(crate) fn new(sizes: &[usize], steps: [Vec<usize>; N]) -> Self {
        let left = sizes.iter().product();
        Self { sizes: sizes.to_vec(), steps, index: vec![0; sizes.len()], offsets: [0; N], left }
    }
}

impl<const N: usize> Iterator for Odometer<N> {
    type Item = [usize; N];

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let here = self.offsets;
        for axis in (0..self.sizes.len()).rev() {
            self.index[axis] += 1;
            if self.index[axis] < self.sizes[axis] {
                for (offset, steps) in self.offsets.iter_mut().zip(&self.steps) {
                    *offset += steps[axis];
                }
                break;
            }
            for (offset, steps) in self.offsets.iter_mut().zip(&self.steps) {
                *offset -= steps[axis] * (self.sizes[axis] - 1);
            }
            self.index[axis] = 0;
        }
        Some(here)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_broadcast_from_the_back() {
        assert_eq!(broadcast(&[2, 3, 4], &[4]), Ok(vec![2, 3, 4]));
        assert_eq!(broadcast(&[2, 1, 4], &[3, 1]), Ok(vec![2, 3, 4]));
        assert_eq!(broadcast(&[], &[5]), Ok(vec![5]));
        assert!(broadcast(&[2, 3], &[2]).is_err());
    }

    #[test]
    fn absurd_shapes_are_refused() {
        assert!(elements(&[usize::MAX, 2]).is_err());
        assert!(elements(&[1 << 31, 1 << 31]).is_err());
        assert_eq!(elements(&[]), Ok(1));
        assert_eq!(elements(&[3, 0]), Ok(0));
    }

    #[test]
    fn an_odometer_visits_every_index_once_in_order() {
        let visits: Vec<_> = Odometer::new(&[2, 3], [vec![3, 1], vec![1, 10]]).collect();
        assert_eq!(visits, [[0, 0], [1, 10], [2, 20], [3, 1], [4, 11], [5, 21]]);
        assert_eq!(Odometer::new(&[], [vec![], vec![]]).collect::<Vec<_>>(), [[0, 0]]);
        assert_eq!(Odometer::new(&[2, 0], [vec![1, 1]]).count(), 0);
    }

    #[test]
    fn axes_count_from_either_end() {
        assert_eq!(axis(-1, 3), Ok(2));
        assert_eq!(axis(2, 3), Ok(2));
        assert!(axis(3, 3).is_err() && axis(-4, 3).is_err());
    }
}
