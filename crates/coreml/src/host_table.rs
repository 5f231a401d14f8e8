//! The embedding as a file of its own, for callers that look rows up themselves.

use std::path::Path;

use q35_bundle::{FileRecord, HashedFile};
use q35_checkpoint::TensorView;
use q35_quant::symmetric;
use serde_json::json;

use crate::ConvertError;
use crate::store::Quantizer;

/// Name of the file.
pub const HOST_TABLE: &str = "embedding.safetensors";
/// Its matrix [vocabulary, hidden], F16 or F32 as activations are.
pub const HOST_TABLE_WEIGHT: &str = "embed_tokens.weight";

/// Writes the table with the numbers that the package would have had, ready to be passed in.
pub(crate) fn write(
    out: &Path,
    tensor: &TensorView<'_>,
    quantizer: Quantizer,
    release: &(dyn Fn(&[u8]) + Sync),
    progress: &dyn Fn(u64),
) -> Result<FileRecord, ConvertError> {
    let (rows, columns, float) = (tensor.shape()[0], tensor.row_len(), quantizer.float_type());
    let bytes = rows * columns * float.size();
    let header = json!({
        "__metadata__": {"format": "q35-coreml-embedding"},
        HOST_TABLE_WEIGHT: {
            "dtype": float.safetensors_name(), "shape": [rows, columns], "data_offsets": [0, bytes],
        },
    });
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = HashedFile::create(out, HOST_TABLE)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    let (mut numbers, mut narrow) = (Vec::new(), Vec::new());
    quantizer.each_batch(tensor, 0..rows, release, progress, |q, scales| {
        numbers.resize(q.len(), 0.0);
        symmetric::dequantize(q, scales, quantizer.block(columns), &mut numbers);
        narrow.clear();
        float.narrow(&numbers, &mut narrow);
        Ok(file.write(&narrow)?)
    })?;
    Ok(file.finish()?)
}
