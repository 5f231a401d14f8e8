//! manifest.json: provenance, settings, a record per tensor and the hash of every file.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Name of the manifest in its directory.
pub const MANIFEST: &str = "manifest.json";

/// Name of the program in its manifests.
const TOOL: &str = "q35";

/// The only version of the manifest so far.
const VERSION: u32 = 1;

/// Contents of manifest.json. Without times and paths, so that the same conversion writes the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub manifest_version: u32,
    /// Kind of the directory: `mlx` or `coreml`.
    pub kind: String,
    /// The program that wrote the directory.
    pub tool: Tool,
    /// The checkpoint that was converted.
    #[serde(default)]
    pub source: Source,
    /// The settings of the conversion.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// A record of each tensor of the source.
    #[serde(default)]
    pub tensors: Vec<TensorRecord>,
    /// Outcome of the parity check that followed the conversion; a string if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parity: Option<Value>,
    /// Every file of the directory except the manifest, sorted by path.
    #[serde(default)]
    pub files: Vec<FileRecord>,
}

/// A program and its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Name of the program.
    pub name: String,
    /// Version of the program.
    pub version: String,
}

/// The input of a conversion.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Hub id, or the name of the local directory.
    pub id: String,
    /// Commit on the hub, if it came from the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The files that were read, with their hashes.
    pub files: Vec<FileRecord>,
}

/// A file and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Path in the directory, with `/` between parts.
    pub path: String,
    /// Length of the file.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// The treatment of one tensor of the source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Name in the source.
    pub name: String,
    /// The treatment: `quantized`, `kept`, `shifted`, `dropped` and so on.
    pub decision: String,
    /// Details: types, bits, group size.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

impl Manifest {
    /// An empty manifest of kind `kind`, written by version `version` of q35.
    pub fn new(kind: &str, version: &str) -> Self {
        Self {
            manifest_version: VERSION,
            kind: kind.to_owned(),
            tool: Tool { name: TOOL.to_owned(), version: version.to_owned() },
            source: Source::default(),
            settings: Map::new(),
            tensors: Vec::new(),
            parity: None,
            files: Vec::new(),
        }
    }

    /// True if `dir` has a manifest that q35 wrote.
    pub fn is_in(dir: &Path) -> bool {
        let manifest = std::fs::read(dir.join(MANIFEST)).ok().and_then(|text| Self::parse(&text).ok());
        manifest.is_some_and(|manifest| manifest.tool.name == TOOL)
    }

    /// Parses a manifest.
    ///
    /// # Errors
    /// A description of the defect.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if manifest.manifest_version == VERSION {
            Ok(manifest)
        } else {
            Err(format!("version {}, expected {VERSION}", manifest.manifest_version))
        }
    }

    /// The manifest as JSON text.
    pub fn to_text(&self) -> String {
        // Strings, numbers and string-keyed maps: serialization cannot fail.
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        text + "\n"
    }
}
