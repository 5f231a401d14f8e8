//! The whole check, stage by stage.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use q35_metrics::{Perplexity, VectorError};
use q35_model::{CancelToken, Model, Rows, RunError, TensorSpec, Weights, tensor_table};

use crate::diagnosis::{explain_execution, of_config, of_explanation, of_sites, of_weights};
use crate::hidden::{compare as compare_hidden, first_bad};
use crate::reference_pass::{PassWriter, suite_key};
use crate::report::Collector;
use crate::rows::{Catch, Hidden, Running, Who, compare_or_infinite, pieces, row_error};
use crate::verdict::{judge_execution, judge_logits, judge_sites};
use crate::{
    Check, GreedyReport, Limit, Limits, ModelInfo, ParityError, PerplexityReport, Position, Progress, Prompt,
    PromptReport, ReferencePass, Report, SCHEMA_VERSION, Stage, StateReport, Storage, Thresholds,
    compare_configs, compare_weights, consistency, greedy,
};

/// Tokens computed at a time.
const PIECE: usize = 32;
/// Tokens on which a cause is looked for.
const EXPLAINED_TOKENS: usize = 24;

/// Builds the float reference over any weights.
pub type FloatBuilder<'a> = dyn Fn(&dyn Weights) -> Result<Box<dyn Model>, RunError> + Sync + 'a;

/// The original.
pub struct Source<'a> {
    /// As the user named it.
    pub name: String,
    /// Hash of its files, which keys saved reference passes; only they need it.
    pub hash: Option<String>,
    /// Its numbers.
    pub weights: &'a dyn Weights,
}

/// The arithmetic of an executed candidate, which decides how close it must come to its own weights in float.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// Activations in f32.
    F32,
    /// Activations in f16.
    F16,
    /// Activations in bf16.
    Bf16,
    /// Activations quantized to eight bits for matrix products.
    Int8Activations,
}

impl Execution {
    /// The key in thresholds.
    pub fn key(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8Activations => "int8-activations",
        }
    }
}

/// What is judged.
pub struct Candidate<'a> {
    /// As the user named it.
    pub name: String,
    /// Encoding, the key in the conversion's thresholds: "mlx-4".
    pub kind: String,
    /// Size of its weight files.
    pub size_bytes: Option<u64>,
    /// Its numbers, in the source's convention.
    pub weights: &'a dyn Weights,
    /// How it stores each tensor.
    pub storage: &'a (dyn Fn(&TensorSpec) -> Storage + Sync),
    /// It, executed; without, only its weights are judged.
    pub model: Option<&'a dyn Model>,
    /// The arithmetic of `model`.
    pub execution: Execution,
}

/// What is done.
#[derive(Debug)]
pub struct CheckOptions {
    /// Name and version of the program, for the report.
    pub tool: String,
    /// Whether tensors are compared.
    pub weights: bool,
    /// Whether anything is executed.
    pub run: bool,
    /// Threads for comparing tensors.
    pub threads: usize,
    /// Length of greedy continuations.
    pub greedy_tokens: usize,
    /// Tokens of the first prompt whose hidden states are watched, and which are decoded and cut.
    pub probe_tokens: usize,
    /// A pass of the float reference that was saved.
    pub use_reference: Option<ReferencePass>,
    /// Where to save it.
    pub save_reference: Option<PathBuf>,
    /// Whether the cause of a failing implementation is looked for, by running the float reference with classic
    /// mistakes.
    pub explain: bool,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            tool: format!("q35-parity {}", env!("CARGO_PKG_VERSION")),
            weights: true,
            run: true,
            threads: 1,
            greedy_tokens: 64,
            probe_tokens: 48,
            use_reference: None,
            save_reference: None,
            explain: true,
        }
    }
}

/// Compares `candidate` with `source` over `prompts`.
///
/// # Errors
/// Something could not be read, built or run; the two are different models; a saved reference is stale; `cancel` was
/// used. A candidate outside its limits is a [`Report`] that has not passed.
#[allow(clippy::too_many_arguments)]
pub fn check(
    source: &Source<'_>,
    candidate: &Candidate<'_>,
    prompts: &[Prompt],
    thresholds: &Thresholds,
    build: &FloatBuilder<'_>,
    mut options: CheckOptions,
    cancel: &CancelToken,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report, ParityError> {
    let saved = options.use_reference.take();
    let no_limits = Limits::default();
    let limits = thresholds.implementation_of(candidate.execution.key()).unwrap_or(&no_limits);
    let table = tensor_table(source.weights.config());
    let weights = table.iter().map(|spec| spec.shape.iter().product::<usize>() as u64).sum();
    let conversion_limits = thresholds.conversion_of(&candidate.kind, weights).unwrap_or(&no_limits);
    let job = Job {
        source,
        candidate,
        prompts,
        build,
        options: &options,
        limits,
        conversion_limits,
        cancel,
        progress,
    };
    let mut report = job.empty_report();
    report.config = compare_configs(source.weights.config(), candidate.weights.config())?;
    report.findings.extend(of_config(&report.config));
    let same_config = Limit { limit: 0.0, because: "a conversion changes no setting of the model".into() };
    report.checks.push(Check::at_most("config.differences", report.config.len() as f64, &same_config));
    if options.weights {
        job.weights(&mut report)?;
    }
    // What cannot be read cannot be run.
    let readable = report.weights.as_ref().is_none_or(|check| !check.tensors.iter().any(|t| t.unreadable));
    if options.run && readable {
        if prompts.is_empty() {
            return Err(ParityError::EmptySuite);
        }
        let pass = job.reference_pass(saved, &mut report)?;
        job.side_by_side(&pass, &mut report)?;
        job.consistency(&mut report)?;
        job.judge(&mut report);
        job.diagnose(&mut report)?;
    }
    report.passed = report.checks.iter().all(|check| check.passed);
    Ok(report)
}

/// The arguments of a check, for its stages.
struct Job<'a> {
    source: &'a Source<'a>,
    candidate: &'a Candidate<'a>,
    prompts: &'a [Prompt],
    build: &'a FloatBuilder<'a>,
    options: &'a CheckOptions,
    limits: &'a Limits,
    conversion_limits: &'a Limits,
    cancel: &'a CancelToken,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl Job<'_> {
    fn empty_report(&self) -> Report {
        let candidate = self.candidate;
        Report {
            schema_version: SCHEMA_VERSION,
            tool: self.options.tool.clone(),
            passed: false,
            reference: ModelInfo {
                name: self.source.name.clone(),
                description: "float reference, f32".into(),
                kind: "float".into(),
                execution: "f32".into(),
                hash: self.source.hash.clone(),
                size_bytes: None,
            },
            candidate: ModelInfo {
                name: candidate.name.clone(),
                description: candidate.model.map_or("not executed".into(), |model| model.describe()),
                kind: candidate.kind.clone(),
                execution: candidate.execution.key().into(),
                hash: None,
                size_bytes: candidate.size_bytes,
            },
            checks: Vec::new(),
            findings: Vec::new(),
            config: Vec::new(),
            weights: None,
            implementation: None,
            conversion: None,
            total: None,
            perplexity: None,
            prompts: Vec::new(),
            implementation_sites: Vec::new(),
            conversion_sites: Vec::new(),
            states: Vec::new(),
            consistency: Vec::new(),
            greedy: Vec::new(),
            seconds: BTreeMap::new(),
        }
    }

    fn weights(&self, report: &mut Report) -> Result<(), ParityError> {
        let begin = Instant::now();
        let threads = self.options.threads;
        let found = compare_weights(
            self.source.weights,
            self.candidate.weights,
            self.candidate.storage,
            threads,
            self.cancel,
            self.progress,
        )?;
        report.findings.extend(of_weights(&found));
        let all =
            Limit { limit: 0.0, because: "every tensor lies within the rounding of its encoding".into() };
        report.checks.push(Check::at_most("weights.tensors_outside", found.failed().count() as f64, &all));
        report.weights = Some(found);
        report.seconds.insert("weights".into(), begin.elapsed().as_secs_f64());
        Ok(())
    }

    /// The probe: the beginning of the first prompt that is a conversation or text like any other.
    fn probe(&self) -> Prompt {
        let first = &self.prompts[0];
        let length = first.ids.len().min(self.options.probe_tokens.max(2));
        Prompt::new(first.name.clone(), first.kind.clone(), first.ids[..length].to_vec())
    }

    fn hidden(&self) -> Hidden {
        Hidden::new(self.probe().ids.len(), self.source.weights.config().hidden_size)
    }

    fn build(&self, who: Who, weights: &dyn Weights) -> Result<Box<dyn Model>, ParityError> {
        (self.build)(weights).map_err(|source| ParityError::Build { who: who.words(), source })
    }

    /// Runs the float reference on the original weights, or takes the saved pass.
    fn reference_pass(
        &self,
        saved: Option<ReferencePass>,
        report: &mut Report,
    ) -> Result<ReferencePass, ParityError> {
        let begin = Instant::now();
        let suite = suite_key(self.prompts, self.options.greedy_tokens);
        let hash = self.source.hash.as_deref().unwrap_or("");
        if let Some(saved) = saved {
            saved.expect(hash, &suite)?;
            return Ok(saved);
        }
        let vocab = self.source.weights.config().vocab_size;
        let greedy_tokens = self.options.greedy_tokens;
        let total: usize =
            self.prompts.iter().map(|p| p.ids.len() + if p.greedy { greedy_tokens } else { 0 }).sum();
        let mut done = 0;
        let mut advance = |tokens: usize| {
            done += tokens as u64;
            (self.progress)(Progress { stage: Stage::Reference, done, total: total as u64 });
        };
        advance(0);
        let save = self.options.save_reference.as_deref();
        let mut writer = PassWriter::create(save, vocab, hash, suite)?;
        let model = self.build(Who::Reference, self.source.weights)?;
        let mut greedy = BTreeMap::new();
        let mut hidden = None;
        for (index, prompt) in self.prompts.iter().enumerate() {
            let catch = Catch::with_hidden(self.cancel, (index == 0).then(|| self.hidden()));
            let mut running = Running::start(Who::Reference, &*model, &prompt.name, prompt.ids.len(), catch)?;
            for (piece, scored) in pieces(prompt, PIECE) {
                running.feed(&prompt.ids[piece.clone()], if scored { Rows::All } else { Rows::None })?;
                writer.push(&running.catch.rows)?;
                advance(piece.len());
            }
            hidden = hidden.or(running.catch.hidden.take());
            drop(running);
            if prompt.greedy && greedy_tokens > 0 {
                let tokens =
                    greedy::continue_greedily(Who::Reference, &*model, prompt, greedy_tokens, self.cancel)?;
                greedy.insert(prompt.name.clone(), tokens);
                advance(greedy_tokens);
            }
        }
        let pass = writer.finish(greedy, hidden.unwrap_or_default())?;
        report.seconds.insert("reference".into(), begin.elapsed().as_secs_f64());
        Ok(pass)
    }

    /// Runs the candidate and the float reference on its weights in step, and compares all three.
    fn side_by_side(&self, pass: &ReferencePass, report: &mut Report) -> Result<(), ParityError> {
        let begin = Instant::now();
        let total: usize = self.prompts.iter().map(|p| p.ids.len()).sum();
        let mut done = 0;
        let mut advance = |tokens: usize| {
            done += tokens as u64;
            (self.progress)(Progress { stage: Stage::Candidate, done, total: total as u64 });
        };
        advance(0);
        let own = self.build(Who::OwnFloat, self.candidate.weights)?;
        let step =
            self.candidate.model.map_or(PIECE, |model| PIECE.next_multiple_of(model.prefill_grid().max(1)));
        let mut sums = Sums::new();
        for (index, prompt) in self.prompts.iter().enumerate() {
            let catch = || Catch::with_hidden(self.cancel, (index == 0).then(|| self.hidden()));
            let room = prompt.ids.len();
            let mut float = Running::start(Who::OwnFloat, &*own, &prompt.name, room, catch())?;
            let mut executed = match self.candidate.model {
                Some(model) => Some(Running::start(Who::Candidate, model, &prompt.name, room, catch())?),
                None => None,
            };
            let mut of_prompt = PromptReport {
                name: prompt.name.clone(),
                kind: prompt.kind.clone(),
                tokens: prompt.ids.len(),
                scored_from: prompt.scored_from,
                ..PromptReport::default()
            };
            for (piece, scored) in pieces(prompt, step) {
                let rows = if scored { Rows::All } else { Rows::None };
                float.feed(&prompt.ids[piece.clone()], rows)?;
                if let Some(executed) = &mut executed {
                    executed.feed(&prompt.ids[piece.clone()], rows)?;
                }
                if scored {
                    let found = executed.as_ref().map(|running| running.catch.rows.as_slice());
                    sums.piece(pass, prompt, piece.clone(), &float.catch.rows, found, &mut of_prompt)?;
                }
                advance(piece.len());
            }
            if let Some(executed) = &mut executed {
                let expected = float.sequence().recurrent_states().map_err(|error| float.fail(error))?;
                let found = executed.sequence().recurrent_states().map_err(|error| executed.fail(error))?;
                sums.states(&expected, &found);
            }
            if index == 0 {
                let config = self.source.weights.config();
                let own_hidden = float.catch.hidden.take().unwrap_or_default();
                report.conversion_sites = compare_hidden(config, pass.hidden(), &own_hidden);
                if let Some(found) = executed.as_mut().and_then(|running| running.catch.hidden.take()) {
                    report.implementation_sites = compare_hidden(config, &own_hidden, &found);
                }
            }
            report.prompts.push(of_prompt);
        }
        self.greedy(pass, &*own, report)?;
        sums.fill(report, self.candidate.model.is_some(), self.limits, self.conversion_limits);
        report.seconds.insert("candidate".into(), begin.elapsed().as_secs_f64());
        Ok(())
    }

    fn greedy(&self, pass: &ReferencePass, own: &dyn Model, report: &mut Report) -> Result<(), ParityError> {
        let count = self.options.greedy_tokens;
        let undecided = self.limits.undecided_margin.as_ref().map_or(0.0, |limit| limit.limit);
        for prompt in self.prompts.iter().filter(|prompt| prompt.greedy && count > 0) {
            let Some(expected) = pass.greedy(&prompt.name) else { continue };
            let chooser = self.candidate.model.unwrap_or(own);
            let who = if self.candidate.model.is_some() { Who::Candidate } else { Who::OwnFloat };
            let same_as_reference = greedy::same_choices(who, chooser, prompt, expected, 0.0, self.cancel)?;
            let mut tokens = 0;
            let same_as_own_float = match self.candidate.model {
                Some(model) => {
                    let chosen =
                        greedy::continue_greedily(Who::Candidate, model, prompt, count, self.cancel)?;
                    tokens = chosen.len();
                    Some(greedy::same_choices(Who::OwnFloat, own, prompt, &chosen, undecided, self.cancel)?)
                }
                None => None,
            };
            let prompt = prompt.name.clone();
            report.greedy.push(GreedyReport { prompt, tokens, same_as_own_float, same_as_reference });
        }
        Ok(())
    }

    fn consistency(&self, report: &mut Report) -> Result<(), ParityError> {
        let Some(model) = self.candidate.model else { return Ok(()) };
        let begin = Instant::now();
        report.consistency = consistency::examine(model, &self.probe(), self.cancel, self.progress)?;
        report.seconds.insert("consistency".into(), begin.elapsed().as_secs_f64());
        Ok(())
    }

    fn judge(&self, report: &mut Report) {
        let mut checks = Vec::new();
        if let Some(found) = &report.implementation {
            judge_logits("implementation", found, self.limits, &mut checks);
            judge_sites("implementation", &report.implementation_sites, self.limits, &mut checks);
            // All of them are asked for: fewer were made only if the caller wanted fewer.
            let worst =
                report.greedy.iter().filter_map(|greedy| Some((greedy.same_as_own_float?, greedy.tokens)));
            let worst = worst.min_by_key(|(same, tokens)| (*same as isize) - (*tokens as isize));
            judge_execution(&report.states, &report.consistency, worst, self.limits, &mut checks);
        }
        if let Some(found) = &report.conversion {
            judge_logits("conversion", found, self.conversion_limits, &mut checks);
            judge_sites("conversion", &report.conversion_sites, self.conversion_limits, &mut checks);
        }
        if let Some(found) = &report.total {
            judge_logits("total", found, self.conversion_limits, &mut checks);
        }
        report.checks.extend(checks);
    }

    /// Says where a failing run first goes wrong, and why if a classic mistake explains it.
    fn diagnose(&self, report: &mut Report) -> Result<(), ParityError> {
        let failed =
            |scope: &str| report.checks.iter().any(|check| !check.passed && check.name.starts_with(scope));
        let (implementation, conversion) = (failed("implementation."), failed("conversion."));
        if implementation {
            let limit = self.limits.hidden_relative.as_ref().map_or(1e-3, |limit| limit.limit);
            let bad = first_bad(&report.implementation_sites, limit, 50.0);
            let part = bad.map(|site| site.part.clone());
            let whole = !report.implementation_sites.is_empty();
            let finding = of_sites("implementation", bad, whole && self.logits_differ(report));
            let begin = Instant::now();
            if let (true, Some(model)) =
                (self.options.explain && self.logits_differ(report), self.candidate.model)
            {
                let mut prompt = self.probe();
                prompt.ids.truncate(EXPLAINED_TOKENS);
                let found = explain_execution(
                    self.candidate.weights,
                    model,
                    &prompt,
                    part.as_deref().or(whole.then_some("head")),
                    self.build,
                    self.cancel,
                    self.progress,
                )?;
                report.findings.extend(found.map(|found| of_explanation(self.candidate.weights, &found)));
            }
            report.findings.extend(finding);
            self.inconsistencies(report);
            report.seconds.insert("diagnosis".into(), begin.elapsed().as_secs_f64());
        }
        if conversion {
            let limit = self.conversion_limits.hidden_relative.as_ref().map_or(0.5, |limit| limit.limit);
            let bad = first_bad(&report.conversion_sites, limit, 4.0);
            report.findings.extend(of_sites("conversion", bad, false));
        }
        Ok(())
    }

    fn logits_differ(&self, report: &Report) -> bool {
        let failed = |name: &str| report.checks.iter().any(|check| !check.passed && check.name == name);
        ["mean_kl", "p99_kl", "max_kl", "hidden_relative"]
            .into_iter()
            .any(|what| failed(&format!("implementation.{what}")))
    }

    fn inconsistencies(&self, report: &mut Report) {
        let Some(limit) = &self.limits.consistency_kl else { return };
        // NaN is beyond any limit.
        let beyond = |kl: f64| kl.is_nan() || kl > limit.limit;
        for way in report.consistency.iter().filter(|way| beyond(way.mean_kl)) {
            report.findings.push(crate::Finding {
                scope: "implementation".into(),
                layer: None,
                class: "cache".into(),
                tensor: None,
                message: format!(
                    "the same tokens by {} differ from one prefill: mean KL {:.2e}, largest difference {:.2e}",
                    way.way, way.mean_kl, way.max_abs_difference
                ),
            });
        }
    }
}

/// All running sums of the comparison.
struct Sums {
    implementation: Collector,
    conversion: Collector,
    total: Collector,
    places: Vec<Position>,
    perplexity: [Perplexity; 3],
    states: BTreeMap<usize, StateReport>,
    original: Vec<f32>,
    row: usize,
    /// The first row of the candidate that is no distribution, counted as `places`.
    broken: Option<usize>,
}

impl Sums {
    fn new() -> Self {
        Self {
            implementation: Collector::new(),
            conversion: Collector::new(),
            total: Collector::new(),
            places: Vec::new(),
            perplexity: [Perplexity::default(); 3],
            states: BTreeMap::new(),
            original: Vec::new(),
            row: 0,
            broken: None,
        }
    }

    /// Compares the rows of one piece: `own` and `found` are [piece, vocab].
    fn piece(
        &mut self,
        pass: &ReferencePass,
        prompt: &Prompt,
        piece: std::ops::Range<usize>,
        own: &[f32],
        found: Option<&[f32]>,
        report: &mut PromptReport,
    ) -> Result<(), ParityError> {
        for (offset, position) in piece.clone().enumerate() {
            pass.row(self.row, &mut self.original)?;
            self.row += 1;
            let vocab = self.original.len();
            let row = |rows: &[f32]| rows.get(offset * vocab..(offset + 1) * vocab).unwrap_or(&[]).to_vec();
            let own_row = row(own);
            let next = prompt.ids.get(position + 1).map(|id| *id as usize);
            let conversion = compare_or_infinite(&self.original, &own_row).map_err(row_error(
                Who::OwnFloat,
                prompt,
                position,
            ))?;
            report.conversion_kl.push(conversion.kl);
            self.conversion.push(&conversion);
            if let Some(target) = next {
                self.perplexity[0].push(conversion.reference_log_sum_exp - f64::from(self.original[target]));
                self.perplexity[1].push(conversion.candidate_log_sum_exp - f64::from(own_row[target]));
            }
            if let Some(found) = found {
                let found_row = row(found);
                let judge = |expected: &[f32]| {
                    compare_or_infinite(expected, &found_row).map_err(row_error(
                        Who::Candidate,
                        prompt,
                        position,
                    ))
                };
                let (implementation, total) = (judge(&own_row)?, judge(&self.original)?);
                if !implementation.kl.is_finite() {
                    self.broken.get_or_insert(self.places.len());
                }
                report.implementation_kl.push(implementation.kl);
                report.total_kl.push(total.kl);
                self.implementation.push(&implementation);
                self.total.push(&total);
                if let Some(target) = next {
                    self.perplexity[2].push(total.candidate_log_sum_exp - f64::from(found_row[target]));
                }
            }
            self.places.push(Position { prompt: prompt.name.clone(), position });
        }
        Ok(())
    }

    fn states(&mut self, expected: &[q35_model::RecurrentState], found: &[q35_model::RecurrentState]) {
        for state in expected {
            let other = found.iter().find(|other| other.layer == state.layer);
            let error = match other {
                Some(other) if other.values.len() == state.values.len() => {
                    VectorError::of(&state.values, &other.values)
                }
                _ => VectorError::of(&[1.0], &[0.0]),
            };
            let [cosine, relative] = match error.not_finite() {
                0 => [error.cosine(), error.relative()],
                _ => [-1.0, f64::INFINITY],
            };
            let worst = self.states.entry(state.layer).or_insert(StateReport {
                layer: state.layer,
                cosine: 1.0,
                relative: 0.0,
            });
            worst.cosine = worst.cosine.min(cosine);
            worst.relative = worst.relative.max(relative);
        }
    }

    fn fill(self, report: &mut Report, executed: bool, limits: &Limits, conversion: &Limits) {
        let margin = |limits: &Limits| limits.undecided_margin.as_ref().map_or(0.0, |limit| limit.limit);
        report.conversion = Some(self.conversion.finish(&self.places, margin(conversion)));
        if executed {
            report.implementation = Some(self.implementation.finish(&self.places, margin(limits)));
            report.total = Some(self.total.finish(&self.places, margin(conversion)));
        }
        if let [Some(reference), Some(own_float)] = [self.perplexity[0].value(), self.perplexity[1].value()] {
            let (tokens, candidate) = (self.perplexity[0].tokens(), self.perplexity[2].value());
            report.perplexity = Some(PerplexityReport { tokens, reference, own_float, candidate });
        }
        if let Some(place) = self.broken.and_then(|index| self.places.get(index)) {
            report.findings.push(crate::Finding {
                scope: "implementation".into(),
                layer: None,
                class: "logits".into(),
                tensor: None,
                message: format!(
                    "the candidate's logits hold NaN or infinities from position {} of prompt `{}` on",
                    place.position, place.prompt
                ),
            });
        }
        report.states = self.states.into_values().collect();
    }
}
