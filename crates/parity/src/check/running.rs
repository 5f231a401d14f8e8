//! The stages that read or run the models.

use std::ops::Range;
use std::time::Instant;

use q35_inference::{LogitsFor, Weights};

use super::job::Job;
use crate::accumulate::{ComparisonAccumulator, ThreeWayLogits};
use crate::consistency::check_consistency;
use crate::diagnosis::weight_findings;
use crate::float_pass::{FloatPass, PassLogits};
use crate::greedy::Continuation;
use crate::hidden::compare_hidden;
use crate::reference_pass::suite_key;
use crate::runner::{HiddenStates, LogitRecorder, Participant, RunningSequence, chunks};
use crate::{
    Check, GreedyReport, Limit, ParityError, ParityReport, Progress, Prompt, PromptReport, ReferencePass,
    Stage, compare_weights,
};

/// Tokens of one prefill pass of the candidate.
const CHUNK: usize = 32;
/// Numbers in the logits of one model that are in memory at a time.
const LOGITS_IN_MEMORY: usize = 1 << 25;

impl Job<'_> {
    /// Compares all tensors.
    pub(super) fn compare_weights(&self, report: &mut ParityReport) -> Result<(), ParityError> {
        let begin = Instant::now();
        let check = compare_weights(
            self.source.weights,
            self.candidate.weights,
            self.candidate.storage,
            self.options.threads,
            self.cancel,
            self.progress,
        )?;
        report.findings.extend(weight_findings(&check));
        let none =
            Limit { limit: 0.0, because: "every tensor lies within the rounding of its encoding".into() };
        report.checks.push(Check::at_most("weights.tensors_outside", check.failed().count() as f64, &none));
        report.weights = Some(check);
        report.seconds.insert("weights".into(), begin.elapsed().as_secs_f64());
        Ok(())
    }

    /// The candidate's greedy continuations of the prompts marked for it.
    pub(super) fn generate_continuations(
        &self,
        report: &mut ParityReport,
    ) -> Result<Vec<Continuation>, ParityError> {
        let count = self.options.greedy_tokens;
        let Some(model) = self.candidate.model.filter(|_| count > 0) else { return Ok(Vec::new()) };
        let begin = Instant::now();
        let prompts: Vec<&Prompt> = self.prompts.iter().filter(|prompt| prompt.greedy).collect();
        let total = (prompts.len() * count) as u64;
        let mut done = 0;
        let mut advance = |tokens: u64| {
            done += tokens;
            (self.progress)(Progress { stage: Stage::Greedy, done, total });
        };
        advance(0);
        let continuations = prompts
            .into_iter()
            .map(|prompt| Continuation::generate(model, prompt, count, self.cancel, &mut || advance(1)))
            .collect::<Result<_, _>>()?;
        report.seconds.insert("greedy".into(), begin.elapsed().as_secs_f64());
        Ok(continuations)
    }

    /// The float reference on the original weights, over the prompts and then the continuations. A `saved` pass
    /// replaces the run over the prompts.
    pub(super) fn reference_pass(
        &self,
        saved: Option<ReferencePass>,
        continuations: &[Continuation],
        report: &mut ParityReport,
    ) -> Result<FloatPass, ParityError> {
        let begin = Instant::now();
        let weights = self.source.weights;
        let hash = self.source.hash.as_deref().unwrap_or("");
        let suite = suite_key(self.prompts);
        let pass = match saved {
            Some(saved) => {
                let scored: Vec<usize> = self.prompts.iter().map(Prompt::scored).collect();
                let mut pass = saved.validated(hash, &suite, &scored, weights.config().hidden_size)?;
                if !continuations.is_empty() {
                    let prompts = all_prompts(&[], continuations);
                    let rest =
                        self.float_pass(Participant::Reference, weights, &prompts, HiddenStates::default())?;
                    pass.prompts.extend(rest.prompts);
                }
                pass
            }
            None => {
                let prompts = all_prompts(self.prompts, continuations);
                let hidden = self.probe_hidden_states();
                let mut pass = self.float_pass(Participant::Reference, weights, &prompts, hidden)?;
                if let Some(path) = &self.options.save_reference {
                    // Continuations depend on the candidate and are not saved.
                    let continued = pass.prompts.split_off(self.prompts.len());
                    let saved = ReferencePass::new(hash, suite, pass);
                    saved.save(path)?;
                    pass = saved.into_pass();
                    pass.prompts.extend(continued);
                }
                pass
            }
        };
        report.seconds.insert("reference".into(), begin.elapsed().as_secs_f64());
        Ok(pass)
    }

    /// The float reference on the candidate's weights, over the same prompts.
    pub(super) fn dequantized_pass(
        &self,
        continuations: &[Continuation],
        report: &mut ParityReport,
    ) -> Result<FloatPass, ParityError> {
        let begin = Instant::now();
        let prompts = all_prompts(self.prompts, continuations);
        let hidden = self.probe_hidden_states();
        let pass = self.float_pass(Participant::Dequantized, self.candidate.weights, &prompts, hidden)?;
        report.seconds.insert("own_float".into(), begin.elapsed().as_secs_f64());
        Ok(pass)
    }

    fn float_pass(
        &self,
        participant: Participant,
        weights: &dyn Weights,
        prompts: &[Prompt],
        hidden: HiddenStates,
    ) -> Result<FloatPass, ParityError> {
        let stage = match participant {
            Participant::Reference => Stage::Reference,
            _ => Stage::Dequantized,
        };
        let advance = |done, total| (self.progress)(Progress { stage, done, total });
        FloatPass::run(participant, weights, prompts, hidden, self.cancel, &advance)
    }

    /// Computes the logits of both passes, runs the candidate in step, and compares all three.
    pub(super) fn compare_logits(
        &self,
        reference: &FloatPass,
        dequantized: &FloatPass,
        report: &mut ParityReport,
    ) -> Result<(), ParityError> {
        let begin = Instant::now();
        let mut comparison = LogitComparison {
            job: self,
            reference: PassLogits::new(Participant::Reference, reference, self.source.weights)?,
            dequantized: PassLogits::new(Participant::Dequantized, dequantized, self.candidate.weights)?,
            vocab: self.source.weights.config().vocab_size,
            accumulator: ComparisonAccumulator::new(),
            done: 0,
            total: self.prompts.iter().map(|prompt| prompt.ids.len() as u64).sum(),
        };
        comparison.advance(0);
        for (index, prompt) in self.prompts.iter().enumerate() {
            let mut executed = self.start_candidate(prompt, index == 0)?;
            report.prompts.push(comparison.compare_prompt(index, prompt, executed.as_mut())?);
            if let Some(executed) = &mut executed {
                let states = executed.sequence().recurrent_states().map_err(|error| executed.error(error))?;
                comparison.accumulator.add_states(&dequantized.prompts[index].states, &states);
            }
            if index == 0 {
                let config = self.source.weights.config();
                report.conversion_sites = compare_hidden(config, &reference.hidden, &dequantized.hidden);
                if let Some(hidden) = executed.and_then(|running| running.recorder.hidden) {
                    report.implementation_sites = compare_hidden(config, &dequantized.hidden, &hidden);
                }
            }
        }
        comparison.accumulator.finish(report, self.candidate.model.is_some(), self.limits);
        report.seconds.insert("candidate".into(), begin.elapsed().as_secs_f64());
        Ok(())
    }

    /// An empty sequence of the candidate, if it is executed.
    fn start_candidate<'a>(
        &'a self,
        prompt: &'a Prompt,
        record_hidden: bool,
    ) -> Result<Option<RunningSequence<'a>>, ParityError> {
        let Some(model) = self.candidate.model else { return Ok(None) };
        let hidden = record_hidden.then(|| self.probe_hidden_states());
        let recorder = LogitRecorder::with_hidden(self.cancel, hidden);
        let capacity = prompt.ids.len();
        RunningSequence::start(Participant::Candidate, model, &prompt.name, capacity, recorder).map(Some)
    }

    /// Counts the greedy tokens that both passes of the float reference would choose too.
    pub(super) fn compare_greedy(
        &self,
        reference: &FloatPass,
        dequantized: &FloatPass,
        continuations: &[Continuation],
        report: &mut ParityReport,
    ) -> Result<(), ParityError> {
        let vocab = self.source.weights.config().vocab_size;
        let undecided_margin = self.limits.undecided_margin.as_ref().map_or(0.0, |limit| limit.limit);
        let continued = self.continue_reference(reference, continuations)?;
        for (index, (continuation, float)) in continuations.iter().zip(continued).enumerate() {
            let agreeing = |participant, pass: &FloatPass, weights: &dyn Weights, margin: f64| {
                let scored = 0..continuation.prompt.scored();
                let logits = PassLogits::new(participant, pass, weights)?
                    .compute(self.prompts.len() + index, scored)?;
                Ok::<_, ParityError>(continuation.agreeing_tokens(&logits, vocab, margin))
            };
            let same_as_own_float =
                agreeing(Participant::Dequantized, dequantized, self.candidate.weights, undecided_margin)?;
            let same_as_reference = agreeing(Participant::Reference, reference, self.source.weights, 0.0)?;
            report.greedy.push(GreedyReport {
                prompt: continuation.prompt.name.clone(),
                tokens: continuation.tokens.len(),
                same_as_own_float,
                same_as_reference,
                reference_tokens: float.tokens,
                agreeing: float.agreeing,
                candidate_tokens: continuation.tokens.clone(),
                context: continuation.context().to_vec(),
                texts: None,
            });
        }
        Ok(())
    }

    /// Computes the first tokens of the first prompt in several ways.
    pub(super) fn check_consistency(&self, report: &mut ParityReport) -> Result<(), ParityError> {
        let Some(model) = self.candidate.model else { return Ok(()) };
        let begin = Instant::now();
        let prompt = self.probe_prompt(self.options.decoded_tokens);
        report.consistency =
            check_consistency(model, &prompt, self.options.thorough, self.cancel, self.progress)?;
        report.seconds.insert("consistency".into(), begin.elapsed().as_secs_f64());
        Ok(())
    }
}

/// The three-way comparison under way.
struct LogitComparison<'a> {
    job: &'a Job<'a>,
    reference: PassLogits<'a>,
    dequantized: PassLogits<'a>,
    vocab: usize,
    accumulator: ComparisonAccumulator,
    done: u64,
    total: u64,
}

impl LogitComparison<'_> {
    fn advance(&mut self, tokens: usize) {
        self.done += tokens as u64;
        let (done, total) = (self.done, self.total);
        (self.job.progress)(Progress { stage: Stage::Candidate, done, total });
    }

    /// Compares the scored positions of one prompt.
    fn compare_prompt(
        &mut self,
        index: usize,
        prompt: &Prompt,
        mut executed: Option<&mut RunningSequence<'_>>,
    ) -> Result<PromptReport, ParityError> {
        let alignment = self.job.candidate.model.map_or(1, |model| model.prefill_alignment().max(1));
        let step = CHUNK.next_multiple_of(alignment);
        let mut report = PromptReport {
            name: prompt.name.clone(),
            kind: prompt.kind.clone(),
            tokens: prompt.ids.len(),
            scored_from: prompt.scored_from,
            ..PromptReport::default()
        };
        let chunks = chunks(prompt, step);
        let (unscored, scored) = chunks.split_at(chunks.partition_point(|(_, scored)| !scored));
        for (chunk, _) in unscored {
            if let Some(executed) = executed.as_deref_mut() {
                executed.feed(&prompt.ids[chunk.clone()], LogitsFor::None)?;
            }
            self.advance(chunk.len());
        }
        let scored: Vec<Range<usize>> = scored.iter().map(|(chunk, _)| chunk.clone()).collect();
        let chunks_in_memory = (LOGITS_IN_MEMORY / self.vocab / step).max(1);
        for chunks in scored.chunks(chunks_in_memory) {
            self.compare_chunks(index, prompt, chunks, executed.as_deref_mut(), &mut report)?;
        }
        Ok(report)
    }

    /// Compares consecutive chunks; their reference logits are computed at once.
    fn compare_chunks(
        &mut self,
        index: usize,
        prompt: &Prompt,
        chunks: &[Range<usize>],
        mut executed: Option<&mut RunningSequence<'_>>,
        report: &mut PromptReport,
    ) -> Result<(), ParityError> {
        let (first, end) = (chunks[0].start, chunks[chunks.len() - 1].end);
        let scored = first - prompt.scored_from..end - prompt.scored_from;
        let reference = self.reference.compute(index, scored.clone())?;
        let dequantized = self.dequantized.compute(index, scored)?;
        for chunk in chunks {
            if self.job.cancel.is_cancelled() {
                return Err(ParityError::Cancelled);
            }
            if let Some(executed) = executed.as_deref_mut() {
                executed.feed(&prompt.ids[chunk.clone()], LogitsFor::AllTokens)?;
            }
            let range = (chunk.start - first) * self.vocab..(chunk.end - first) * self.vocab;
            let logits = ThreeWayLogits {
                reference: &reference[range.clone()],
                dequantized: &dequantized[range],
                executed: executed.as_deref().map(|running| running.recorder.logits.as_slice()),
            };
            self.accumulator.add(prompt, chunk.clone(), self.vocab, &logits, report)?;
            self.advance(chunk.len());
        }
        Ok(())
    }
}

/// The prompts of a pass of the float reference, in its order.
fn all_prompts(prompts: &[Prompt], continuations: &[Continuation]) -> Vec<Prompt> {
    prompts.iter().chain(continuations.iter().map(|continuation| &continuation.prompt)).cloned().collect()
}
