//! A streamed reply.

use super::Session;
use crate::ChatError;
use crate::generate::{Chunk, FinishReason, Reply, Run, Usage};
use crate::message::Message;

/// The treatment of a reply that was cut off, because its stream was dropped or cancelled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CutReply {
    /// The answer so far stays in the conversation.
    #[default]
    Keep,
    /// This text stays in the conversation: the part that was really spoken.
    KeepText(String),
    /// The whole turn is removed, the user's message included.
    RollBack,
}

/// A reply as an iterator of [`Chunk`]s; [`Chunk::Finish`] is the last. Dropping it stops the computation within one
/// token and leaves the session usable at once.
///
/// ```
/// use q35_runtime::CutReply;
/// # let files = q35_backend_tests::nano_mlx();
/// # let chat = q35_runtime::Chat::from_pretrained(files.path_str())?;
/// let mut session = chat.session();
/// let mut reply = session.send("Tell me a story.", &Default::default())?;
/// reply.next().transpose()?;
/// reply.cut(CutReply::KeepText("Once".into())); // the part that was heard
/// assert_eq!(session.messages()[1].content, "Once");
/// # Ok::<(), q35_runtime::ChatError>(())
/// ```
pub struct ReplyStream<'s> {
    session: Holder<'s>,
    run: Option<Run>,
    /// True if the call added a user message, which a roll-back removes.
    added_message: bool,
    on_cut: CutReply,
    failed: bool,
}

enum Holder<'s> {
    Borrowed(&'s mut Session),
    Owned(Box<Session>),
    /// The session was returned to the caller.
    Released,
}

impl Holder<'_> {
    fn get(&mut self) -> Option<&mut Session> {
        match self {
            Holder::Borrowed(session) => Some(session),
            Holder::Owned(session) => Some(session),
            Holder::Released => None,
        }
    }
}

impl<'s> ReplyStream<'s> {
    pub(super) fn borrowed(session: &'s mut Session, run: Run, added_message: bool) -> Self {
        let on_cut = session.on_cut.clone();
        Self { session: Holder::Borrowed(session), run: Some(run), added_message, on_cut, failed: false }
    }

    pub(super) fn owned(session: Session, run: Run, added_message: bool) -> ReplyStream<'static> {
        let on_cut = session.on_cut.clone();
        let session = Holder::Owned(Box::new(session));
        ReplyStream { session, run: Some(run), added_message, on_cut, failed: false }
    }

    /// Ends the reply and returns the session that [`Session::into_reply`] consumed; `None` for a borrowed session.
    pub fn into_session(mut self) -> Option<Session> {
        self.close();
        match std::mem::replace(&mut self.session, Holder::Released) {
            Holder::Owned(session) => Some(*session),
            Holder::Borrowed(_) | Holder::Released => None,
        }
    }

    /// Token counts so far.
    pub fn usage(&self) -> Usage {
        self.run.as_ref().map(Run::usage).unwrap_or_default()
    }

    /// The names of the tools on offer.
    pub(crate) fn tool_names(&mut self) -> Vec<String> {
        self.session
            .get()
            .map_or_else(Vec::new, |session| session.tools.iter().map(|tool| tool.name.clone()).collect())
    }

    /// Stops the reply and sets its treatment.
    pub fn cut(mut self, what: CutReply) {
        self.on_cut = what;
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// The failure that ended the stream; the conversation is then as before.
    pub fn collect_reply(mut self) -> Result<Reply, ChatError> {
        let (mut text, mut reasoning, mut tokens) = (String::new(), String::new(), Vec::new());
        loop {
            match self.next() {
                Some(Ok(Chunk::Answer(part))) => text.push_str(&part),
                Some(Ok(Chunk::Reasoning(part))) => reasoning.push_str(&part),
                Some(Ok(Chunk::Token(token))) => tokens.push(token),
                Some(Ok(Chunk::Finish(finish))) => return Ok(Reply { text, reasoning, tokens, finish }),
                Some(Err(error)) => return Err(error),
                // A stream ends with its finish or an error, so this one had ended before the call.
                None => return Err(ChatError::NotLoaded),
            }
        }
    }

    /// Ends the reply: returns the state to the session and updates the conversation.
    fn close(&mut self) {
        let Some(run) = self.run.take() else { return };
        let outcome = run.into_outcome();
        let Some(session) = self.session.get() else { return };
        session.state.put(if self.failed { None } else { Some(outcome.state) });
        let whole = outcome.finish.as_ref().filter(|finish| finish.reason != FinishReason::Cancelled);
        let (text, reasoning) = (outcome.answer, outcome.reasoning);
        if let Some(finish) = whole {
            let calls = finish.tool_calls.clone().unwrap_or_default();
            let content = outcome.content.unwrap_or(text);
            let mut message = Message::assistant(content).with_reasoning(reasoning);
            message.tool_calls = calls;
            session.messages.push(message);
            return;
        }
        let text = match (self.failed, std::mem::take(&mut self.on_cut)) {
            (true, _) | (false, CutReply::RollBack) => {
                if self.added_message {
                    session.messages.pop();
                }
                return;
            }
            (false, CutReply::Keep) => text,
            (false, CutReply::KeepText(spoken)) => spoken,
        };
        if !text.trim().is_empty() {
            session.messages.push(Message::assistant(text).with_reasoning(reasoning));
        }
    }
}

impl Iterator for ReplyStream<'_> {
    type Item = Result<Chunk, ChatError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.run.as_mut()?.next();
        match &item {
            Some(Ok(Chunk::Finish(finish))) if finish.reason != FinishReason::Cancelled => self.close(),
            Some(Err(_)) => {
                self.failed = true;
                self.close();
            }
            _ => {}
        }
        item
    }
}

impl Drop for ReplyStream<'_> {
    fn drop(&mut self) {
        self.close();
    }
}
