//! The embedding as a file of its own, for callers that look rows up themselves.

use std::path::Path;

use q35_checkpoint::TensorView;
use q35_output_dir::{FileRecord, HashedFile};
use serde_json::json;

use crate::ConvertError;
use crate::store::Quantizer;

/// Name of the file.
pub const HOST_TABLE: &str = "embedding.safetensors";
/// Its matrix I8 [vocabulary, hidden].
pub const HOST_TABLE_WEIGHT: &str = "embed_tokens.weight";
/// What its rows are multiplied with: [vocabulary, 1], or a scale for each block of a row, F16 or F32 as activations are.
pub const HOST_TABLE_SCALES: &str = "embed_tokens.scales";

/// Writes the table with the numbers that the package would have had, packed as there: in floats it would be as large as
/// all the rest, or, in fp16, not quite those numbers.
pub(crate) fn write(
    out: &Path,
    tensor: &TensorView<'_>,
    quantizer: Quantizer,
    release: &(dyn Fn(&[u8]) + Sync),
    progress: &dyn Fn(u64),
) -> Result<FileRecord, ConvertError> {
    let (rows, columns, float) = (tensor.shape()[0], tensor.row_len(), quantizer.float_type());
    let (bytes, blocks) = (rows * columns, columns / quantizer.block(columns));
    let header = json!({
        "__metadata__": {"format": "q35-coreml-embedding"},
        HOST_TABLE_WEIGHT: {"dtype": "I8", "shape": [rows, columns], "data_offsets": [0, bytes]},
        HOST_TABLE_SCALES: {
            "dtype": float.safetensors_name(),
            "shape": [rows, blocks],
            "data_offsets": [bytes, bytes + rows * blocks * float.size()],
        },
    });
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = HashedFile::create(out, HOST_TABLE)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    let mut all_scales = Vec::new();
    quantizer.each_batch(tensor, 0..rows, release, progress, |q, scales| {
        float.narrow(scales, &mut all_scales);
        Ok(file.write(bytemuck::cast_slice(q))?)
    })?;
    file.write(&all_scales)?;
    Ok(file.finish()?)
}
