//! Sources of token embeddings.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use q35_architecture::TextConfig;
use q35_checkpoint::{SafetensorsFile, StoredTensor, StoredType};

use crate::predictor::{Call, Predictor};
use crate::{OpenError, PredictError, Tensor};

/// Source of token embeddings.
#[derive(Clone)]
pub(crate) enum Embedding {
    /// The package looks ids up itself.
    Inside,
    /// A table that the host reads.
    Host(Arc<HostTable>),
    /// A separate package: input `token_id` [1, 1], output `embedding` [1, 1, hidden].
    Package(Arc<dyn Predictor>),
}

/// A memory-mapped safetensors file with the embedding matrix [vocab, hidden], as floats or as int8 codes with scales.
pub(crate) struct HostTable {
    file: SafetensorsFile,
    name: String,
    /// Name of the scales [vocab, blocks], if the matrix holds codes.
    scales: Option<String>,
    hidden_size: usize,
}

impl HostTable {
    /// Opens the first safetensors file of the directory, in order of names, that holds a [vocab, hidden] matrix.
    pub(crate) fn open(dir: &Path, config: &TextConfig) -> Result<Self, OpenError> {
        let missing = |path: &Path, found: String| OpenError::TableShape {
            path: path.to_owned(),
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            found,
        };
        let entries = std::fs::read_dir(dir).map_err(|e| missing(dir, e.to_string()))?;
        let mut paths: Vec<_> = entries
            .flatten()
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .collect();
        paths.sort();
        let mut found = Vec::new();
        for path in paths {
            let file = SafetensorsFile::open(&path)?;
            let table = file
                .tensors()
                .filter(|tensor| tensor.shape == [config.vocab_size, config.hidden_size])
                .find_map(|table| table_names(&file, &table));
            if let Some((name, scales)) = table {
                return Ok(Self { file, name, scales, hidden_size: config.hidden_size });
            }
            found.extend(file.tensors().map(|tensor| format!("{} {:?}", tensor.name, tensor.shape)));
        }
        Err(missing(dir, if found.is_empty() { "no safetensors file".to_owned() } else { found.join(", ") }))
    }

    /// Appends a token's embedding [hidden].
    fn append_row(&self, id: u32, out: &mut Vec<f32>) {
        let Some(table) = self.file.tensor(&self.name) else { return };
        let (row, start) = (id as usize, out.len());
        let floats = |table: &StoredTensor<'_>, width: usize, out: &mut [f32]| {
            let Some(dtype) = table.dtype.float() else { return };
            dtype.widen(&table.data[row * width * dtype.size()..][..width * dtype.size()], out);
        };
        out.resize(start + self.hidden_size, 0.0);
        let out = &mut out[start..];
        let Some(scales) = self.scales.as_ref().and_then(|name| self.file.tensor(name)) else {
            return floats(&table, self.hidden_size, out);
        };
        let mut factors = vec![0.0; scales.shape[1]];
        floats(&scales, factors.len(), &mut factors);
        let codes = &table.data[row * self.hidden_size..][..self.hidden_size];
        let block = self.hidden_size / factors.len();
        for (index, (value, &code)) in out.iter_mut().zip(codes).enumerate() {
            *value = factors[index / block] * f32::from(code as i8);
        }
    }

    /// Size of the mapped file.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.file.bytes().len() as u64
    }
}

/// Names of the matrix and, if it holds int8 codes, of its scales; `None` if the tensor is of another type.
fn table_names(file: &SafetensorsFile, table: &StoredTensor<'_>) -> Option<(String, Option<String>)> {
    let name = table.name.to_owned();
    if table.dtype.float().is_some() {
        return Some((name, None));
    }
    let scales = file.tensor(&format!("{}.scales", name.strip_suffix(".weight")?))?;
    let fits = table.dtype == StoredType::Other("I8")
        && scales.dtype.float().is_some()
        && matches!(*scales.shape, [rows, blocks]
            if rows == table.shape[0] && blocks > 0 && table.shape[1].is_multiple_of(blocks));
    fits.then(|| (name, Some(scales.name.to_owned())))
}

impl Embedding {
    /// Embeddings of `ids` (all within the vocabulary), padded with zeros to `tokens` rows: [1, tokens, hidden].
    pub(crate) fn rows(
        &self,
        ids: &[u32],
        tokens: usize,
        hidden_size: usize,
    ) -> Result<Tensor, PredictError> {
        let mut rows = Vec::with_capacity(tokens * hidden_size);
        match self {
            Self::Inside => {}
            Self::Host(table) => {
                ids.iter().for_each(|&id| table.append_row(id, &mut rows));
            }
            Self::Package(package) => {
                let mut session = package.session(&[])?;
                let function =
                    package.signatures().first().map_or("main", |signature| signature.name.as_str());
                for &id in ids {
                    let token =
                        BTreeMap::from([("token_id".to_owned(), Tensor::int(&[1, 1], vec![id as i32]))]);
                    let outputs = session.predict(Call { function, inputs: token, caches: &[] }, None)?;
                    let row = outputs.get("embedding").and_then(Tensor::floats);
                    rows.extend(
                        row.ok_or_else(|| PredictError::Framework("no output `embedding`".to_owned()))?,
                    );
                }
            }
        }
        rows.resize(tokens * hidden_size, 0.0);
        Ok(Tensor::float(&[1, tokens, hidden_size], rows))
    }
}
