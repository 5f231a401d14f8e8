//! Memory: shared weights, the memory footprint, unloading.

use q35_runtime::{ChatError, Sampling};

use crate::Backend;
use crate::same::short;

/// Concurrent conversations get the same replies as each alone.
pub fn sessions_on_many_threads_do_not_mix(backend: &Backend) {
    let chat = backend.chat();
    let talk = |number: usize| {
        let mut session = chat.session().with_system(format!("You are assistant {number}."));
        let sampling = Sampling::default().with_seed(number as u64).with_thinking(false).with_max_tokens(8);
        let say = |text: &str| session.ask(text, &sampling).map(|reply| reply.text);
        ["Hello!", "What is two plus three?"].map(say).map(Result::unwrap)
    };
    let alone: Vec<_> = (0..3).map(talk).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|number| scope.spawn(move || talk(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone, "{}", backend.name);
}

/// The footprint counts each part while it is in use, and no longer once it is freed.
pub fn memory_is_accounted_for(backend: &Backend) {
    let chat = backend.chat();
    let weights = |chat: &q35_runtime::Chat| {
        let memory = chat.memory_footprint();
        memory.mapped_weight_bytes + memory.owned_weight_bytes
    };
    assert!(
        chat.is_loaded() && weights(&chat) > 1_000_000,
        "{}: {:?}",
        backend.name,
        chat.memory_footprint()
    );
    let mut sessions = [chat.session().with_system("Be brief. ".repeat(24)), chat.session()];
    sessions[0].ask("Hi", &short(backend)).unwrap();
    let one = chat.memory_footprint();
    assert!(one.cache_bytes > 0 && one.snapshots > 0 && one.snapshot_bytes > 0, "{}: {one:?}", backend.name);
    sessions[1].ask("Hi", &short(backend)).unwrap();
    let two = chat.memory_footprint();
    assert!(two.cache_bytes > one.cache_bytes, "{}: {one:?} {two:?}", backend.name);
    assert_eq!(weights(&chat), one.mapped_weight_bytes + one.owned_weight_bytes, "weights are shared");
    drop(sessions);
    assert_eq!(
        chat.memory_footprint().cache_bytes,
        0,
        "{}: a dropped conversation frees its state",
        backend.name
    );
}

/// Unloading refuses while a reply runs, frees everything, and the next reply loads again if the options allow it.
pub fn unloading_and_talking_on(backend: &Backend) {
    let chat = backend.chat();
    let mut session = chat.session();
    let first = session.ask("Hi", &short(backend)).unwrap();
    let stream = session.send("Tell me a story.", &short(backend)).unwrap();
    assert!(matches!(chat.unload(), Err(ChatError::Busy { replies: 1 })), "{}", backend.name);
    drop(stream);
    chat.unload().unwrap();
    assert!(!chat.is_loaded());
    assert_eq!(chat.memory_footprint().total_bytes(), 0, "{}", backend.name);
    session.reset_conversation();
    assert_eq!(session.ask("Hi", &short(backend)).unwrap().text, first.text, "{}", backend.name);
    assert!(chat.is_loaded());
    let manual = backend.chat_with(|options| options.with_auto_reload(false));
    manual.unload().unwrap();
    assert!(matches!(manual.generate("Hi", None, &short(backend)), Err(ChatError::NotLoaded)));
    manual.load().unwrap();
    manual.generate("Hi", None, &short(backend)).unwrap();
}
