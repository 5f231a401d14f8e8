//! Work that outlives a kill: a file for the model's own text, one for what was measured, and one for each rounded layer,
//! each complete or absent.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use q35_quant::FloatType;
use q35_quant::affine::AffineSpec;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::sensitivity::Guide;
use crate::{CalibrateError, Decision, Grid};

/// A directory of saved work. Files of other settings or another source do not count.
#[derive(Clone, Debug)]
pub struct Saved {
    dir: PathBuf,
    /// Says what the work is of: files with another key are ignored.
    key: String,
}

impl Saved {
    /// Work saved in `dir`, which is created, for the source, text and settings that `key` stands for.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn in_dir(dir: &Path, key: String) -> Result<Self, CalibrateError> {
        let saved = Self { dir: dir.to_owned(), key };
        fs::create_dir_all(dir).map_err(|error| saved.error("", error))?;
        Ok(saved)
    }

    fn error(&self, file: &str, error: impl ToString) -> CalibrateError {
        CalibrateError::Saved { path: self.dir.join(file), message: error.to_string() }
    }

    /// Writes beside the target and renames, so that a kill leaves the old file or the new one.
    fn put(&self, file: &str, bytes: &[u8]) -> Result<(), CalibrateError> {
        let temporary = self.dir.join(format!("{file}.partial"));
        fs::write(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, self.dir.join(file)))
            .map_err(|error| self.error(file, error))
    }

    fn get(&self, file: &str) -> Option<Vec<u8>> {
        fs::read(self.dir.join(file)).ok()
    }

    /// The text that the float model wrote.
    pub(crate) fn own_text(&self) -> Option<Vec<Vec<u32>>> {
        let (key, windows): (String, Vec<Vec<u32>>) =
            serde_json::from_slice(&self.get("own-text.json")?).ok()?;
        (key == self.key).then_some(windows)
    }

    pub(crate) fn put_own_text(&self, windows: &[Vec<u32>]) -> Result<(), CalibrateError> {
        let text = serde_json::to_vec(&(&self.key, windows));
        self.put("own-text.json", &text.map_err(|error| self.error("own-text.json", error))?)
    }

    /// What was measured of the float model, if it is there and whole.
    pub(crate) fn measured(&self) -> Option<(BTreeMap<String, Decision>, Guide)> {
        let bytes = self.get(MEASURED)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let metadata = header.metadata().as_ref()?;
        if metadata.get("key")? != &self.key {
            return None;
        }
        let decisions = serde_json::from_str(metadata.get("decisions")?).ok()?;
        let file = SafeTensors::deserialize(&bytes).ok()?;
        let tokens = floats(&file, "tokens")?;
        let layers: usize = metadata.get("layers")?.parse().ok()?;
        let tokens = tokens.chunks(tokens.len() / layers).map(<[f32]>::to_vec).collect();
        Some((decisions, Guide { tokens, lookup: floats(&file, "lookup")?, head: floats(&file, "head")? }))
    }

    pub(crate) fn put_measured(
        &self,
        decisions: &BTreeMap<String, Decision>,
        guide: &Guide,
    ) -> Result<(), CalibrateError> {
        let decisions = serde_json::to_string(decisions).map_err(|error| self.error(MEASURED, error))?;
        let metadata = [
            ("key".to_owned(), self.key.clone()),
            ("decisions".to_owned(), decisions),
            ("layers".to_owned(), guide.tokens.len().to_string()),
        ];
        let parts = [
            ("tokens", bytes_of(&guide.tokens.concat())),
            ("lookup", bytes_of(&guide.lookup)),
            ("head", bytes_of(&guide.head)),
        ];
        let views: Result<Vec<_>, _> = parts
            .iter()
            .map(|(name, bytes)| {
                TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).map(|view| (*name, view))
            })
            .collect();
        let bytes = views
            .and_then(|views| safetensors::serialize(views, Some(metadata.into())))
            .map_err(|error| self.error(MEASURED, error))?;
        self.put(MEASURED, &bytes)
    }

    /// The grids saved under `part`, if they are there and whole.
    pub(crate) fn grids(&self, part: &str) -> Option<BTreeMap<String, Grid>> {
        let bytes = self.get(&format!("{part}.safetensors"))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let metadata = header.metadata().as_ref()?;
        if metadata.get("key")? != &self.key {
            return None;
        }
        let forms: BTreeMap<String, (u32, usize, String)> =
            serde_json::from_str(metadata.get("grids")?).ok()?;
        let file = SafeTensors::deserialize(&bytes).ok()?;
        let grid = |(name, (bits, group_size, float)): (String, (u32, usize, String))| {
            let codes = file.tensor(&format!("{name}.codes")).ok()?;
            let float = [FloatType::Bf16, FloatType::F16, FloatType::F32]
                .into_iter()
                .find(|known| known.safetensors_name() == float)?;
            let grid = Grid {
                spec: AffineSpec::new(bits, group_size).ok()?,
                float,
                rows: *codes.shape().first()?,
                cols: *codes.shape().get(1)?,
                codes: codes.data().to_vec(),
                scales: floats(&file, &format!("{name}.scales"))?,
                biases: floats(&file, &format!("{name}.biases"))?,
            };
            Some((name, grid))
        };
        forms.into_iter().map(grid).collect()
    }

    pub(crate) fn put_grids(&self, part: &str, grids: &[(&str, &Grid)]) -> Result<(), CalibrateError> {
        let file = format!("{part}.safetensors");
        let forms: BTreeMap<&str, (u32, usize, &str)> = grids
            .iter()
            .map(|(name, g)| (*name, (g.spec.bits(), g.spec.group_size(), g.float.safetensors_name())))
            .collect();
        let forms = serde_json::to_string(&forms).map_err(|error| self.error(&file, error))?;
        let parts: Vec<(Vec<u8>, Vec<u8>)> =
            grids.iter().map(|(_, grid)| (bytes_of(&grid.scales), bytes_of(&grid.biases))).collect();
        let mut views = Vec::with_capacity(3 * grids.len());
        for ((name, grid), (scales, biases)) in grids.iter().zip(&parts) {
            let shape = vec![grid.rows, grid.scales.len() / grid.rows];
            let view = |dtype, shape, data| TensorView::new(dtype, shape, data);
            views.push((format!("{name}.codes"), view(Dtype::U8, vec![grid.rows, grid.cols], &grid.codes)));
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

const MEASURED: &str = "measured.safetensors";

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
    fn saved_grids_come_back_for_the_same_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let saved = Saved::in_dir(dir.path(), "a".into()).unwrap();
        let values: Vec<f32> = (0..128).map(|i| (i as f32).sin()).collect();
        let grid = Grid::round(AffineSpec::new(4, 32).unwrap(), FloatType::Bf16, &values, &[1.0; 64]);
        assert_eq!(saved.grids("layer-0"), None);
        saved.put_grids("layer-0", &[("x.weight", &grid)]).unwrap();
        assert_eq!(saved.grids("layer-0").unwrap()["x.weight"], grid);
        assert_eq!(Saved::in_dir(dir.path(), "b".into()).unwrap().grids("layer-0"), None);
        fs::write(dir.path().join("layer-0.safetensors"), b"cut off").unwrap();
        assert_eq!(saved.grids("layer-0"), None);

        let guide =
            Guide { tokens: vec![vec![0.1, 0.2], vec![3.0, 1e-9]], lookup: vec![0.5], head: vec![0.25] };
        let decision = Decision { bits: 4, group_size: 64, expected_kl: 0.125 };
        let decisions: BTreeMap<String, Decision> = [("x.weight".to_owned(), decision)].into();
        saved.put_measured(&decisions, &guide).unwrap();
        assert_eq!(saved.measured(), Some((decisions, guide)));
        saved.put_own_text(&[vec![1, 2], vec![3, 4]]).unwrap();
        assert_eq!(saved.own_text(), Some(vec![vec![1, 2], vec![3, 4]]));
        assert_eq!(Saved::in_dir(dir.path(), "b".into()).unwrap().own_text(), None);
    }
}
