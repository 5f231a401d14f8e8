//! From a checkpoint to an MLX directory, streamed.
//!
//! One thread walks over the tensors and has their rows quantized in pieces, by all of rayon's threads; another takes
//! the pieces, hashes and writes them; a third hashes the source, which costs as much as all the rest. Between the
//! first two there are at most a few pieces, so memory stays small whatever the model's size. What is written does not
//! depend on who finishes when.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use q35_checkpoint::{Checkpoint, SourceFile, sha256_hex};
use q35_output_dir::{FileRecord, HashedFile, Manifest, Source, TensorRecord, hash_file};
use q35_quant::affine::PackedMatrix;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::layout::{Part, Place, Shard, index, shards};
use crate::plan::{Action, Step, plan, shifted};
use crate::{Recipe, WriteError, card, companions, config_json};

/// Whose directory form to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// mlx-lm's, and all that read its files.
    #[default]
    MlxLm,
    /// The origin system's: a flat config.json and bare tensor names.
    SpeechSwift,
}

/// Settings of [`write()`].
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Whose form to write.
    pub form: Form,
    /// Largest file in bytes; a larger model is cut into shards.
    pub shard_bytes: u64,
    /// What the source is called: a hub id, or a local directory's name.
    pub source_id: Option<String>,
    /// Whether `source_id` names a repository on the hub.
    pub source_is_hub: bool,
    /// The source's commit on the hub.
    pub revision: Option<String>,
    /// Version of the tool that converts, for manifest and card.
    pub tool_version: String,
}

impl Default for WriteOptions {
    /// mlx-lm's form and its limit of 5 GiB a file.
    fn default() -> Self {
        Self {
            form: Form::MlxLm,
            shard_bytes: 5 << 30,
            source_id: None,
            source_is_hub: false,
            revision: None,
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What has been done so far. Reported from the thread that called [`write()`], in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// The work begins.
    Started {
        /// Bytes of the tensors to convert.
        bytes: u64,
    },
    /// A piece of a tensor is done.
    Converted {
        /// The tensor.
        name: &'a str,
        /// Bytes of the source since the last report.
        bytes: u64,
    },
}

/// What came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Matrices that were quantized.
    pub quantized: usize,
    /// Matrices that stayed in float, by name.
    pub kept_matrices: Vec<String>,
    /// Weights of the text model.
    pub parameters: u64,
    /// Bytes of the source's text model.
    pub source_bytes: u64,
    /// Bytes of all tensors written.
    pub tensor_bytes: u64,
    /// Bits of a matrix weight on average, scales and biases included.
    pub bits_per_weight: f64,
    /// Companion files that the source had.
    pub companions: Vec<String>,
}

/// What [`write()`] leaves for the manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// The manifest, still without its list of files.
    pub manifest: Manifest,
    /// Hashes of the weight files, taken while they were written.
    pub files: Vec<FileRecord>,
    /// What came out.
    pub summary: Summary,
}

/// Writes `checkpoint` as an MLX model into the existing directory `out`, quantized as `recipe` says.
///
/// # Errors
/// Weights that are not finite, a form that cannot express the model, a recipe that fails, or an output that cannot be
/// written; `out` is then of no use.
pub fn write(
    checkpoint: &Checkpoint,
    recipe: &dyn Recipe,
    options: &WriteOptions,
    out: &Path,
    progress: &dyn Fn(Progress<'_>),
) -> Result<Written, WriteError> {
    let steps = plan(checkpoint, recipe, options.form)?;
    let spec = recipe.default_spec();
    let config = match options.form {
        Form::MlxLm => config_json::mlx_lm(checkpoint, spec, &steps)?,
        Form::SpeechSwift => config_json::speech_swift(checkpoint, spec)?,
    };
    let shards = shards(steps.iter().flat_map(Step::parts).collect(), options.shard_bytes);
    let mut summary = summarise(&steps);

    progress(Progress::Started { bytes: summary.source_bytes });
    let (files, sources) = std::thread::scope(|scope| {
        let (pieces, received) = sync_channel(PIECES_IN_FLIGHT);
        let writer = scope.spawn(|| write_shards(&shards, out, received));
        let hasher = scope.spawn(|| hash_sources(checkpoint));
        let produced = produce(&steps, recipe, pieces, progress);
        let written = join(writer);
        // When writing fails, the producer only sees that nobody listens any more.
        let files = written.and_then(|files| produced.map(|()| files))?;
        Ok::<_, WriteError>((files, join(hasher)?))
    })?;

    companions::put(out, "config.json", config_json::text(config).as_bytes())?;
    let index = format!("{:#}\n", index(&shards, summary.parameters));
    companions::put(out, "model.safetensors.index.json", index.as_bytes())?;
    summary.companions = companions::copy(checkpoint, out)?;
    companions::put(out, "README.md", card::card(options, recipe.name(), spec, &summary).as_bytes())?;
    let manifest = manifest(checkpoint, recipe, options, &steps, sources);
    Ok(Written { manifest, files, summary })
}

/// Pieces that may wait for the writer.
const PIECES_IN_FLIGHT: usize = 4;

/// Consecutive bytes of the parts of a step.
enum Piece {
    /// All bytes of a step's only part.
    Whole(Vec<u8>),
    /// Some rows of a quantized matrix, and whether they are the last.
    Rows(PackedMatrix, bool),
}

fn produce(
    steps: &[Step<'_>],
    recipe: &dyn Recipe,
    pieces: SyncSender<Piece>,
    progress: &dyn Fn(Progress<'_>),
) -> Result<(), WriteError> {
    for step in steps {
        let tensor = &step.tensor;
        let name = tensor.name();
        let Action::Quantize(spec) = step.action else {
            tensor.check_finite()?;
            let replaced = recipe.float_values(tensor.spec).map(|values| {
                let mut bytes = Vec::with_capacity(tensor.data.len());
                tensor.dtype.narrow(values, &mut bytes);
                bytes
            });
            if let Some(bytes) = replaced.as_ref().filter(|bytes| bytes.len() != tensor.data.len()) {
                let message = format!("{} bytes for a tensor of {}", bytes.len(), tensor.data.len());
                return Err(WriteError::Recipe { name: name.to_owned(), message });
            }
            let data = replaced.as_deref().unwrap_or(tensor.data);
            let bytes = match step.action {
                Action::Shift => shifted(tensor.dtype, data),
                _ => data.to_vec(),
            };
            if pieces.send(Piece::Whole(bytes)).is_err() {
                return Ok(());
            }
            progress(Progress::Converted { name, bytes: step.source_bytes() });
            continue;
        };
        let rows = tensor.shape()[0];
        let per_piece = step.rows_per_piece();
        for start in (0..rows).step_by(per_piece) {
            let range = start..rows.min(start + per_piece);
            check_finite(step, range.clone())?;
            let packed = recipe
                .quantize(tensor, spec, range.clone())
                .map_err(|message| WriteError::Recipe { name: name.to_owned(), message })?;
            if pieces.send(Piece::Rows(packed, range.end == rows)).is_err() {
                return Ok(());
            }
            progress(Progress::Converted { name, bytes: tensor.rows(range).len() as u64 });
        }
    }
    Ok(())
}

/// The first bad weight in the order of the rows is reported, whichever thread finds one first.
fn check_finite(step: &Step<'_>, rows: Range<usize>) -> Result<(), WriteError> {
    const ROWS: usize = 64;
    let parts = rows.len().div_ceil(ROWS);
    let found: Vec<_> = (0..parts)
        .into_par_iter()
        .map(|part| {
            let start = rows.start + part * ROWS;
            step.tensor.check_rows_finite(start..rows.end.min(start + ROWS))
        })
        .collect();
    found.into_iter().collect::<Result<(), _>>().map_err(WriteError::from)
}

fn write_shards(
    shards: &[Shard],
    out: &Path,
    received: Receiver<Piece>,
) -> Result<Vec<FileRecord>, WriteError> {
    let mut pieces = received.into_iter();
    let mut sink = Sink::new(shards, out);
    // Scales and biases follow the words of all rows.
    let (mut scales, mut biases) = (Vec::new(), Vec::new());
    for piece in &mut pieces {
        match piece {
            Piece::Whole(bytes) => {
                sink.append(&bytes)?;
            }
            Piece::Rows(packed, last) => {
                sink.append(&packed.words)?;
                scales.extend_from_slice(&packed.scales);
                biases.extend_from_slice(&packed.biases);
                if last {
                    sink.append(&scales)?;
                    sink.append(&biases)?;
                    scales.clear();
                    biases.clear();
                }
            }
        }
    }
    sink.finish()
}

/// Takes the bytes of all parts in the order of production and puts them where the headers say.
struct Sink<'a> {
    out: &'a Path,
    /// The parts still to come, with the file that they belong to.
    parts: Vec<(&'a Shard, &'a Part)>,
    next: usize,
    /// Bytes that the part being written still lacks.
    lacking: u64,
    file: Option<HashedFile>,
    /// Parts that stand behind the first ones.
    late: BTreeMap<Place, Vec<u8>>,
    done: Vec<FileRecord>,
}

impl<'a> Sink<'a> {
    fn new(shards: &'a [Shard], out: &'a Path) -> Self {
        let parts: Vec<_> =
            shards.iter().flat_map(|shard| shard.parts.iter().map(move |part| (shard, part))).collect();
        Self { out, parts, next: 0, lacking: 0, file: None, late: BTreeMap::new(), done: Vec::new() }
    }

    /// Appends bytes that belong to one part.
    fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        if self.lacking == 0 {
            self.start_part()?;
        }
        let (_, part) = self.parts[self.next - 1];
        self.lacking -= bytes.len() as u64;
        match &mut self.file {
            Some(file) if part.place() == Place::First => file.write(bytes)?,
            _ => self.late.entry(part.place()).or_default().extend_from_slice(bytes),
        }
        Ok(())
    }

    fn start_part(&mut self) -> Result<(), WriteError> {
        let (shard, part) = self.parts[self.next];
        if self.next == 0 || !std::ptr::eq(self.parts[self.next - 1].0, shard) {
            self.close()?;
            let mut file = HashedFile::create(self.out, &shard.file)?;
            file.write(&shard.header())?;
            self.file = Some(file);
        }
        self.lacking = part.bytes;
        self.next += 1;
        Ok(())
    }

    fn close(&mut self) -> Result<(), WriteError> {
        if let Some(mut file) = self.file.take() {
            for late in std::mem::take(&mut self.late).into_values() {
                file.write(&late)?;
            }
            self.done.push(file.finish()?);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<FileRecord>, WriteError> {
        self.close()?;
        Ok(self.done)
    }
}

/// Hashes weight files where they are mapped, and the others by reading.
fn hash_sources(checkpoint: &Checkpoint) -> Result<Vec<FileRecord>, WriteError> {
    let record = |source: &SourceFile| match checkpoint
        .weight_files()
        .iter()
        .find(|file| file.path() == source.path)
    {
        Some(file) => Ok(FileRecord {
            path: source.name.clone(),
            bytes: source.bytes,
            sha256: sha256_hex(file.bytes()),
        }),
        None => Ok(hash_file(&source.path, &source.name)?),
    };
    checkpoint.source_files().par_iter().map(record).collect()
}

fn join<T>(handle: std::thread::ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn summarise(steps: &[Step<'_>]) -> Summary {
    let weights = |step: &Step<'_>| step.tensor.shape().iter().map(|&dim| dim as u64).product::<u64>();
    let bytes = |step: &Step<'_>| step.parts().iter().map(|part| part.bytes).sum::<u64>();
    let matrices: Vec<&Step<'_>> = steps.iter().filter(|step| step.tensor.role().is_quantized()).collect();
    let matrix_weights: u64 = matrices.iter().map(|step| weights(step)).sum();
    let matrix_bytes: u64 = matrices.iter().map(|step| bytes(step)).sum();
    let kept = matrices.iter().filter(|step| step.action == Action::Keep);
    let kept_matrices: Vec<String> = kept.map(|step| step.tensor.name().to_owned()).collect();
    Summary {
        quantized: matrices.len() - kept_matrices.len(),
        kept_matrices,
        parameters: steps.iter().map(weights).sum(),
        source_bytes: steps.iter().map(Step::source_bytes).sum(),
        tensor_bytes: steps.iter().map(bytes).sum(),
        bits_per_weight: 8.0 * matrix_bytes as f64 / matrix_weights as f64,
        companions: Vec::new(),
    }
}

fn manifest(
    checkpoint: &Checkpoint,
    recipe: &dyn Recipe,
    options: &WriteOptions,
    steps: &[Step<'_>],
    sources: Vec<FileRecord>,
) -> Manifest {
    let spec = recipe.default_spec();
    let mut manifest = Manifest::new("mlx", &options.tool_version);
    let local = || checkpoint.dir().file_name().map(|name| name.to_string_lossy().into_owned());
    manifest.source = Source {
        id: options.source_id.clone().or_else(local).unwrap_or_default(),
        revision: options.revision.clone(),
        files: sources,
    };
    let form = match options.form {
        Form::MlxLm => "mlx-lm",
        Form::SpeechSwift => "speech-swift",
    };
    let settings = json!({
        "bits": spec.bits(),
        "group_size": spec.group_size(),
        "mode": "affine",
        "recipe": recipe.name(),
        "form": form,
    });
    manifest.settings = object(settings);
    manifest.settings.extend(recipe.settings());
    manifest.tensors = steps.iter().map(|step| record(step, recipe)).collect();
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

fn record(step: &Step<'_>, recipe: &dyn Recipe) -> TensorRecord {
    let dtype = step.tensor.dtype.torch_name();
    let mut details = object(json!({"as": step.output, "dtype": dtype, "shape": step.tensor.shape()}));
    if let Action::Quantize(spec) = step.action {
        details.insert("bits".to_owned(), spec.bits().into());
        details.insert("group_size".to_owned(), spec.group_size().into());
    }
    if recipe.float_values(step.tensor.spec).is_some() {
        details.insert("learned".to_owned(), true.into());
    }
    TensorRecord {
        name: step.tensor.source_name.to_owned(),
        decision: step.action.label().to_owned(),
        details,
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
