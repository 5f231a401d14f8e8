//! A reply while it comes.

use super::Session;
use crate::ChatError;
use crate::generate::{Chunk, FinishReason, Reply, Run, Usage};
use crate::message::Message;
use crate::tools::text_before_calls;

/// What becomes of a reply that was cut off: its stream dropped, or cancelled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CutReply {
    /// What had come of the answer stays in the conversation.
    #[default]
    Keep,
    /// This stays: what was really spoken.
    KeepText(String),
    /// The whole turn is taken back, the human's message included.
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
/// reply.cut(CutReply::KeepText("Once".into())); // this much was heard
/// assert_eq!(session.messages()[1].content, "Once");
/// # Ok::<(), q35_runtime::ChatError>(())
/// ```
pub struct ReplyStream<'s> {
    session: Holder<'s>,
    run: Option<Run>,
    /// Whether the human's message came with this reply, and goes with it.
    asked: bool,
    on_cut: CutReply,
    failed: bool,
}

enum Holder<'s> {
    Borrowed(&'s mut Session),
    Owned(Box<Session>),
}

impl Holder<'_> {
    fn get(&mut self) -> &mut Session {
        match self {
            Holder::Borrowed(session) => session,
            Holder::Owned(session) => session,
        }
    }
}

impl<'s> ReplyStream<'s> {
    pub(super) fn borrowed(session: &'s mut Session, run: Run, asked: bool) -> Self {
        let on_cut = session.on_cut.clone();
        Self { session: Holder::Borrowed(session), run: Some(run), asked, on_cut, failed: false }
    }

    pub(super) fn owned(session: Session, run: Run) -> ReplyStream<'static> {
        let on_cut = session.on_cut.clone();
        let session = Holder::Owned(Box::new(session));
        ReplyStream { session, run: Some(run), asked: true, on_cut, failed: false }
    }

    /// Token counts so far.
    pub fn usage(&self) -> Usage {
        self.run.as_ref().map(Run::usage).unwrap_or_default()
    }

    /// Stops here and says what becomes of the reply.
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
                Some(Ok(Chunk::Answer(piece))) => text.push_str(&piece),
                Some(Ok(Chunk::Reasoning(piece))) => reasoning.push_str(&piece),
                Some(Ok(Chunk::Token(token))) => tokens.push(token),
                Some(Ok(Chunk::Finish(finish))) => return Ok(Reply { text, reasoning, tokens, finish }),
                Some(Err(error)) => return Err(error),
                // A stream ends with its finish or an error, so this is a stream that had ended before.
                None => return Err(ChatError::NotLoaded),
            }
        }
    }

    /// Gives the state back and settles the conversation.
    fn settle(&mut self) {
        let Some(run) = self.run.take() else { return };
        let remains = run.into_remains();
        let session = self.session.get();
        session.slot.put(if self.failed { None } else { Some(remains.live) });
        let whole = remains.finish.as_ref().filter(|finish| finish.reason != FinishReason::Cancelled);
        let (text, reasoning) = (remains.answer, remains.reasoning);
        if let Some(finish) = whole {
            let calls = finish.tool_calls.clone().unwrap_or_default();
            let content = if calls.is_empty() { text.as_str() } else { text_before_calls(&text) };
            let mut message = Message::assistant(content).with_reasoning(reasoning);
            message.tool_calls = calls;
            session.messages.push(message);
            return;
        }
        let kept = match (self.failed, std::mem::take(&mut self.on_cut)) {
            (true, _) | (false, CutReply::RollBack) => {
                if self.asked {
                    session.messages.pop();
                }
                return;
            }
            (false, CutReply::Keep) => text,
            (false, CutReply::KeepText(spoken)) => spoken,
        };
        if !kept.trim().is_empty() {
            session.messages.push(Message::assistant(kept).with_reasoning(reasoning));
        }
    }
}

impl Iterator for ReplyStream<'_> {
    type Item = Result<Chunk, ChatError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.run.as_mut()?.next();
        match &item {
            Some(Ok(Chunk::Finish(finish))) if finish.reason != FinishReason::Cancelled => self.settle(),
            Some(Err(_)) => {
                self.failed = true;
                self.settle();
            }
            _ => {}
        }
        item
    }
}

impl Drop for ReplyStream<'_> {
    fn drop(&mut self) {
        self.settle();
    }
}
