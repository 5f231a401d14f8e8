//! One mapped safetensors file, whose header is checked completely when it is opened.
//!
//! Written here rather than taken from the `safetensors` crate because a bad tensor must be named, and a name that
//! occurs twice must be an error.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use q35_quant::FloatType;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::foreign::is_lfs_pointer;
use crate::map::{map_file, release};

/// Limit of the header's length; a real one has about 100 bytes per tensor.
const MAX_HEADER_BYTES: u64 = 100 << 20;

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoredType {
    /// A float type of unquantized weights.
    Float(FloatType),
    /// 32-bit words, as MLX packs quantized weights.
    U32,
    /// Any other type of the format, by its name in the header.
    Other(&'static str),
}

/// Types of the format besides those of [`StoredType`], with their sizes in bytes.
const OTHER_TYPES: [(&str, usize); 13] = [
    ("BOOL", 1),
    ("U8", 1),
    ("I8", 1),
    ("F8_E4M3", 1),
    ("F8_E5M2", 1),
    ("F8_E8M0", 1),
    ("I16", 2),
    ("U16", 2),
    ("I32", 4),
    ("F64", 8),
    ("I64", 8),
    ("U64", 8),
    ("C64", 8),
];

impl StoredType {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "BF16" => Some(Self::Float(FloatType::Bf16)),
            "F16" => Some(Self::Float(FloatType::F16)),
            "F32" => Some(Self::Float(FloatType::F32)),
            "U32" => Some(Self::U32),
            _ => OTHER_TYPES.iter().find(|(other, _)| *other == name).map(|(other, _)| Self::Other(other)),
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::Float(float) => float.size(),
            Self::U32 => 4,
            Self::Other(name) => {
                OTHER_TYPES.iter().find(|(other, _)| *other == name).map_or(1, |(_, size)| *size)
            }
        }
    }

    /// The float type, if weights may have it.
    pub fn float(self) -> Option<FloatType> {
        match self {
            Self::Float(float) => Some(float),
            _ => None,
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float(float) => float.safetensors_name(),
            Self::U32 => "U32",
            Self::Other(name) => name,
        })
    }
}

/// A file that is not a valid safetensors file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// It could not be opened or mapped.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// It ends before its header or data do.
    #[error(
        "{} is truncated\n  expected: {expected} bytes\n  found:    {found} bytes\nhint: download or copy it again",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that its header describes.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// Bytes follow the last tensor.
    #[error("{} has {extra} bytes after its last tensor", path.display())]
    Trailing {
        /// The file.
        path: PathBuf,
        /// Number of bytes.
        extra: u64,
    },
    /// The file is a Git LFS pointer.
    #[error(
        "{} is a Git LFS pointer, not the file itself\nhint: run `git lfs pull` in its directory, or download the file",
        path.display()
    )]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// The header breaks the format.
    #[error("{} has no valid safetensors header: {message}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The defect.
        message: String,
    },
    /// A name occurs twice in the header.
    #[error("tensor `{name}` occurs twice in {}", path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor's description contradicts itself or the file.
    #[error("tensor `{name}` in {}: {message}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The defect.
        message: String,
    },
}

/// One tensor of a file.
#[derive(Clone, Copy, Debug)]
pub struct StoredTensor<'a> {
    /// Name in the header.
    pub name: &'a str,
    /// Element type.
    pub dtype: StoredType,
    /// Shape, outermost first.
    pub shape: &'a [usize],
    /// Little-endian elements, row-major. Aligned to nothing in particular.
    pub data: &'a [u8],
}

#[derive(Debug)]
struct Entry {
    name: String,
    dtype: StoredType,
    shape: Vec<usize>,
    /// Offset from the start of the file.
    begin: usize,
    end: usize,
}

/// A mapped safetensors file with a valid header: names are unique, and the tensors' data fill the file without gap or
/// overlap.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    map: Mmap,
    metadata: BTreeMap<String, String>,
    /// In the order of their data.
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

impl SafetensorsFile {
    /// Maps the file and checks its header.
    ///
    /// # Errors
    /// The file cannot be read, or breaks the format.
    pub fn open(path: &Path) -> Result<Self, SafetensorsError> {
        let map = map_file(path).map_err(|source| SafetensorsError::Io { path: path.to_owned(), source })?;
        let header = parse(path, &map)?;
        let by_name = header.entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        Ok(Self { path: path.to_owned(), map, metadata: header.metadata, entries: header.entries, by_name })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Releases the memory of `part` of [`SafetensorsFile::bytes`]; later accesses read it from the file again. Has no
    /// effect on other slices.
    pub fn release(&self, part: &[u8]) {
        release(&self.map, part);
    }

    /// The header's `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<StoredTensor<'_>> {
        self.by_name.get(name).map(|&index| self.view(&self.entries[index]))
    }

    /// Every tensor, in the order of the data.
    pub fn tensors(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        self.entries.iter().map(|entry| self.view(entry))
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> StoredTensor<'a> {
        StoredTensor {
            name: &entry.name,
            dtype: entry.dtype,
            shape: &entry.shape,
            data: &self.map[entry.begin..entry.end],
        }
    }
}

#[derive(Debug)]
struct Header {
    metadata: BTreeMap<String, String>,
    entries: Vec<Entry>,
}

/// The keys and values of a JSON object in order, including repeated keys.
struct Pairs(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[derive(Deserialize)]
struct Description {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

fn parse(path: &Path, file: &[u8]) -> Result<Header, SafetensorsError> {
    if is_lfs_pointer(file) {
        return Err(SafetensorsError::LfsPointer { path: path.to_owned() });
    }
    let found = file.len() as u64;
    let truncated = |expected| SafetensorsError::Truncated { path: path.to_owned(), expected, found };
    let bad_header = |message: String| SafetensorsError::Header { path: path.to_owned(), message };
    let Some((length, rest)) = file.split_first_chunk::<8>() else { return Err(truncated(8)) };
    let header_bytes = u64::from_le_bytes(*length);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(bad_header(format!("it claims to be {header_bytes} bytes long")));
    }
    let Some(text) = rest.get(..header_bytes as usize) else { return Err(truncated(8 + header_bytes)) };
    let Pairs(pairs) = serde_json::from_slice(text).map_err(|error| bad_header(error.to_string()))?;

    let data_start = 8 + text.len();
    let mut metadata = BTreeMap::new();
    let mut entries = Vec::with_capacity(pairs.len());
    for (name, value) in pairs {
        if name == "__metadata__" {
            match value {
                Value::Object(fields) => {
                    metadata
                        .extend(fields.into_iter().filter_map(|(k, v)| Some((k, v.as_str()?.to_owned()))));
                }
                // MLX writes this where there is no metadata.
                Value::Null => {}
                _ => return Err(bad_header("`__metadata__` is not an object".to_owned())),
            }
            continue;
        }
        let entry = entry(&name, value, data_start).map_err(|message| SafetensorsError::Tensor {
            path: path.to_owned(),
            name: name.clone(),
            message,
        })?;
        entries.push(entry);
    }
    check_names(path, &entries)?;
    entries.sort_by_key(|entry| (entry.begin, entry.end));
    check_layout(path, &entries, data_start, found)?;
    Ok(Header { metadata, entries })
}

fn entry(name: &str, value: Value, data_start: usize) -> Result<Entry, String> {
    let Description { dtype, shape, data_offsets: (begin, end) } =
        serde_json::from_value(value).map_err(|error| format!("its description is invalid: {error}"))?;
    let dtype = StoredType::from_name(&dtype).ok_or_else(|| format!("unknown dtype `{dtype}`"))?;
    let bytes = shape.iter().try_fold(dtype.size(), |size, dim| size.checked_mul(*dim));
    if end.checked_sub(begin) != bytes || bytes.is_none() {
        return Err(format!(
            "shape and data disagree\n  expected: {} bytes for {shape:?} {dtype}\n  found:    data_offsets [{begin}, {end}]",
            bytes.map_or("too many".to_owned(), |bytes| bytes.to_string()),
        ));
    }
    match (begin.checked_add(data_start), end.checked_add(data_start)) {
        (Some(begin), Some(end)) => Ok(Entry { name: name.to_owned(), dtype, shape, begin, end }),
        _ => Err(format!("data_offsets [{begin}, {end}] are out of range")),
    }
}

fn check_names(path: &Path, entries: &[Entry]) -> Result<(), SafetensorsError> {
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => Err(SafetensorsError::Duplicate { path: path.to_owned(), name: pair[0].to_owned() }),
    }
}

/// Checks that `entries`, sorted by offset, follow each other without gap or overlap up to the end of the file.
fn check_layout(path: &Path, entries: &[Entry], start: usize, found: u64) -> Result<(), SafetensorsError> {
    let mut end = start;
    for entry in entries {
        if entry.begin != end {
            let problem =
                if entry.begin < end { "overlaps the one before it" } else { "leaves a gap before it" };
            return Err(SafetensorsError::Tensor {
                path: path.to_owned(),
                name: entry.name.clone(),
                message: format!("its data {problem}"),
            });
        }
        end = entry.end;
    }
    let expected = end as u64;
    match found.cmp(&expected) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => {
            Err(SafetensorsError::Truncated { path: path.to_owned(), expected, found })
        }
        std::cmp::Ordering::Greater => {
            Err(SafetensorsError::Trailing { path: path.to_owned(), extra: found - expected })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file_of(header: &str, data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.resize(file.len() + data, 7);
        file
    }

    const TWO: &str = r#"{"__metadata__":{"format":"pt"},
        "a":{"dtype":"F32","shape":[2,3],"data_offsets":[8,32]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}"#;

    #[test]
    fn tensors_come_in_the_order_of_their_data() {
        let header = parse(Path::new("x"), &file_of(TWO, 32)).unwrap();
        assert_eq!(header.entries.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(header.metadata["format"], "pt");
    }

    #[test]
    fn every_way_to_be_malformed_is_named() {
        let tensor = |body: &str| format!("{{\"t\":{{{body}}}}}");
        let cases: [(Vec<u8>, &str); 14] = [
            (vec![], "is truncated"),
            (vec![1, 2, 3], "is truncated"),
            (u64::MAX.to_le_bytes().to_vec(), "claims to be"),
            (1000u64.to_le_bytes().to_vec(), "expected: 1008 bytes"),
            (file_of("[]", 0), "no valid safetensors header"),
            (file_of("{\"t\":", 0), "no valid safetensors header"),
            (file_of(TWO, 31), "is truncated"),
            (file_of(TWO, 33), "1 bytes after its last tensor"),
            (file_of(&tensor(r#""dtype":"F33","shape":[],"data_offsets":[0,4]"#), 4), "unknown dtype `F33`"),
            (file_of(&tensor(r#""dtype":"F32","shape":[2],"data_offsets":[0,4]"#), 4), "expected: 8 bytes"),
            (file_of(&tensor(r#""dtype":"F32","shape":[-1],"data_offsets":[0,4]"#), 4), "`t`"),
            (file_of(&tensor(r#""dtype":"F32","shape":[1],"data_offsets":[4,0]"#), 4), "disagree"),
            (
                file_of(&tensor(r#""dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]"#), 0),
                "too many",
            ),
            (
                file_of(
                    r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                        "t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                    2,
                ),
                "`t` occurs twice",
            ),
        ];
        for (file, message) in cases {
            let error = parse(Path::new("m.safetensors"), &file).unwrap_err().to_string();
            assert!(error.contains(message) && error.contains("m.safetensors"), "{message}: {error}");
        }
    }

    #[test]
    fn gaps_and_overlaps_are_named() {
        for (offsets, message) in [("[3,4]", "gap"), ("[1,2]", "overlaps")] {
            let header = format!(
                r#"{{"t":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}},
                    "u":{{"dtype":"U8","shape":[1],"data_offsets":{offsets}}}}}"#
            );
            let error = parse(Path::new("x"), &file_of(&header, 4)).unwrap_err().to_string();
            assert!(error.contains(message) && error.contains("`u`"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn damaged_files_are_errors_and_never_panics(cut in 0usize..260, flips in prop::collection::vec((0usize..260, 0u8..8), 0..4)) {
            let mut file = file_of(TWO, 32);
            for (place, bit) in flips {
                let place = place % file.len();
                file[place] ^= 1 << bit;
            }
            file.truncate(cut.max(1).min(file.len()));
            // Every accepted entry must lie within the file.
            if let Ok(header) = parse(Path::new("x"), &file) {
                for entry in &header.entries {
                    prop_assert!(entry.begin <= entry.end && entry.end <= file.len());
                }
            }
        }

        #[test]
        fn what_the_safetensors_crate_writes_is_read_back(tensors in prop::collection::btree_map("[a-z.]{1,12}", prop::collection::vec(any::<f32>(), 0..9), 0..6)) {
            use ::safetensors::tensor::{Dtype, TensorView, serialize};
            let bytes: BTreeMap<&String, Vec<u8>> =
                tensors.iter().map(|(name, values)| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect())).collect();
            let views = bytes.iter().map(|(name, data)| (*name, TensorView::new(Dtype::F32, vec![data.len() / 4], data).unwrap()));
            let file = serialize(views, None).unwrap();
            let header = parse(Path::new("x"), &file).unwrap();
            prop_assert_eq!(header.entries.len(), tensors.len());
            for entry in &header.entries {
                prop_assert_eq!(&file[entry.begin..entry.end], bytes[&entry.name].as_slice());
            }
        }
    }
}
