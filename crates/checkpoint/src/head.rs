//! The language-model head: tied to the embedding, or separate.

use q35_architecture::{ConfigReading, NameScheme, NamedPart};
use q35_quant::FloatType;
use rayon::prelude::*;

use crate::{CheckpointNote, SafetensorsFile, StoredTensor};

/// The language-model head of the files.
pub(crate) struct Head {
    /// True if the embedding is the head.
    pub(crate) tied: bool,
    /// True if the files have only the head, which is the embedding too.
    pub(crate) is_embedding: bool,
    pub(crate) note: Option<CheckpointNote>,
}

/// Decides whether the head is tied, as transformers does: a head that differs from the embedding is never tied, whatever
/// config.json says; without a head the flag decides. Where there is neither a head nor a flag, transformers would
/// initialise a head at random; here the embedding is used.
pub(crate) fn find_head(reading: &ConfigReading, files: &[SafetensorsFile], names: &NameScheme) -> Head {
    let find = |wanted: &str| {
        let mut tensors = files.iter().flat_map(SafetensorsFile::tensors);
        tensors.find(|tensor| names.part_of(tensor.name) == NamedPart::TextModel(wanted))
    };
    let flag = reading.tie_word_embeddings;
    let head = |tied, note| Head { tied, is_embedding: false, note };
    match (find("embed_tokens.weight"), find("lm_head.weight")) {
        (_, None) => head(flag != Some(false), flag.is_none().then_some(CheckpointNote::HeadAssumedTied)),
        (None, Some(_)) if flag == Some(true) => {
            Head { tied: true, is_embedding: true, note: Some(CheckpointNote::HeadUsedAsEmbedding) }
        }
        (Some(embedding), Some(found)) if flag != Some(false) => {
            let equal = are_equal(&embedding, &found);
            head(equal, (!equal && flag == Some(true)).then_some(CheckpointNote::HeadNotTied))
        }
        (_, Some(_)) => head(false, None),
    }
}

/// True if two tensors have the same shape and values, whatever their types.
fn are_equal(a: &StoredTensor<'_>, b: &StoredTensor<'_>) -> bool {
    /// Elements compared at once.
    const BLOCK: usize = 1 << 16;
    if a.shape != b.shape {
        return false;
    }
    if a.dtype == b.dtype && a.data == b.data {
        return true;
    }
    let (Some(a_type), Some(b_type)) = (a.dtype.float(), b.dtype.float()) else { return false };
    let values = |float: FloatType, bytes: &[u8]| {
        let mut values = vec![0.0; bytes.len() / float.size()];
        float.widen(bytes, &mut values);
        values
    };
    let blocks = a.data.par_chunks(BLOCK * a_type.size()).zip(b.data.par_chunks(BLOCK * b_type.size()));
    blocks.all(|(a, b)| values(a_type, a) == values(b_type, b))
}
