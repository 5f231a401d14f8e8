//! Tensors across the border: dense f32 and i32 on our side, strided arrays of the declared type on Core ML's.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::NonNull;

use crate::{Port, PredictError, Tensor};
use block2::RcBlock;
use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_core_ml::{MLMultiArray, MLMultiArrayDataType};
use objc2_foundation::{NSArray, NSInteger, NSNumber};
use q35_format_mil::DType;

use super::compiled::in_words;
use super::layout::{Element, Layout};

/// An array of the port's type and shape, its elements undefined.
pub(crate) fn allocate(port: &Port) -> Result<Retained<MLMultiArray>, PredictError> {
    let shape: Vec<Retained<NSNumber>> =
        port.ty.shape.iter().map(|size| NSNumber::new_isize(*size as isize)).collect();
    let kind = match port.ty.dtype {
        DType::F16 => MLMultiArrayDataType::Float16,
        DType::F32 => MLMultiArrayDataType::Float32,
        DType::I32 => MLMultiArrayDataType::Int32,
        other => return Err(PredictError::Framework(format!("arrays of {} cannot cross", other.name()))),
    };
    // SAFETY: the shape holds whole numbers and the type is one of Core ML's.
    unsafe {
        MLMultiArray::initWithShape_dataType_error(
            MLMultiArray::alloc(),
            &NSArray::from_retained_slice(&shape),
            kind,
        )
    }
    .map_err(in_words)
}

/// Replaces an array's elements.
pub(crate) fn fill(array: &MLMultiArray, tensor: &Tensor) -> Result<(), PredictError> {
    let (element, shape) = (element_of(array)?, shape_of(array));
    let fits = Cell::new(false);
    let write =
        RcBlock::new(|bytes: NonNull<c_void>, size: NSInteger, strides: NonNull<NSArray<NSNumber>>| {
            // SAFETY: Core ML hands over its buffer of `size` writable bytes, and the strides that hold for it (which
            // need not be those that the array had before), for the duration of the block. Nobody else has the array.
            let (bytes, strides) = unsafe {
                (std::slice::from_raw_parts_mut(bytes.cast::<u8>().as_ptr(), size as usize), strides.as_ref())
            };
            let layout = Layout { element, shape: shape.clone(), strides: sizes(strides) };
            fits.set(layout.write(tensor, bytes));
        });
    // SAFETY: the block keeps nothing that it is handed.
    unsafe { array.getMutableBytesWithHandler(&write) };
    if fits.get() { Ok(()) } else { Err(misfit(&shape, tensor.len())) }
}

/// The elements of an array, dense.
pub(crate) fn to_tensor(array: &MLMultiArray) -> Result<Tensor, PredictError> {
    // SAFETY: a plain getter.
    let strides = unsafe { array.strides() };
    let layout = Layout { element: element_of(array)?, shape: shape_of(array), strides: sizes(&strides) };
    let tensor = Cell::new(None);
    let read = RcBlock::new(|bytes: NonNull<c_void>, size: NSInteger| {
        // SAFETY: Core ML hands over its buffer of `size` readable bytes for the duration of the block.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>().as_ptr(), size as usize) };
        tensor.set(layout.read(bytes));
    });
    // SAFETY: the block keeps nothing that it is handed.
    unsafe { array.getBytesWithHandler(&read) };
    drop(read);
    tensor.into_inner().ok_or_else(|| misfit(&layout.shape, layout.count()))
}

fn misfit(shape: &[usize], elements: usize) -> PredictError {
    PredictError::Framework(format!("an array of shape {shape:?} does not hold {elements} elements"))
}

fn sizes(numbers: &NSArray<NSNumber>) -> Vec<usize> {
    numbers.iter().map(|number| number.as_isize() as usize).collect()
}

fn shape_of(array: &MLMultiArray) -> Vec<usize> {
    // SAFETY: a plain getter.
    let shape = unsafe { array.shape() };
    sizes(&shape)
}

fn element_of(array: &MLMultiArray) -> Result<Element, PredictError> {
    // SAFETY: a plain getter.
    match unsafe { array.dataType() } {
        MLMultiArrayDataType::Float16 => Ok(Element::Half),
        MLMultiArrayDataType::Float32 => Ok(Element::Single),
        MLMultiArrayDataType::Int32 => Ok(Element::Int),
        other => Err(PredictError::Framework(format!("an array of unknown type {}", other.0))),
    }
}
