//! Tensor names of MLX directories.

use q35_architecture::{NamedPart, part_of};

/// The name that [`q35_architecture::tensor_table`] uses; `None` for tensors that the text model does not have.
pub(crate) fn text_model_name(name: &str) -> Option<&str> {
    match part_of(name) {
        NamedPart::TextModel(name) => Some(name),
        NamedPart::Vision | NamedPart::MultiToken | NamedPart::Buffer => None,
    }
}
