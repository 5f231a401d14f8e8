//! The loop: prefill, then a token at a time, until something ends the reply.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use q35_inference::{CancelToken, LogitsFor, Observer, RunError, Sequence};
use q35_text::Detokenizer;

use super::channels::{CLOSE, Channel, Splitter};
use super::loops::LoopDetector;
use super::stop::StopMatcher;
use super::{Chunk, Finish, FinishReason, Timing, TokenDetail, Usage};
use crate::cache::PrefixCache;
use crate::engine::Slot;
use crate::grammar::Grammar;
use crate::language::Language;
use crate::sampler::Sampler;
use crate::tools::{Tool, parse_calls};
use crate::{ChatError, Sampling};

/// A sequence and the tokens that it has consumed.
pub(crate) struct Live {
    pub(crate) sequence: Box<dyn Sequence>,
    pub(crate) ids: Vec<u32>,
    /// Whether the state could only have come from prefill cut on the model's grid.
    pub(crate) on_grid: bool,
}

/// What is to be computed before the first token.
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    /// Leading ids that `Live` has consumed already.
    pub(crate) cached: usize,
    /// Ascending lengths of the prompt after which a snapshot is worth keeping.
    pub(crate) keep_at: Vec<usize>,
    /// Where the reply starts.
    pub(crate) splitter: Splitter,
    pub(crate) dropped_messages: usize,
}

/// Everything else that a reply depends on.
pub(crate) struct Context {
    pub(crate) language: Arc<Language>,
    pub(crate) cache: Arc<PrefixCache>,
    pub(crate) tools: Arc<[Tool]>,
    /// Where the session's memory is accounted for.
    pub(crate) slot: Arc<Slot>,
    pub(crate) cancel: CancelToken,
}

enum Stage {
    Prefill,
    Decode,
    Done,
}

/// One reply being generated. An iterator that owns all it needs.
pub(crate) struct Run {
    context: Context,
    sampling: Sampling,
    grammar: Option<Grammar>,
    prompt: Prompt,
    live: Live,
    row: Vec<f32>,
    sampler: Sampler,
    seed: u64,
    detokenizer: Detokenizer,
    splitter: Splitter,
    stops: StopMatcher,
    loops: Option<LoopDetector>,
    /// The end marker is barred once: an answer must follow reasoning that was closed by force.
    owes_answer: bool,
    /// Reasoning was closed, by the model or for it.
    thought: bool,
    stage: Stage,
    queue: VecDeque<Chunk>,
    usage: Usage,
    timing: Timing,
    started: Instant,
    prefilled: Instant,
    answer: String,
    reasoning: String,
    finish: Option<Finish>,
}

/// Takes the last row of logits and asks the cancel token.
struct LastRow<'a> {
    row: &'a mut Vec<f32>,
    cancel: &'a CancelToken,
}

impl Observer for LastRow<'_> {
    fn logits(&mut self, _position: usize, row: &[f32]) {
        self.row.clear();
        self.row.extend_from_slice(row);
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

/// What a finished or dropped run leaves behind.
pub(crate) struct Remains {
    pub(crate) live: Live,
    pub(crate) answer: String,
    pub(crate) reasoning: String,
    pub(crate) finish: Option<Finish>,
}

impl Run {
    pub(crate) fn new(
        context: Context,
        sampling: &Sampling,
        grammar: Option<Grammar>,
        mut prompt: Prompt,
        live: Live,
    ) -> Result<Self, ChatError> {
        let language = &context.language;
        let seed = sampling.seed.unwrap_or_else(some_seed);
        let mut sampler = Sampler::new(sampling, seed, language.vocabulary());
        language.meaningless_ids().for_each(|id| sampler.forbid(id));
        let mut splitter = prompt.splitter.clone();
        let no_thinking = sampling.thinking.max_tokens == Some(0) || sampling.thinking.enable == Some(false);
        let thinking = splitter.channel() == Channel::Reasoning;
        if thinking && sampling.thinking.max_tokens == Some(0) {
            // The template opened reasoning all the same: it is closed before it begins.
            prompt.ids.extend(language.tokenizer.encode(&format!("\n{CLOSE}\n\n"))?);
            splitter.close_reasoning();
        }
        let usage =
            Usage { prompt_tokens: prompt.ids.len(), cached_tokens: prompt.cached, ..Usage::default() };
        let now = Instant::now();
        let mut run = Self {
            sampling: sampling.clone(),
            grammar,
            live,
            row: Vec::new(),
            sampler,
            seed,
            detokenizer: Detokenizer::new(),
            stops: StopMatcher::new(&sampling.stop),
            loops: sampling.loop_guard.map(LoopDetector::new),
            owes_answer: false,
            thought: false,
            stage: Stage::Prefill,
            queue: VecDeque::new(),
            usage,
            timing: Timing::default(),
            started: now,
            prefilled: now,
            answer: String::new(),
            reasoning: String::new(),
            finish: None,
            context,
            splitter,
            prompt,
        };
        if no_thinking {
            run.no_more_thinking();
        }
        Ok(run)
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    pub(crate) fn into_remains(self) -> Remains {
        Remains { live: self.live, answer: self.answer, reasoning: self.reasoning, finish: self.finish }
    }

    fn prefill(&mut self) -> Result<(), ChatError> {
        let all = self.prompt.ids.len();
        let mut cuts: Vec<usize> = self.prompt.keep_at.clone();
        cuts.retain(|cut| *cut > self.prompt.cached && *cut <= all);
        let keep = cuts.clone();
        if cuts.last() != Some(&all) {
            cuts.push(all);
        }
        for cut in cuts {
            let from = self.live.ids.len();
            let ids = self.prompt.ids[from..cut].to_vec();
            self.extend(&ids, if cut == all { LogitsFor::LastToken } else { LogitsFor::None })?;
            if keep.contains(&cut) {
                self.context.cache.insert(&self.live.ids, || self.live.sequence.snapshot())?;
            }
        }
        self.context.slot.note(&self.live);
        self.prefilled = Instant::now();
        self.timing.prefill = self.prefilled - self.started;
        Ok(())
    }

    /// Consumes ids. After a cancellation `live` says what was consumed.
    fn extend(&mut self, ids: &[u32], rows: LogitsFor) -> Result<(), RunError> {
        let before = self.live.sequence.position();
        let mut observer = LastRow { row: &mut self.row, cancel: &self.context.cancel };
        let result = self.live.sequence.extend(ids, rows, &mut observer);
        let consumed = self.live.sequence.position() - before;
        self.live.ids.extend_from_slice(&ids[..consumed]);
        result
    }

    /// Chooses a token, shows what it completes, and computes what follows it.
    fn step(&mut self) -> Result<(), ChatError> {
        if self.context.cancel.is_cancelled() {
            self.end(FinishReason::Cancelled);
            return Ok(());
        }
        let channel = self.splitter.channel();
        let Some(id) = self.choose()? else {
            if channel == Channel::Reasoning {
                // It wants to end without having answered: its reasoning is over, and an answer follows.
                let ids = self.close_thinking()?;
                return self.compute(&ids);
            }
            self.end(FinishReason::Stop);
            return Ok(());
        };
        self.usage.completion_tokens += 1;
        self.usage.thinking_tokens += usize::from(channel == Channel::Reasoning);
        let text = self.detokenizer.push(&self.context.language.tokenizer, id);
        self.show(&text);
        if self.stops.is_hit() {
            self.end(FinishReason::StopText);
            return Ok(());
        }
        let mut forced = Vec::new();
        if channel == Channel::Reasoning && self.splitter.channel() == Channel::Answer {
            self.no_more_thinking();
            if self.grammar.is_some() {
                // The grammar describes the answer alone, so the white space before it is given.
                forced = self.context.language.tokenizer.encode("\n\n")?;
            }
        }
        if self.grammar.as_ref().is_some_and(Grammar::is_complete) {
            self.end(FinishReason::Stop);
            return Ok(());
        }
        let circles = self.loops.as_mut().is_some_and(|loops| loops.push(id));
        match self.splitter.channel() {
            Channel::Reasoning => {
                let spent =
                    self.sampling.thinking.max_tokens.is_some_and(|most| self.usage.thinking_tokens >= most);
                if spent || circles {
                    forced = self.close_thinking()?;
                }
            }
            Channel::Answer if circles && self.grammar.is_none() => {
                self.end(FinishReason::Repetition);
                return Ok(());
            }
            Channel::Answer => {}
        }
        if self.usage.completion_tokens >= self.sampling.max_tokens {
            self.end(FinishReason::Length);
            return Ok(());
        }
        let ids: Vec<u32> = std::iter::once(id).chain(forced).collect();
        self.compute(&ids)
    }

    /// Computes what the next token follows, or ends the reply where there is no room for it.
    fn compute(&mut self, ids: &[u32]) -> Result<(), ChatError> {
        if self.live.ids.len() + ids.len() > self.live.sequence.max_context() {
            self.end(FinishReason::ContextFull);
            return Ok(());
        }
        self.live.on_grid = false;
        self.extend(ids, LogitsFor::LastToken)?;
        Ok(())
    }

    /// The next token; `None` at the end of the turn.
    fn choose(&mut self) -> Result<Option<u32>, ChatError> {
        let language = self.context.language.clone();
        let barred: &[u32] = if std::mem::take(&mut self.owes_answer) { language.end_ids() } else { &[] };
        let answering = self.splitter.channel() == Channel::Answer;
        let mut refused = None;
        let left = self.sampling.max_tokens - self.usage.completion_tokens;
        let grammar = self.grammar.as_mut().filter(|_| answering);
        let choice = self.sampler.choose(&self.row, barred, |logits| {
            if let Some(grammar) = grammar {
                refused = grammar.mask(logits, left).err();
            }
        });
        if let Some(error) = refused {
            return Err(error);
        }
        if self.usage.completion_tokens == 0 {
            self.timing.first_token = self.started.elapsed();
        }
        let Some(choice) = choice else {
            let message = "no token is possible: every logit is minus infinity or not a number".to_owned();
            return Err(RunError::Backend { backend: "the model", message }.into());
        };
        if let Some(logprobs) = choice.logprobs {
            let detail =
                TokenDetail { id: choice.id, logprob: logprobs.chosen, alternatives: logprobs.alternatives };
            self.queue.push_back(Chunk::Token(detail));
        }
        if language.end_ids().contains(&choice.id) {
            return Ok(None);
        }
        if let Some(grammar) = self.grammar.as_mut().filter(|_| answering) {
            grammar.accept(choice.id)?;
        }
        Ok(Some(choice.id))
    }

    /// Queues what became certain.
    fn show(&mut self, text: &str) {
        let mut parts = Vec::new();
        self.splitter.push(text, &mut parts);
        self.queue_parts(parts);
    }

    fn queue_parts(&mut self, parts: Vec<(Channel, String)>) {
        for (channel, text) in parts {
            match channel {
                Channel::Reasoning => {
                    self.reasoning.push_str(&text);
                    self.queue.push_back(Chunk::Reasoning(text));
                }
                Channel::Answer => {
                    let text = self.stops.push(&text);
                    self.queue_answer(text);
                }
            }
        }
    }

    fn queue_answer(&mut self, text: String) {
        if !text.is_empty() {
            self.answer.push_str(&text);
            self.queue.push_back(Chunk::Answer(text));
        }
    }

    /// The ids that close the reasoning in the model's eyes.
    fn close_thinking(&mut self) -> Result<Vec<u32>, ChatError> {
        self.detokenizer = Detokenizer::new();
        self.splitter.close_reasoning();
        self.owes_answer = true;
        self.no_more_thinking();
        let text = &self.sampling.thinking.close_text;
        Ok(self.context.language.tokenizer.encode(&format!("{text}\n{CLOSE}\n\n"))?)
    }

    fn no_more_thinking(&mut self) {
        if !std::mem::replace(&mut self.thought, true) {
            let language = self.context.language.clone();
            language.thinking_ids().for_each(|id| self.sampler.forbid(id));
        }
        if let Some(guard) = self.sampling.loop_guard {
            self.loops = Some(LoopDetector::new(guard));
        }
    }

    fn end(&mut self, reason: FinishReason) {
        self.stage = Stage::Done;
        if reason != FinishReason::StopText {
            if reason == FinishReason::Stop {
                let rest = self.detokenizer.finish();
                self.show(&rest);
            }
            // In a reply that was cut the unfinished character is left out: it is neither to be read nor to be spoken.
            let mut parts = Vec::new();
            self.splitter.finish(&mut parts);
            self.queue_parts(parts);
            let rest = self.stops.finish();
            self.queue_answer(rest);
        }
        let tools = self.context.tools.clone();
        let tool_calls = if tools.is_empty() { Ok(Vec::new()) } else { parse_calls(&self.answer, &tools) };
        let called = tool_calls.as_ref().is_ok_and(|calls| !calls.is_empty());
        if !matches!(self.timing.prefill, std::time::Duration::ZERO) {
            self.timing.decode = self.prefilled.elapsed();
        } else {
            self.timing.prefill = self.started.elapsed();
        }
        let finish = Finish {
            reason: if called && reason == FinishReason::Stop { FinishReason::ToolCalls } else { reason },
            usage: self.usage,
            timing: self.timing,
            seed: self.seed,
            dropped_messages: self.prompt.dropped_messages,
            tool_calls,
        };
        self.finish = Some(finish.clone());
        self.queue.push_back(Chunk::Finish(finish));
    }
}

impl Iterator for Run {
    type Item = Result<Chunk, ChatError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(chunk) = self.queue.pop_front() {
                return Some(Ok(chunk));
            }
            let result = match self.stage {
                Stage::Done => return None,
                Stage::Prefill => {
                    self.stage = Stage::Decode;
                    self.prefill()
                }
                Stage::Decode => self.step(),
            };
            match result {
                Ok(()) => {}
                Err(ChatError::Run(RunError::Cancelled)) => self.end(FinishReason::Cancelled),
                Err(error) => {
                    self.stage = Stage::Done;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// A seed that differs from call to call.
fn some_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
