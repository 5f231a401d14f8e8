//! A tiny checkpoint, its MLX conversion on disk, and faults to inject into either.
#![allow(dead_code, reason = "each test crate uses a part")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use q35_architecture::{TextConfig, tensor_table};
use q35_backend::Activations;
use q35_checkpoint::Checkpoint;
use q35_format_mlx::{RoundToNearest, WriteOptions};
use q35_inference::{
    CancelToken, LogitsFor, Model, ModelMemory, Observer, RecurrentState, RunError, Sequence, Snapshot,
    WeightError, Weights,
};
use q35_parity::{
    Artefact, Candidate, CheckOptions, CheckpointText, DEFAULT_SUITE, ParityReport, Prompt, Source, Suite,
    Thresholds, check, float_model,
};
use q35_quant::affine::AffineSpec;
use q35_testkit::{EditableTensor, rewrite_tensors};
use tempfile::TempDir;

/// A source checkpoint and its conversion.
pub struct Fixture {
    _root: TempDir,
    pub source: PathBuf,
    pub target: PathBuf,
}

impl Fixture {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (source, target) = (root.path().join("source"), root.path().join("target"));
        q35_testkit::TinyCheckpoint::new().write_to(&source);
        std::fs::create_dir(&target).unwrap();
        let checkpoint = Checkpoint::open(&source).unwrap();
        let recipe = RoundToNearest(AffineSpec::new(4, 64).unwrap());
        q35_format_mlx::write(&checkpoint, &recipe, &WriteOptions::default(), &target, &|_| {}).unwrap();
        Self { _root: root, source, target }
    }

    pub fn prompts(&self) -> Vec<Prompt> {
        let text = CheckpointText::open(&self.source).unwrap();
        let suite = Suite::from_json(DEFAULT_SUITE).unwrap();
        suite.prompts(&text, true, Some(120)).unwrap()
    }

    /// Changes tensors of the written file and checks the result.
    pub fn damaged(self, change: impl Fn(&str, &mut EditableTensor)) -> ParityReport {
        self.rewrite(|tensors| tensors.iter_mut().for_each(|(name, tensor)| change(name, tensor)));
        self.check_directory()
    }

    pub fn rename(&self, name_of: impl Fn(&str) -> String) {
        self.rewrite(|tensors| {
            *tensors = std::mem::take(tensors).into_iter().map(|(name, t)| (name_of(&name), t)).collect();
        });
    }

    fn rewrite(&self, change: impl FnOnce(&mut BTreeMap<String, EditableTensor>)) {
        rewrite_tensors(&self.target.join("model.safetensors"), change);
    }

    pub fn edit_config(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let path = self.target.join("config.json");
        let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(path, config.to_string()).unwrap();
    }

    /// Executes the converted files.
    pub fn check_directory(&self) -> ParityReport {
        self.check_executed(|weights| float_model(weights).unwrap())
    }

    /// Executes the model that `execute` builds from the converted weights.
    pub fn check_executed(&self, execute: impl FnOnce(&dyn Weights) -> Box<dyn Model>) -> ParityReport {
        let (source, target) =
            (Artefact::open(&self.source, None).unwrap(), Artefact::open(&self.target, None).unwrap());
        // A damaged directory may hold nothing that can be executed.
        let readable = tensor_table(target.weights().config())
            .iter()
            .all(|spec| target.weights().read_rows(&spec.name, 0..spec.shape[0], &mut Vec::new()).is_ok());
        let model = readable.then(|| execute(target.weights()));
        let candidate = Candidate {
            name: "target".into(),
            kind: target.kind(),
            recipe: None,
            size_bytes: Some(target.weight_bytes()),
            weights: target.weights(),
            storage: &|spec| target.storage(spec),
            model: model.as_deref(),
            activations: Activations::F32,
        };
        let source = Source { name: "source".into(), hash: None, weights: source.weights() };
        let thresholds = Thresholds::from_json(TINY_THRESHOLDS).unwrap();
        let options =
            CheckOptions { greedy_tokens: 12, probe_tokens: 40, threads: 2, ..CheckOptions::default() };
        let prompts = self.prompts();
        check(&source, &candidate, &prompts, &thresholds, options, &CancelToken::new(), &|_| {}).unwrap()
    }
}

/// The default thresholds with shorter greedy continuations.
const TINY_THRESHOLDS: &str = r#"{
  "schema_version": 1, "description": "tiny",
  "implementation": {"f32": {
    "mean_kl": {"limit": 1e-6, "because": "f32"}, "hidden_relative": {"limit": 1e-3, "because": "f32"},
    "top1_agreement": {"limit": 1.0, "because": "f32"}, "undecided_margin": {"limit": 1e-4, "because": "f32"},
    "state_cosine": {"limit": 0.999999, "because": "f32"}, "consistency_kl": {"limit": 1e-6, "because": "f32"},
    "greedy_tokens": {"limit": 12, "because": "all of them"}}},
  "conversion": {"mlx-4": {"mean_kl": {"limit": 0.5, "because": "measured 0.02 on this checkpoint"}}}
}"#;

type SourceRows<'a> = Box<dyn Fn(&str, usize) -> Option<Vec<usize>> + Send + Sync + 'a>;

/// Weights with permuted rows.
pub struct PermutedRows<'a> {
    inner: &'a dyn Weights,
    source_rows: SourceRows<'a>,
}

impl<'a> PermutedRows<'a> {
    pub fn new(
        inner: &'a dyn Weights,
        source_rows: impl Fn(&str, usize) -> Option<Vec<usize>> + Send + Sync + 'a,
    ) -> Self {
        Self { inner, source_rows: Box::new(source_rows) }
    }
}

impl Weights for PermutedRows<'_> {
    fn config(&self) -> &TextConfig {
        self.inner.config()
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), WeightError> {
        let table = tensor_table(self.config());
        let count = table.iter().find(|spec| spec.name == name).unwrap().shape[0];
        let Some(order) = (self.source_rows)(name, count) else {
            return self.inner.read_rows(name, rows, out);
        };
        out.clear();
        let mut one = Vec::new();
        for row in rows {
            self.inner.read_rows(name, order[row]..order[row] + 1, &mut one)?;
            out.extend_from_slice(&one);
        }
        Ok(())
    }
}

macro_rules! delegate_to_inner {
    () => {
        fn config(&self) -> &TextConfig {
            self.inner().config()
        }
        fn describe(&self) -> String {
            "a broken runtime".into()
        }
        fn context_limit(&self) -> Option<usize> {
            None
        }
        fn prefill_alignment(&self) -> usize {
            1
        }
        fn memory(&self) -> ModelMemory {
            self.inner().memory()
        }
    };
}

/// A model that loses its state after every call.
pub struct StateLosingModel(pub Box<dyn Model>);

impl StateLosingModel {
    fn inner(&self) -> &dyn Model {
        &*self.0
    }
}

impl Model for StateLosingModel {
    delegate_to_inner!();

    fn new_sequence(&self, max_context: usize) -> Result<Box<dyn Sequence>, RunError> {
        Ok(Box::new(FaultySequence {
            inner: self.0.new_sequence(max_context)?,
            loses_state: true,
            nan_from: None,
            done: 0,
        }))
    }
}

/// A model that returns NaN from some position on.
pub struct NanModel {
    pub inner: Box<dyn Model>,
    pub from: usize,
}

impl NanModel {
    fn inner(&self) -> &dyn Model {
        &*self.inner
    }
}

impl Model for NanModel {
    delegate_to_inner!();

    fn new_sequence(&self, max_context: usize) -> Result<Box<dyn Sequence>, RunError> {
        let inner = self.inner.new_sequence(max_context)?;
        Ok(Box::new(FaultySequence { inner, loses_state: false, nan_from: Some(self.from), done: 0 }))
    }
}

struct FaultySequence {
    inner: Box<dyn Sequence>,
    loses_state: bool,
    nan_from: Option<usize>,
    done: usize,
}

/// Overwrites logits with NaN from a position on.
struct NanInjector<'a> {
    inner: &'a mut dyn Observer,
    from: Option<usize>,
    offset: usize,
}

impl Observer for NanInjector<'_> {
    fn logits(&mut self, position: usize, logits: &[f32]) {
        let mut logits = logits.to_vec();
        if self.from.is_some_and(|from| position + self.offset >= from) {
            logits[0] = f32::NAN;
        }
        self.inner.logits(position + self.offset, &logits);
    }
    fn wants_hidden(&self) -> bool {
        self.inner.wants_hidden()
    }
    fn hidden(&mut self, site: q35_inference::HiddenStateAt, position: usize, rows: &[f32]) {
        self.inner.hidden(site, position + self.offset, rows);
    }
    fn cancelled(&self) -> bool {
        self.inner.cancelled()
    }
}

impl Sequence for FaultySequence {
    fn position(&self) -> usize {
        self.done
    }
    fn max_context(&self) -> usize {
        self.inner.max_context()
    }
    fn extend(&mut self, ids: &[u32], rows: LogitsFor, observer: &mut dyn Observer) -> Result<(), RunError> {
        if self.loses_state {
            self.inner.reset();
        }
        let offset = self.done - self.inner.position();
        self.inner.extend(ids, rows, &mut NanInjector { inner: observer, from: self.nan_from, offset })?;
        self.done += ids.len();
        Ok(())
    }
    fn snapshot(&self) -> Result<Snapshot, RunError> {
        self.inner.snapshot()
    }
    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RunError> {
        self.done = snapshot.position;
        self.inner.restore(snapshot)
    }
    fn reset(&mut self) {
        self.done = 0;
        self.inner.reset();
    }
    fn cache_bytes(&self) -> u64 {
        0
    }
    fn scratch_bytes(&self) -> u64 {
        0
    }
    fn recurrent_states(&self) -> Result<Vec<RecurrentState>, RunError> {
        self.inner.recurrent_states()
    }
}
