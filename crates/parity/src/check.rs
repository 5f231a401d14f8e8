//! The whole check, stage by stage.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use q35_architecture::{TensorSpec, tensor_table};
use q35_inference::{CancelToken, LogitsFor, Model, Weights};

use crate::diagnosis::{explain_execution, of_config, of_explanation, of_sites, of_weights};
use crate::float_pass::{FloatPass, Logits};
use crate::greedy::Continuation;
use crate::hidden::{compare as compare_hidden, first_bad};
use crate::reference_pass::suite_key;
use crate::rows::{Catch, Hidden, Running, Who, pieces};
use crate::sums::{Rows as SideBySide, Sums};
use crate::verdict::{judge_execution, judge_logits, judge_sites};
use crate::{
    Check, GreedyReport, Limit, Limits, ModelInfo, ParityError, Progress, Prompt, PromptReport,
    ReferencePass, Report, SCHEMA_VERSION, Stage, Storage, Subject, Thresholds, compare_configs,
    compare_weights, consistency,
};

/// Tokens that the candidate computes at a time.
const PIECE: usize = 32;
/// Logits of one model in memory at a time, in numbers.
const LOGITS_AT_A_TIME: usize = 1 << 25;
/// Tokens on which a cause is looked for.
const EXPLAINED_TOKENS: usize = 24;

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
    /// The CPU backend's fast mode: activations of fifteen bits in products, a cache of eight bits.
    Fast,
}

impl Execution {
    /// The key in thresholds.
    pub fn key(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Fast => "fast",
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
    /// Tokens of the first prompt whose hidden states are watched.
    pub probe_tokens: usize,
    /// Tokens of the first prompt that are computed in other ways too.
    pub decoded_tokens: usize,
    /// Whether these ways are more than decoding token by token: cuts at several places, and a snapshot.
    pub thorough: bool,
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
            decoded_tokens: 48,
            thorough: true,
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
    mut options: CheckOptions,
    cancel: &CancelToken,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report, ParityError> {
    let saved = options.use_reference.take();
    let no_limits = Limits::default();
    let limits = thresholds.implementation_of(candidate.execution.key()).unwrap_or(&no_limits);
    let job = Job { source, candidate, prompts, options: &options, limits, thresholds, cancel, progress };
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
        let continuations = job.continuations(&mut report)?;
        let original = job.original_pass(saved, &continuations, &mut report)?;
        let own = job.own_pass(&continuations, &mut report)?;
        job.side_by_side(&original, &own, &mut report)?;
        job.greedy(&original, &own, &continuations, &mut report)?;
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
    options: &'a CheckOptions,
    limits: &'a Limits,
    thresholds: &'a Thresholds,
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

    /// The beginning of the first prompt.
    fn beginning(&self, tokens: usize) -> Prompt {
        let first = &self.prompts[0];
        let length = first.ids.len().min(tokens.max(2));
        Prompt::new(first.name.clone(), first.kind.clone(), first.ids[..length].to_vec())
    }

    fn hidden(&self) -> Hidden {
        let positions = self.beginning(self.options.probe_tokens).ids.len();
        Hidden::new(positions, self.source.weights.config().hidden_size)
    }

    /// What the candidate says by itself after the prompts that ask for it.
    fn continuations(&self, report: &mut Report) -> Result<Vec<Continuation>, ParityError> {
        let count = self.options.greedy_tokens;
        let Some(model) = self.candidate.model.filter(|_| count > 0) else { return Ok(Vec::new()) };
        let begin = Instant::now();
        let asked: Vec<&Prompt> = self.prompts.iter().filter(|prompt| prompt.greedy).collect();
        let total = (asked.len() * count) as u64;
        let mut done = 0;
        let mut advance = |tokens: u64| {
            done += tokens;
            (self.progress)(Progress { stage: Stage::Greedy, done, total });
        };
        advance(0);
        let continuations = asked
            .into_iter()
            .map(|prompt| Continuation::of(model, prompt, count, self.cancel, &mut || advance(1)))
            .collect::<Result<_, _>>()?;
        report.seconds.insert("greedy".into(), begin.elapsed().as_secs_f64());
        Ok(continuations)
    }

    /// The float reference on the original weights over the prompts, then over the continuations. What was saved is
    /// taken for the prompts.
    fn original_pass(
        &self,
        saved: Option<ReferencePass>,
        continuations: &[Continuation],
        report: &mut Report,
    ) -> Result<FloatPass, ParityError> {
        let begin = Instant::now();
        let weights = self.source.weights;
        let hash = self.source.hash.as_deref().unwrap_or("");
        let suite = suite_key(self.prompts);
        let pass = match saved {
            Some(saved) => {
                let scored: Vec<usize> = self.prompts.iter().map(Prompt::scored).collect();
                let mut pass = saved.expect(hash, &suite, &scored, weights.config().hidden_size)?;
                if !continuations.is_empty() {
                    let live = prompts_of(&[], continuations);
                    let live = self.float(Who::Reference, weights, &live, Hidden::default())?;
                    pass.prompts.extend(live.prompts);
                }
                pass
            }
            None => {
                let all = prompts_of(self.prompts, continuations);
                let mut pass = self.float(Who::Reference, weights, &all, self.hidden())?;
                if let Some(path) = &self.options.save_reference {
                    // Continuations are the candidate's and no business of the next one.
                    let live = pass.prompts.split_off(self.prompts.len());
                    let saved = ReferencePass::new(hash, suite, pass);
                    saved.save(path)?;
                    pass = saved.into_pass();
                    pass.prompts.extend(live);
                }
                pass
            }
        };
        report.seconds.insert("reference".into(), begin.elapsed().as_secs_f64());
        Ok(pass)
    }

    /// The float reference on the candidate's weights over the same.
    fn own_pass(
        &self,
        continuations: &[Continuation],
        report: &mut Report,
    ) -> Result<FloatPass, ParityError> {
        let begin = Instant::now();
        let all = prompts_of(self.prompts, continuations);
        let pass = self.float(Who::OwnFloat, self.candidate.weights, &all, self.hidden())?;
        report.seconds.insert("own_float".into(), begin.elapsed().as_secs_f64());
        Ok(pass)
    }

    fn float(
        &self,
        who: Who,
        weights: &dyn Weights,
        prompts: &[Prompt],
        hidden: Hidden,
    ) -> Result<FloatPass, ParityError> {
        let stage = if who == Who::Reference { Stage::Reference } else { Stage::OwnFloat };
        let advance = |done, total| (self.progress)(Progress { stage, done, total });
        FloatPass::run(who, weights, prompts, hidden, self.cancel, &advance)
    }

    /// Makes the logits of both passes, runs the candidate in step, and compares all three.
    fn side_by_side(
        &self,
        original: &FloatPass,
        own: &FloatPass,
        report: &mut Report,
    ) -> Result<(), ParityError> {
        let begin = Instant::now();
        let config = self.source.weights.config();
        let vocab = config.vocab_size;
        let total: usize = self.prompts.iter().map(|p| p.ids.len()).sum();
        let mut done = 0;
        let mut advance = |tokens: usize| {
            done += tokens as u64;
            (self.progress)(Progress { stage: Stage::Candidate, done, total: total as u64 });
        };
        advance(0);
        let original_logits = Logits::new(Who::Reference, original, self.source.weights)?;
        let own_logits = Logits::new(Who::OwnFloat, own, self.candidate.weights)?;
        let step = self
            .candidate
            .model
            .map_or(PIECE, |model| PIECE.next_multiple_of(model.prefill_alignment().max(1)));
        let pieces_at_a_time = (LOGITS_AT_A_TIME / vocab / step).max(1);
        let mut sums = Sums::new();
        for (index, prompt) in self.prompts.iter().enumerate() {
            let mut executed = match self.candidate.model {
                Some(model) => {
                    let catch = Catch::with_hidden(self.cancel, (index == 0).then(|| self.hidden()));
                    let room = prompt.ids.len();
                    Some(Running::start(Who::Candidate, model, &prompt.name, room, catch)?)
                }
                None => None,
            };
            let mut of_prompt = PromptReport {
                name: prompt.name.clone(),
                kind: prompt.kind.clone(),
                tokens: prompt.ids.len(),
                scored_from: prompt.scored_from,
                ..PromptReport::default()
            };
            let pieces = pieces(prompt, step);
            let (before, scored) = pieces.split_at(pieces.partition_point(|(_, scored)| !scored));
            for (piece, _) in before {
                if let Some(executed) = &mut executed {
                    executed.feed(&prompt.ids[piece.clone()], LogitsFor::None)?;
                }
                advance(piece.len());
            }
            for pieces in scored.chunks(pieces_at_a_time) {
                let first = pieces[0].0.start;
                let wanted = first - prompt.scored_from..pieces[pieces.len() - 1].0.end - prompt.scored_from;
                let original = original_logits.of(index, wanted.clone())?;
                let own = own_logits.of(index, wanted)?;
                for (piece, _) in pieces {
                    if self.cancel.is_cancelled() {
                        return Err(ParityError::Cancelled);
                    }
                    if let Some(executed) = &mut executed {
                        executed.feed(&prompt.ids[piece.clone()], LogitsFor::AllTokens)?;
                    }
                    let place = (piece.start - first) * vocab..(piece.end - first) * vocab;
                    let rows = SideBySide {
                        original: &original[place.clone()],
                        own: &own[place],
                        executed: executed.as_ref().map(|running| running.catch.rows.as_slice()),
                    };
                    sums.add(prompt, piece.clone(), vocab, &rows, &mut of_prompt)?;
                    advance(piece.len());
                }
            }
            if let Some(executed) = &mut executed {
                let found = executed.sequence().recurrent_states().map_err(|error| executed.fail(error))?;
                sums.states(&own.prompts[index].states, &found);
            }
            if index == 0 {
                report.conversion_sites = compare_hidden(config, &original.hidden, &own.hidden);
                if let Some(found) = executed.as_mut().and_then(|running| running.catch.hidden.take()) {
                    report.implementation_sites = compare_hidden(config, &own.hidden, &found);
                }
            }
            report.prompts.push(of_prompt);
        }
        sums.fill(report, self.candidate.model.is_some(), self.limits);
        report.seconds.insert("candidate".into(), begin.elapsed().as_secs_f64());
        Ok(())
    }

    fn greedy(
        &self,
        original: &FloatPass,
        own: &FloatPass,
        continuations: &[Continuation],
        report: &mut Report,
    ) -> Result<(), ParityError> {
        let vocab = self.source.weights.config().vocab_size;
        let undecided = self.limits.undecided_margin.as_ref().map_or(0.0, |limit| limit.limit);
        for (index, continuation) in continuations.iter().enumerate() {
            let same = |who: Who, pass: &FloatPass, weights: &dyn Weights, undecided: f64| {
                let scored = 0..continuation.prompt.scored();
                let rows = Logits::new(who, pass, weights)?.of(self.prompts.len() + index, scored)?;
                Ok::<_, ParityError>(continuation.same_choices(&rows, vocab, undecided))
            };
            let same_as_own_float = same(Who::OwnFloat, own, self.candidate.weights, undecided)?;
            let same_as_reference = same(Who::Reference, original, self.source.weights, 0.0)?;
            report.greedy.push(GreedyReport {
                prompt: continuation.prompt.name.clone(),
                tokens: continuation.tokens.len(),
                same_as_own_float,
                same_as_reference,
            });
        }
        Ok(())
    }

    fn consistency(&self, report: &mut Report) -> Result<(), ParityError> {
        let Some(model) = self.candidate.model else { return Ok(()) };
        let begin = Instant::now();
        let prompt = self.beginning(self.options.decoded_tokens);
        report.consistency =
            consistency::examine(model, &prompt, self.options.thorough, self.cancel, self.progress)?;
        report.seconds.insert("consistency".into(), begin.elapsed().as_secs_f64());
        Ok(())
    }

    fn conversion_limits(&self, report: &Report) -> Limits {
        let config = self.source.weights.config();
        let table = tensor_table(config);
        let subject = Subject {
            weights: table.iter().map(|spec| spec.shape.iter().product::<usize>() as u64).sum(),
            vocab_size: config.vocab_size,
            perplexity: report.perplexity.map(|found| found.reference),
        };
        self.thresholds.conversion_of(&self.candidate.kind, subject).cloned().unwrap_or_default()
    }

    fn judge(&self, report: &mut Report) {
        let mut checks = Vec::new();
        let conversion_limits = self.conversion_limits(report);
        if let Some(found) = &report.implementation {
            judge_logits("implementation", found, self.limits, &mut checks);
            judge_sites("implementation", &report.implementation_sites, self.limits, &mut checks);
            // All of them are asked for: fewer were made only if the caller wanted fewer.
            let worst = report.greedy.iter().map(|greedy| (greedy.same_as_own_float, greedy.tokens));
            let worst = worst.min_by_key(|(same, tokens)| (*same as isize) - (*tokens as isize));
            judge_execution(&report.states, &report.consistency, worst, self.limits, &mut checks);
        }
        if let Some(found) = &report.conversion {
            judge_logits("conversion", found, &conversion_limits, &mut checks);
            judge_sites("conversion", &report.conversion_sites, &conversion_limits, &mut checks);
        }
        if let Some(found) = &report.total {
            judge_logits("total", found, &conversion_limits, &mut checks);
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
                let prompt = self.beginning(self.options.probe_tokens.min(EXPLAINED_TOKENS));
                let found = explain_execution(
                    self.candidate.weights,
                    model,
                    &prompt,
                    part.as_deref().or(whole.then_some("head")),
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
            let limit =
                self.conversion_limits(report).hidden_relative.as_ref().map_or(0.5, |limit| limit.limit);
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
                    "the same tokens by {} give other logits: mean KL {:.2e}, largest difference {:.2e}",
                    way.way, way.mean_kl, way.max_abs_difference
                ),
            });
        }
    }
}

/// The prompts of a pass of the float reference, in its order.
fn prompts_of(prompts: &[Prompt], continuations: &[Continuation]) -> Vec<Prompt> {
    prompts.iter().chain(continuations.iter().map(|continuation| &continuation.prompt)).cloned().collect()
}
