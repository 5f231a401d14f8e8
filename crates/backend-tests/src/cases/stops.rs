//! Replies that end early: cancelled, dropped, or without room.

use q35_runtime::{CancelToken, ChatError, Chunk, CutReply, FinishReason, WindowPolicy};

use crate::Backend;
use crate::same::{Divergence, short};

/// A cancelled prefill computes nothing and leaves no message.
pub fn a_cancelled_prefill_leaves_the_session_usable(backend: &Backend) {
    let (chat, cold) = (backend.chat(), backend.cold());
    let mut session = chat.session();
    let cancel = CancelToken::new();
    cancel.cancel();
    let mut stream = session.send_with("word ".repeat(100), &short(backend), cancel).unwrap();
    let Some(Ok(Chunk::Finish(finish))) = stream.next() else { panic!("{}: no finish", backend.name) };
    assert_eq!(finish.reason, FinishReason::Cancelled, "{}", backend.name);
    stream.cut(CutReply::RollBack);
    assert!(session.messages().is_empty());
    let expected = cold.generate("Hi", None, &short(backend)).unwrap();
    let mut divergence = Divergence::default();
    divergence.compare(backend, &session.ask("Hi", &short(backend)).unwrap(), &expected, "after the cancel");
    divergence.check(backend);
}

/// The text so far stays, and the conversation continues as if the reply had been that short.
pub fn a_dropped_stream_leaves_the_session_usable(backend: &Backend) {
    let (chat, cold) = (backend.chat(), backend.cold());
    let mut session = chat.session();
    let mut stream = session.send("Tell me a story.", &short(backend)).unwrap();
    let mut said = String::new();
    for chunk in stream.by_ref() {
        if let Chunk::Answer(text) = chunk.unwrap() {
            said.push_str(&text);
        }
        if said.len() > 8 {
            break;
        }
    }
    drop(stream);
    assert_eq!(session.messages()[1].content, said, "{}", backend.name);
    let mut twin = cold.session();
    twin.set_messages(session.messages().to_vec()).unwrap();
    let expected = twin.ask("Why?", &short(backend)).unwrap();
    let mut divergence = Divergence::default();
    divergence.compare(backend, &session.ask("Why?", &short(backend)).unwrap(), &expected, "after the drop");
    divergence.check(backend);
}

/// A prompt that does not fit is an error with numbers; with `DropOldest` the oldest turns make room, and the system
/// prompt stays.
pub fn a_full_window_refuses_or_drops_the_oldest_turns(backend: &Backend) {
    let chat = backend.chat_with(|options| options.with_max_context(96));
    let mut session = chat.session().with_system("Be brief.");
    let error = (0..12).find_map(|turn| session.ask(format!("Question {turn}?"), &short(backend)).err());
    assert!(
        matches!(error, Some(ChatError::ContextFull { max_context: 96, .. })),
        "{}: {error:?}",
        backend.name
    );
    let chat =
        backend.chat_with(|options| options.with_max_context(96).with_window(WindowPolicy::DropOldest));
    let mut session = chat.session().with_system("Be brief.");
    let dropped = (0..12).find_map(|turn| {
        let reply = session.ask(format!("Question {turn}?"), &short(backend)).unwrap();
        Some(reply.finish.dropped_messages).filter(|dropped| *dropped > 0)
    });
    assert_eq!(dropped, Some(2), "{}: one question and its reply make enough room", backend.name);
    assert_eq!(session.messages()[0].content, "Be brief.");
    let reply = chat.generate(&"long ".repeat(200), None, &short(backend));
    assert!(matches!(reply, Err(ChatError::ContextFull { .. })), "{}: one turn is too long", backend.name);
}
