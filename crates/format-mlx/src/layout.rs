//! Where every tensor lies in the output files: decided from sizes alone, so that headers can be written first and
//! data streamed behind them.

use serde_json::{Map, Value, json};

/// A tensor of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    pub(crate) bytes: u64,
}

impl Part {
    pub(crate) fn new(name: String, dtype: &'static str, element_bytes: usize, shape: Vec<usize>) -> Self {
        let bytes = shape.iter().map(|&dim| dim as u64).product::<u64>() * element_bytes as u64;
        Self { name, dtype, shape, bytes }
    }

    /// Where in its file it stands.
    pub(crate) fn place(&self) -> Place {
        match self.bytes {
            bytes if bytes.is_multiple_of(ALIGNMENT as u64) => Place::First,
            bytes if bytes.is_multiple_of(4) => Place::Second,
            _ => Place::Last,
        }
    }
}

/// Data begins at a multiple of this many bytes, and so do the parts that stand first: a cache line, which kernels
/// read at a time. Decode of weights that begin within one takes up to 1.17 times as long.
const ALIGNMENT: usize = 64;

/// Parts stand in the order of the alignment that they leave to those behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Whole cache lines.
    First,
    /// Whole words, which readers map as integers.
    Second,
    /// An odd number of 16-bit elements.
    Last,
}

/// One output file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) file: String,
    /// In the order in which they are produced.
    pub(crate) parts: Vec<Part>,
}

/// Cuts `parts` into files of at most `limit` bytes of data, but for a single part that is larger.
pub(crate) fn shards(parts: Vec<Part>, limit: u64) -> Vec<Shard> {
    let mut groups: Vec<(u64, Vec<Part>)> = Vec::new();
    for part in parts {
        match groups.last_mut() {
            Some((bytes, group)) if *bytes + part.bytes <= limit => {
                *bytes += part.bytes;
                group.push(part);
            }
            _ => groups.push((part.bytes, vec![part])),
        }
    }
    let count = groups.len();
    let file = |index: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    groups.into_iter().enumerate().map(|(index, (_, parts))| Shard { file: file(index), parts }).collect()
}

impl Shard {
    /// Length prefix and header, padded so that data begins at a multiple of 64 bytes.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut fields = Map::new();
        fields.insert("__metadata__".to_owned(), json!({"format": "mlx"}));
        let mut parts: Vec<&Part> = self.parts.iter().collect();
        parts.sort_by_key(|part| part.place());
        let mut offset = 0;
        for part in parts {
            let end = offset + part.bytes;
            let entry = json!({"dtype": part.dtype, "shape": part.shape, "data_offsets": [offset, end]});
            fields.insert(part.name.clone(), entry);
            offset = end;
        }
        let mut text = Value::Object(fields).to_string().into_bytes();
        text.resize((8 + text.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
        [(text.len() as u64).to_le_bytes().as_slice(), &text].concat()
    }
}

/// The index that mlx-lm writes beside one file as well as beside many.
pub(crate) fn index(shards: &[Shard], total_parameters: u64) -> Value {
    let mut map: Vec<(&str, &str)> = shards
        .iter()
        .flat_map(|shard| shard.parts.iter().map(|part| (part.name.as_str(), shard.file.as_str())))
        .collect();
    map.sort_unstable();
    let total_size: u64 = shards.iter().flat_map(|shard| &shard.parts).map(|part| part.bytes).sum();
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

    fn part(name: &str, elements: usize) -> Part {
        Part::new(name.to_owned(), "BF16", 2, vec![elements])
    }

    #[test]
    fn whole_lines_come_first_then_words_and_data_is_aligned() {
        let parts =
            vec![part("odd", 3), part("even", 4), part("wide", 32), part("second", 2), part("line", 64)];
        let header = Shard { file: "f".to_owned(), parts }.header();
        assert_eq!(header.len() % 64, 0);
        let json: Value = serde_json::from_slice(&header[8..]).unwrap();
        assert_eq!(json["wide"]["data_offsets"], json!([0, 64]));
        assert_eq!(json["line"]["data_offsets"], json!([64, 192]));
        assert_eq!(json["even"]["data_offsets"], json!([192, 200]));
        assert_eq!(json["second"]["data_offsets"], json!([200, 204]));
        assert_eq!(json["odd"]["data_offsets"], json!([204, 210]));
    }

    #[test]
    fn files_are_cut_at_the_limit_and_a_large_part_stands_alone() {
        let parts = vec![part("a", 4), part("b", 4), part("c", 100), part("d", 1)];
        let names: Vec<Vec<String>> = shards(parts.clone(), 16)
            .into_iter()
            .map(|shard| shard.parts.into_iter().map(|part| part.name).collect())
            .collect();
        assert_eq!(names, [vec!["a", "b"], vec!["c"], vec!["d"]]);
        let cut = shards(parts.clone(), 16);
        assert_eq!(cut[2].file, "model-00003-of-00003.safetensors");
        assert_eq!(index(&cut, 7)["weight_map"]["c"], "model-00002-of-00003.safetensors");
        assert_eq!(shards(parts, 1000)[0].file, "model.safetensors");
    }
}
