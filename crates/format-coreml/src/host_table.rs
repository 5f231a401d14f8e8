//! embedding.safetensors: the embedding matrix for callers that look up its rows themselves.

use std::path::Path;

use q35_checkpoint::TensorView;
use q35_output_dir::{FileRecord, HashedFile};
use serde_json::json;

use crate::WriteError;
use crate::weight_store::{Progress, Quantizer};

/// Name of the file.
pub const HOST_TABLE: &str = "embedding.safetensors";
/// Name of the codes: I8 [vocabulary, hidden].
pub const HOST_TABLE_WEIGHT: &str = "embed_tokens.weight";
/// Name of the scales: [vocabulary, blocks per row], F16 or F32 as the activations.
pub const HOST_TABLE_SCALES: &str = "embed_tokens.scales";

/// Writes the codes and scales that a package would contain. A table of floats would double the size of the output.
pub(crate) fn write(
    out: &Path,
    tensor: &TensorView<'_>,
    quantizer: Quantizer,
    release: &(dyn Fn(&[u8]) + Sync),
    progress: Progress<'_>,
) -> Result<FileRecord, WriteError> {
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
