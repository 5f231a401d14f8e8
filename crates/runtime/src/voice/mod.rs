//! Spoken replies: sentences, each delivered as soon as it is complete.

mod sentences;
mod speakable;

use std::time::{Duration, Instant};

pub use sentences::Sentences;
pub use speakable::speakable;

use crate::tools::{CallStart, CodeTracker, find_call_start};
use crate::{ChatError, Chunk, CutReply, Finish, ReplyStream};

/// One item of a spoken reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Utterance {
    /// A sentence, or part of a long one: plain words without markup.
    Sentence(String),
    /// The last item.
    Finish(Finish),
}

/// A reply as sentences. Reasoning and tool calls are not spoken.
///
/// ```
/// use q35_runtime::{Sampling, Utterance};
/// # let files = q35_backend_tests::nano_mlx();
/// # let chat = q35_runtime::Chat::from_pretrained(files.path_str())?;
/// let mut session = chat.session();
/// let mut sentences = session.send("Tell me a story.", &Sampling::default())?.sentences();
/// while let Some(utterance) = sentences.next().transpose()? {
///     if let Utterance::Sentence(text) = utterance {
///         println!("{text} (the first after {:?})", sentences.time_to_first_sentence());
///     }
/// }
/// # Ok::<(), q35_runtime::ChatError>(())
/// ```
///
/// Dropping the stream cuts the reply off; [`SentenceStream::cut`] chooses what stays in the conversation.
pub struct SentenceStream<'s> {
    reply: ReplyStream<'s>,
    sentences: Sentences,
    queue: std::collections::VecDeque<Utterance>,
    /// Answer text held back: a possible beginning of a tool call.
    held: String,
    /// The code blocks of the answer so far.
    code: CodeTracker,
    tools: Vec<String>,
    in_call: bool,
    started: Instant,
    first: Option<Duration>,
}

impl<'s> ReplyStream<'s> {
    /// Converts the stream of chunks to one of speakable sentences.
    pub fn sentences(mut self) -> SentenceStream<'s> {
        SentenceStream {
            tools: self.tool_names(),
            code: CodeTracker::default(),
            reply: self,
            sentences: Sentences::new(),
            queue: std::collections::VecDeque::new(),
            held: String::new(),
            in_call: false,
            started: Instant::now(),
            first: None,
        }
    }
}

impl SentenceStream<'_> {
    /// Time from the beginning of the stream to its first sentence.
    pub fn time_to_first_sentence(&self) -> Option<Duration> {
        self.first
    }

    /// Stops the reply and sets its treatment.
    pub fn cut(self, treatment: CutReply) {
        self.reply.cut(treatment);
    }

    fn push_answer(&mut self, text: &str) {
        if self.in_call {
            return;
        }
        self.held.push_str(text);
        let end = match find_call_start(&self.held, &self.code, &self.tools) {
            CallStart::At(at) => {
                self.in_call = true;
                at
            }
            CallStart::Undecided(at) => at,
            CallStart::None => self.held.len(),
        };
        let rest = self.held.split_off(end);
        let certain = std::mem::replace(&mut self.held, rest);
        self.code.push_str(&certain);
        self.queue.extend(self.sentences.push(&certain).into_iter().map(Utterance::Sentence));
    }

    fn end(&mut self, finish: Finish) {
        if !self.in_call {
            let held = std::mem::take(&mut self.held);
            self.queue.extend(self.sentences.push(&held).into_iter().map(Utterance::Sentence));
        }
        self.queue.extend(self.sentences.finish().map(Utterance::Sentence));
        self.queue.push_back(Utterance::Finish(finish));
    }
}

impl Iterator for SentenceStream<'_> {
    type Item = Result<Utterance, ChatError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(utterance) = self.queue.pop_front() {
                if self.first.is_none() && matches!(utterance, Utterance::Sentence(_)) {
                    self.first = Some(self.started.elapsed());
                }
                return Some(Ok(utterance));
            }
            match self.reply.next()? {
                Ok(Chunk::Answer(text)) => self.push_answer(&text),
                Ok(Chunk::Finish(finish)) => self.end(finish),
                Ok(Chunk::Reasoning(_) | Chunk::Token(_)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// A text-to-speech engine. An adapter takes ten lines:
///
/// ```
/// use q35_runtime::{Speaker, Speech};
/// struct Printer(Vec<String>);
/// impl Speaker for Printer {
///     type Error = std::convert::Infallible;
///     fn speak(&mut self, sentence: &str) -> Result<Speech, Self::Error> {
///         self.0.push(sentence.to_owned()); // blocks until spoken, or queues
///         Ok(Speech::GoOn)
///     }
/// }
/// ```
pub trait Speaker {
    /// The engine's error.
    type Error;

    /// Speaks a sentence, or queues it, and reports if the user has interrupted meanwhile.
    ///
    /// # Errors
    /// The engine failed.
    fn speak(&mut self, sentence: &str) -> Result<Speech, Self::Error>;
}

/// The result of speaking a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// The sentence was spoken, or will be.
    GoOn,
    /// The user interrupted during or before the sentence: it does not count as spoken.
    Interrupted,
}

/// The result of a spoken reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Spoken {
    /// The spoken sentences, joined by spaces.
    pub text: String,
    /// Time from the beginning of the stream to the first sentence.
    pub first_sentence: Option<Duration>,
    /// The end of the reply; `None` if it was interrupted.
    pub finish: Option<Finish>,
}

/// An error of speaking a reply.
#[derive(Debug, thiserror::Error)]
pub enum SpeakError<E> {
    /// The reply failed.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The engine failed; the sentences spoken before stay in the conversation.
    #[error("the voice failed: {0}")]
    Voice(E),
}

/// Speaks a reply. When the user interrupts, generation stops, and exactly the spoken sentences stay in the
/// conversation.
///
/// ```
/// use q35_runtime::{Sampling, Speaker, Speech, speak};
/// struct Interrupted;
/// impl Speaker for Interrupted {
///     type Error = std::convert::Infallible;
///     fn speak(&mut self, _: &str) -> Result<Speech, Self::Error> {
///         Ok(Speech::Interrupted)
///     }
/// }
/// # let files = q35_backend_tests::nano_mlx();
/// # let chat = q35_runtime::Chat::from_pretrained(files.path_str())?;
/// let mut session = chat.session();
/// let spoken = speak(session.send("Tell me a story.", &Sampling::default())?, &mut Interrupted).unwrap();
/// assert_eq!((spoken.text.as_str(), spoken.finish), ("", None));
/// # Ok::<(), q35_runtime::ChatError>(())
/// ```
///
/// # Errors
/// The reply or the engine failed.
pub fn speak<S: Speaker>(reply: ReplyStream<'_>, speaker: &mut S) -> Result<Spoken, SpeakError<S::Error>> {
    let mut stream = reply.sentences();
    let mut spoken: Vec<String> = Vec::new();
    while let Some(utterance) = stream.next() {
        match utterance? {
            Utterance::Finish(finish) => {
                let first_sentence = stream.time_to_first_sentence();
                return Ok(Spoken { text: spoken.join(" "), first_sentence, finish: Some(finish) });
            }
            Utterance::Sentence(sentence) => match speaker.speak(&sentence) {
                Ok(Speech::GoOn) => spoken.push(sentence),
                Ok(Speech::Interrupted) => break,
                Err(error) => {
                    stream.cut(CutReply::KeepText(spoken.join(" ")));
                    return Err(SpeakError::Voice(error));
                }
            },
        }
    }
    let first_sentence = stream.time_to_first_sentence();
    let text = spoken.join(" ");
    stream.cut(CutReply::KeepText(text.clone()));
    Ok(Spoken { text, first_sentence, finish: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeModel;
    use crate::{LoadOptions, Sampling, Session, Tool};

    struct Listener {
        heard: Vec<String>,
        patience: usize,
    }

    impl Speaker for Listener {
        type Error = String;

        fn speak(&mut self, sentence: &str) -> Result<Speech, String> {
            if self.heard.len() == self.patience {
                return Ok(Speech::Interrupted);
            }
            self.heard.push(sentence.to_owned());
            Ok(Speech::GoOn)
        }
    }

    fn session(reply: &str) -> Session {
        FakeModel::scripted(&[reply]).chat(&LoadOptions::default()).session()
    }

    fn sampling() -> Sampling {
        Sampling::greedy().with_thinking(false)
    }

    #[test]
    fn a_reply_is_spoken_sentence_by_sentence() {
        let mut session = session("**Hello!** It is 3.5 degrees. Bye 👋");
        let mut listener = Listener { heard: vec![], patience: 9 };
        let spoken = speak(session.send("Hi", &sampling()).unwrap(), &mut listener).unwrap();
        assert_eq!(listener.heard, ["Hello!", "It is 3.5 degrees.", "Bye"]);
        assert!(spoken.first_sentence.is_some() && spoken.finish.is_some());
        assert_eq!(session.messages()[1].content, "**Hello!** It is 3.5 degrees. Bye 👋");
    }

    #[test]
    fn an_interruption_keeps_what_was_said() {
        let mut session = session("One is here. Two is here. Three is here. Four.");
        let mut listener = Listener { heard: vec![], patience: 2 };
        let spoken = speak(session.send("Hi", &sampling()).unwrap(), &mut listener).unwrap();
        assert_eq!((spoken.text.as_str(), spoken.finish), ("One is here. Two is here.", None));
        assert_eq!(session.messages()[1].content, "One is here. Two is here.");
        session.ask("Go on", &sampling()).unwrap();
    }

    #[test]
    fn tool_calls_are_not_spoken() {
        let tool = Tool::new("now", "", serde_json::json!({"type": "object", "properties": {}}));
        let mut session = session("Let me look.\n<tool_call>\n<function=now>\n</function>\n</tool_call>")
            .with_tools(vec![tool]);
        let mut listener = Listener { heard: vec![], patience: 9 };
        let spoken = speak(session.send("Hi", &sampling()).unwrap(), &mut listener).unwrap();
        assert_eq!(spoken.text, "Let me look.");
        assert_eq!(spoken.finish.unwrap().tool_calls.unwrap().len(), 1);
    }

    #[test]
    fn a_broken_voice_stops_the_reply() {
        struct Broken;
        impl Speaker for Broken {
            type Error = String;
            fn speak(&mut self, _: &str) -> Result<Speech, String> {
                Err("no device".into())
            }
        }
        let mut session = session("One. Two. Three.");
        let error = speak(session.send("Hi", &sampling()).unwrap(), &mut Broken).unwrap_err();
        assert_eq!(error.to_string(), "the voice failed: no device");
        assert_eq!(session.messages().len(), 1);
    }
}
