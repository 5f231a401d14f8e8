//! Conversations.

mod prompt_planner;
mod stream;

use std::path::Path;
use std::sync::Arc;

use q35_inference::{CancelToken, Discard, LogitsFor};
use serde_json::Value;

use crate::engine::{Engine, Loaded};
use crate::generate::{Context, Prompt, Reply, Run};
use crate::grammar::Grammar;
use crate::message::{Message, Role};
use crate::session_state::{Alignment, SequenceState, SessionState};
use crate::tools::Tool;
use crate::{ChatError, Format, Sampling};
use prompt_planner::{FittedPrompt, PromptPlanner};
pub use stream::{CutReply, ReplyStream};

/// A conversation with a model. Any number of sessions share one [`crate::Chat`]'s weights; each may move to another
/// thread.
///
/// ```
/// # let files = q35_backend_tests::nano_mlx();
/// # let chat = q35_runtime::Chat::from_pretrained(files.path_str())?;
/// let mut session = chat.session().with_system("Be brief.");
/// session.ask("My name is Ada.", &Default::default())?;
/// let mut other = session.branch();
/// session.ask("What is my name?", &Default::default())?;
/// other.edit(1, "My name is Eve.")?;
/// assert_eq!((session.messages().len(), other.messages().len()), (5, 3));
/// session.reset_conversation();
/// assert_eq!(session.messages().len(), 1, "the system prompt stays");
/// # Ok::<(), q35_runtime::ChatError>(())
/// ```
pub struct Session {
    engine: Arc<Engine>,
    state: Arc<SessionState>,
    messages: Vec<Message>,
    tools: Arc<[Tool]>,
    on_cut: CutReply,
}

impl Session {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        let state = engine.new_session_state();
        Self { engine, state, messages: Vec::new(), tools: Arc::new([]), on_cut: CutReply::Keep }
    }

    /// Starts with a system prompt; see [`Session::set_system`].
    pub fn with_system(mut self, prompt: impl Into<String>) -> Self {
        self.set_system(Some(prompt.into()));
        self
    }

    /// Starts with tools on offer; see [`Session::set_tools`].
    pub fn with_tools(mut self, tools: Vec<Tool>) -> Self {
        self.set_tools(tools);
        self
    }

    /// Sets the treatment of replies that are cut off, unless [`ReplyStream::cut`] sets another.
    pub fn with_on_cut(mut self, on_cut: CutReply) -> Self {
        self.on_cut = on_cut;
        self
    }

    /// Sets, replaces or (`None`) removes the system prompt; the conversation stays.
    pub fn set_system(&mut self, prompt: Option<String>) {
        if self.messages.first().is_some_and(|first| first.role == Role::System) {
            self.messages.remove(0);
        }
        if let Some(prompt) = prompt {
            self.messages.insert(0, Message::system(prompt));
        }
    }

    /// Offers these tools from the next reply on.
    pub fn set_tools(&mut self, tools: Vec<Tool>) {
        self.tools = tools.into();
    }

    /// The messages so far, the system prompt first.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Replaces the whole conversation, the system prompt included. [`Message::list_from_json`] reads one from JSON.
    ///
    /// # Errors
    /// A system prompt is not the first message.
    pub fn set_messages(&mut self, messages: Vec<Message>) -> Result<(), ChatError> {
        match messages.iter().skip(1).position(|message| message.role == Role::System) {
            Some(index) => Err(ChatError::SystemMessage { index: index + 1 }),
            None => {
                self.messages = messages;
                Ok(())
            }
        }
    }

    /// Adds a message without requesting a reply: a tool's result, or an example.
    ///
    /// # Errors
    /// A system prompt is not the first message.
    pub fn push(&mut self, message: Message) -> Result<(), ChatError> {
        if message.role == Role::System && !self.messages.is_empty() {
            return Err(ChatError::SystemMessage { index: self.messages.len() });
        }
        self.messages.push(message);
        Ok(())
    }

    /// Replaces a message's text. Index 0 is the system prompt if there is one. Later messages stay.
    ///
    /// # Errors
    /// There is no such message.
    pub fn edit(&mut self, index: usize, content: impl Into<String>) -> Result<(), ChatError> {
        let messages = self.messages.len();
        let message = self.messages.get_mut(index).ok_or(ChatError::NoSuchMessage { index, messages })?;
        message.content = content.into();
        message.reasoning = None;
        message.tool_calls.clear();
        Ok(())
    }

    /// Removes the last `count` messages, but never the system prompt.
    pub fn drop_last(&mut self, count: usize) {
        let system = usize::from(self.messages.first().is_some_and(|first| first.role == Role::System));
        let keep = self.messages.len().saturating_sub(count).max(system.min(self.messages.len()));
        self.messages.truncate(keep);
    }

    /// Removes all messages but the system prompt; the tools stay.
    pub fn reset_conversation(&mut self) {
        self.messages.retain(|message| message.role == Role::System);
        self.messages.truncate(1);
    }

    /// A copy of the conversation that continues independently.
    pub fn branch(&self) -> Self {
        Self {
            engine: self.engine.clone(),
            state: self.engine.new_session_state(),
            messages: self.messages.clone(),
            tools: self.tools.clone(),
            on_cut: self.on_cut.clone(),
        }
    }

    /// Sends a user message and streams the reply. Both are part of the conversation when the stream has ended.
    ///
    /// # Errors
    /// An invalid setting, a conversation that the template refuses, a full context window, or a model that cannot be
    /// loaded.
    pub fn send(
        &mut self,
        user: impl Into<String>,
        sampling: &Sampling,
    ) -> Result<ReplyStream<'_>, ChatError> {
        self.send_with(user, sampling, CancelToken::new())
    }

    /// As [`Session::send`]; `cancel` stops the reply from any thread.
    ///
    /// ```
    /// use q35_runtime::{CancelToken, Chunk, FinishReason, Sampling};
    /// # let files = q35_backend_tests::nano_mlx();
    /// # let chat = q35_runtime::Chat::from_pretrained(files.path_str())?;
    /// let mut session = chat.session();
    /// let cancel = CancelToken::new(); // clones of it may go anywhere
    /// for chunk in session.send_with("Tell me a story.", &Sampling::default(), cancel.clone())? {
    ///     match chunk? {
    ///         Chunk::Finish(finish) => assert_eq!(finish.reason, FinishReason::Cancelled),
    ///         _ => cancel.cancel(),
    ///     }
    /// }
    /// # Ok::<(), q35_runtime::ChatError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Session::send`].
    pub fn send_with(
        &mut self,
        user: impl Into<String>,
        sampling: &Sampling,
        cancel: CancelToken,
    ) -> Result<ReplyStream<'_>, ChatError> {
        self.messages.push(Message::user(user));
        match self.start(sampling, cancel) {
            Ok(run) => Ok(ReplyStream::borrowed(self, run, true)),
            Err(error) => {
                self.messages.pop();
                Err(error)
            }
        }
    }

    /// Streams a reply to the conversation without a new user message: after a tool's result, or again.
    ///
    /// # Errors
    /// As [`Session::send`].
    pub fn respond(
        &mut self,
        sampling: &Sampling,
        cancel: CancelToken,
    ) -> Result<ReplyStream<'_>, ChatError> {
        let run = self.start(sampling, cancel)?;
        Ok(ReplyStream::borrowed(self, run, false))
    }

    /// Sends a user message and waits for the whole reply.
    ///
    /// # Errors
    /// As [`Session::send`], or a failure during generation; the conversation is then as before.
    pub fn ask(&mut self, user: impl Into<String>, sampling: &Sampling) -> Result<Reply, ChatError> {
        self.send(user, sampling)?.collect_reply()
    }

    /// Moves the session into the stream, which then borrows nothing.
    pub(crate) fn into_stream(
        mut self,
        user: String,
        sampling: &Sampling,
        cancel: CancelToken,
    ) -> Result<ReplyStream<'static>, ChatError> {
        self.messages.push(Message::user(user));
        let run = self.start(sampling, cancel)?;
        Ok(ReplyStream::owned(self, run, true))
    }

    /// Streams a reply to the conversation and consumes the session, so that the stream may be moved anywhere.
    /// [`ReplyStream::into_session`] returns the session.
    ///
    /// # Errors
    /// As [`Session::send`].
    pub fn into_reply(
        mut self,
        sampling: &Sampling,
        cancel: CancelToken,
    ) -> Result<ReplyStream<'static>, ChatError> {
        let run = self.start(sampling, cancel)?;
        Ok(ReplyStream::owned(self, run, false))
    }

    /// Streams the continuation of `text`, without the chat template.
    pub(crate) fn into_completion(
        self,
        text: &str,
        sampling: &Sampling,
        cancel: CancelToken,
    ) -> Result<ReplyStream<'static>, ChatError> {
        sampling.check()?;
        let loaded = self.engine.ready()?;
        let ids = loaded.language.tokenizer.encode(text)?;
        let max_context = self.max_context(&loaded);
        if ids.is_empty() || ids.len() >= max_context {
            return Err(ChatError::ContextFull { needed: ids.len() + 1, max_context });
        }
        let state = self.reuse_state(&loaded, &ids)?;
        let prompt = Prompt {
            cached: state.ids.len(),
            ids,
            snapshot_lengths: Vec::new(),
            splitter: crate::generate::ChannelSplitter::after_prompt(""),
            dropped_messages: 0,
        };
        let run = Run::new(self.context(&loaded, cancel), sampling, None, prompt, state)?;
        Ok(ReplyStream::owned(self, run, false))
    }

    /// Number of tokens of the conversation's prompt.
    ///
    /// # Errors
    /// The template refuses the conversation.
    pub fn prompt_tokens(&self, sampling: &Sampling) -> Result<usize, ChatError> {
        let loaded = self.engine.ready()?;
        let planner = self.planner(&loaded, sampling.thinking.enable);
        Ok(planner.fit(&self.messages, usize::MAX, 1, crate::WindowPolicy::Refuse)?.ids.len())
    }

    /// Computes the beginning of the next turn's prompt in advance (the last reply as the template renders it), so that
    /// only the new message remains to be computed. Returns the number of tokens computed. A voice app calls it while
    /// the user speaks.
    ///
    /// ```
    /// # let files = q35_backend_tests::nano_mlx();
    /// # let chat = q35_runtime::Chat::from_pretrained(files.path_str())?;
    /// let mut session = chat.session();
    /// session.ask("Tell me a story.", &Default::default())?;
    /// let ahead = session.warm()?;
    /// let usage = session.ask("Why?", &Default::default())?.finish.usage;
    /// assert!(usage.cached_tokens >= ahead);
    /// # Ok::<(), q35_runtime::ChatError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Session::send`].
    pub fn warm(&mut self) -> Result<usize, ChatError> {
        let loaded = self.engine.ready()?;
        let planner = self.planner(&loaded, None);
        let Some(mut ids) = planner.next_turn_prefix(&self.messages)? else { return Ok(0) };
        alignment(&loaded).truncate(&mut ids);
        if ids.is_empty() || ids.len() >= self.max_context(&loaded) {
            return Ok(0);
        }
        // One token more, in place of the new message's first: a reusable state is always a proper prefix.
        let probe: Vec<u32> = ids.iter().copied().chain([0]).collect();
        let mut state = self.reuse_state(&loaded, &probe)?;
        let cached = state.ids.len();
        if let Err(error) = state.extend(&ids[cached..], LogitsFor::None, &mut Discard) {
            self.state.put(None);
            return Err(error.into());
        }
        let inserted = self.engine.cache.insert(&state.ids, || state.sequence.snapshot());
        self.state.put(Some(state));
        inserted?;
        Ok(ids.len() - cached)
    }

    /// Saves the state after the system prompt and the tools for [`crate::Chat::load_prompt`], and computes it if
    /// necessary. Returns the number of tokens that need not be computed with the file.
    ///
    /// # Errors
    /// There is neither a system prompt nor a tool, or the file cannot be written; otherwise as [`Session::send`].
    pub fn save_prompt(&mut self, path: &Path) -> Result<usize, ChatError> {
        let loaded = self.engine.ready()?;
        let system: Vec<Message> =
            self.messages.first().filter(|first| first.role == Role::System).cloned().into_iter().collect();
        let prefix = match system.is_empty() && self.tools.is_empty() {
            true => None,
            false => self.planner(&loaded, None).next_turn_prefix(&system)?,
        };
        let mut ids = prefix.unwrap_or_default();
        alignment(&loaded).truncate(&mut ids);
        if ids.is_empty() {
            let expected = "a system prompt or tools, longer than the model's prefill alignment";
            let option = "system prompt";
            return Err(ChatError::Option { option, expected, found: "none".into() });
        }
        let mut sequence = loaded.model.new_sequence(self.max_context(&loaded))?;
        let snapshot = match self.engine.cache.get(&ids) {
            Some(snapshot) => snapshot,
            None => {
                sequence.extend(&ids, LogitsFor::None, &mut Discard)?;
                Arc::new(sequence.snapshot()?)
            }
        };
        crate::snapshot_file::save(path, self.engine.identity()?, &ids, &snapshot)?;
        Ok(ids.len())
    }

    /// The grammar of the answer's form; `None` for text.
    fn grammar(&self, loaded: &Loaded, sampling: &Sampling) -> Result<Option<Grammar>, ChatError> {
        if sampling.format == Format::Text {
            return Ok(None);
        }
        let calls = matches!(sampling.format, Format::ToolCalls { .. });
        if !self.tools.is_empty() && !calls {
            let (expected, found) = ("text, as long as tools are offered", "a JSON form".into());
            return Err(ChatError::Option { option: "format", expected, found });
        }
        let grammar = loaded.language.grammars()?.grammar(&sampling.format, &self.tools)?;
        let shortest = grammar.as_ref().map_or(0, Grammar::shortest);
        if sampling.max_tokens < shortest {
            let (expected, found) = ("room for the shortest valid answer", sampling.max_tokens.to_string());
            let found = format!("{found}, and the shortest valid answer has {shortest} tokens");
            return Err(ChatError::Option { option: "max_tokens", expected, found });
        }
        Ok(grammar)
    }

    fn planner<'a>(&'a self, loaded: &'a Loaded, thinking: Option<bool>) -> PromptPlanner<'a> {
        PromptPlanner { language: &loaded.language, tools: &self.tools, thinking }
    }

    fn max_context(&self, loaded: &Loaded) -> usize {
        let limit = loaded.model.context_limit().unwrap_or(usize::MAX);
        self.engine.options.max_context.min(limit).min(loaded.model.config().max_position_embeddings)
    }

    fn start(&mut self, sampling: &Sampling, cancel: CancelToken) -> Result<Run, ChatError> {
        sampling.check()?;
        let loaded = self.engine.ready()?;
        let grammar = self.grammar(&loaded, sampling)?;
        let thinking =
            if sampling.thinking.max_tokens == Some(0) { Some(false) } else { sampling.thinking.enable };
        let planner = self.planner(&loaded, thinking);
        let fitted = planner.fit(
            &self.messages,
            self.max_context(&loaded),
            sampling.max_tokens,
            self.engine.options.window,
        )?;
        let shortest = grammar.as_ref().map_or(0, Grammar::shortest);
        let max_context = self.max_context(&loaded);
        // The last token of a reply need not be consumed.
        if fitted.ids.len() + shortest > max_context + 1 {
            return Err(ChatError::ContextFull { needed: fitted.ids.len() + shortest, max_context });
        }
        let state = self.reuse_state(&loaded, &fitted.ids)?;
        let prompt = self.plan_prefill(&loaded, fitted, state.ids.len(), thinking);
        let context = self.context(&loaded, cancel);
        Run::new(context, sampling, grammar, prompt, state).inspect_err(|_| self.state.put(None))
    }

    fn context(&self, loaded: &Loaded, cancel: CancelToken) -> Context {
        Context {
            language: loaded.language.clone(),
            cache: self.engine.cache.clone(),
            tools: self.tools.clone(),
            session: self.state.clone(),
            cancel,
        }
    }

    /// Plans the prefill of a prompt whose first `cached` tokens are computed, with the lengths at which snapshots are
    /// taken, and drops the messages that do not fit from the conversation.
    fn plan_prefill(
        &mut self,
        loaded: &Loaded,
        fitted: FittedPrompt,
        cached: usize,
        thinking: Option<bool>,
    ) -> Prompt {
        let planner = self.planner(loaded, thinking);
        let conversation = planner.without_dropped(&self.messages, fitted.dropped);
        let mut snapshot_lengths = Vec::new();
        if self.engine.options.prompt_cache_bytes > 0 {
            if cached == 0 {
                snapshot_lengths.extend(planner.system_length(&conversation, &fitted.ids));
            }
            snapshot_lengths.extend(planner.stable_length(&conversation, &fitted.ids));
        }
        let alignment = alignment(loaded);
        for length in &mut snapshot_lengths {
            *length = alignment.round_down(*length);
        }
        snapshot_lengths.retain(|length| *length > cached);
        snapshot_lengths.dedup();
        self.messages = conversation;
        Prompt {
            ids: fitted.ids,
            cached,
            snapshot_lengths,
            splitter: fitted.splitter,
            dropped_messages: fitted.dropped,
        }
    }

    /// Takes the state that has consumed the longest reusable prefix of `ids`: the session's own, a snapshot of the
    /// prompt cache, or an empty one.
    fn reuse_state(&self, loaded: &Loaded, ids: &[u32]) -> Result<SequenceState, ChatError> {
        let alignment = alignment(loaded);
        let reuse = self.engine.options.prompt_cache_bytes > 0;
        let mut state = match self.state.take() {
            Some(state) => state,
            None => {
                let sequence = loaded.model.new_sequence(self.max_context(loaded));
                SequenceState::new(sequence.inspect_err(|_| self.state.put(None))?)
            }
        };
        let own_length = state.ids.len();
        let own_is_prefix =
            reuse && alignment.allows_reuse(&state) && own_length < ids.len() && ids.starts_with(&state.ids);
        let cached = self.engine.cache.longest_prefix(ids);
        match cached.filter(|(length, _)| reuse && alignment.divides(*length)) {
            Some((length, snapshot)) if !own_is_prefix || length > own_length => {
                if let Err(error) = state.restore(&snapshot, &ids[..length]) {
                    self.state.put(None);
                    return Err(error.into());
                }
            }
            _ if own_is_prefix => {}
            _ => state.reset(),
        }
        Ok(state)
    }

    /// The conversation as JSON: messages as chat templates read them.
    pub fn to_json(&self) -> Value {
        self.messages.iter().map(Message::to_json).collect()
    }
}

fn alignment(loaded: &Loaded) -> Alignment {
    Alignment::of(&*loaded.model)
}

#[cfg(test)]
mod tests;
