//! Finished stages on disk, from which an interrupted calibration resumes: one file for the self-generated text, one for
//! the sensitivity, and one for each rounded layer. Each file is complete or absent.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use q35_quant::FloatType;
use q35_quant::affine::AffineSpec;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::sensitivity::ErrorWeights;
use crate::{BitAllocation, CalibrateError, QuantizedMatrix};

/// A directory of finished stages. Files with another key are ignored.
#[derive(Clone, Debug)]
pub struct ResumeDir {
    dir: PathBuf,
    /// Identifies the source, the text and the settings.
    key: String,
}

impl ResumeDir {
    /// Opens `dir`, which is created if needed, for the source, text and settings that `key` identifies.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn open(dir: &Path, key: String) -> Result<Self, CalibrateError> {
        let saved = Self { dir: dir.to_owned(), key };
        fs::create_dir_all(dir).map_err(|error| saved.error("", error))?;
        Ok(saved)
    }

    fn error(&self, file: &str, error: impl ToString) -> CalibrateError {
        CalibrateError::Resume { path: self.dir.join(file), message: error.to_string() }
    }

    /// Writes a temporary file and renames it, so that a kill leaves the old file or the new one.
    fn put(&self, file: &str, bytes: &[u8]) -> Result<(), CalibrateError> {
        let temporary = self.dir.join(format!("{file}.partial"));
        fs::write(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, self.dir.join(file)))
            .map_err(|error| self.error(file, error))
    }

    fn get(&self, file: &str) -> Option<Vec<u8>> {
        fs::read(self.dir.join(file)).ok()
    }

    /// The self-generated windows.
    pub(crate) fn generated_text(&self) -> Option<Vec<Vec<u32>>> {
        let (key, windows): (String, Vec<Vec<u32>>) =
            serde_json::from_slice(&self.get("own-text.json")?).ok()?;
        (key == self.key).then_some(windows)
    }

    pub(crate) fn put_generated_text(&self, windows: &[Vec<u32>]) -> Result<(), CalibrateError> {
        let text = serde_json::to_vec(&(&self.key, windows));
        self.put("own-text.json", &text.map_err(|error| self.error("own-text.json", error))?)
    }

    /// The measured sensitivity, if its file exists and is complete.
    pub(crate) fn sensitivity(&self) -> Option<(BTreeMap<String, BitAllocation>, ErrorWeights)> {
        let bytes = self.get(SENSITIVITY)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let metadata = header.metadata().as_ref()?;
        if metadata.get("key")? != &self.key {
            return None;
        }
        let allocations = serde_json::from_str(metadata.get("allocations")?).ok()?;
        let file = SafeTensors::deserialize(&bytes).ok()?;
        let tokens = floats(&file, "tokens")?;
        let layers: usize = metadata.get("layers")?.parse().ok()?;
        let tokens = tokens.chunks(tokens.len() / layers).map(<[f32]>::to_vec).collect();
        Some((
            allocations,
            ErrorWeights { tokens, lookup: floats(&file, "lookup")?, head: floats(&file, "head")? },
        ))
    }

    pub(crate) fn put_sensitivity(
        &self,
        allocations: &BTreeMap<String, BitAllocation>,
        error_weights: &ErrorWeights,
    ) -> Result<(), CalibrateError> {
        let allocations =
            serde_json::to_string(allocations).map_err(|error| self.error(SENSITIVITY, error))?;
        let metadata = [
            ("key".to_owned(), self.key.clone()),
            ("allocations".to_owned(), allocations),
            ("layers".to_owned(), error_weights.tokens.len().to_string()),
        ];
        let parts = [
            ("tokens", bytes_of(&error_weights.tokens.concat())),
            ("lookup", bytes_of(&error_weights.lookup)),
            ("head", bytes_of(&error_weights.head)),
        ];
        let views: Result<Vec<_>, _> = parts
            .iter()
            .map(|(name, bytes)| {
                TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).map(|view| (*name, view))
            })
            .collect();
        let bytes = views
            .and_then(|views| safetensors::serialize(views, Some(metadata.into())))
            .map_err(|error| self.error(SENSITIVITY, error))?;
        self.put(SENSITIVITY, &bytes)
    }

    /// The matrices of the file `part`, if it exists and is complete.
    pub(crate) fn matrices(&self, part: &str) -> Option<BTreeMap<String, QuantizedMatrix>> {
        let bytes = self.get(&format!("{part}.safetensors"))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let metadata = header.metadata().as_ref()?;
        if metadata.get("key")? != &self.key {
            return None;
        }
        let forms: BTreeMap<String, (u32, usize, String)> =
            serde_json::from_str(metadata.get("grids")?).ok()?;
        let file = SafeTensors::deserialize(&bytes).ok()?;
        let matrix = |(name, (bits, group_size, float)): (String, (u32, usize, String))| {
            let codes = file.tensor(&format!("{name}.codes")).ok()?;
            let float = [FloatType::Bf16, FloatType::F16, FloatType::F32]
                .into_iter()
                .find(|known| known.safetensors_name() == float)?;
            let matrix = QuantizedMatrix {
                spec: AffineSpec::new(bits, group_size).ok()?,
                float,
                rows: *codes.shape().first()?,
                cols: *codes.shape().get(1)?,
                codes: codes.data().to_vec(),
                scales: floats(&file, &format!("{name}.scales"))?,
                biases: floats(&file, &format!("{name}.biases"))?,
            };
            Some((name, matrix))
        };
        forms.into_iter().map(matrix).collect()
    }

    pub(crate) fn put_matrices(
        &self,
        part: &str,
        matrices: &BTreeMap<String, QuantizedMatrix>,
    ) -> Result<(), CalibrateError> {
        let file = format!("{part}.safetensors");
        let forms: BTreeMap<&String, (u32, usize, &str)> = matrices
            .iter()
            .map(|(name, m)| (name, (m.spec.bits(), m.spec.group_size(), m.float.safetensors_name())))
            .collect();
        let forms = serde_json::to_string(&forms).map_err(|error| self.error(&file, error))?;
        let parts: Vec<(Vec<u8>, Vec<u8>)> =
            matrices.values().map(|matrix| (bytes_of(&matrix.scales), bytes_of(&matrix.biases))).collect();
        let mut views = Vec::with_capacity(3 * matrices.len());
        for ((name, matrix), (scales, biases)) in matrices.iter().zip(&parts) {
            let shape = vec![matrix.rows, matrix.scales.len() / matrix.rows];
            let view = |dtype, shape, data| TensorView::new(dtype, shape, data);
            views.push((
                format!("{name}.codes"),
                view(Dtype::U8, vec![matrix.rows, matrix.cols], &matrix.codes),
            ));
            views.push((format!("{name}.scales"), view(Dtype::F32, shape.clone(), scales)));
            views.push((format!("{name}.biases"), view(Dtype::F32, shape, biases)));
        }
        let views = views
            .into_iter()
            .map(|(name, view)| view.map(|view| (name, view)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| self.error(&file, error))?;
        let metadata = [("key".to_owned(), self.key.clone()), ("grids".to_owned(), forms)].into();
        let bytes =
            safetensors::serialize(views, Some(metadata)).map_err(|error| self.error(&file, error))?;
        self.put(&file, &bytes)
    }
}

const SENSITIVITY: &str = "measured.safetensors";

fn floats(file: &SafeTensors<'_>, name: &str) -> Option<Vec<f32>> {
    let (words, _) = file.tensor(name).ok()?.data().as_chunks::<4>();
    Some(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_matrices_come_back_for_the_same_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let saved = ResumeDir::open(dir.path(), "a".into()).unwrap();
        let values: Vec<f32> = (0..128).map(|i| (i as f32).sin()).collect();
        let matrix =
            QuantizedMatrix::round(AffineSpec::new(4, 32).unwrap(), FloatType::Bf16, &values, &[1.0; 64]);
        assert_eq!(saved.matrices("layer-0"), None);
        saved.put_matrices("layer-0", &[("x.weight".to_owned(), matrix.clone())].into()).unwrap();
        assert_eq!(saved.matrices("layer-0").unwrap()["x.weight"], matrix);
        assert_eq!(ResumeDir::open(dir.path(), "b".into()).unwrap().matrices("layer-0"), None);
        fs::write(dir.path().join("layer-0.safetensors"), b"cut off").unwrap();
        assert_eq!(saved.matrices("layer-0"), None);

        let error_weights = ErrorWeights {
            tokens: vec![vec![0.1, 0.2], vec![3.0, 1e-9]],
            lookup: vec![0.5],
            head: vec![0.25],
        };
        let allocation = BitAllocation { bits: 4, group_size: 64, expected_kl: 0.125 };
        let allocations: BTreeMap<String, BitAllocation> = [("x.weight".to_owned(), allocation)].into();
        saved.put_sensitivity(&allocations, &error_weights).unwrap();
        assert_eq!(saved.sensitivity(), Some((allocations, error_weights)));
        saved.put_generated_text(&[vec![1, 2], vec![3, 4]]).unwrap();
        assert_eq!(saved.generated_text(), Some(vec![vec![1, 2], vec![3, 4]]));
        assert_eq!(ResumeDir::open(dir.path(), "b".into()).unwrap().generated_text(), None);
    }
}
