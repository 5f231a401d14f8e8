//! Replies for async programs: a thread computes, and a [`Stream`] delivers the chunks.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use futures_core::Stream;

use crate::{CancelToken, ChatError, Chunk, Sampling, Session};

/// A reply as an async stream of chunks. A separate thread computes it; dropping the stream stops it.
///
/// ```
/// use std::future::poll_fn;
/// use std::pin::Pin;
/// use futures_core::Stream;
/// use q35_runtime::{ChatError, Chunk, Sampling, Session};
///
/// /// With `StreamExt` of the futures crate this is one line.
/// async fn answer(session: Session, question: &str) -> Result<(String, Option<Session>), ChatError> {
///     let mut reply = session.send_async(question, &Sampling::default());
///     let mut text = String::new();
///     while let Some(chunk) = poll_fn(|context| Pin::new(&mut reply).poll_next(context)).await {
///         if let Chunk::Answer(part) = chunk? {
///             text.push_str(&part);
///         }
///     }
///     Ok((text, reply.into_session()))
/// }
/// ```
pub struct AsyncReply {
    shared: Arc<Mutex<Shared>>,
    cancel: CancelToken,
    thread: Option<JoinHandle<Session>>,
}

#[derive(Default)]
struct Shared {
    queue: VecDeque<Result<Chunk, ChatError>>,
    ended: bool,
    waker: Option<Waker>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Marks the end of the stream when the thread ends, even by a panic.
struct EndMark(Arc<Mutex<Shared>>);

impl Drop for EndMark {
    fn drop(&mut self) {
        let mut shared = lock(&self.0);
        shared.ended = true;
        if let Some(waker) = shared.waker.take() {
            waker.wake();
        }
    }
}

impl Session {
    /// Sends a user message and streams the reply without blocking; [`AsyncReply::into_session`] returns the session.
    pub fn send_async(mut self, user: impl Into<String>, sampling: &Sampling) -> AsyncReply {
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let cancel = CancelToken::new();
        let (ours, token, user, sampling) = (shared.clone(), cancel.clone(), user.into(), sampling.clone());
        let thread = std::thread::spawn(move || {
            let _mark = EndMark(ours.clone());
            let deliver = |item| {
                let mut shared = lock(&ours);
                shared.queue.push_back(item);
                if let Some(waker) = shared.waker.take() {
                    waker.wake();
                }
            };
            match self.send_with(user, &sampling, token) {
                Ok(stream) => stream.for_each(deliver),
                Err(error) => deliver(Err(error)),
            }
            self
        });
        AsyncReply { shared, cancel, thread: Some(thread) }
    }
}

impl AsyncReply {
    /// Stops the reply if it is not finished, waits for its thread (at most the time of one token), and returns the
    /// session; `None` if the thread panicked.
    pub fn into_session(mut self) -> Option<Session> {
        self.cancel.cancel();
        self.thread.take()?.join().ok()
    }
}

impl Stream for AsyncReply {
    type Item = Result<Chunk, ChatError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut shared = lock(&self.shared);
        match (shared.queue.pop_front(), shared.ended) {
            (Some(item), _) => Poll::Ready(Some(item)),
            (None, true) => Poll::Ready(None),
            (None, false) => {
                shared.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for AsyncReply {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoadOptions;
    use crate::fake::FakeModel;
    use std::task::Wake;

    struct Unpark(std::thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn next(reply: &mut AsyncReply) -> Option<Result<Chunk, ChatError>> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match Pin::new(&mut *reply).poll_next(&mut context) {
                Poll::Ready(item) => return item,
                Poll::Pending => std::thread::park(),
            }
        }
    }

    #[test]
    fn chunks_arrive_and_the_session_comes_back() {
        let chat = FakeModel::scripted(&["Hello."]).chat(&LoadOptions::default());
        let mut reply = chat.session().send_async("Hi", &Sampling::greedy().with_thinking(false));
        let mut text = String::new();
        while let Some(item) = next(&mut reply) {
            if let Chunk::Answer(piece) = item.unwrap() {
                text.push_str(&piece);
            }
        }
        assert_eq!(text, "Hello.");
        assert_eq!(reply.into_session().unwrap().messages().len(), 2);
    }

    #[test]
    fn taking_the_session_back_stops_the_reply() {
        let chat = FakeModel::babbling().chat(&LoadOptions::default());
        let endless = Sampling { loop_guard: None, ..Sampling::default().with_max_tokens(1_000_000) };
        let mut reply = chat.session().send_async("Hi", &endless);
        assert!(next(&mut reply).is_some());
        assert!(!reply.into_session().unwrap().messages().is_empty());
    }
}
