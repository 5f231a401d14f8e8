//! Conversations.

mod plan;
mod stream;

use std::path::Path;
use std::sync::Arc;

use q35_inference::{CancelToken, Discard, LogitsFor};
use serde_json::Value;

use crate::engine::{Engine, Loaded, Slot};
use crate::generate::{Context, Live, Prompt, Reply, Run};
use crate::message::{Message, Role};
use crate::tools::Tool;
use crate::{ChatError, Sampling};
use plan::{Planner, Turn};
pub use stream::{CutReply, ReplyStream};

/// A conversation with a model. Any number of them share one [`crate::Chat`]'s weights; each may be moved to another
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
    slot: Arc<Slot>,
    messages: Vec<Message>,
    tools: Arc<[Tool]>,
    on_cut: CutReply,
}

impl Session {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        let slot = engine.new_slot();
        Self { engine, slot, messages: Vec::new(), tools: Arc::new([]), on_cut: CutReply::Keep }
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

    /// Sets what becomes of a reply that is cut off, unless the stream is told otherwise.
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

    /// Replaces the whole conversation, the system prompt included.
    pub fn set_messages(&mut self, messages: Vec<Message>) {
        self.messages = messages;
    }

    /// Adds a message without asking for a reply: a tool's answer, or an example.
    pub fn push(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// Changes a message, the system prompt being number 0 if there is one. What follows it stays.
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

    /// Takes away the last `count` messages, but never the system prompt.
    pub fn drop_last(&mut self, count: usize) {
        let system = usize::from(self.messages.first().is_some_and(|first| first.role == Role::System));
        let keep = self.messages.len().saturating_sub(count).max(system.min(self.messages.len()));
        self.messages.truncate(keep);
    }

    /// Forgets the conversation; system prompt and tools stay.
    pub fn reset_conversation(&mut self) {
        self.messages.retain(|message| message.role == Role::System);
        self.messages.truncate(1);
    }

    /// Another conversation that begins as this one does; the two then go their own ways.
    pub fn branch(&self) -> Self {
        Self {
            engine: self.engine.clone(),
            slot: self.engine.new_slot(),
            messages: self.messages.clone(),
            tools: self.tools.clone(),
            on_cut: self.on_cut.clone(),
        }
    }

    /// Says something and streams the reply. Both are part of the conversation when the stream has ended.
    ///
    /// # Errors
    /// An option that makes no sense, a template that refuses, a window that is full, a model that cannot be loaded.
    pub fn send(
        &mut self,
        user: impl Into<String>,
        sampling: &Sampling,
    ) -> Result<ReplyStream<'_>, ChatError> {
        self.send_with(user, sampling, CancelToken::new())
    }

    /// As [`Session::send`], stopped from anywhere by `cancel`.
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

    /// Streams a reply to the conversation as it stands: after a tool's answer, or again.
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

    /// Says something and waits for the whole reply.
    ///
    /// # Errors
    /// As [`Session::send`], or a failure on the way; the conversation is then as before.
    pub fn ask(&mut self, user: impl Into<String>, sampling: &Sampling) -> Result<Reply, ChatError> {
        self.send(user, sampling)?.collect_reply()
    }

    /// Takes the session along, so that the stream may live anywhere.
    pub(crate) fn into_stream(
        mut self,
        user: String,
        sampling: &Sampling,
        cancel: CancelToken,
    ) -> Result<ReplyStream<'static>, ChatError> {
        self.messages.push(Message::user(user));
        let run = self.start(sampling, cancel)?;
        Ok(ReplyStream::owned(self, run))
    }

    /// Computes ahead what the next turn will begin with (the last reply as the template replays it), so that only
    /// the new message is left to compute then. Returns the number of tokens computed. A voice app calls it while the
    /// human speaks.
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
        ids.truncate(ids.len() - ids.len() % reuse_grid(&loaded));
        if ids.is_empty() || ids.len() >= self.max_context(&loaded) {
            return Ok(0);
        }
        // One token more than is computed, as a stand-in for the new message's first.
        let probe: Vec<u32> = ids.iter().copied().chain([0]).collect();
        let mut live = self.take_live(&loaded, &probe)?;
        let from = live.ids.len();
        let result = live.sequence.extend(&ids[from..], LogitsFor::None, &mut Discard);
        if result.is_ok() {
            live.ids.extend_from_slice(&ids[from..]);
            let kept = self.engine.cache.insert(&live.ids, || live.sequence.snapshot());
            self.slot.put(Some(live));
            kept?;
        } else {
            self.slot.put(None);
        }
        result?;
        Ok(ids.len() - from)
    }

    /// Saves the state behind the system prompt and the tools, computing it if need be, for
    /// [`crate::Chat::load_prompt`]. Returns the number of tokens that the file will spare.
    ///
    /// # Errors
    /// There is neither a system prompt nor a tool, or the file cannot be written; and as [`Session::send`].
    pub fn save_prompt(&mut self, path: &Path) -> Result<usize, ChatError> {
        let loaded = self.engine.ready()?;
        let system: Vec<Message> =
            self.messages.first().filter(|first| first.role == Role::System).cloned().into_iter().collect();
        let ids = match system.is_empty() && self.tools.is_empty() {
            true => None,
            false => self.planner(&loaded, None).next_turn_prefix(&system)?,
        };
        let grid = reuse_grid(&loaded);
        let ids = ids.map(|mut ids| {
            ids.truncate(ids.len() - ids.len() % grid);
            ids
        });
        let Some(ids) = ids.filter(|ids| !ids.is_empty()) else {
            let (option, expected) = ("system prompt", "one, or tools, longer than the model's prefill grid");
            return Err(ChatError::Option { option, expected, found: "none".into() });
        };
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

    fn planner<'a>(&'a self, loaded: &'a Loaded, thinking: Option<bool>) -> Planner<'a> {
        Planner { language: &loaded.language, tools: &self.tools, thinking }
    }

    fn max_context(&self, loaded: &Loaded) -> usize {
        let limit = loaded.model.context_limit().unwrap_or(usize::MAX);
        self.engine.options.max_context.min(limit).min(loaded.model.config().max_position_embeddings)
    }

    fn start(&mut self, sampling: &Sampling, cancel: CancelToken) -> Result<Run, ChatError> {
        sampling.check()?;
        let loaded = self.engine.ready()?;
        let grammar = match sampling.format {
            crate::Format::Text => None,
            _ => loaded.language.grammars()?.grammar(&sampling.format)?,
        };
        let thinking =
            if sampling.thinking.max_tokens == Some(0) { Some(false) } else { sampling.thinking.enable };
        let planner = self.planner(&loaded, thinking);
        let turn = planner.fit(
            &self.messages,
            self.max_context(&loaded),
            sampling.max_tokens,
            self.engine.options.window,
        )?;
        let live = self.take_live(&loaded, &turn.ids)?;
        let (prompt, live) = self.prepare(&loaded, turn, live, thinking);
        let context = Context {
            language: loaded.language.clone(),
            cache: self.engine.cache.clone(),
            tools: self.tools.clone(),
            slot: self.slot.clone(),
            cancel,
        };
        Run::new(context, sampling, grammar, prompt, live).inspect_err(|_| self.slot.put(None))
    }

    /// Decides where snapshots are taken on the way.
    fn prepare(&mut self, loaded: &Loaded, turn: Turn, live: Live, thinking: Option<bool>) -> (Prompt, Live) {
        let planner = self.planner(loaded, thinking);
        let conversation = planner.without_dropped(&self.messages, turn.dropped);
        let cached = live.ids.len();
        let mut keep_at = Vec::new();
        if self.engine.options.prompt_cache_bytes > 0 {
            if cached == 0 {
                keep_at.extend(planner.system_length(&conversation, &turn.ids));
            }
            keep_at.extend(planner.stable_length(&conversation, &turn.ids));
        }
        let grid = reuse_grid(loaded);
        for length in &mut keep_at {
            *length -= *length % grid;
        }
        keep_at.retain(|length| *length > cached);
        keep_at.dedup();
        self.messages = conversation;
        let prompt = Prompt {
            ids: turn.ids,
            cached,
            keep_at,
            splitter: turn.splitter,
            dropped_messages: turn.dropped,
        };
        (prompt, live)
    }

    /// The state that has consumed the longest reusable prefix of `ids`: the session's own as it stands, a snapshot,
    /// or an empty one.
    fn take_live(&self, loaded: &Loaded, ids: &[u32]) -> Result<Live, ChatError> {
        let grid = reuse_grid(loaded);
        let reusable = self.engine.options.prompt_cache_bytes > 0;
        let mut live = match self.slot.take() {
            Some(live) => live,
            None => {
                let sequence = loaded
                    .model
                    .new_sequence(self.max_context(loaded))
                    .inspect_err(|_| self.slot.put(None))?;
                Live { sequence, ids: Vec::new(), on_grid: true }
            }
        };
        let own = live.ids.len();
        let on_grid = grid == 1 || (live.on_grid && own.is_multiple_of(grid));
        let own_fits = reusable && on_grid && own < ids.len() && ids.starts_with(&live.ids);
        let snapshot = self
            .engine
            .cache
            .longest_prefix(ids)
            .filter(|(length, _)| reusable && length.is_multiple_of(grid));
        match snapshot {
            Some((length, snapshot)) if !own_fits || length > own => {
                if let Err(error) = live.sequence.restore(&snapshot) {
                    self.slot.put(None);
                    return Err(error.into());
                }
                live.ids = ids[..length].to_vec();
                live.on_grid = true;
            }
            _ if own_fits => {}
            _ => {
                live.sequence.reset();
                live.ids.clear();
                live.on_grid = true;
            }
        }
        Ok(live)
    }

    /// The conversation as JSON: messages in the form that chat templates read.
    pub fn to_json(&self) -> Value {
        self.messages.iter().map(Message::to_json).collect()
    }
}

/// Lengths at which a state may be reused are multiples of this. Off the model's own grid, a prompt would be cut
/// elsewhere than without reuse, and rounding would tell.
fn reuse_grid(loaded: &Loaded) -> usize {
    loaded.model.prefill_alignment().max(1)
}

#[cfg(test)]
mod tests;
