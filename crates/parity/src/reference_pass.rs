//! A pass of the float reference, saved in a file.
//!
//! The file holds the vectors that enter the head, a few megabytes for a suite, and the residual stream of the first
//! prompt, as safetensors. The head itself is read from the source, which is open whenever a pass is used; the pass is
//! keyed by the source's hash.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use q35_inference::HiddenStateAt;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use crate::float_pass::{FloatPass, PromptPass};
use crate::runner::HiddenStates;
use crate::{ParityError, Prompt};

const FORMAT: &str = "q35-reference-2";

/// A saved pass of the float reference.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferencePass {
    /// Hash of the source's files.
    source: String,
    /// Hash of the prompts.
    suite: String,
    pass: FloatPass,
}

/// Hash of the prompts: names, tokens and scored positions.
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

    /// Writes the pass to `path`, atomically.
    pub(crate) fn save(&self, path: &Path) -> Result<(), ParityError> {
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
        for (index, passed) in self.pass.prompts.iter().enumerate() {
            tensors.push((
                format!("rows.{index}"),
                vec![passed.head_inputs.len()],
                bytes(&passed.head_inputs),
            ));
        }
        let hidden = &self.pass.hidden;
        for (site, values) in &hidden.sites {
            tensors.push((site_name(*site), vec![hidden.positions, hidden.width], bytes(values)));
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
        // A temporary sibling is renamed into place, so that an interrupted write leaves no truncated pass.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let written =
            tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).and_then(|temporary| {
                std::fs::write(temporary.path(), file)?;
                temporary.persist(path).map_err(|error| error.error)
            });
        written.map(drop).map_err(|error| failed(error.to_string()))
    }

    /// Reads a saved pass.
    ///
    /// # Errors
    /// The file cannot be read, or is not a complete file of this format.
    pub fn open(path: &Path) -> Result<Self, ParityError> {
        let failed =
            |message: String| ParityError::ReferenceFile { path: path.display().to_string(), message };
        let malformed = |message: String| failed(format!("not a saved reference pass: {message}"));
        let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| malformed(error.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| malformed(error.to_string()))?;
        let metadata_value =
            |key: &str| header.metadata().as_ref().and_then(|metadata| metadata.get(key)).cloned();
        match metadata_value("format").as_deref() {
            Some(FORMAT) => {}
            found => {
                let found = found.unwrap_or("none");
                return Err(malformed(format!("another format, {found}; this program writes {FORMAT}")));
            }
        }
        let [source, suite] = ["source", "suite"].map(metadata_value);
        let (Some(source), Some(suite)) = (source, suite) else {
            return Err(malformed("it has no key".into()));
        };
        let mut prompts: BTreeMap<usize, PromptPass> = BTreeMap::new();
        let mut hidden = HiddenStates::default();
        for (name, view) in file.iter() {
            let unexpected = || malformed(format!("`{name}` is {:?} of {:?}", view.shape(), view.dtype()));
            if view.dtype() != Dtype::F32 {
                return Err(unexpected());
            }
            let (words, _) = view.data().as_chunks::<4>();
            let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
            if let Some(index) = name.strip_prefix("rows.").and_then(|index| index.parse().ok()) {
                prompts.insert(index, PromptPass { head_inputs: values, states: Vec::new() });
            } else if let (Some(site), &[positions, width]) = (parse_site(name), view.shape()) {
                (hidden.positions, hidden.width) = (positions, width);
                hidden.sites.insert(site, values);
            } else {
                return Err(unexpected());
            }
        }
        if prompts.last_key_value().is_some_and(|(last, _)| *last + 1 != prompts.len()) {
            return Err(malformed("prompts are missing".into()));
        }
        let prompts = prompts.into_values().collect();
        Ok(Self { source, suite, pass: FloatPass { prompts, hidden } })
    }

    /// The pass, checked to be of the source with hash `source` and the prompts with hash `suite`, with `scored`
    /// positions of `width` numbers for each prompt.
    pub(crate) fn validated(
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
        let found: Vec<usize> = self.pass.prompts.iter().map(|passed| passed.head_inputs.len()).collect();
        let expected: Vec<usize> = scored.iter().map(|positions| positions * width).collect();
        if found != expected {
            let [expected, found] = [expected, found].map(|sizes| format!("rows of {sizes:?} numbers"));
            return Err(ParityError::StaleReference { what: "shape", expected, found });
        }
        Ok(self.pass)
    }
}

fn site_name(site: HiddenStateAt) -> String {
    match site {
        HiddenStateAt::Embedding => "hidden.embedding".into(),
        HiddenStateAt::AfterAttention(layer) => format!("hidden.{layer}.mixer"),
        HiddenStateAt::AfterMlp(layer) => format!("hidden.{layer}.layer"),
        HiddenStateAt::FinalNorm => "hidden.norm".into(),
    }
}

fn parse_site(name: &str) -> Option<HiddenStateAt> {
    match name.strip_prefix("hidden.")? {
        "embedding" => Some(HiddenStateAt::Embedding),
        "norm" => Some(HiddenStateAt::FinalNorm),
        rest => match rest.split_once('.')? {
            (layer, "mixer") => Some(HiddenStateAt::AfterAttention(layer.parse().ok()?)),
            (layer, "layer") => Some(HiddenStateAt::AfterMlp(layer.parse().ok()?)),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_pass() -> ReferencePass {
        let mut hidden = HiddenStates::new(2, 2);
        hidden.sites.insert(HiddenStateAt::Embedding, vec![0.5; 4]);
        hidden.sites.insert(HiddenStateAt::AfterAttention(1), vec![1.5; 4]);
        let rows = [vec![1.0, 2.0, 3.0, 4.0], vec![5.0, 6.0]];
        let prompts =
            rows.into_iter().map(|head_inputs| PromptPass { head_inputs, states: Vec::new() }).collect();
        ReferencePass::new("abc", "suite".into(), FloatPass { prompts, hidden })
    }

    #[test]
    fn a_saved_pass_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass.safetensors");
        sample_pass().save(&path).unwrap();
        assert_eq!(ReferencePass::open(&path).unwrap(), sample_pass());
        // Nothing else is left beside it.
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_stale_pass_is_refused() {
        let refused = |source: &str, suite: &str, scored: &[usize]| {
            sample_pass().validated(source, suite, scored, 2).unwrap_err().to_string()
        };
        assert!(sample_pass().validated("abc", "suite", &[2, 1], 2).is_ok());
        let error = refused("abd", "suite", &[2, 1]);
        assert!(error.contains("another source") && error.contains("abd"), "{error}");
        assert!(refused("abc", "other", &[2, 1]).contains("another suite"));
        assert!(refused("abc", "suite", &[2, 2]).contains("another shape"));
    }

    #[test]
    fn malformed_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass.safetensors");
        sample_pass().save(&path).unwrap();
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
