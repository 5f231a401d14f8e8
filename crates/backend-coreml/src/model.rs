//! A directory of packages as a model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use q35_architecture::TextConfig;
use q35_inference::{Model, ModelMemory, RunError, Sequence};

use crate::config::read_config;
use crate::embedding::{Embedding, HostTable};
use crate::evaluator::EvaluatorPredictor;
use crate::forms::{Stage, TokenInput};
use crate::predictor::{Predictor, Signature};
use crate::sequence::CoreMlSequence;
use crate::{OpenError, Precision, PredictError};

/// Loads one package into whoever executes it.
pub type LoadPackage<'a> = dyn Fn(&Path) -> Result<Arc<dyn Predictor>, PredictError> + 'a;

/// A loaded directory of Core ML packages.
pub struct CoreMlModel {
    pub(crate) parts: Arc<Parts>,
}

/// What sequences share.
pub(crate) struct Parts {
    pub(crate) config: TextConfig,
    pub(crate) predictors: Vec<Arc<dyn Predictor>>,
    pub(crate) embedding: Embedding,
    /// Consumes a chunk at once, where there is such a function.
    pub(crate) prefill: Option<Stage>,
    /// Consumes a token.
    pub(crate) decode: Stage,
    /// Tokens that the caches have room for.
    pub(crate) context: usize,
    form: &'static str,
}

impl CoreMlModel {
    /// Opens a directory with the evaluator; `precision` says how it keeps fp16 values.
    ///
    /// # Errors
    /// No known set of packages, or one of them cannot be loaded or driven.
    pub fn open(dir: &Path, precision: Precision) -> Result<Self, OpenError> {
        Self::open_with(dir, &|package| Ok(Arc::new(EvaluatorPredictor::load(package, precision)?)))
    }

    /// Opens a directory with packages loaded by `load`.
    ///
    /// # Errors
    /// No known set of packages, or one of them cannot be loaded or driven.
    pub fn open_with(dir: &Path, load: &LoadPackage<'_>) -> Result<Self, OpenError> {
        let form = Form::of(dir)?;
        let config = read_config(dir)?;
        let load = |package: &PathBuf| {
            load(package).map_err(|source| OpenError::Package { package: package.clone(), source })
        };
        let (mut predictors, mut prefill, mut embedding) = (Vec::new(), None, None);
        let decode;
        match &form {
            Form::Multifunction(package) => {
                let predictor = load(package)?;
                let stage = |name: &str| {
                    let signature = predictor.signatures().iter().find(|signature| signature.name == name);
                    signature.map(|signature| Stage::of(package, 0, signature, &config)).transpose()
                };
                prefill = stage("prefill")?;
                decode = stage("decode")?.ok_or_else(|| no_function(package, "decode"))?;
                predictors.push(predictor);
            }
            Form::Split { prefill: first, decode: second } => {
                for (index, package) in [first, second].into_iter().enumerate() {
                    predictors.push(load(package)?);
                    let only = only_function(package, predictors[index].as_ref())?;
                    let stage = Stage::of(package, index, only, &config)?;
                    prefill = prefill.or(Some(stage));
                }
                decode = Stage::of(second, 1, only_function(second, predictors[1].as_ref())?, &config)?;
            }
            Form::SpeechSwift { embedding: table, decoder } => {
                embedding = Some(Embedding::Package(load(table)?));
                predictors.push(load(decoder)?);
                decode = Stage::of(decoder, 0, only_function(decoder, predictors[0].as_ref())?, &config)?;
            }
        }
        let embedding = match (&decode.token_input, embedding) {
            (TokenInput::Ids(_), _) => Embedding::Inside,
            (TokenInput::Embeddings(_), Some(package)) => package,
            (TokenInput::Embeddings(_), None) => Embedding::Host(Arc::new(HostTable::open(dir, &config)?)),
        };
        if let Some(prefill) = &prefill {
            agree(form.package(), prefill, &decode)?;
        }
        let context = decode.context().unwrap_or(config.max_position_embeddings);
        let form = form.name();
        Ok(Self { parts: Arc::new(Parts { config, predictors, embedding, prefill, decode, context, form }) })
    }
}

fn no_function(package: &Path, function: &str) -> OpenError {
    OpenError::Form {
        package: package.to_owned(),
        function: function.to_owned(),
        what: "it is missing".to_owned(),
    }
}

fn only_function<'a>(package: &Path, predictor: &'a dyn Predictor) -> Result<&'a Signature, OpenError> {
    predictor.signatures().first().ok_or_else(|| no_function(package, "main"))
}

/// Whether two stages can hand their caches to each other.
fn agree(package: &Path, prefill: &Stage, decode: &Stage) -> Result<(), OpenError> {
    let kept = |stage: &Stage| {
        let mut ports: Vec<_> = stage.memory().cloned().collect();
        ports.sort_by(|a, b| a.name.cmp(&b.name));
        ports
    };
    if kept(prefill) == kept(decode) && prefill.carried.len() == decode.carried.len() {
        return Ok(());
    }
    Err(OpenError::Form {
        package: package.to_owned(),
        function: prefill.function.clone(),
        what: "its caches are not those of the decoding function".to_owned(),
    })
}

/// Which packages a directory has.
enum Form {
    Multifunction(PathBuf),
    Split { prefill: PathBuf, decode: PathBuf },
    SpeechSwift { embedding: PathBuf, decoder: PathBuf },
}

impl Form {
    fn of(dir: &Path) -> Result<Self, OpenError> {
        let package = |name: &str| Some(dir.join(name)).filter(|path| path.is_dir());
        if let Some(model) = package("model.mlpackage") {
            return Ok(Self::Multifunction(model));
        }
        if let (Some(prefill), Some(decode)) = (package("prefill.mlpackage"), package("decode.mlpackage")) {
            return Ok(Self::Split { prefill, decode });
        }
        if let (Some(embedding), Some(decoder)) =
            (package("embedding.mlpackage"), package("decoder.mlpackage"))
        {
            return Ok(Self::SpeechSwift { embedding, decoder });
        }
        Err(OpenError::NoPackages { dir: dir.to_owned() })
    }

    fn package(&self) -> &Path {
        match self {
            Self::Multifunction(package) => package,
            Self::Split { prefill, .. } => prefill,
            Self::SpeechSwift { decoder, .. } => decoder,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Multifunction(_) => "multifunction",
            Self::Split { .. } => "split",
            Self::SpeechSwift { .. } => "speech-swift",
        }
    }
}

impl Parts {
    /// Names the form and the execution, so that snapshots are not mixed up.
    pub(crate) fn layout(&self) -> String {
        let caches = if self.decode.states.is_empty() { "io" } else { "state" };
        format!("coreml-1 {} {caches} {} {}", self.form, self.context, self.predictors[0].describe())
    }
}

impl Model for CoreMlModel {
    fn config(&self) -> &TextConfig {
        &self.parts.config
    }

    fn describe(&self) -> String {
        let parts = &self.parts;
        let caches = if parts.decode.states.is_empty() { "caches as inputs" } else { "caches as states" };
        let chunk = match &parts.prefill {
            Some(stage) => format!("prefill by {}", stage.tokens),
            None => "no prefill".to_owned(),
        };
        format!("Core ML package ({}, {caches}, {chunk}), {}", parts.form, parts.predictors[0].describe())
    }

    fn new_sequence(&self, max_context: usize) -> Result<Box<dyn Sequence>, RunError> {
        if max_context > self.parts.context {
            return Err(RunError::ContextLimit { requested: max_context, limit: self.parts.context });
        }
        Ok(Box::new(CoreMlSequence::new(Arc::clone(&self.parts), max_context)?))
    }

    fn context_limit(&self) -> Option<usize> {
        Some(self.parts.context)
    }

    fn prefill_alignment(&self) -> usize {
        self.parts.prefill.as_ref().map_or(1, |stage| stage.tokens)
    }

    fn prefill_returns_all_logits(&self) -> bool {
        self.parts.prefill.is_none()
    }

    fn memory(&self) -> ModelMemory {
        let parts = &self.parts;
        let mut total = ModelMemory::default();
        for (index, predictor) in parts.predictors.iter().enumerate() {
            let own = predictor.memory(&parts.decode.function);
            total.mapped_bytes += own.mapped_bytes;
            total.owned_bytes += own.owned_bytes;
            if index == parts.decode.predictor {
                total.weight_bytes_per_token = own.weight_bytes_per_token;
            }
        }
        match &parts.embedding {
            Embedding::Inside => {}
            Embedding::Host(table) => total.mapped_bytes += table.size_bytes(),
            Embedding::Package(package) => {
                let own = package.memory("main");
                total.mapped_bytes += own.mapped_bytes;
                total.owned_bytes += own.owned_bytes;
            }
        }
        total
    }
}
