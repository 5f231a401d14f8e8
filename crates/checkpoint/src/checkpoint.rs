//! An opened checkpoint.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use q35_architecture::{ConfigReading, NameScheme, NamedPart, Role, TensorSpec, TextConfig, tensor_table};
use q35_inference::{WeightError, Weights};
use q35_quant::FloatType;
use rayon::prelude::*;
use serde_json::Value;

use crate::already_converted::{
    already_converted, is_mlx_convolution, refuse_by_config, refuse_by_files, refuse_by_tensors,
};
use crate::foreign::{no_config, refuse_adapter};
use crate::head::find_head;
use crate::inventory::{Inventory, Part};
use crate::shards::{INDEX, Shards, find_shards, read_json};
use crate::sources::{AUXILIARY_FILES, SourceFile};
use crate::{CheckpointError, CheckpointNote, Problem, SafetensorsFile, StoredType};

/// A Hugging Face checkpoint whose text model is complete and well-shaped.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config_json: Value,
    config: TextConfig,
    files: Vec<SafetensorsFile>,
    /// In the order of [`tensor_table`].
    tensors: Vec<Located>,
    by_name: HashMap<String, usize>,
    inventory: Inventory,
    source_files: Vec<SourceFile>,
    notes: Vec<CheckpointNote>,
}

#[derive(Debug)]
struct Located {
    spec: TensorSpec,
    dtype: FloatType,
    file: usize,
    source_name: String,
    /// A tensor stored in f64, converted to f32 on first use.
    converted: Option<OnceLock<Vec<u8>>>,
}

/// One tensor of the text model, mapped.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Name in the tensor table, shape and role.
    pub spec: &'a TensorSpec,
    /// Name in the file.
    pub source_name: &'a str,
    /// Element type.
    pub dtype: FloatType,
    /// Little-endian elements, row-major, of arbitrary alignment.
    pub data: &'a [u8],
    /// The file that holds it.
    pub file: &'a Path,
}

impl<'a> TensorView<'a> {
    /// Name in the tensor table.
    pub fn name(&self) -> &'a str {
        &self.spec.name
    }

    /// Function in the model.
    pub fn role(&self) -> Role {
        self.spec.role
    }

    /// Shape, outermost first.
    pub fn shape(&self) -> &'a [usize] {
        &self.spec.shape
    }

    /// Length of a row in elements: the product of all axes but the first.
    pub fn row_len(&self) -> usize {
        self.spec.shape[1..].iter().product()
    }

    /// Bytes of the rows in `rows`.
    pub fn rows(&self, rows: Range<usize>) -> &'a [u8] {
        let bytes = self.row_len() * self.dtype.size();
        &self.data[rows.start * bytes..rows.end * bytes]
    }

    /// Reads every weight of the tensor.
    ///
    /// # Errors
    /// [`CheckpointError::NonFinite`] for the first NaN or infinite weight.
    pub fn check_finite(&self) -> Result<(), CheckpointError> {
        self.check_rows_finite(0..self.spec.shape[0])
    }

    /// As [`Self::check_finite`], for `rows` alone.
    ///
    /// # Errors
    /// [`CheckpointError::NonFinite`] for the first NaN or infinite weight.
    pub fn check_rows_finite(&self, rows: Range<usize>) -> Result<(), CheckpointError> {
        let bytes = self.rows(rows.clone());
        let Some(index) = self.dtype.first_non_finite(bytes) else { return Ok(()) };
        let mut value = [0.0];
        self.dtype.widen(&bytes[index * self.dtype.size()..][..self.dtype.size()], &mut value);
        Err(CheckpointError::NonFinite {
            name: self.source_name.to_owned(),
            path: self.file.to_owned(),
            value: value[0],
            element: rows.start * self.row_len() + index,
        })
    }
}

impl Checkpoint {
    /// Opens the checkpoint in `dir`: reads its config.json, maps its weight files and checks that they hold every
    /// tensor of the text model that the configuration describes and no unknown ones. The weights themselves are not
    /// read.
    ///
    /// # Errors
    /// Every reason not to convert it, except weights that are not finite.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let config_path = dir.join("config.json");
        refuse_adapter(dir)?;
        if !config_path.is_file() {
            return Err(no_config(dir));
        }
        let config_json = read_json(&config_path)?;
        let mut reading = ConfigReading::from_json(&config_json)
            .map_err(|source| CheckpointError::Config { path: config_path, source })?;
        refuse_by_config(dir, &config_json)?;
        let shards = find_shards(dir)?;
        let files: Vec<SafetensorsFile> = shards
            .files
            .iter()
            .map(|name| SafetensorsFile::open(&dir.join(name)))
            .collect::<Result<_, _>>()?;
        refuse_by_files(dir, &files)?;
        refuse_by_tensors(dir, &files)?;
        let mut notes: Vec<_> = reading.notes.drain(..).map(CheckpointNote::Config).collect();
        notes.extend(shards.index_ignored.then_some(CheckpointNote::IndexIgnored));
        if !shards.unused.is_empty() {
            notes.push(CheckpointNote::FilesUnused { files: shards.unused.clone() });
        }
        let names = NameScheme::detect(files.iter().flat_map(SafetensorsFile::tensors).map(|t| t.name));
        if let Some(prefix) = names.unknown_prefix() {
            notes.push(CheckpointNote::UnknownPrefix { prefix: prefix.to_owned() });
        }
        let head = find_head(&reading, &files, &names);
        notes.extend(head.note);
        let config = TextConfig { tie_word_embeddings: head.tied, ..reading.config };
        let Assigned { tensors, inventory } =
            assign(dir, &config, &files, &shards, &names, head.is_embedding)?;
        // Those of the text model are errors of `assign`.
        let stale = absent_from_shards(&files, &shards).count();
        notes.extend((stale > 0).then_some(CheckpointNote::IndexStale { tensors: stale }));
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.spec.name.clone(), i)).collect();
        let source_files = source_files(dir, &shards)?;
        Ok(Self {
            dir: dir.to_owned(),
            config_json,
            config,
            files,
            tensors,
            by_name,
            inventory,
            source_files,
            notes,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Configuration of the text model.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The whole config.json.
    pub fn config_json(&self) -> &Value {
        &self.config_json
    }

    /// The tensor called `name` in [`tensor_table`]; `lm_head.weight` exists only if it is untied.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.by_name.get(name).map(|&index| self.view(&self.tensors[index]))
    }

    /// Every tensor of the text model, in the order of [`tensor_table`].
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.tensors.iter().map(|located| self.view(located))
    }

    /// Counts of the text model's tensors and of the dropped ones.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The files that a conversion may read: configuration, index, weights, tokenizer and generation settings, as far as
    /// they exist.
    pub fn source_files(&self) -> &[SourceFile] {
        &self.source_files
    }

    /// Remarks for people: contents that are not used, and how contradictions were resolved.
    pub fn notes(&self) -> &[CheckpointNote] {
        &self.notes
    }

    /// The mapped weight files.
    pub fn weight_files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    /// Releases the memory of `part` of a tensor's data; later accesses read it from the file again.
    pub fn release(&self, part: &[u8]) {
        self.files.iter().for_each(|file| file.release(part));
    }

    /// Reads every weight.
    ///
    /// # Errors
    /// [`CheckpointError::NonFinite`] for the first tensor, in the order of the table, with a NaN or infinite weight.
    pub fn check_finite(&self) -> Result<(), CheckpointError> {
        // Collected in order, so that the reported error does not depend on the threads.
        let found: Vec<_> =
            self.tensors.par_iter().map(|located| self.view(located).check_finite()).collect();
        found.into_iter().collect()
    }

    fn view<'a>(&'a self, located: &'a Located) -> TensorView<'a> {
        let file = &self.files[located.file];
        let stored = || file.tensor(&located.source_name).map_or(&[][..], |stored| stored.data);
        let data = match &located.converted {
            None => stored(),
            Some(converted) => converted.get_or_init(|| f64_to_f32(stored())),
        };
        TensorView {
            spec: &located.spec,
            source_name: &located.source_name,
            dtype: located.dtype,
            data,
            file: file.path(),
        }
    }
}

impl Weights for Checkpoint {
    fn config(&self) -> &TextConfig {
        &self.config
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), WeightError> {
        let error = |message: String| WeightError { name: name.to_owned(), message };
        let tensor = self.tensor(name).ok_or_else(|| error("the model has no such tensor".into()))?;
        if rows.start > rows.end || rows.end > tensor.shape()[0] {
            return Err(error(format!("rows {rows:?} of {:?}", tensor.shape())));
        }
        tensor.check_rows_finite(rows.clone()).map_err(|bad| error(bad.to_string()))?;
        let bytes = tensor.rows(rows);
        out.clear();
        out.resize(bytes.len() / tensor.dtype.size(), 0.0);
        tensor.dtype.widen(bytes, out);
        Ok(())
    }
}

/// Little-endian f64 rounded to little-endian f32. Values beyond the range become infinite, which
/// [`TensorView::check_finite`] reports.
fn f64_to_f32(bytes: &[u8]) -> Vec<u8> {
    bytes
        .as_chunks::<8>()
        .0
        .iter()
        .flat_map(|value| (f64::from_le_bytes(*value) as f32).to_le_bytes())
        .collect()
}

/// The float type in which [`TensorView`] returns a tensor of this type.
fn float_of(dtype: StoredType) -> Option<FloatType> {
    if dtype == StoredType::Other("F64") { Some(FloatType::F32) } else { dtype.float() }
}

/// The result of [`assign`].
struct Assigned {
    tensors: Vec<Located>,
    inventory: Inventory,
}

/// Assigns every stored tensor to an entry of the tensor table or to a dropped part. All defects are reported together.
fn assign(
    dir: &Path,
    config: &TextConfig,
    files: &[SafetensorsFile],
    shards: &Shards,
    names: &NameScheme,
    head_is_embedding: bool,
) -> Result<Assigned, CheckpointError> {
    let table = tensor_table(config);
    let expected: HashMap<&str, usize> =
        table.iter().enumerate().map(|(i, spec)| (spec.name.as_str(), i)).collect();
    let mut found: Vec<Option<Located>> = table.iter().map(|_| None).collect();
    let mut inventory = Inventory::default();
    let mut problems = Vec::new();
    for (file_index, file) in files.iter().enumerate() {
        let file_name = &shards.files[file_index];
        for stored in file.tensors() {
            let dropped = match names.part_of(stored.name) {
                NamedPart::Vision => Ok(Part::Vision),
                NamedPart::MultiToken => Ok(Part::MultiToken),
                NamedPart::Buffer => Ok(Part::Buffers),
                NamedPart::TextModel("lm_head.weight") if head_is_embedding => Err("embed_tokens.weight"),
                NamedPart::TextModel("lm_head.weight") if config.tie_word_embeddings => Ok(Part::TiedHead),
                NamedPart::TextModel(name) => Err(name),
            };
            let name = match dropped {
                Ok(part) => {
                    inventory.drop_tensor(part, stored.name, stored.shape, stored.data.len());
                    continue;
                }
                Err(name) => name,
            };
            let (tensor, in_file) = (stored.name.to_owned(), file_name.clone());
            let Some(&index) = expected.get(name) else {
                problems.push(Problem::Unknown { name: tensor, file: in_file, shape: stored.shape.to_vec() });
                continue;
            };
            let spec = &table[index];
            if let Some(first) = &found[index] {
                problems.push(Problem::Duplicate {
                    name: name.to_owned(),
                    first: format!("{} as `{}`", shards.files[first.file], first.source_name),
                    second: format!("{in_file} as `{tensor}`"),
                });
            } else if stored.shape != spec.shape {
                if is_mlx_convolution(spec, stored.shape) {
                    let evidence = format!("`{tensor}` has its axes in MLX's order, {:?}", stored.shape);
                    return Err(already_converted(dir, &evidence));
                }
                problems.push(Problem::Shape {
                    name: tensor.clone(),
                    file: in_file,
                    expected: spec.shape.clone(),
                    found: stored.shape.to_vec(),
                });
            } else if float_of(stored.dtype).is_none() {
                problems.push(Problem::Type {
                    name: tensor.clone(),
                    file: in_file,
                    found: stored.dtype.to_string(),
                });
            }
            let dtype = float_of(stored.dtype).unwrap_or(FloatType::F32);
            let converted = stored.dtype.float().is_none().then(OnceLock::new);
            inventory.kept_count += 1;
            inventory.kept_elements += stored.shape.iter().map(|&dim| dim as u64).product::<u64>();
            inventory.kept_bytes += stored.data.len() as u64;
            found[index] =
                Some(Located { spec: spec.clone(), dtype, file: file_index, source_name: tensor, converted });
        }
    }
    problems.extend(
        absent_from_shards(files, shards)
            .filter(|(tensor, _)| matches!(names.part_of(tensor), NamedPart::TextModel(_)))
            .map(|(tensor, file)| Problem::NotInShard { name: tensor.to_owned(), file: file.to_owned() }),
    );
    let mut tensors = Vec::with_capacity(table.len());
    for (spec, located) in table.into_iter().zip(found) {
        match located {
            Some(located) => tensors.push(located),
            None => problems.push(Problem::Missing { name: spec.name, expected: spec.shape }),
        }
    }
    if problems.is_empty() {
        Ok(Assigned { tensors, inventory })
    } else {
        Err(CheckpointError::Misfit { path: dir.to_owned(), problems })
    }
}

/// Tensors, with their files, that the index lists but no file has.
fn absent_from_shards<'a>(
    files: &'a [SafetensorsFile],
    shards: &'a Shards,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let absent = |tensor: &str| files.iter().all(|file| file.tensor(tensor).is_none());
    let entries = shards.index.iter().flatten();
    entries.map(|(tensor, file)| (tensor.as_str(), file.as_str())).filter(move |(tensor, _)| absent(tensor))
}

fn source_files(dir: &Path, shards: &Shards) -> Result<Vec<SourceFile>, CheckpointError> {
    let index = shards.index.as_ref().map(|_| INDEX);
    let auxiliary = AUXILIARY_FILES.into_iter().filter(|name| dir.join(name).is_file());
    std::iter::once("config.json")
        .chain(index)
        .chain(shards.files.iter().map(String::as_str))
        .chain(auxiliary)
        .map(|name| SourceFile::stat(dir, name))
        .collect()
}
