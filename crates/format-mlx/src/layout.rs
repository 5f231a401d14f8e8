//! Layout of the weight files: the offset of every tensor, computed from sizes alone, so that headers are written first
//! and data is streamed behind them.

use serde_json::{Map, Value, json};

/// A tensor of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OutputTensor {
    pub(crate) name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    pub(crate) bytes: u64,
}

impl OutputTensor {
    pub(crate) fn new(name: String, dtype: &'static str, element_bytes: usize, shape: Vec<usize>) -> Self {
        let bytes = shape.iter().map(|&dim| dim as u64).product::<u64>() * element_bytes as u64;
        Self { name, dtype, shape, bytes }
    }

    /// Alignment that the tensor preserves for the tensor after it, from its size.
    pub(crate) fn alignment_class(&self) -> AlignmentClass {
        match self.bytes {
            bytes if bytes.is_multiple_of(ALIGNMENT as u64) => AlignmentClass::CacheLine,
            bytes if bytes.is_multiple_of(4) => AlignmentClass::Word,
            _ => AlignmentClass::Element,
        }
    }
}

/// Alignment in bytes of the data section and of its first tensors: a cache line, so that no vector load of a kernel
/// crosses two.
const ALIGNMENT: usize = 64;

/// Alignment class of a tensor's size. Tensors are ordered by it, so that each begins at the alignment of its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AlignmentClass {
    /// A multiple of [`ALIGNMENT`].
    CacheLine,
    /// A multiple of the four bytes of a word, which readers map as integers.
    Word,
    /// An odd number of 16-bit elements.
    Element,
}

/// One weight file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) file: String,
    /// Tensors in the order of production, which is not the order in the file.
    pub(crate) tensors: Vec<OutputTensor>,
}

/// Splits `tensors` into files of at most `limit` bytes of data each; a larger tensor gets a file of its own.
pub(crate) fn split_into_shards(tensors: Vec<OutputTensor>, limit: u64) -> Vec<Shard> {
    let mut groups: Vec<(u64, Vec<OutputTensor>)> = Vec::new();
    for tensor in tensors {
        match groups.last_mut() {
            Some((bytes, group)) if *bytes + tensor.bytes <= limit => {
                *bytes += tensor.bytes;
                group.push(tensor);
            }
            _ => groups.push((tensor.bytes, vec![tensor])),
        }
    }
    let count = groups.len();
    let file = |index: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    groups.into_iter().enumerate().map(|(index, (_, tensors))| Shard { file: file(index), tensors }).collect()
}

impl Shard {
    /// Length prefix and header of the safetensors file, padded with spaces to a multiple of [`ALIGNMENT`].
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut fields = Map::new();
        fields.insert("__metadata__".to_owned(), json!({"format": "mlx"}));
        let mut tensors: Vec<&OutputTensor> = self.tensors.iter().collect();
        tensors.sort_by_key(|tensor| tensor.alignment_class());
        let mut offset = 0;
        for tensor in tensors {
            let end = offset + tensor.bytes;
            let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]});
            fields.insert(tensor.name.clone(), entry);
            offset = end;
        }
        let mut text = Value::Object(fields).to_string().into_bytes();
        text.resize((8 + text.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
        [(text.len() as u64).to_le_bytes().as_slice(), &text].concat()
    }
}

/// The contents of model.safetensors.index.json, which mlx-lm writes for a single file too.
pub(crate) fn index(shards: &[Shard], total_parameters: u64) -> Value {
    let mut map: Vec<(&str, &str)> = shards
        .iter()
        .flat_map(|shard| shard.tensors.iter().map(|tensor| (tensor.name.as_str(), shard.file.as_str())))
        .collect();
    map.sort_unstable();
    let total_size: u64 = shards.iter().flat_map(|shard| &shard.tensors).map(|tensor| tensor.bytes).sum();
    let weight_map: Map<String, Value> =
        map.into_iter().map(|(name, file)| (name.to_owned(), file.into())).collect();
    json!({
        "metadata": {"total_size": total_size, "total_parameters": total_parameters},
        "weight_map": weight_map,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, elements: usize) -> OutputTensor {
        OutputTensor::new(name.to_owned(), "BF16", 2, vec![elements])
    }

    #[test]
    fn cache_lines_come_first_then_words_and_data_is_aligned() {
        let tensors = vec![
            tensor("odd", 3),
            tensor("even", 4),
            tensor("wide", 32),
            tensor("second", 2),
            tensor("line", 64),
        ];
        let header = Shard { file: "f".to_owned(), tensors }.header();
        assert_eq!(header.len() % 64, 0);
        let json: Value = serde_json::from_slice(&header[8..]).unwrap();
        assert_eq!(json["wide"]["data_offsets"], json!([0, 64]));
        assert_eq!(json["line"]["data_offsets"], json!([64, 192]));
        assert_eq!(json["even"]["data_offsets"], json!([192, 200]));
        assert_eq!(json["second"]["data_offsets"], json!([200, 204]));
        assert_eq!(json["odd"]["data_offsets"], json!([204, 210]));
    }

    #[test]
    fn files_are_split_at_the_limit_and_a_large_tensor_has_its_own() {
        let tensors = vec![tensor("a", 4), tensor("b", 4), tensor("c", 100), tensor("d", 1)];
        let names: Vec<Vec<String>> = split_into_shards(tensors.clone(), 16)
            .into_iter()
            .map(|shard| shard.tensors.into_iter().map(|tensor| tensor.name).collect())
            .collect();
        assert_eq!(names, [vec!["a", "b"], vec!["c"], vec!["d"]]);
        let split = split_into_shards(tensors.clone(), 16);
        assert_eq!(split[2].file, "model-00003-of-00003.safetensors");
        assert_eq!(index(&split, 7)["weight_map"]["c"], "model-00002-of-00003.safetensors");
        assert_eq!(split_into_shards(tensors, 1000)[0].file, "model.safetensors");
    }
}
