//! The engine thread: owns the model and generates all replies.
//!
//! Requests wait in a bounded queue. Active conversations advance in turn, one token each, so that no reply starves
//! another. A conversation whose client is gone stops before its next token.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use q35_runtime::{CancelToken, Chat, Chunk, Finish, Message, ReplyStream, Sampling, TokenDetail, Tool};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::ServerConfig;
use crate::error::{ApiError, Kind, OpenError};

/// Input of one generation.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// A conversation that the chat template renders; the reply continues it.
    Conversation { messages: Vec<Message>, tools: Vec<Tool> },
    /// A text that the model continues as it is.
    Text(String),
}

/// One choice of a request.
pub(crate) struct Job {
    /// Index of the choice in its request.
    pub(crate) index: usize,
    pub(crate) work: Work,
    pub(crate) sampling: Sampling,
    pub(crate) cancel: CancelToken,
    pub(crate) events: UnboundedSender<(usize, Event)>,
}

/// Progress of one choice.
#[derive(Debug)]
pub(crate) enum Event {
    /// The request is valid and its prefill begins.
    Started,
    Reasoning(String),
    Answer(String),
    /// A token's log-probabilities; `reasoning` is true for tokens of the reasoning.
    Token {
        detail: TokenDetail,
        reasoning: bool,
    },
    /// The last event of a successful choice.
    Finish(Box<Finish>),
    /// The last event of a failed choice.
    Failed(ApiError),
}

/// The running choices of one request. Dropping it cancels them.
pub(crate) struct Generation {
    events: UnboundedReceiver<(usize, Event)>,
    cancel: CancelToken,
}

impl Generation {
    /// The next event with the index of its choice; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<(usize, Event)> {
        self.events.recv().await
    }

    /// Resolves when the first choice has begun.
    ///
    /// # Errors
    /// The request cannot be answered: a template that refuses, a context that is full, a schema that is unsupported.
    pub(crate) async fn begun(&mut self) -> Result<(), ApiError> {
        match self.next().await {
            Some((_, Event::Failed(error))) => Err(error),
            Some(_) => Ok(()),
            None => Err(ApiError::new(Kind::Internal, "the engine has stopped")),
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Handle of the engine thread.
pub(crate) struct Engine {
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    chat: OnceLock<Chat>,
    waiting: AtomicUsize,
    active: AtomicUsize,
}

impl Engine {
    /// Starts the thread, which opens the model first. The receiver resolves when that has succeeded or failed.
    pub(crate) fn start(
        config: &ServerConfig,
        open: impl FnOnce() -> Result<Chat, OpenError> + Send + 'static,
    ) -> (Self, oneshot::Receiver<Result<(), OpenError>>, JoinHandle<()>) {
        let (jobs, received) = sync_channel(config.queue);
        let shared = Arc::new(Shared::default());
        let (report, opened) = oneshot::channel();
        let (concurrent, idle_unload) = (config.concurrent, config.idle_unload);
        let worker_shared = shared.clone();
        let thread = std::thread::spawn(move || {
            let chat = match open() {
                Ok(chat) => chat,
                Err(error) => {
                    let _ = report.send(Err(error));
                    return;
                }
            };
            let _ = worker_shared.chat.set(chat.clone());
            let _ = report.send(Ok(()));
            Worker {
                chat,
                jobs: received,
                shared: worker_shared,
                concurrent,
                idle_unload,
                active: Vec::new(),
            }
            .run();
        });
        (Self { jobs, shared }, opened, thread)
    }

    /// The model once it is open.
    ///
    /// # Errors
    /// Status 503 while it is loading.
    pub(crate) fn chat(&self) -> Result<&Chat, ApiError> {
        let loading = || ApiError::new(Kind::Loading, "the model is loading");
        self.shared.chat.get().ok_or_else(loading)
    }

    /// Requests that wait, and conversations that generate.
    pub(crate) fn load(&self) -> (usize, usize) {
        (self.shared.waiting.load(Ordering::Relaxed), self.shared.active.load(Ordering::Relaxed))
    }

    /// Queues one choice for each of `samplings`.
    ///
    /// # Errors
    /// Status 503 while the model is loading, 429 if the queue is full.
    pub(crate) fn submit(&self, work: Work, samplings: Vec<Sampling>) -> Result<Generation, ApiError> {
        self.chat()?;
        let (events, receiver) = unbounded_channel();
        let cancel = CancelToken::new();
        // On an early return the drop of this value cancels the choices that were queued already.
        let generation = Generation { events: receiver, cancel: cancel.clone() };
        for (index, sampling) in samplings.into_iter().enumerate() {
            let (work, cancel, events) = (work.clone(), cancel.clone(), events.clone());
            self.shared.waiting.fetch_add(1, Ordering::Relaxed);
            self.jobs.try_send(Job { index, work, sampling, cancel, events }).map_err(|error| {
                self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
                match error {
                    TrySendError::Full(_) => {
                        ApiError::new(Kind::Busy, "too many requests are waiting; try again later")
                    }
                    TrySendError::Disconnected(_) => ApiError::new(Kind::Internal, "the engine has stopped"),
                }
            })?;
        }
        Ok(generation)
    }
}

/// A conversation that is generating.
struct Active {
    index: usize,
    reply: ReplyStream<'static>,
    events: UnboundedSender<(usize, Event)>,
    /// Reasoning tokens before the latest event.
    thinking_tokens: usize,
}

struct Worker {
    chat: Chat,
    jobs: Receiver<Job>,
    shared: Arc<Shared>,
    concurrent: usize,
    idle_unload: Option<Duration>,
    active: Vec<Active>,
}

impl Worker {
    fn run(mut self) {
        loop {
            while self.active.len() < self.concurrent {
                match self.next_job() {
                    Ok(job) => self.begin(job),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) if self.active.is_empty() => return,
                    Err(TryRecvError::Disconnected) => break,
                }
            }
            let mut at = 0;
            while at < self.active.len() {
                if self.active[at].advance() {
                    at += 1;
                } else {
                    let ended = self.active.remove(at);
                    self.shared.active.store(self.active.len(), Ordering::Relaxed);
                    ended.prepare_next_turn();
                }
            }
        }
    }

    /// The next waiting request. Blocks while no conversation is active, and unloads the weights when that takes longer
    /// than the idle time.
    fn next_job(&mut self) -> Result<Job, TryRecvError> {
        if !self.active.is_empty() {
            return self.jobs.try_recv();
        }
        if let Some(idle) = self.idle_unload {
            match self.jobs.recv_timeout(idle) {
                Ok(job) => return Ok(job),
                Err(RecvTimeoutError::Disconnected) => return Err(TryRecvError::Disconnected),
                Err(RecvTimeoutError::Timeout) if self.chat.is_loaded() => match self.chat.unload() {
                    Ok(()) => tracing::info!(idle_sec = idle.as_secs(), "unloaded the weights"),
                    Err(error) => tracing::warn!(%error, "cannot unload the weights"),
                },
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        self.jobs.recv().map_err(|_| TryRecvError::Disconnected)
    }

    fn begin(&mut self, job: Job) {
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        if job.cancel.is_cancelled() {
            return;
        }
        let reply = match job.work {
            Work::Conversation { messages, tools } => {
                let mut session = self.chat.session().with_tools(tools);
                session.set_messages(messages).and_then(|()| session.into_reply(&job.sampling, job.cancel))
            }
            Work::Text(text) => self.chat.complete(&text, &job.sampling, job.cancel),
        };
        match reply {
            Ok(reply) => {
                let _ = job.events.send((job.index, Event::Started));
                self.active.push(Active { index: job.index, reply, events: job.events, thinking_tokens: 0 });
                self.shared.active.store(self.active.len(), Ordering::Relaxed);
            }
            Err(error) => {
                let _ = job.events.send((job.index, Event::Failed(ApiError::from(&error))));
            }
        }
    }
}

impl Active {
    /// Generates up to the next event. False if the reply has ended or its client is gone.
    fn advance(&mut self) -> bool {
        let item = self.reply.next();
        let thinking_tokens = self.reply.usage().thinking_tokens;
        let reasoning = std::mem::replace(&mut self.thinking_tokens, thinking_tokens) < thinking_tokens;
        let (event, last) = match item {
            Some(Ok(Chunk::Reasoning(text))) => (Event::Reasoning(text), false),
            Some(Ok(Chunk::Answer(text))) => (Event::Answer(text), false),
            Some(Ok(Chunk::Token(detail))) => (Event::Token { detail, reasoning }, false),
            Some(Ok(Chunk::Finish(finish))) => (Event::Finish(Box::new(finish)), true),
            Some(Ok(_)) => return true,
            Some(Err(error)) => (Event::Failed(ApiError::from(&error)), true),
            None => return false,
        };
        self.events.send((self.index, event)).is_ok() && !last
    }

    /// Keeps a snapshot behind the reply, so that a client that sends the conversation back finds all of it cached.
    fn prepare_next_turn(self) {
        drop(self.events);
        if let Some(mut session) = self.reply.into_session()
            && let Err(error) = session.warm()
        {
            tracing::debug!(%error, "no snapshot for the next turn");
        }
    }
}
