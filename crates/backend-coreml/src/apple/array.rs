//! Conversion between tensors (dense, f32 or i32) and `MLMultiArray`s (strided, of the declared type).

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

use super::error::framework_error;
use super::layout::{Element, Layout};

/// Allocates an array of the port's type and shape; its elements are undefined.
pub(crate) fn allocate(port: &Port) -> Result<Retained<MLMultiArray>, PredictError> {
    let shape: Vec<Retained<NSNumber>> =
        port.ty.shape.iter().map(|size| NSNumber::new_isize(*size as isize)).collect();
    let kind = match port.ty.dtype {
        DType::F16 => MLMultiArrayDataType::Float16,
        DType::F32 => MLMultiArrayDataType::Float32,
        DType::I32 => MLMultiArrayDataType::Int32,
        other => {
            return Err(PredictError::Framework(format!("arrays of {} are not supported", other.name())));
        }
    };
    // SAFETY: the shape is an array of integers and the type is one of Core ML's.
    unsafe {
        MLMultiArray::initWithShape_dataType_error(
            MLMultiArray::alloc(),
            &NSArray::from_retained_slice(&shape),
            kind,
        )
    }
    .map_err(framework_error)
}

/// Overwrites an array's elements with a tensor's.
pub(crate) fn fill(array: &MLMultiArray, tensor: &Tensor) -> Result<(), PredictError> {
    let (element, shape) = (element_of(array)?, shape_of(array));
    let fits = Cell::new(false);
    let write =
        RcBlock::new(|bytes: NonNull<c_void>, size: NSInteger, strides: NonNull<NSArray<NSNumber>>| {
            // SAFETY: Core ML passes a buffer of `size` writable bytes and its strides (which may differ from those that
            // the array had before), valid during the block. No other reference to the array exists.
            let (bytes, strides) = unsafe {
                (std::slice::from_raw_parts_mut(bytes.cast::<u8>().as_ptr(), size as usize), strides.as_ref())
            };
            let layout = Layout { element, shape: shape.clone(), strides: sizes(strides) };
            fits.set(layout.write(tensor, bytes));
        });
    // SAFETY: the block does not retain its arguments.
    unsafe { array.getMutableBytesWithHandler(&write) };
    if fits.get() { Ok(()) } else { Err(misfit(&shape, tensor.len())) }
}

/// Copies the elements of an array into a dense tensor.
pub(crate) fn to_tensor(array: &MLMultiArray) -> Result<Tensor, PredictError> {
    // SAFETY: a plain getter.
    let strides = unsafe { array.strides() };
    let layout = Layout { element: element_of(array)?, shape: shape_of(array), strides: sizes(&strides) };
    let tensor = Cell::new(None);
    let read = RcBlock::new(|bytes: NonNull<c_void>, size: NSInteger| {
        // SAFETY: Core ML passes a buffer of `size` readable bytes, valid during the block.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>().as_ptr(), size as usize) };
        tensor.set(layout.read(bytes));
    });
    // SAFETY: the block does not retain its arguments.
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
