//! manifest.json: where a directory came from, what was decided, and what every file must hash to.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Name of the manifest in its directory.
pub const MANIFEST: &str = "manifest.json";

/// The only version of the manifest so far.
const VERSION: u32 = 1;

/// What manifest.json says. It holds neither times nor places, so that the same conversion gives the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub manifest_version: u32,
    /// What kind of directory it is, `mlx` or `coreml`.
    pub kind: String,
    /// Who wrote it.
    pub tool: Tool,
    /// What it was made from.
    #[serde(default)]
    pub source: Source,
    /// The settings of the conversion.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// What became of each tensor of the source.
    #[serde(default)]
    pub tensors: Vec<TensorRecord>,
    /// How close it is to the source, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parity: Option<Value>,
    /// Every file of the directory but the manifest, ascending by path.
    #[serde(default)]
    pub files: Vec<FileRecord>,
}

/// A program and its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// What a conversion started from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Hub id, or the name of the local directory.
    pub id: String,
    /// Commit on the hub, where it came from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The files that were read.
    pub files: Vec<FileRecord>,
}

/// A file and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Path in the directory, with `/` between parts.
    pub path: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// What became of one tensor of the source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Name in the source.
    pub name: String,
    /// What was done: `quantized`, `kept`, `shifted`, `dropped` and so on.
    pub decision: String,
    /// Further facts: types, bits, group size, errors.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

impl Manifest {
    /// A manifest of that kind, written by this version of the tool, with nothing in it yet.
    pub fn new(kind: &str, version: &str) -> Self {
        Self {
            manifest_version: VERSION,
            kind: kind.to_owned(),
            tool: Tool { name: "q35".to_owned(), version: version.to_owned() },
            source: Source::default(),
            settings: Map::new(),
            tensors: Vec::new(),
            parity: None,
            files: Vec::new(),
        }
    }

    /// Reads a manifest's text.
    ///
    /// # Errors
    /// A description of what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if manifest.manifest_version == VERSION {
            Ok(manifest)
        } else {
            Err(format!("version {}, expected {VERSION}", manifest.manifest_version))
        }
    }

    /// The manifest's text.
    pub fn to_text(&self) -> String {
        // Strings, numbers and string-keyed maps: there is nothing that JSON cannot hold.
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        text + "\n"
    }
}
