//! The embedding as a file of its own, for callers that look rows up themselves.

use std::path::Path;

use q35_bundle::{FileRecord, HashedFile};
use q35_checkpoint::TensorView;
use serde_json::json;

use crate::ConvertError;
use crate::store::Quantizer;

/// Name of the file.
pub const HOST_TABLE: &str = "embedding.safetensors";
/// Its matrix, I8 [vocabulary, hidden].
pub const HOST_TABLE_WEIGHT: &str = "embed_tokens.weight";
/// What to multiply the matrix with, F16 or F32 [vocabulary, blocks]: each serves hidden / blocks consecutive entries
/// of its row.
pub const HOST_TABLE_SCALES: &str = "embed_tokens.scales";

/// Writes the table with the numbers that the package would have had.
pub(crate) fn write(
    out: &Path,
    tensor: &TensorView<'_>,
    quantizer: Quantizer,
    progress: &dyn Fn(u64),
) -> Result<FileRecord, ConvertError> {
    let (rows, columns) = (tensor.shape()[0], tensor.row_len());
    let blocks = columns / quantizer.block(columns);
    let scale_type = quantizer.scale_type();
    let weight_bytes = rows * columns;
    let end = weight_bytes + rows * blocks * scale_type.size();
    let header = json!({
        "__metadata__": {"format": "q35-coreml-embedding"},
        HOST_TABLE_WEIGHT: {"dtype": "I8", "shape": [rows, columns], "data_offsets": [0, weight_bytes]},
        HOST_TABLE_SCALES: {
            "dtype": scale_type.safetensors_name(), "shape": [rows, blocks], "data_offsets": [weight_bytes, end],
        },
    });
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = HashedFile::create(out, HOST_TABLE)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    let mut scales = Vec::with_capacity(end - weight_bytes);
    quantizer.each_batch(tensor, 0..rows, progress, |q, batch| {
        scale_type.narrow(batch, &mut scales);
        Ok(file.write(bytemuck::cast_slice(q))?)
    })?;
    file.write(&scales)?;
    Ok(file.finish()?)
}
