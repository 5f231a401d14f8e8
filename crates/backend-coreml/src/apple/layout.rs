//! Strided element access: Core ML may pad the rows of an array for its hardware.

use crate::Tensor;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Type of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Half,
    Single,
    Int,
}

impl Element {
    pub fn size_bytes(self) -> usize {
        match self {
            Self::Half => 2,
            Self::Single | Self::Int => 4,
        }
    }
}

/// Element type, shape and strides (in elements) of an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub element: Element,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl Layout {
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of bytes from the first element to the end of the last.
    pub fn size_bytes(&self) -> usize {
        if self.count() == 0 {
            return 0;
        }
        let last: usize =
            self.shape.iter().zip(&self.strides).map(|(size, stride)| (size - 1) * stride).sum();
        (last + 1) * self.element.size_bytes()
    }

    fn is_dense(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected *= size;
            fits
        })
    }

    /// Writes a tensor's elements into `bytes`, converted to the element type. Returns false and writes nothing if they
    /// do not fit.
    pub fn write(&self, tensor: &Tensor, bytes: &mut [u8]) -> bool {
        if tensor.len() != self.count() || bytes.len() < self.size_bytes() {
            return false;
        }
        let float = |index: usize| match (tensor.floats(), tensor.ints()) {
            (Some(values), _) => values[index],
            (None, Some(values)) => values[index] as f32,
            (None, None) => 0.0,
        };
        let int = |index: usize| match (tensor.ints(), tensor.floats()) {
            (Some(values), _) => values[index],
            (None, Some(values)) => values[index] as i32,
            (None, None) => 0,
        };
        if let (Element::Half, Some(values), true) = (self.element, tensor.floats(), self.is_dense())
            && let Ok(halves) = bytemuck::try_cast_slice_mut::<u8, f16>(&mut bytes[..2 * values.len()])
        {
            halves.convert_from_f32_slice(values);
            return true;
        }
        self.for_each_element(|index, offset| match self.element {
            Element::Half => {
                bytes[2 * offset..][..2].copy_from_slice(&f16::from_f32(float(index)).to_le_bytes())
            }
            Element::Single => bytes[4 * offset..][..4].copy_from_slice(&float(index).to_le_bytes()),
            Element::Int => bytes[4 * offset..][..4].copy_from_slice(&int(index).to_le_bytes()),
        });
        true
    }

    /// Reads the elements in `bytes` into a dense tensor; `None` if `bytes` is too short.
    pub fn read(&self, bytes: &[u8]) -> Option<Tensor> {
        if bytes.len() < self.size_bytes() {
            return None;
        }
        let four = |offset: usize| [0, 1, 2, 3].map(|byte| bytes[4 * offset + byte]);
        match self.element {
            Element::Int => {
                let mut values = vec![0; self.count()];
                self.for_each_element(|index, offset| values[index] = i32::from_le_bytes(four(offset)));
                Some(Tensor::int(&self.shape, values))
            }
            Element::Single => {
                let mut values = vec![0.0; self.count()];
                self.for_each_element(|index, offset| values[index] = f32::from_le_bytes(four(offset)));
                Some(Tensor::float(&self.shape, values))
            }
            Element::Half => {
                let mut values = vec![0.0; self.count()];
                match bytemuck::try_cast_slice::<u8, f16>(&bytes[..2 * self.count().min(bytes.len() / 2)]) {
                    Ok(halves) if self.is_dense() => halves.convert_to_f32_slice(&mut values),
                    _ => self.for_each_element(|index, offset| {
                        values[index] =
                            f16::from_le_bytes([bytes[2 * offset], bytes[2 * offset + 1]]).to_f32();
                    }),
                }
                Some(Tensor::float(&self.shape, values))
            }
        }
    }

    /// Calls `visit` with the dense index and the strided offset of each element, in row-major order.
    fn for_each_element(&self, mut visit: impl FnMut(usize, usize)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(element: Element, shape: &[usize], strides: &[usize]) -> Layout {
        Layout { element, shape: shape.to_vec(), strides: strides.to_vec() }
    }

    #[test]
    fn what_is_written_is_read_with_and_without_padding() {
        let values: Vec<f32> = (0..24).map(|i| i as f32 / 8.0 - 1.5).collect();
        let tensor = Tensor::float(&[2, 3, 4], values);
        for element in [Element::Half, Element::Single] {
            for strides in [[12, 4, 1], [32, 8, 1], [1, 2, 6], [96, 32, 2]] {
                let layout = layout(element, &[2, 3, 4], &strides);
                let mut bytes = vec![0xAA; layout.size_bytes() + 7];
                assert!(layout.write(&tensor, &mut bytes), "{layout:?}");
                assert_eq!(layout.read(&bytes), Some(tensor.clone()), "{layout:?}");
                assert!(bytes[layout.size_bytes()..].iter().all(|byte| *byte == 0xAA), "{layout:?}");
            }
        }
    }

    #[test]
    fn padding_is_left_as_it_is() {
        let layout = layout(Element::Half, &[2, 2], &[4, 1]);
        let mut bytes = [0xAA; 12];
        assert!(layout.write(&Tensor::float(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]), &mut bytes));
        assert_eq!(bytes, [0, 0x3C, 0, 0x40, 0xAA, 0xAA, 0xAA, 0xAA, 0, 0x42, 0, 0x44]);
    }

    #[test]
    fn numbers_take_the_arrays_type() {
        let mut bytes = [0; 8];
        assert!(layout(Element::Int, &[2], &[1]).write(&Tensor::float(&[2], vec![3.0, -7.0]), &mut bytes));
        let read = layout(Element::Int, &[2], &[1]).read(&bytes);
        assert_eq!(read.as_ref().and_then(Tensor::ints), Some(&[3, -7][..]));
        assert!(layout(Element::Single, &[2], &[1]).write(&Tensor::int(&[2], vec![3, -7]), &mut bytes));
        let read = layout(Element::Single, &[2], &[1]).read(&bytes);
        assert_eq!(read.as_ref().and_then(Tensor::floats), Some(&[3.0, -7.0][..]));
    }

    #[test]
    fn nothing_outside_of_the_buffer_is_touched() {
        let padded = layout(Element::Single, &[2, 2], &[3, 1]);
        let tensor = Tensor::float(&[2, 2], vec![0.0; 4]);
        assert!(!padded.write(&tensor, &mut [0; 19]) && padded.write(&tensor, &mut [0; 20]));
        assert!(padded.read(&[0; 19]).is_none() && padded.read(&[0; 20]).is_some());
        assert!(!padded.write(&Tensor::float(&[5], vec![0.0; 5]), &mut [0; 64]));
        assert_eq!(layout(Element::Half, &[0, 4], &[4, 1]).size_bytes(), 0);
    }
}
