//! Where a token's embedding comes from.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use q35_checkpoint::SafetensorsFile;
use q35_model::TextConfig;

use crate::predictor::{Call, Predictor};
use crate::{OpenError, PredictError, Tensor};

/// Where a token's embedding comes from.
#[derive(Clone)]
pub(crate) enum Embedding {
    /// The functions take ids.
    Inside,
    /// A table that the host reads.
    Host(Arc<HostTable>),
    /// A package of its own: `token_id` [1, 1] in, `embedding` [1, 1, hidden] out.
    Package(Arc<dyn Predictor>),
}

/// The embedding as its own safetensors file, mapped.
pub(crate) struct HostTable {
    file: SafetensorsFile,
    name: String,
    hidden_size: usize,
}

impl HostTable {
    /// Finds the only safetensors file of the directory that holds a table of the model's size.
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
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .collect();
        paths.sort();
        let mut found = Vec::new();
        for path in paths {
            let file = SafetensorsFile::open(&path)?;
            let table = file
                .tensors()
                .find(|tensor| tensor.shape == [config.vocab_size, config.hidden_size])
                .filter(|tensor| tensor.dtype.float().is_some())
                .map(|tensor| tensor.name.to_owned());
            if let Some(name) = table {
                return Ok(Self { file, name, hidden_size: config.hidden_size });
            }
            found.extend(file.tensors().map(|tensor| format!("{} {:?}", tensor.name, tensor.shape)));
        }
        Err(missing(dir, if found.is_empty() { "no safetensors file".to_owned() } else { found.join(", ") }))
    }

    /// Appends a token's row.
    fn row(&self, id: u32, out: &mut Vec<f32>) {
        let Some(table) = self.file.tensor(&self.name) else { return };
        let Some(dtype) = table.dtype.float() else { return };
        let (start, bytes) = (out.len(), self.hidden_size * dtype.size());
        out.resize(start + self.hidden_size, 0.0);
        dtype.widen(&table.data[id as usize * bytes..][..bytes], &mut out[start..]);
    }

    /// Bytes of the mapped file.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.file.bytes().len() as u64
    }
}

impl Embedding {
    /// Rows of `ids`, which are in the vocabulary, padded with zeros to `tokens` rows: [1, tokens, hidden].
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
                ids.iter().for_each(|&id| table.row(id, &mut rows));
            }
            Self::Package(package) => {
                let mut session = package.session(&[])?;
                let function =
                    package.signatures().first().map_or("main", |signature| signature.name.as_str());
                for &id in ids {
                    let token =
                        BTreeMap::from([("token_id".to_owned(), Tensor::int(&[1, 1], vec![id as i32]))]);
                    let outputs = session.predict(Call { function, inputs: token, kept: &[] }, None)?;
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
