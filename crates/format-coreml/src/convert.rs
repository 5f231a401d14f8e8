//! From a checkpoint to a directory of packages.

use std::path::Path;

use q35_architecture::Role;
use q35_checkpoint::{Checkpoint, SourceFile, TensorView};
use q35_format_mil::build::{FinishedFunction, model};
use q35_format_mil::{PackageWriter, proto};
use q35_output_dir::{FileRecord, Manifest, Source, TensorRecord, hash_file};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::functions::Writer;
use crate::options::{Embedding, Layout, Options};
use crate::store::{Store, is_kept_linear};
use crate::{ConvertError, card, companions, host_table, swift};

/// Where a model comes from and who converts it, for manifest and card.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// What the source is called: a hub id, or a local directory's name.
    pub source_id: Option<String>,
    /// Whether `source_id` names a repository on the hub.
    pub source_is_hub: bool,
    /// The source's commit on the hub.
    pub revision: Option<String>,
    /// Version of the tool that converts.
    pub tool_version: String,
}

impl Default for Provenance {
    /// A local source, converted by this version.
    fn default() -> Self {
        let tool_version = env!("CARGO_PKG_VERSION").to_owned();
        Self { source_id: None, source_is_hub: false, revision: None, tool_version }
    }
}

/// What has been done so far. Reported from the thread that called [`write()`], in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The work begins.
    Started {
        /// Bytes of the matrices to quantize, each as often as it is written.
        bytes: u64,
    },
    /// Some rows are done.
    Converted {
        /// Bytes of the source since the last report.
        bytes: u64,
    },
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Names of the packages.
    pub packages: Vec<String>,
    /// Weights of the text model.
    pub parameters: u64,
    /// Weights that became INT8.
    pub quantized_weights: u64,
    /// Matrices that became INT8.
    pub quantized_matrices: usize,
    /// Parts of the vocabulary projection.
    pub head_splits: usize,
    /// Bytes of the source's text model.
    pub source_bytes: u64,
    /// Files that the source had besides weights.
    pub companions: Vec<String>,
}

/// What [`write()`] leaves for the manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// The manifest, still without its list of files.
    pub manifest: Manifest,
    /// Hashes that were taken while writing.
    pub files: Vec<FileRecord>,
    /// What came out.
    pub summary: Summary,
}

/// Writes `checkpoint` as Core ML packages, with everything that goes with them, into the existing directory `out`.
///
/// # Errors
/// Settings that do not fit, weights that are not finite or beyond the type that they are kept in, or an output that
/// cannot be written; `out` is then of no use.
pub fn write(
    checkpoint: &Checkpoint,
    options: &Options,
    provenance: &Provenance,
    out: &Path,
    progress: &dyn Fn(Progress),
) -> Result<Written, ConvertError> {
    let config = checkpoint.config();
    options.check(config)?;
    let mut summary = summarise(checkpoint, options);
    let local = || checkpoint.dir().file_name().map(|name| name.to_string_lossy().into_owned());
    let source_id = provenance.source_id.clone().or_else(local).unwrap_or_default();
    progress(Progress::Started { bytes: planned_bytes(checkpoint, options) });
    let (files, sources) = std::thread::scope(|scope| {
        let hasher = scope.spawn(|| hash_sources(checkpoint));
        let written = write_packages(checkpoint, options, provenance, out, &|bytes| {
            progress(Progress::Converted { bytes });
        });
        let sources = hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, ConvertError>((written?, sources?))
    })?;
    if options.layout == Layout::SpeechSwift {
        let chat_config = swift::chat_config(checkpoint, options, &source_id)?;
        companions::put(out, "chat_config.json", format!("{chat_config:#}\n").as_bytes())?;
    }
    summary.companions = companions::copy(checkpoint, out)?;
    companions::put(out, "README.md", card::card(options, provenance, &summary).as_bytes())?;
    let source = Source { id: source_id, revision: provenance.revision.clone(), files: sources };
    let manifest = manifest(checkpoint, options, provenance, source, &summary);
    Ok(Written { manifest, files, summary })
}

fn write_packages(
    checkpoint: &Checkpoint,
    options: &Options,
    provenance: &Provenance,
    out: &Path,
    progress: &dyn Fn(u64),
) -> Result<Vec<FileRecord>, ConvertError> {
    type Build<'b> = &'b dyn Fn(&mut Writer<'_, '_>) -> Result<Vec<FinishedFunction>, ConvertError>;
    let chunk = options.prefill_chunk;
    let package = |name: &str, build: Build<'_>| -> Result<(), ConvertError> {
        let mut package = PackageWriter::create(&out.join(name))?;
        let store = Store::new(checkpoint, options.encoding, options.compute.dtype(), progress);
        let mut writer =
            Writer { file: package.weights(), store, config: checkpoint.config(), options: *options };
        let functions = build(&mut writer)?;
        package.finish(&model(functions, metadata(options, provenance)))?;
        Ok(())
    };
    match options.layout {
        Layout::Multifunction => package("model.mlpackage", &|writer| {
            Ok(vec![writer.language_model("prefill", chunk)?, writer.language_model("decode", 1)?])
        })?,
        Layout::Split => {
            package("prefill.mlpackage", &|writer| Ok(vec![writer.language_model("main", chunk)?]))?;
            package("decode.mlpackage", &|writer| Ok(vec![writer.language_model("main", 1)?]))?;
        }
        Layout::SpeechSwift => {
            package("embedding.mlpackage", &|writer| Ok(vec![writer.swift_embedding()?]))?;
            package("decoder.mlpackage", &|writer| Ok(vec![writer.swift_decoder()?]))?;
        }
    }
    if options.embedding == Embedding::Host {
        let store = Store::new(checkpoint, options.encoding, options.compute.dtype(), progress);
        let tensor = store.tensor("embed_tokens.weight")?;
        return Ok(vec![host_table::write(
            out,
            &tensor,
            store.quantizer(),
            &|part| checkpoint.release(part),
            progress,
        )?]);
    }
    Ok(Vec::new())
}

fn metadata(options: &Options, provenance: &Provenance) -> proto::Metadata {
    let settings = settings(options);
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let user_defined = settings.iter().map(|(key, value)| (format!("q35.{key}"), text(value))).collect();
    proto::Metadata {
        short_description: "Qwen3.5 text model, INT8 weights".to_owned(),
        version_string: String::new(),
        author: format!("q35 {}", provenance.tool_version),
        license: String::new(),
        user_defined,
    }
}

fn settings(options: &Options) -> Map<String, Value> {
    object(json!({
        "layout": options.layout.name(),
        "cache": options.cache.name(),
        "encoding": options.encoding.name(),
        "embedding": options.embedding.name(),
        "compute": options.compute.name(),
        "context": options.context,
        "prefill_chunk": options.prefill_chunk,
    }))
}

fn is_quantized(tensor: &TensorView<'_>) -> bool {
    tensor.role().is_quantized() && !is_kept_linear(tensor.name())
}

/// How often a matrix is written, the layout being what it is.
fn copies(tensor: &TensorView<'_>, options: &Options, tied: bool) -> u64 {
    let is_table = tensor.role() == Role::Embedding;
    let host_only = options.embedding == Embedding::Host && !tied;
    match options.layout {
        Layout::Multifunction | Layout::Split => {
            let packages = if options.layout == Layout::Split { 2 } else { 1 };
            let in_packages = if is_table && host_only { 0 } else { packages };
            in_packages + u64::from(is_table && options.embedding == Embedding::Host)
        }
        Layout::SpeechSwift => 1 + u64::from(is_table && tied),
    }
}

fn planned_bytes(checkpoint: &Checkpoint, options: &Options) -> u64 {
    let tied = checkpoint.config().tie_word_embeddings;
    let matrices = checkpoint.tensors().filter(is_quantized);
    matrices.map(|tensor| tensor.data.len() as u64 * copies(&tensor, options, tied)).sum()
}

fn summarise(checkpoint: &Checkpoint, options: &Options) -> Summary {
    let weights = |tensor: &TensorView<'_>| tensor.shape().iter().map(|&dim| dim as u64).product::<u64>();
    let quantized: Vec<TensorView<'_>> = checkpoint.tensors().filter(is_quantized).collect();
    let packages: &[&str] = match options.layout {
        Layout::Multifunction => &["model.mlpackage"],
        Layout::Split => &["prefill.mlpackage", "decode.mlpackage"],
        Layout::SpeechSwift => &["embedding.mlpackage", "decoder.mlpackage"],
    };
    Summary {
        packages: packages.iter().map(|&name| name.to_owned()).collect(),
        parameters: checkpoint.tensors().map(|tensor| weights(&tensor)).sum(),
        quantized_weights: quantized.iter().map(weights).sum(),
        quantized_matrices: quantized.len(),
        head_splits: options.splits(checkpoint.config()),
        source_bytes: checkpoint.inventory().kept_bytes,
        companions: Vec::new(),
    }
}

/// Hashes all files by reading: a map would count them to this process's memory.
fn hash_sources(checkpoint: &Checkpoint) -> Result<Vec<FileRecord>, ConvertError> {
    let record = |source: &SourceFile| Ok(hash_file(&source.path, &source.name)?);
    checkpoint.source_files().par_iter().map(record).collect()
}

fn manifest(
    checkpoint: &Checkpoint,
    options: &Options,
    provenance: &Provenance,
    source: Source,
    summary: &Summary,
) -> Manifest {
    let mut manifest = Manifest::new("coreml", &provenance.tool_version);
    manifest.source = source;
    manifest.settings = settings(options);
    manifest.settings.insert("head_splits".to_owned(), summary.head_splits.into());
    manifest.tensors = checkpoint.tensors().map(|tensor| record(&tensor, options)).collect();
    for dropped in &checkpoint.inventory().dropped {
        let records = dropped.names.iter().map(|name| TensorRecord {
            name: name.clone(),
            decision: "dropped".to_owned(),
            details: object(json!({"part": dropped.part.label()})),
        });
        manifest.tensors.extend(records);
    }
    manifest
}

fn record(tensor: &TensorView<'_>, options: &Options) -> TensorRecord {
    let kept = options.compute.dtype().name();
    let (decision, stored) = match tensor.role() {
        _ if is_quantized(tensor) => ("quantized", "int8"),
        Role::CenteredNorm => ("shifted", kept),
        Role::DecayLog => ("exponentiated", kept),
        _ => ("kept", kept),
    };
    let dtype = tensor.dtype.torch_name();
    TensorRecord {
        name: tensor.source_name.to_owned(),
        decision: decision.to_owned(),
        details: object(json!({"dtype": dtype, "shape": tensor.shape(), "stored": stored})),
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
