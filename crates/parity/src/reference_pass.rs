//! A pass of the float reference, in a file.
//!
//! The file holds the rows that enter the head, a few megabytes for a suite, and the residual stream of the first
//! prompt. It is an ordinary safetensors file, so other tools can read it too. The head itself is the source's, which
//! is at hand whenever a pass is used: it is keyed by the source's hash.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use crate::float_pass::{FloatPass, Passed};
use crate::rows::{Hidden, Place};
use crate::{ParityError, Prompt};

const FORMAT: &str = "q35-reference-2";

/// A pass that was saved.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferencePass {
    /// Hash of the source's files.
    source: String,
    /// Hash of the prompts.
    suite: String,
    pass: FloatPass,
}

/// Identifies what was run: prompts and their scored part.
pub(crate) fn suite_key(prompts: &[Prompt]) -> String {
    let mut hash = Sha256::new();
    for prompt in prompts {
        hash.update(format!("{}\0{}\0", prompt.name, prompt.scored_from));
        prompt.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        hash.update([0xff; 4]);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl ReferencePass {
    pub(crate) fn new(source: &str, suite: String, pass: FloatPass) -> Self {
        Self { source: source.to_owned(), suite, pass }
    }

    pub(crate) fn into_pass(self) -> FloatPass {
        self.pass
    }

    /// Writes it; the file is there when it is whole.
    pub(crate) fn save(&self, path: &Path) -> Result<(), ParityError> {
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
        for (index, passed) in self.pass.prompts.iter().enumerate() {
            tensors.push((format!("rows.{index}"), vec![passed.rows.len()], bytes(&passed.rows)));
        }
        let hidden = &self.pass.hidden;
        for (place, values) in &hidden.sites {
            tensors.push((place_name(*place), vec![hidden.positions, hidden.width], bytes(values)));
        }
        let failed =
            |message: String| ParityError::ReferenceFile { path: path.display().to_string(), message };
        let views = tensors
            .iter()
            .map(|(name, shape, data)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), data)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|error| failed(error.to_string()))?;
        let metadata = [("format", FORMAT), ("source", &self.source), ("suite", &self.suite)];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let file = safetensors::serialize(views, Some(HashMap::from(metadata)))
            .map_err(|error| failed(error.to_string()))?;
        // Beside its place first, so that a pass that was cut short is never taken for one.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let written =
            tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).and_then(|temporary| {
                std::fs::write(temporary.path(), file)?;
                temporary.persist(path).map_err(|error| error.error)
            });
        written.map(drop).map_err(|error| failed(error.to_string()))
    }

    /// Opens a pass that was saved.
    ///
    /// # Errors
    /// It cannot be read, or is not a whole file of this form.
    pub fn open(path: &Path) -> Result<Self, ParityError> {
        let failed =
            |message: String| ParityError::ReferenceFile { path: path.display().to_string(), message };
        let broken = |message: String| failed(format!("not a saved reference pass: {message}"));
        let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| broken(error.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| broken(error.to_string()))?;
        let of_header =
            |key: &str| header.metadata().as_ref().and_then(|metadata| metadata.get(key)).cloned();
        match of_header("format").as_deref() {
            Some(FORMAT) => {}
            found => {
                let found = found.unwrap_or("none");
                return Err(broken(format!("another format, {found}; this program writes {FORMAT}")));
            }
        }
        let [source, suite] = ["source", "suite"].map(of_header);
        let (Some(source), Some(suite)) = (source, suite) else { return Err(broken("it has no key".into())) };
        let mut prompts: BTreeMap<usize, Passed> = BTreeMap::new();
        let mut hidden = Hidden::default();
        for (name, view) in file.iter() {
            let misfit = || broken(format!("`{name}` is {:?} of {:?}", view.shape(), view.dtype()));
            if view.dtype() != Dtype::F32 {
                return Err(misfit());
            }
            let (words, _) = view.data().as_chunks::<4>();
            let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
            if let Some(index) = name.strip_prefix("rows.").and_then(|index| index.parse().ok()) {
                prompts.insert(index, Passed { rows: values, states: Vec::new() });
            } else if let (Some(place), &[positions, width]) = (place_of(name), view.shape()) {
                (hidden.positions, hidden.width) = (positions, width);
                hidden.sites.insert(place, values);
            } else {
                return Err(misfit());
            }
        }
        if prompts.last_key_value().is_some_and(|(last, _)| *last + 1 != prompts.len()) {
            return Err(broken("prompts are missing".into()));
        }
        let prompts = prompts.into_values().collect();
        Ok(Self { source, suite, pass: FloatPass { prompts, hidden } })
    }

    /// The pass, if it is of that source and those prompts, of which `scored` positions are compared in rows of
    /// `width`.
    pub(crate) fn expect(
        self,
        source: &str,
        suite: &str,
        scored: &[usize],
        width: usize,
    ) -> Result<FloatPass, ParityError> {
        for (what, expected, found) in [("source", source, &self.source), ("suite", suite, &self.suite)] {
            if expected != found {
                let (expected, found) = (expected.to_owned(), found.clone());
                return Err(ParityError::StaleReference { what, expected, found });
            }
        }
        let found: Vec<usize> = self.pass.prompts.iter().map(|passed| passed.rows.len()).collect();
        let expected: Vec<usize> = scored.iter().map(|positions| positions * width).collect();
        if found != expected {
            let [expected, found] = [expected, found].map(|sizes| format!("rows of {sizes:?} numbers"));
            return Err(ParityError::StaleReference { what: "shape", expected, found });
        }
        Ok(self.pass)
    }
}

fn place_name(place: Place) -> String {
    match place {
        Place::Embedding => "hidden.embedding".into(),
        Place::Within(layer, 0) => format!("hidden.{layer}.mixer"),
        Place::Within(layer, _) => format!("hidden.{layer}.layer"),
        Place::FinalNorm => "hidden.norm".into(),
    }
}

fn place_of(name: &str) -> Option<Place> {
    match name.strip_prefix("hidden.")? {
        "embedding" => Some(Place::Embedding),
        "norm" => Some(Place::FinalNorm),
        rest => {
            let (layer, part) = rest.split_once('.')?;
            let part = match part {
                "mixer" => 0,
                "layer" => 1,
                _ => return None,
            };
            Some(Place::Within(layer.parse().ok()?, part))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> ReferencePass {
        let mut hidden = Hidden::new(2, 2);
        hidden.sites.insert(Place::Embedding, vec![0.5; 4]);
        hidden.sites.insert(Place::Within(1, 0), vec![1.5; 4]);
        let rows = [vec![1.0, 2.0, 3.0, 4.0], vec![5.0, 6.0]];
        let prompts = rows.into_iter().map(|rows| Passed { rows, states: Vec::new() }).collect();
        ReferencePass::new("abc", "suite".into(), FloatPass { prompts, hidden })
    }

    #[test]
    fn a_saved_pass_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass.safetensors");
        made().save(&path).unwrap();
        assert_eq!(ReferencePass::open(&path).unwrap(), made());
        // Nothing else is left beside it.
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_stale_pass_is_refused() {
        let refused = |source: &str, suite: &str, scored: &[usize]| {
            made().expect(source, suite, scored, 2).unwrap_err().to_string()
        };
        assert!(made().expect("abc", "suite", &[2, 1], 2).is_ok());
        let error = refused("abd", "suite", &[2, 1]);
        assert!(error.contains("another source") && error.contains("abd"), "{error}");
        assert!(refused("abc", "other", &[2, 1]).contains("another suite"));
        assert!(refused("abc", "suite", &[2, 2]).contains("another shape"));
    }

    #[test]
    fn malformed_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass.safetensors");
        made().save(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 7, 100, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = ReferencePass::open(&path).unwrap_err().to_string();
            assert!(error.contains("not a saved reference pass"), "{length}: {error}");
        }
        let at = whole.windows(FORMAT.len()).position(|window| window == FORMAT.as_bytes()).unwrap();
        let mut other = whole.clone();
        other[at + FORMAT.len() - 1] = b'9';
        std::fs::write(&path, other).unwrap();
        let error = ReferencePass::open(&path).unwrap_err().to_string();
        assert!(error.contains("another format, q35-reference-9"), "{error}");
    }

    #[test]
    fn the_key_depends_on_all_that_matters() {
        let prompt = |ids: &[u32]| Prompt::new("p", "k", ids.to_vec());
        let plain = suite_key(&[prompt(&[1, 2])]);
        assert_ne!(plain, suite_key(&[prompt(&[1, 3])]));
        assert_ne!(plain, suite_key(&[prompt(&[1]), prompt(&[2])]));
        let scored = Prompt { scored_from: 1, ..prompt(&[1, 2]) };
        assert_ne!(plain, suite_key(&[scored]));
    }
}
