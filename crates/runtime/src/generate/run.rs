//! The generation loop: prefill, then one token at a time, until something ends the reply.

use std::sync::Arc;
use std::time::{Duration, Instant};

use q35_inference::{CancelToken, LogitsFor, Observer, RunError};

use super::channels::{CLOSE, Channel, ChannelSplitter};
use super::chooser::TokenChooser;
use super::output::ReplyOutput;
use super::repetition::LoopDetector;
use super::thinking::ThinkingPolicy;
use super::{Chunk, Finish, FinishReason, Timing, TokenDetail, Usage};
use crate::grammar::{Grammar, closed_fields};
use crate::language::Language;
use crate::prompt_cache::PromptCache;
use crate::session_state::{SequenceState, SessionState};
use crate::tools::{ParsedAnswer, Tool, parse_answer};
use crate::{ChatError, LoopGuard, Sampling};

/// The input of a reply, computed before its first token.
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    /// Number of leading ids that the sequence has consumed already.
    pub(crate) cached: usize,
    /// Ascending lengths of the prompt after which a snapshot goes into the prompt cache.
    pub(crate) snapshot_lengths: Vec<usize>,
    /// The splitter in the channel in which the reply starts.
    pub(crate) splitter: ChannelSplitter,
    pub(crate) dropped_messages: usize,
}

/// The parts of chat and session that a reply uses.
pub(crate) struct Context {
    pub(crate) language: Arc<Language>,
    pub(crate) cache: Arc<PromptCache>,
    pub(crate) tools: Arc<[Tool]>,
    /// The record of the session's memory.
    pub(crate) session: Arc<SessionState>,
    pub(crate) cancel: CancelToken,
}

enum Stage {
    Prefill,
    Decode,
    Done,
}

/// A reply being generated: an iterator of chunks that owns all its parts.
pub(crate) struct Run {
    context: Context,
    prompt: Prompt,
    state: SequenceState,
    /// Logits [vocab] of the last consumed token.
    logits: Vec<f32>,
    chooser: TokenChooser,
    output: ReplyOutput,
    thinking: ThinkingPolicy,
    limits: Limits,
    usage: Usage,
    clock: ReplyClock,
    stage: Stage,
    /// Ids that close the reasoning by force.
    closing_ids: Vec<u32>,
    finish: Option<Finish>,
    /// The answer without its tool calls.
    content: Option<String>,
}

/// The ends that the settings set to a reply.
struct Limits {
    max_tokens: usize,
    loop_guard: Option<LoopGuard>,
    loops: Option<LoopDetector>,
    /// True once a constrained answer repeated itself and is being closed.
    closing_loop: bool,
}

impl Limits {
    fn new(sampling: &Sampling) -> Self {
        let mut limits = Self {
            max_tokens: sampling.max_tokens,
            loop_guard: sampling.loop_guard,
            loops: None,
            closing_loop: false,
        };
        limits.restart_loops();
        limits
    }

    /// Forgets the tokens so far: a loop does not extend from the reasoning into the answer.
    fn restart_loops(&mut self) {
        self.loops = self.loop_guard.map(LoopDetector::new);
    }

    /// Adds a token; returns true if the text repeats itself.
    fn is_loop(&mut self, id: u32) -> bool {
        self.loops.as_mut().is_some_and(|loops| loops.push(id))
    }
}

/// Measures the parts of a reply's time.
struct ReplyClock {
    started: Instant,
    /// End of the prefill; `None` before it.
    prefilled: Option<Instant>,
    timing: Timing,
}

impl ReplyClock {
    fn start() -> Self {
        Self { started: Instant::now(), prefilled: None, timing: Timing::default() }
    }

    fn end_prefill(&mut self) {
        let now = Instant::now();
        self.prefilled = Some(now);
        self.timing.prefill = now - self.started;
    }

    fn first_token(&mut self) {
        self.timing.first_token = self.started.elapsed();
    }

    fn stop(&mut self) -> Timing {
        match self.prefilled {
            Some(prefilled) if self.timing.prefill > Duration::ZERO => {
                self.timing.decode = prefilled.elapsed();
            }
            _ => self.timing.prefill = self.started.elapsed(),
        }
        self.timing
    }
}

/// Stores the last token's logits and reports cancellation.
struct LastLogits<'a> {
    logits: &'a mut Vec<f32>,
    cancel: &'a CancelToken,
}

impl Observer for LastLogits<'_> {
    fn logits(&mut self, _position: usize, logits: &[f32]) {
        self.logits.clear();
        self.logits.extend_from_slice(logits);
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

/// The result of a finished or dropped run.
pub(crate) struct RunOutcome {
    pub(crate) state: SequenceState,
    pub(crate) answer: String,
    pub(crate) reasoning: String,
    pub(crate) finish: Option<Finish>,
    /// The answer without its tool calls, if there are any.
    pub(crate) content: Option<String>,
}

impl Run {
    pub(crate) fn new(
        context: Context,
        sampling: &Sampling,
        grammar: Option<Grammar>,
        mut prompt: Prompt,
        state: SequenceState,
    ) -> Result<Self, ChatError> {
        let chooser = TokenChooser::new(sampling, grammar, &context.language);
        let thinking = ThinkingPolicy::new(&sampling.thinking);
        let closing_ids = context.language.tokenizer.encode(&thinking.closing_text())?;
        let mut splitter = prompt.splitter.clone().with_tools(&context.tools);
        if splitter.channel() == Channel::Reasoning && thinking.budget_is_zero() {
            // The template opened reasoning nevertheless: it is closed before it begins.
            prompt.ids.extend(context.language.tokenizer.encode(&format!("\n{CLOSE}\n\n"))?);
            splitter.close_reasoning();
        }
        let usage =
            Usage { prompt_tokens: prompt.ids.len(), cached_tokens: prompt.cached, ..Usage::default() };
        let mut run = Self {
            state,
            logits: Vec::new(),
            chooser,
            output: ReplyOutput::new(splitter, &sampling.stop),
            thinking,
            limits: Limits::new(sampling),
            usage,
            clock: ReplyClock::start(),
            stage: Stage::Prefill,
            closing_ids,
            finish: None,
            content: None,
            context,
            prompt,
        };
        if run.thinking.is_off() {
            run.reasoning_closed();
        }
        Ok(run)
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    pub(crate) fn into_outcome(self) -> RunOutcome {
        let (answer, reasoning) = self.output.into_texts();
        RunOutcome { state: self.state, answer, reasoning, finish: self.finish, content: self.content }
    }

    fn prefill(&mut self) -> Result<(), ChatError> {
        let end = self.prompt.ids.len();
        let cached = self.prompt.cached;
        let mut cuts = self.prompt.snapshot_lengths.clone();
        cuts.retain(|cut| *cut > cached && *cut <= end);
        let snapshots = cuts.clone();
        if cuts.last() != Some(&end) {
            cuts.push(end);
        }
        for cut in cuts {
            let ids = self.prompt.ids[self.state.ids.len()..cut].to_vec();
            self.extend(&ids, if cut == end { LogitsFor::LastToken } else { LogitsFor::None })?;
            if snapshots.contains(&cut) {
                self.context.cache.insert(&self.state.ids, || self.state.sequence.snapshot())?;
            }
        }
        self.context.session.record_memory(&self.state);
        self.clock.end_prefill();
        Ok(())
    }

    fn extend(&mut self, ids: &[u32], logits: LogitsFor) -> Result<(), RunError> {
        let mut observer = LastLogits { logits: &mut self.logits, cancel: &self.context.cancel };
        self.state.extend(ids, logits, &mut observer)
    }

    /// Chooses a token, outputs its text, and computes the logits after it.
    fn step(&mut self) -> Result<(), ChatError> {
        if self.context.cancel.is_cancelled() {
            self.end(FinishReason::Cancelled);
            return Ok(());
        }
        let channel = self.output.channel();
        if channel == Channel::Reasoning && self.must_begin_answer() {
            let ids = self.close_reasoning();
            return self.compute(&ids);
        }
        let Some(id) = self.choose()? else {
            if channel == Channel::Reasoning {
                // The model ends its turn without an answer: its reasoning is closed, and an answer follows.
                let ids = self.close_reasoning();
                return self.compute(&ids);
            }
            self.end(FinishReason::Stop);
            return Ok(());
        };
        self.usage.completion_tokens += 1;
        self.usage.thinking_tokens += usize::from(channel == Channel::Reasoning);
        if self.output.push(&self.context.language.tokenizer, id) {
            self.end(FinishReason::StopText);
            return Ok(());
        }
        let mut forced = Vec::new();
        if channel == Channel::Reasoning && self.output.channel() == Channel::Answer {
            self.reasoning_closed();
            if self.chooser.grammar().is_some() {
                // The grammar describes the answer alone, so the white space before it is forced.
                forced = self.context.language.tokenizer.encode("\n\n")?;
            }
        }
        if self.chooser.is_complete() {
            self.end(FinishReason::Stop);
            return Ok(());
        }
        let repeats = self.limits.is_loop(id);
        match self.output.channel() {
            Channel::Reasoning if repeats || self.thinking.is_spent(self.usage.thinking_tokens) => {
                forced = self.close_reasoning();
            }
            Channel::Answer if repeats => {
                // A constrained answer is closed, so that it parses.
                self.limits.closing_loop = self.chooser.begin_closing();
                if !self.limits.closing_loop {
                    self.end(FinishReason::Repetition);
                    return Ok(());
                }
            }
            Channel::Reasoning | Channel::Answer => {}
        }
        if self.usage.completion_tokens >= self.limits.max_tokens {
            self.end(FinishReason::Length);
            return Ok(());
        }
        let ids: Vec<u32> = std::iter::once(id).chain(forced).collect();
        self.compute(&ids)
    }

    /// Consumes ids, or ends the reply if the context has no room for them.
    fn compute(&mut self, ids: &[u32]) -> Result<(), ChatError> {
        if self.state.ids.len() + ids.len() > self.state.sequence.max_context() {
            self.end(FinishReason::ContextFull);
            return Ok(());
        }
        self.state.begin_decode();
        self.extend(ids, LogitsFor::LastToken)?;
        Ok(())
    }

    /// The next token; `None` at the end of the turn.
    fn choose(&mut self) -> Result<Option<u32>, ChatError> {
        let language = self.context.language.clone();
        let excluded: &[u32] = if self.thinking.take_must_answer() { language.end_ids() } else { &[] };
        let answering = self.output.channel() == Channel::Answer;
        let tokens_left = self.tokens_left().0;
        let choice = self.chooser.choose(&self.logits, excluded, answering, tokens_left)?;
        if self.usage.completion_tokens == 0 {
            self.clock.first_token();
        }
        if let Some(logprobs) = choice.logprobs {
            let (logprob, alternatives) = (logprobs.chosen, logprobs.alternatives);
            self.output.push_detail(TokenDetail { id: choice.id, logprob, alternatives });
        }
        if language.end_ids().contains(&choice.id) {
            return Ok(None);
        }
        if answering {
            self.chooser.accept(choice.id)?;
        }
        Ok(Some(choice.id))
    }

    /// Number of tokens until the nearer limit, and the reason for which a reply ends there.
    fn tokens_left(&self) -> (usize, FinishReason) {
        let by_settings = self.limits.max_tokens - self.usage.completion_tokens;
        // The last token of a reply need not be consumed.
        let by_context = self.state.sequence.max_context() + 1 - self.state.ids.len();
        match by_context < by_settings {
            true => (by_context, FinishReason::ContextFull),
            false => (by_settings, FinishReason::Length),
        }
    }

    /// True if the reasoning must end now, so that the shortest valid answer fits into the limits.
    fn must_begin_answer(&self) -> bool {
        let Some(grammar) = self.chooser.grammar() else { return false };
        let by_settings = self.limits.max_tokens - self.usage.completion_tokens;
        let by_context = self.state.sequence.max_context() + 1 - self.state.ids.len();
        by_settings <= grammar.shortest() || by_context <= grammar.shortest() + self.closing_ids.len() + 1
    }

    /// Closes the reasoning by force. Returns the ids that close it in the model's context.
    fn close_reasoning(&mut self) -> Vec<u32> {
        self.output.close_reasoning();
        self.reasoning_closed();
        self.thinking.force_answer();
        self.closing_ids.clone()
    }

    /// Excludes the thinking tags from the rest of the reply.
    fn reasoning_closed(&mut self) {
        if self.thinking.close() {
            self.context.language.thinking_ids().for_each(|id| self.chooser.forbid(id));
        }
        self.limits.restart_loops();
    }

    fn end(&mut self, reason: FinishReason) {
        self.stage = Stage::Done;
        if reason != FinishReason::StopText {
            self.output.flush(reason == FinishReason::Stop);
        }
        let whole = reason == FinishReason::Stop;
        let parsed = match self.context.tools.is_empty() {
            true => Ok(ParsedAnswer::default()),
            false => parse_answer(self.output.answer(), &self.context.tools, whole),
        };
        let called = parsed.as_ref().is_ok_and(|parsed| !parsed.calls.is_empty());
        self.content = parsed.as_ref().ok().filter(|_| called).map(|parsed| parsed.text.clone());
        let cut_at = self.chooser.grammar().and_then(Grammar::cut_at);
        let reason = match (reason, cut_at) {
            (FinishReason::Stop, _) if self.limits.closing_loop => FinishReason::Repetition,
            (FinishReason::Stop, Some(_)) => self.tokens_left().1,
            (FinishReason::Stop, None) if called => FinishReason::ToolCalls,
            (reason, _) => reason,
        };
        let finish = Finish {
            reason,
            closed_fields: cut_at.map_or(Vec::new(), |cut| closed_fields(self.output.answer(), cut)),
            usage: self.usage,
            timing: self.clock.stop(),
            seed: self.chooser.seed(),
            dropped_messages: self.prompt.dropped_messages,
            tool_calls: parsed.map(|parsed| parsed.calls),
        };
        self.finish = Some(finish.clone());
        self.output.finish(finish);
    }
}

impl Iterator for Run {
    type Item = Result<Chunk, ChatError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(chunk) = self.output.pop() {
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

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
