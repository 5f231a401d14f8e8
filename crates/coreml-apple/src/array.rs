//! Tensors across the border: dense f32 and i32 on our side, strided arrays of the declared type on Core ML's.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::NonNull;

use block2::RcBlock;
use half::f16;
use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_core_ml::{MLMultiArray, MLMultiArrayDataType};
use objc2_foundation::{NSArray, NSInteger, NSNumber};
use q35_coreml_backend::{Port, PredictError, Tensor};
use q35_mil::DType;

/// An array of the port's type with the tensor's elements.
pub(crate) fn to_array(port: &Port, tensor: &Tensor) -> Result<Retained<MLMultiArray>, PredictError> {
    let shape: Vec<Retained<NSNumber>> =
        port.ty.shape.iter().map(|size| NSNumber::new_isize(*size as isize)).collect();
    let kind = kind_of(port.ty.dtype)?;
    // SAFETY: the shape holds whole numbers and the type is one of Core ML's.
    let array = unsafe {
        MLMultiArray::initWithShape_dataType_error(
            MLMultiArray::alloc(),
            &NSArray::from_retained_slice(&shape),
            kind,
        )
    }
    .map_err(|error| PredictError::Framework(error.localizedDescription().to_string()))?;
    fill(&array, tensor)?;
    Ok(array)
}

/// Replaces an array's elements.
pub(crate) fn fill(array: &MLMultiArray, tensor: &Tensor) -> Result<(), PredictError> {
    let layout = Layout::of(array)?;
    if layout.count() != tensor.len() {
        return Err(misfit(&layout, tensor.len()));
    }
    let fits = Cell::new(true);
    let write =
        RcBlock::new(|bytes: NonNull<c_void>, size: NSInteger, _strides: NonNull<NSArray<NSNumber>>| {
            fits.set(layout.end() * layout.element.size() <= size as usize);
            if fits.get() {
                layout.each(|index, offset| {
                    // SAFETY: `offset` is below `layout.end()`, which was just checked against the size of this buffer;
                    // the elements of a Core ML array are aligned to their own size.
                    unsafe { layout.element.write(bytes, offset, tensor, index) }
                });
            }
        });
    // SAFETY: the block keeps nothing that it is handed.
    unsafe { array.getMutableBytesWithHandler(&write) };
    if fits.get() { Ok(()) } else { Err(misfit(&layout, tensor.len())) }
}

/// The elements of an array, dense.
pub(crate) fn to_tensor(array: &MLMultiArray) -> Result<Tensor, PredictError> {
    let layout = Layout::of(array)?;
    let floats = Cell::new(vec![0.0f32; if layout.element == Element::Int { 0 } else { layout.count() }]);
    let ints = Cell::new(vec![0i32; if layout.element == Element::Int { layout.count() } else { 0 }]);
    let fits = Cell::new(true);
    let read = RcBlock::new(|bytes: NonNull<c_void>, size: NSInteger| {
        fits.set(layout.end() * layout.element.size() <= size as usize);
        if fits.get() {
            let (mut f, mut i) = (floats.take(), ints.take());
            layout.each(|index, offset| {
                // SAFETY: as in `fill`.
                unsafe {
                    match layout.element {
                        Element::Int => i[index] = bytes.cast::<i32>().add(offset).read(),
                        Element::Single => f[index] = bytes.cast::<f32>().add(offset).read(),
                        Element::Half => {
                            f[index] = f16::from_bits(bytes.cast::<u16>().add(offset).read()).to_f32()
                        }
                    }
                }
            });
            floats.set(f);
            ints.set(i);
        }
    });
    // SAFETY: the block keeps nothing that it is handed.
    unsafe { array.getBytesWithHandler(&read) };
    drop(read);
    if !fits.get() {
        return Err(misfit(&layout, layout.count()));
    }
    Ok(match layout.element {
        Element::Int => Tensor::int(&layout.shape, ints.into_inner()),
        Element::Single | Element::Half => Tensor::float(&layout.shape, floats.into_inner()),
    })
}

fn misfit(layout: &Layout, elements: usize) -> PredictError {
    PredictError::Framework(format!("an array of shape {:?} does not hold {elements} elements", layout.shape))
}

fn kind_of(dtype: DType) -> Result<MLMultiArrayDataType, PredictError> {
    match dtype {
        DType::F16 => Ok(MLMultiArrayDataType::Float16),
        DType::F32 => Ok(MLMultiArrayDataType::Float32),
        DType::I32 => Ok(MLMultiArrayDataType::Int32),
        other => Err(PredictError::Framework(format!("arrays of {} cannot cross", other.name()))),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Element {
    Half,
    Single,
    Int,
}

impl Element {
    fn size(self) -> usize {
        match self {
            Self::Half => 2,
            Self::Single | Self::Int => 4,
        }
    }

    /// Writes one element of `tensor` at `offset` elements from `bytes`.
    ///
    /// # Safety
    /// The place must lie inside a writable buffer of elements of this type, aligned for them.
    unsafe fn write(self, bytes: NonNull<c_void>, offset: usize, tensor: &Tensor, index: usize) {
        let float = || match (tensor.floats(), tensor.ints()) {
            (Some(values), _) => values[index],
            (None, Some(values)) => values[index] as f32,
            (None, None) => 0.0,
        };
        let int = || match (tensor.ints(), tensor.floats()) {
            (Some(values), _) => values[index],
            (None, Some(values)) => values[index] as i32,
            (None, None) => 0,
        };
        // SAFETY: the caller's.
        unsafe {
            match self {
                Self::Half => bytes.cast::<u16>().add(offset).write(f16::from_f32(float()).to_bits()),
                Self::Single => bytes.cast::<f32>().add(offset).write(float()),
                Self::Int => bytes.cast::<i32>().add(offset).write(int()),
            }
        }
    }
}

/// Where the elements of an array lie: Core ML pads rows as its hardware likes.
struct Layout {
    element: Element,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Layout {
    fn of(array: &MLMultiArray) -> Result<Self, PredictError> {
        let sizes =
            |numbers: &NSArray<NSNumber>| numbers.iter().map(|n| n.as_isize() as usize).collect::<Vec<_>>();
        // SAFETY: plain getters.
        let (kind, shape, strides) =
            unsafe { (array.dataType(), sizes(&array.shape()), sizes(&array.strides())) };
        let element = match kind {
            MLMultiArrayDataType::Float16 => Element::Half,
            MLMultiArrayDataType::Float32 => Element::Single,
            MLMultiArrayDataType::Int32 => Element::Int,
            other => return Err(PredictError::Framework(format!("array of unknown type {}", other.0))),
        };
        Ok(Self { element, shape, strides })
    }

    fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// One past the largest offset.
    fn end(&self) -> usize {
        if self.count() == 0 {
            return 0;
        }
        1 + self.shape.iter().zip(&self.strides).map(|(size, stride)| (size - 1) * stride).sum::<usize>()
    }

    /// Calls with the dense index and the strided offset of every element, in order.
    fn each(&self, mut visit: impl FnMut(usize, usize)) {
        let mut at = vec![0; self.shape.len()];
        let mut offset = 0;
        for index in 0..self.count() {
            visit(index, offset);
            for axis in (0..at.len()).rev() {
                at[axis] += 1;
                offset += self.strides[axis];
                if at[axis] < self.shape[axis] {
                    break;
                }
                offset -= self.shape[axis] * self.strides[axis];
                at[axis] = 0;
            }
        }
    }
}
