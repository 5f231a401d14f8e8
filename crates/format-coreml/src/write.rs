//! Execution of a plan: a checkpoint streamed into a directory of packages.

use std::ops::ControlFlow;
use std::path::Path;

use q35_architecture::TextConfig;
use q35_checkpoint::{Checkpoint, CheckpointError};
use q35_format_mil::build::{FinishedFunction, model};
use q35_format_mil::{PackageWriter, proto};
use q35_output_dir::{FileRecord, OutputDirError};
use serde_json::{Map, Value};

use crate::functions::FunctionWriter;
use crate::options::{Embedding, Layout, Options};
use crate::plan::{Plan, Summary};
use crate::weight_store::{Progress, WeightStore};
use crate::{WriteError, chat_config, host_table};

/// Name and version of the program, in the metadata of the packages.
const AUTHOR: &str = concat!("q35 ", env!("CARGO_PKG_VERSION"));

impl Plan<'_> {
    /// Writes packages, config.json and the files of the layout into the existing directory `out`, and returns the
    /// records of files that were hashed while they were written. `model_name` is the source's name in
    /// chat_config.json (speech-swift). `progress` receives the bytes of the source quantized since its last call, on
    /// the calling thread; `Break` cancels.
    ///
    /// # Errors
    /// Weights that are not finite or beyond the range of the stored type, cancellation, or an output that cannot be
    /// written. The contents of `out` are then incomplete.
    pub fn write(
        &self,
        model_name: &str,
        out: &Path,
        progress: &dyn Fn(u64) -> ControlFlow<()>,
    ) -> Result<Vec<FileRecord>, WriteError> {
        let files = self.write_packages(out, progress)?;
        write_file(out, "config.json", &self.config_json()?)?;
        if self.options.layout == Layout::SpeechSwift {
            let json = chat_config::chat_config(self.checkpoint, &self.options, model_name)?;
            write_file(out, "chat_config.json", format!("{json:#}\n").as_bytes())?;
        }
        Ok(files)
    }

    /// The source's config.json, with the flag of the tied head where the weights decided otherwise.
    fn config_json(&self) -> Result<Vec<u8>, WriteError> {
        let config = self.checkpoint.config();
        let source = self.checkpoint.config_json();
        if TextConfig::from_json(source).is_ok_and(|read| read == *config) {
            let path = self.checkpoint.dir().join("config.json");
            return Ok(std::fs::read(&path).map_err(|source| CheckpointError::Io { path, source })?);
        }
        let mut json = source.clone();
        for section in ["", "/text_config"] {
            if let Some(section) = json.pointer_mut(section).and_then(Value::as_object_mut) {
                section.insert("tie_word_embeddings".to_owned(), config.tie_word_embeddings.into());
            }
        }
        Ok(format!("{json:#}\n").into_bytes())
    }

    fn write_packages(&self, out: &Path, progress: Progress<'_>) -> Result<Vec<FileRecord>, WriteError> {
        let Self { checkpoint, options } = self;
        let chunk = options.prefill_chunk;
        match options.layout {
            Layout::Multifunction => self.write_package(out, "model.mlpackage", progress, |writer| {
                Ok(vec![writer.language_model("prefill", chunk)?, writer.language_model("decode", 1)?])
            })?,
            Layout::Split => {
                for (name, tokens) in [("prefill.mlpackage", chunk), ("decode.mlpackage", 1)] {
                    self.write_package(out, name, progress, |writer| {
                        Ok(vec![writer.language_model("main", tokens)?])
                    })?;
                }
            }
            Layout::SpeechSwift => {
                self.write_package(out, "embedding.mlpackage", progress, |writer| {
                    Ok(vec![writer.speech_swift_embedding()?])
                })?;
                self.write_package(out, "decoder.mlpackage", progress, |writer| {
                    Ok(vec![writer.speech_swift_decoder()?])
                })?;
            }
        }
        if options.embedding == Embedding::Model {
            return Ok(Vec::new());
        }
        let store = WeightStore::new(checkpoint, options.encoding, options.compute.dtype(), progress);
        let tensor = store.tensor("embed_tokens.weight")?;
        let release = |part: &[u8]| checkpoint.release(part);
        Ok(vec![host_table::write(out, &tensor, store.quantizer(), &release, progress)?])
    }

    fn write_package(
        &self,
        out: &Path,
        name: &str,
        progress: Progress<'_>,
        build: impl Fn(&mut FunctionWriter<'_, '_>) -> Result<Vec<FinishedFunction>, WriteError>,
    ) -> Result<(), WriteError> {
        let Self { checkpoint, options } = self;
        let mut package = PackageWriter::create(&out.join(name))?;
        let store = WeightStore::new(checkpoint, options.encoding, options.compute.dtype(), progress);
        let mut writer =
            FunctionWriter { file: package.weights(), store, config: checkpoint.config(), options: *options };
        let functions = build(&mut writer)?;
        package.finish(&model(functions, metadata(options)))?;
        Ok(())
    }
}

/// Result of [`write()`].
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Records of files that were hashed while they were written.
    pub files: Vec<FileRecord>,
    /// Counts and sizes.
    pub summary: Summary,
}

/// Writes `checkpoint` as Core ML packages into the existing directory `out`: [`Plan::new`] and [`Plan::write`] in one
/// call, without cancellation. The model's name is that of the checkpoint's directory.
///
/// # Errors
/// As of those two.
pub fn write(
    checkpoint: &Checkpoint,
    options: &Options,
    out: &Path,
    progress: &dyn Fn(u64),
) -> Result<Written, WriteError> {
    let plan = Plan::new(checkpoint, options)?;
    let name = checkpoint.dir().file_name().unwrap_or_default().to_string_lossy();
    let files = plan.write(&name, out, &|bytes| {
        progress(bytes);
        ControlFlow::Continue(())
    })?;
    Ok(Written { files, summary: plan.summary() })
}

fn metadata(options: &Options) -> proto::Metadata {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let settings: Map<String, Value> = options.settings();
    let user_defined = settings.iter().map(|(key, value)| (format!("q35.{key}"), text(value))).collect();
    proto::Metadata {
        short_description: "Qwen3.5 text model, INT8 weights".to_owned(),
        version_string: String::new(),
        author: AUTHOR.to_owned(),
        license: String::new(),
        user_defined,
    }
}

fn write_file(out: &Path, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
    let path = out.join(name);
    std::fs::write(&path, bytes).map_err(|error| OutputDirError::io(&path, error).into())
}
