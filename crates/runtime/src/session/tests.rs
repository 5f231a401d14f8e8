//! Conversations with a fake model whose logits depend on every token before: reusing a wrong state changes the reply.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::fake::FakeModel;
use crate::{
    CancelToken, Chat, ChatError, Chunk, CutReply, FinishReason, LoadOptions, Message, Role, Sampling,
    Session, WindowPolicy,
};
use proptest::prelude::*;

fn short() -> Sampling {
    Sampling::greedy().with_thinking(false).with_max_tokens(12)
}

fn babbler(options: &LoadOptions) -> Chat {
    FakeModel::babbling().chat(options)
}

fn texts(session: &Session) -> Vec<&str> {
    session.messages().iter().map(|message| message.content.as_str()).collect()
}

#[test]
fn a_conversation_grows_by_both_sides() {
    let chat = FakeModel::scripted(&["Hello.", "Fine."]).chat(&LoadOptions::default());
    let mut session = chat.session().with_system("Be brief.");
    session.ask("Hi", &short()).unwrap();
    session.ask("How are you?", &short()).unwrap();
    assert_eq!(texts(&session), ["Be brief.", "Hi", "Hello.", "How are you?", "Fine."]);
    session.set_system(None);
    session.drop_last(1);
    assert_eq!(texts(&session), ["Hi", "Hello.", "How are you?"]);
    session.edit(1, "Ahoy.").unwrap();
    assert_eq!(texts(&session)[1], "Ahoy.");
    assert!(matches!(session.edit(7, "x"), Err(ChatError::NoSuchMessage { index: 7, messages: 3 })));
    session.set_system(Some("S".into()));
    session.drop_last(99);
    assert_eq!(texts(&session), ["S"]);
}

/// The last turns of a long conversation compute the new tokens, and the previous reply, which the template rewrites.
#[test]
fn later_turns_compute_only_what_is_new() {
    let chat = babbler(&LoadOptions::default());
    let mut session = chat.session().with_system("You are a helpful assistant. ".repeat(8));
    for turn in 0..10 {
        let before = session.messages().last().map_or(0, |message| message.content.len());
        let reply = session.ask(format!("Question {turn}?"), &short()).unwrap();
        let usage = reply.finish.usage;
        if turn > 0 {
            let new = usage.prompt_tokens - usage.cached_tokens;
            // The old reply, the markup around it, the question, and the tags of the new turn.
            assert!(new < before + 60, "turn {turn}: {new} of {} computed", usage.prompt_tokens);
        }
    }
}

#[test]
fn warming_leaves_only_the_new_message() {
    let chat = babbler(&LoadOptions::default());
    let mut session = chat.session();
    session.ask("One?", &short()).unwrap();
    assert!(session.warm().unwrap() > 0);
    assert_eq!(session.warm().unwrap(), 0, "nothing left to do");
    let usage = session.ask("Two?", &short()).unwrap().finish.usage;
    let tail = "Two?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
    let tail = crate::fake::bytes(tail).len();
    assert_eq!(usage.prompt_tokens - usage.cached_tokens, tail);
}

#[test]
fn a_system_prompt_is_computed_once_for_all_sessions() {
    let chat = babbler(&LoadOptions::default());
    let system = "Long instructions. ".repeat(20);
    chat.generate("One", Some(&system), &short()).unwrap();
    let usage = chat.generate("Two", Some(&system), &short()).unwrap().finish.usage;
    assert!(usage.cached_tokens > system.trim().len(), "{usage:?}");
}

#[test]
fn without_a_cache_everything_is_computed() {
    let chat = babbler(&LoadOptions::default().with_prompt_cache(0));
    let mut session = chat.session();
    session.ask("One", &short()).unwrap();
    assert_eq!(session.ask("Two", &short()).unwrap().finish.usage.cached_tokens, 0);
}

#[test]
fn cancelling_stops_within_a_token_and_leaves_the_session_usable() {
    let model = FakeModel::babbling();
    let consumed = model.consumed.clone();
    let chat = model.chat(&LoadOptions::default());
    let mut session = chat.session();
    let endless = Sampling { loop_guard: None, ..short().with_max_tokens(100_000) };
    let cancel = CancelToken::new();
    let mut shown = String::new();
    let mut stream = session.send_with("Talk", &endless, cancel.clone()).unwrap();
    let mut at_cancel = 0;
    for chunk in stream.by_ref() {
        match chunk.unwrap() {
            Chunk::Answer(text) => shown.push_str(&text),
            Chunk::Finish(finish) => {
                assert!(matches!(finish.reason, FinishReason::Cancelled | FinishReason::Stop));
            }
            _ => {}
        }
        if shown.len() == 5 && !cancel.is_cancelled() {
            cancel.cancel();
            at_cancel = consumed.load(Ordering::Relaxed);
        }
    }
    drop(stream);
    assert!(at_cancel > 0 && consumed.load(Ordering::Relaxed) <= at_cancel + 1);
    assert_eq!(texts(&session), ["Talk", &shown], "what was shown is kept");
    session.ask("Go on", &short()).unwrap();
    assert_eq!(session.messages().len(), 4);
}

#[test]
fn a_cancel_before_the_prompt_is_computed() {
    let model = FakeModel::babbling();
    let consumed = model.consumed.clone();
    let chat = model.chat(&LoadOptions::default());
    let mut session = chat.session();
    let cancel = CancelToken::new();
    cancel.cancel();
    let reply = session.send_with("word ".repeat(200), &short(), cancel).unwrap().collect_reply().unwrap();
    assert_eq!((reply.finish.reason, consumed.load(Ordering::Relaxed)), (FinishReason::Cancelled, 0));
    assert_eq!(session.messages().len(), 1, "the question stays, the answer never came");
}

#[test]
fn what_becomes_of_a_cut_reply_is_the_callers_choice() {
    let chat = FakeModel::scripted(&["One two three four"]).chat(&LoadOptions::default());
    let cases = [
        (CutReply::Keep, vec!["Hi", "One"]),
        (CutReply::KeepText("On".into()), vec!["Hi", "On"]),
        (CutReply::RollBack, vec![]),
    ];
    for (choice, expected) in cases {
        let mut session = chat.session();
        let mut stream = session.send("Hi", &Sampling::greedy().with_thinking(false)).unwrap();
        stream.by_ref().take(3).for_each(|chunk| assert!(chunk.is_ok()));
        stream.cut(choice.clone());
        assert_eq!(texts(&session), expected);
        let mut session = chat.session().with_on_cut(choice);
        session.send("Hi", &Sampling::greedy().with_thinking(false)).unwrap().take(3).for_each(drop);
        assert_eq!(texts(&session), expected);
    }
}

#[test]
fn a_refused_question_leaves_the_conversation_alone() {
    let chat = babbler(&LoadOptions::default().with_max_context(120));
    let mut session = chat.session();
    session.ask("Hi", &short()).unwrap();
    let before = session.messages().to_vec();
    assert!(matches!(session.ask("long ".repeat(50), &short()), Err(ChatError::ContextFull { .. })));
    assert!(matches!(session.ask("x", &short().with_top_p(0.0)), Err(ChatError::Option { .. })));
    assert_eq!(session.messages(), before);
}

#[test]
fn the_oldest_turns_make_room() {
    let options = LoadOptions::default().with_max_context(256).with_window(WindowPolicy::DropOldest);
    let chat = babbler(&options);
    let mut session = chat.session().with_system("Frame.");
    let mut dropped = 0;
    for turn in 0..12 {
        let reply = session.ask(format!("Question number {turn}"), &short()).unwrap();
        dropped += reply.finish.dropped_messages;
        assert!(reply.finish.usage.prompt_tokens < 256);
        assert_eq!(session.messages()[0].role, Role::System);
        assert_eq!(session.messages()[1].role, Role::User);
    }
    assert!(dropped > 0 && session.messages().len() < 25);
    let error = session.ask("x".repeat(400), &short()).unwrap_err();
    assert!(matches!(error, ChatError::ContextFull { .. }), "one turn that does not fit cannot be helped");
}

#[test]
fn unloading_and_reloading() {
    let chat = babbler(&LoadOptions::default());
    let mut session = chat.session();
    session.ask("Hi", &short()).unwrap();
    let stream = session.send("Hi", &short()).unwrap();
    assert!(matches!(chat.unload(), Err(ChatError::Busy { replies: 1 })));
    drop(stream);
    let before = chat.memory_footprint();
    assert!(before.cache_bytes > 0 && before.snapshot_bytes > 0 && before.mapped_weight_bytes == 1000);
    chat.unload().unwrap();
    assert!(!chat.is_loaded());
    assert_eq!(chat.memory_footprint().total_bytes(), 0);
    session.ask("Still there?", &short()).unwrap();
    assert!(chat.is_loaded());
    let strict = babbler(&LoadOptions::default().with_auto_reload(false));
    strict.unload().unwrap();
    assert!(matches!(strict.generate("Hi", None, &short()), Err(ChatError::NotLoaded)));
    strict.load().unwrap();
    assert!(strict.generate("Hi", None, &short()).is_ok());
}

#[test]
fn sessions_and_streams_may_move_to_other_threads() {
    fn is_send<T: Send>() {}
    fn is_sync<T: Sync>() {}
    is_send::<Session>();
    is_send::<crate::ReplyStream<'static>>();
    is_send::<Chat>();
    is_sync::<Chat>();
    let chat = babbler(&LoadOptions::default());
    let alone: Vec<String> =
        (0..4).map(|i| chat.generate(&format!("Q{i}"), None, &short()).unwrap().text).collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let asks: Vec<_> = (0..4)
            .map(|i| (i, chat.clone()))
            .map(|(i, chat)| {
                scope.spawn(move || chat.generate(&format!("Q{i}"), None, &short()).unwrap().text)
            })
            .collect();
        asks.into_iter().map(|ask| ask.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

/// One step of a random test of two interleaved sessions.
#[derive(Clone, Debug)]
enum Step {
    Ask { session: usize, words: usize, thinking: bool },
    Cut { session: usize, after: usize, roll_back: bool },
    Edit { session: usize, index: usize },
    DropLast { session: usize, count: usize },
    Reset { session: usize },
    Branch { from: usize, to: usize },
    Warm { session: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..2usize, 1..9usize, any::<bool>()).prop_map(|(session, words, thinking)| Step::Ask { session, words, thinking }),
        2 => (0..2usize, 0..9usize, any::<bool>()).prop_map(|(session, after, roll_back)| Step::Cut { session, after, roll_back }),
        1 => (0..2usize, 0..6usize).prop_map(|(session, index)| Step::Edit { session, index }),
        1 => (0..2usize, 0..4usize).prop_map(|(session, count)| Step::DropLast { session, count }),
        1 => (0..2usize).prop_map(|session| Step::Reset { session }),
        1 => (0..2usize, 0..2usize).prop_map(|(from, to)| Step::Branch { from, to }),
        1 => (0..2usize).prop_map(|session| Step::Warm { session }),
    ];
    prop::collection::vec(step, 1..16)
}

/// Every reply equals that of a fresh chat without any cache, to the bit of every log-probability.
fn replies_equal_cold_ones(steps: &[Step], alignment: usize, budget: u64) -> Result<(), TestCaseError> {
    let options = LoadOptions::default().with_prompt_cache(budget);
    let warm = FakeModel::babbling().with_alignment(alignment).chat(&options);
    let cold = FakeModel::babbling().with_alignment(alignment).chat(&options.clone().with_prompt_cache(0));
    let mut sessions = [warm.session().with_system("Frame. ".repeat(5)), warm.session()];
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Ask { session, words, thinking } => {
                let sampling = short().with_thinking(*thinking).with_max_thinking_tokens(5).with_logprobs(1);
                let session = &mut sessions[*session];
                let mut twin = cold.session();
                twin.set_messages(session.messages().to_vec()).unwrap();
                let question = format!("word{number} ").repeat(*words);
                let reply = session.ask(question.as_str(), &sampling).unwrap();
                let expected = twin.ask(question, &sampling).unwrap();
                prop_assert_eq!(reply.tokens, expected.tokens);
                prop_assert_eq!(session.messages(), twin.messages());
            }
            Step::Cut { session, after, roll_back } => {
                let session = &mut sessions[*session];
                let mut stream = session.send(format!("cut{number}"), &short()).unwrap();
                stream.by_ref().take(*after).for_each(drop);
                stream.cut(if *roll_back { CutReply::RollBack } else { CutReply::Keep });
            }
            Step::Edit { session, index } => {
                let _ = sessions[*session].edit(*index, format!("edit{number}"));
            }
            Step::DropLast { session, count } => sessions[*session].drop_last(*count),
            Step::Reset { session } => sessions[*session].reset_conversation(),
            Step::Branch { from, to } => sessions[*to] = sessions[*from].branch(),
            Step::Warm { session } => {
                sessions[*session].warm().unwrap();
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_happens_replies_equal_cold_ones(steps in steps(), budget in prop_oneof![Just(1u64 << 20), Just(3000u64)]) {
        replies_equal_cold_ones(&steps, 1, budget)?;
    }

    #[test]
    fn also_on_a_grid(steps in steps(), alignment in prop_oneof![Just(16usize), Just(64usize)]) {
        replies_equal_cold_ones(&steps, alignment, 1 << 20)?;
    }
}

#[test]
fn on_a_grid_less_than_one_chunk_is_computed_again() {
    let chat = FakeModel::babbling().with_alignment(16).chat(&LoadOptions::default());
    let mut session = chat.session().with_system("Instructions. ".repeat(20));
    session.ask("One", &short()).unwrap();
    let before = session.messages().last().unwrap().content.len();
    let usage = session.ask("Two", &short()).unwrap().finish.usage;
    assert!(usage.cached_tokens > 0 && usage.cached_tokens.is_multiple_of(16));
    assert!(usage.prompt_tokens - usage.cached_tokens < before + 60 + 16, "{usage:?}");
}

#[test]
fn messages_can_be_replaced_as_a_whole() {
    let chat = babbler(&LoadOptions::default());
    let mut session = chat.session();
    session.set_messages(vec![Message::user("a"), Message::assistant("b"), Message::user("c")]).unwrap();
    let reply = session.respond(&short(), CancelToken::new()).unwrap().collect_reply().unwrap();
    assert_eq!(session.messages().len(), 4);
    assert_eq!(session.to_json()[3]["content"], reply.text.as_str());
    let _ = Arc::new(session);
}

#[test]
fn a_system_prompt_is_saved_and_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let (model_dir, file) = (dir.path().join("model"), dir.path().join("prompt.safetensors"));
    std::fs::create_dir(&model_dir).unwrap();
    q35_testkit::write_tokenizer(&model_dir);
    let chat = || {
        let model: Arc<dyn q35_inference::Model> = Arc::new(FakeModel::babbling());
        Chat::with_model(&model_dir, &LoadOptions::default(), move || Ok(model.clone())).unwrap()
    };
    let system = "Long instructions. ".repeat(20);
    let saved = chat().session().with_system(&system).save_prompt(&file).unwrap();
    assert!(saved > system.trim().len());
    let second = chat();
    assert_eq!(second.load_prompt(&file).unwrap(), saved);
    let warm = second.generate("Hi", Some(&system), &short()).unwrap();
    assert_eq!(warm.finish.usage.cached_tokens, saved);
    assert_eq!(warm.text, chat().generate("Hi", Some(&system), &short()).unwrap().text);
    std::fs::write(model_dir.join("config.json"), "{}").unwrap();
    assert!(matches!(chat().load_prompt(&file), Err(ChatError::SnapshotFile { .. })));
    assert!(matches!(chat().session().save_prompt(&file), Err(ChatError::Option { .. })), "nothing to save");
}

#[test]
fn a_late_system_message_is_refused_when_it_comes() {
    let chat = babbler(&LoadOptions::default());
    let mut session = chat.session();
    session.push(Message::system("Be brief.")).unwrap();
    session.push(Message::user("Hi")).unwrap();
    let before = session.messages().to_vec();
    let late = session.push(Message::system("Be long."));
    assert!(matches!(late, Err(ChatError::SystemMessage { index: 2 })), "{late:?}");
    let late = session.set_messages(vec![Message::user("a"), Message::system("b")]);
    assert!(matches!(late, Err(ChatError::SystemMessage { index: 1 })), "{late:?}");
    assert_eq!(session.messages(), before);
    session.respond(&short(), CancelToken::new()).unwrap().collect_reply().unwrap();
}
