//! [`CoreMlModel`]: a directory of packages as a [`Model`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use q35_architecture::TextConfig;
use q35_inference::{Model, ModelMemory, RunError, Sequence};

use crate::config::read_config;
use crate::embedding::{Embedding, HostTable};
use crate::evaluator::EvaluatorPredictor;
use crate::predictor::{Predictor, Signature};
use crate::sequence::CoreMlSequence;
use crate::shared::Shared;
use crate::stage::{Stage, TokenInput};
use crate::{OpenError, Precision, PredictError};

/// Loads one package into its predictor.
pub type LoadPackage<'a> = dyn Fn(&Path) -> Result<Arc<dyn Predictor>, PredictError> + 'a;

/// A loaded directory of Core ML packages.
pub struct CoreMlModel {
    shared: Arc<Shared>,
}

impl CoreMlModel {
    /// Opens a directory in the evaluator; `precision` selects its arithmetic for fp16 values.
    ///
    /// # Errors
    /// The directory has no supported set of packages, or one of them cannot be loaded or has unsuitable functions.
    pub fn open(dir: &Path, precision: Precision) -> Result<Self, OpenError> {
        Self::open_with(dir, &|package| Ok(Arc::new(EvaluatorPredictor::load(package, precision)?)))
    }

    /// Opens a directory, loading each package with `load`.
    ///
    /// # Errors
    /// The directory has no supported set of packages, or one of them cannot be loaded or has unsuitable functions.
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
                    signature
                        .map(|signature| Stage::from_signature(package, 0, signature, &config))
                        .transpose()
                };
                prefill = stage("prefill")?;
                decode = stage("decode")?.ok_or_else(|| no_function(package, "decode"))?;
                predictors.push(predictor);
            }
            Form::Split { prefill: first, decode: second } => {
                for (index, package) in [first, second].into_iter().enumerate() {
                    predictors.push(load(package)?);
                    let only = only_function(package, predictors[index].as_ref())?;
                    let stage = Stage::from_signature(package, index, only, &config)?;
                    prefill = prefill.or(Some(stage));
                }
                decode = Stage::from_signature(
                    second,
                    1,
                    only_function(second, predictors[1].as_ref())?,
                    &config,
                )?;
            }
            Form::SpeechSwift { embedding: table, decoder } => {
                embedding = Some(Embedding::Package(load(table)?));
                predictors.push(load(decoder)?);
                decode = Stage::from_signature(
                    decoder,
                    0,
                    only_function(decoder, predictors[0].as_ref())?,
                    &config,
                )?;
            }
        }
        let embedding = match (&decode.token_input, embedding) {
            (TokenInput::Ids(_), _) => Embedding::Inside,
            (TokenInput::Embeddings(_), Some(package)) => package,
            (TokenInput::Embeddings(_), None) => Embedding::Host(Arc::new(HostTable::open(dir, &config)?)),
        };
        if let Some(prefill) = &prefill {
            check_same_caches(form.package(), prefill, &decode)?;
        }
        let context = decode.context().unwrap_or(config.max_position_embeddings);
        let form = form.name();
        let shared = Shared { config, predictors, embedding, prefill, decode, context, form };
        Ok(Self { shared: Arc::new(shared) })
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

/// Checks that the two stages have the same caches and states, so that one can continue from the other's.
fn check_same_caches(package: &Path, prefill: &Stage, decode: &Stage) -> Result<(), OpenError> {
    let persistent = |stage: &Stage| {
        let mut ports: Vec<_> = stage.persistent().cloned().collect();
        ports.sort_by(|a, b| a.name.cmp(&b.name));
        ports
    };
    if persistent(prefill) == persistent(decode) && prefill.caches.len() == decode.caches.len() {
        return Ok(());
    }
    Err(OpenError::Form {
        package: package.to_owned(),
        function: prefill.function.clone(),
        what: "its caches differ from those of the decode function".to_owned(),
    })
}

/// The packages of a directory.
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

impl Model for CoreMlModel {
    fn config(&self) -> &TextConfig {
        &self.shared.config
    }

    fn describe(&self) -> String {
        let shared = &self.shared;
        let caches = if shared.decode.states.is_empty() { "caches as inputs" } else { "caches as states" };
        let chunk = match &shared.prefill {
            Some(stage) => format!("prefill by {}", stage.tokens),
            None => "no prefill".to_owned(),
        };
        format!("Core ML package ({}, {caches}, {chunk}), {}", shared.form, shared.predictors[0].describe())
    }

    fn new_sequence(&self, max_context: usize) -> Result<Box<dyn Sequence>, RunError> {
        if max_context > self.shared.context {
            return Err(RunError::ContextLimit { requested: max_context, limit: self.shared.context });
        }
        Ok(Box::new(CoreMlSequence::new(Arc::clone(&self.shared), max_context)?))
    }

    fn context_limit(&self) -> Option<usize> {
        Some(self.shared.context)
    }

    fn prefill_alignment(&self) -> usize {
        self.shared.prefill.as_ref().map_or(1, |stage| stage.tokens)
    }

    fn prefill_returns_all_logits(&self) -> bool {
        self.shared.prefill.is_none()
    }

    fn memory(&self) -> ModelMemory {
        let shared = &self.shared;
        let mut total = ModelMemory::default();
        for (index, predictor) in shared.predictors.iter().enumerate() {
            let memory = predictor.memory(&shared.decode.function);
            total.mapped_bytes += memory.mapped_bytes;
            total.owned_bytes += memory.owned_bytes;
            if index == shared.decode.predictor {
                total.weight_bytes_per_token = memory.weight_bytes_per_token;
            }
        }
        match &shared.embedding {
            Embedding::Inside => {}
            Embedding::Host(table) => total.mapped_bytes += table.size_bytes(),
            Embedding::Package(package) => {
                let memory = package.memory("main");
                total.mapped_bytes += memory.mapped_bytes;
                total.owned_bytes += memory.owned_bytes;
            }
        }
        total
    }
}
