//! Reuse of states: every reply must equal that of a cold start.

use q35_runtime::{CancelToken, Chat, CutReply, LoadOptions, Message, Precision, Reply, Sampling, Session};

use crate::Backend;
use crate::same::{Divergence, short};

const SYSTEM: &str = "You are a helpful assistant. You answer in short and friendly sentences.";

/// The reply of a fresh chat to the same conversation.
fn cold_reply(cold: &Chat, session: &Session, question: &str, sampling: &Sampling) -> Reply {
    let mut twin = cold.session();
    twin.set_messages(session.messages().to_vec()).unwrap();
    let reply = twin.ask(question, sampling).unwrap();
    assert_eq!(reply.finish.usage.cached_tokens, 0, "nothing is reused without a cache");
    reply
}

/// A conversation with and without thinking, a branch, and a reply that is cut off and rolled back.
pub fn every_turn_equals_a_cold_start(backend: &Backend) {
    let (warm, cold) = (backend.chat(), backend.cold());
    let mut session = warm.session().with_system(SYSTEM);
    let mut branch = None;
    let mut divergence = Divergence::default();
    let questions = ["My name is Ada.", "What is my name?", "Tell me a story.", "Why?"];
    for (turn, question) in questions.iter().enumerate() {
        let sampling = short(backend).with_max_tokens(10).with_thinking(turn % 2 == 1);
        let sampling = sampling.with_max_thinking_tokens(5);
        let expected = cold_reply(&cold, &session, question, &sampling);
        let reply = session.ask(*question, &sampling).unwrap();
        divergence.compare(backend, &reply, &expected, &format!("turn {turn}"));
        match turn {
            1 => branch = Some(session.branch()),
            2 => {
                let mut stream = session.send("Stop there.", &sampling).unwrap();
                stream.by_ref().take(4).for_each(drop);
                stream.cut(CutReply::RollBack);
            }
            _ => {}
        }
    }
    let mut branch = branch.unwrap();
    let expected = cold_reply(&cold, &branch, "And?", &short(backend));
    let reply = branch.ask("And?", &short(backend)).unwrap();
    divergence.compare(backend, &reply, &expected, "the branch");
    divergence.check(backend);
}

/// Three concurrent conversations under a fixed sequence of random operations.
pub fn random_conversations_equal_cold_starts(backend: &Backend) {
    let (warm, cold) = (backend.chat(), backend.cold());
    let mut sessions =
        [warm.session().with_system(SYSTEM), warm.session(), warm.session().with_system("Hm.")];
    let mut random = Random(7);
    let mut divergence = Divergence::default();
    let mut replies = 0;
    for step in 0..backend.steps {
        let (which, operation, number) = (random.below(3), random.below(10), random.below(4));
        let session = &mut sessions[which];
        // Questions of different lengths, so that reuse begins anywhere.
        let question = format!("{step} {}", "and why is that so? ".repeat(number));
        let sampling = short(backend).with_max_tokens(6).with_thinking(random.below(3) == 0);
        match operation {
            0 => {
                let mut stream = session.send(question, &sampling).unwrap();
                stream.by_ref().take(number).for_each(drop);
                stream.cut([CutReply::Keep, CutReply::RollBack][random.below(2)].clone());
            }
            1 => drop(session.edit(number, question)),
            2 => session.drop_last(number),
            3 => session.set_system((number > 0).then(|| format!("Frame {number}."))),
            4 => sessions[random.below(3)] = sessions[which].branch(),
            5 => drop(session.warm().unwrap()),
            6 if number == 0 => session.reset_conversation(),
            _ => {
                let expected = cold_reply(&cold, session, &question, &sampling);
                let reply = session.ask(question, &sampling).unwrap();
                divergence.compare(backend, &reply, &expected, &format!("step {step}"));
                replies += 1;
            }
        }
    }
    assert!(replies > 0);
    divergence.check(backend);
}

/// Ten turns: each computes the new message, the previous reply as the template renders it, the markup around them,
/// and less than one aligned chunk again.
pub fn later_turns_compute_only_what_is_new(backend: &Backend) {
    let chat = backend.chat();
    let mut session = chat.session().with_system(SYSTEM);
    let sampling = short(backend).with_max_tokens(4);
    for turn in 0..10 {
        let reply = session.ask(format!("Question {turn}?"), &sampling).unwrap();
        let usage = reply.finish.usage;
        if turn > 0 {
            let new = usage.prompt_tokens - usage.cached_tokens;
            let few = 8 + 32 + backend.alignment;
            assert!(new < few, "{}, turn {turn}: {new} of {}", backend.name, usage.prompt_tokens);
        }
    }
}

/// A system prompt's state is saved to a file and loaded by another chat. The state of another arithmetic is refused;
/// on backends that are always exact it is accepted and leads to the same replies.
pub fn a_saved_prompt_is_used_by_another_chat(backend: &Backend) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompt.safetensors");
    let system = "Answer in one short sentence. ".repeat(12);
    let saved = backend.chat().session().with_system(&system).save_prompt(&path).unwrap();
    let continues = |chat: &Chat, cold: &Chat, when: &str| {
        let mut session = chat.session().with_system(&system);
        let expected = cold_reply(cold, &session, "Hi", &short(backend));
        session.push(Message::user("Hi")).unwrap();
        let reply = session.respond(&short(backend), CancelToken::new()).unwrap().collect_reply().unwrap();
        assert_eq!(reply.finish.usage.cached_tokens, saved, "{}, {when}", backend.name);
        let mut divergence = Divergence::default();
        divergence.compare(backend, &reply, &expected, when);
        divergence.check(backend);
    };
    let chat = backend.chat();
    assert_eq!(chat.load_prompt(&path).unwrap(), saved);
    continues(&chat, &backend.cold(), "after loading");
    let other_arithmetic = |options: LoadOptions| {
        let precision = match options.run.precision {
            Precision::Exact => Precision::Fast,
            _ => Precision::Exact,
        };
        options.with_precision(precision)
    };
    let other = backend.chat_with(other_arithmetic);
    let loaded = other.load_prompt(&path);
    if !backend.always_exact {
        assert!(loaded.is_err(), "{}: the state of another arithmetic", backend.name);
        return;
    }
    assert_eq!(loaded.unwrap(), saved);
    let cold = backend.chat_with(|options| other_arithmetic(options).with_prompt_cache(0));
    continues(&other, &cold, "after loading the state of the same arithmetic");
}

/// A linear congruential generator: the same sequence on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}
