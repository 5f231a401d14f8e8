//! One suite over every backend, on the embedded model: what must hold whoever computes. Each backend brings its own
//! list of known gaps.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use q35_mlx::{RoundToNearest, WriteOptions};
use q35_quant::affine::AffineSpec;
use q35_runtime::{CancelToken, Chat, Chunk, CutReply, FinishReason, Format, LoadOptions, Sampling};

/// A way to run the embedded model.
struct Runner {
    name: &'static str,
    options: LoadOptions,
    /// Whether reuse must not change a single bit.
    bit_exact: bool,
}

fn runners() -> Vec<Runner> {
    let base = || LoadOptions::default().with_max_context(1024);
    vec![
        Runner { name: "CPU exact", options: base().with_exact(true), bit_exact: true },
        Runner {
            name: "CPU exact, one thread",
            options: base().with_exact(true).with_threads(1),
            bit_exact: true,
        },
        Runner { name: "CPU fast", options: base(), bit_exact: true },
    ]
}

/// The embedded model as an INT4 MLX directory, made once.
fn nano() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let root = tempfile::tempdir().unwrap().keep();
        let (source, target) = (root.join("source"), root.join("mlx"));
        q35_nano::write_to(&source).unwrap();
        std::fs::create_dir(&target).unwrap();
        let checkpoint = q35_checkpoint::Checkpoint::open(&source).unwrap();
        let recipe = RoundToNearest(AffineSpec::new(4, 64).unwrap());
        q35_mlx::write(&checkpoint, &recipe, &WriteOptions::default(), &target, &|_| {}).unwrap();
        target
    })
}

fn open(options: &LoadOptions) -> Chat {
    Chat::open(nano().to_str().unwrap(), options, &|_| {}).unwrap()
}

fn short() -> Sampling {
    Sampling::default().with_seed(3).with_max_tokens(24).with_thinking(false).with_logprobs(0)
}

#[test]
fn every_turn_equals_a_cold_start() {
    for Runner { name, options, bit_exact } in runners() {
        let (warm, cold) = (open(&options), open(&options.clone().with_prompt_cache(0)));
        let mut session = warm.session().with_system("You are a helpful assistant.");
        let mut branch = None;
        for (turn, question) in
            ["My name is Ada.", "What is my name?", "Tell me a story.", "Why?"].iter().enumerate()
        {
            let mut twin = cold.session();
            twin.set_messages(session.messages().to_vec());
            let thinking = short().with_thinking(turn % 2 == 1).with_max_thinking_tokens(8);
            let reply = session.ask(*question, &thinking).unwrap();
            let expected = twin.ask(*question, &thinking).unwrap();
            assert_eq!(reply.text, expected.text, "{name}, turn {turn}");
            if bit_exact {
                assert_eq!(reply.tokens, expected.tokens, "{name}, turn {turn}");
            }
            assert_eq!(expected.finish.usage.cached_tokens, 0);
            assert!(turn == 0 || reply.finish.usage.cached_tokens > 0, "{name}, turn {turn}");
            match turn {
                1 => branch = Some(session.branch()),
                2 => {
                    let mut stream = session.send("Stop there.", &short()).unwrap();
                    stream.by_ref().take(4).for_each(drop);
                    stream.cut(CutReply::RollBack);
                }
                _ => {}
            }
        }
        let mut branch = branch.unwrap();
        let mut twin = cold.session();
        twin.set_messages(branch.messages().to_vec());
        assert_eq!(
            branch.ask("And?", &short()).unwrap().tokens,
            twin.ask("And?", &short()).unwrap().tokens,
            "{name}"
        );
    }
}

#[test]
fn the_same_seed_on_any_number_of_threads() {
    let say =
        |threads| open(&LoadOptions::default().with_threads(threads)).generate("Hi", None, &short()).unwrap();
    assert_eq!(say(1).tokens, say(2).tokens);
}

#[test]
fn a_cancelled_prefill_leaves_the_session_usable() {
    for Runner { name, options, .. } in runners() {
        let chat = open(&options);
        let mut session = chat.session();
        let cancel = CancelToken::new();
        cancel.cancel();
        let long = "word ".repeat(100);
        let reply = session.send_with(&*long, &short(), cancel).unwrap().collect_reply().unwrap();
        assert_eq!(reply.finish.reason, FinishReason::Cancelled, "{name}");
        assert!(!session.ask("Hi", &short()).unwrap().tokens.is_empty(), "{name}");
    }
}

#[test]
fn answers_in_json_parse() {
    let schema = serde_json::json!({
        "type": "object", "required": ["city", "degrees"], "additionalProperties": false,
        "properties": {"city": {"type": "string", "maxLength": 20}, "degrees": {"type": "integer"}},
    });
    let chat = open(&LoadOptions::default());
    for seed in 0..24 {
        let sampling = short().with_seed(seed).with_max_tokens(40 + seed as usize).with_temperature(1.0);
        let sampling = sampling.with_format(Format::Schema(schema.clone()));
        let reply = chat.generate("The weather in Oslo, please.", None, &sampling).unwrap();
        let value: serde_json::Value =
            serde_json::from_str(&reply.text).unwrap_or_else(|e| panic!("{e}: {}", reply.text));
        assert!(value["city"].is_string() && value["degrees"].is_number(), "{value}");
    }
}

#[test]
fn chunks_are_whole_and_add_up() {
    let chat = open(&LoadOptions::default());
    let stream = chat.stream("Tell me a story.", None, &short().with_max_tokens(60)).unwrap();
    let chunks: Vec<Chunk> = stream.map(Result::unwrap).collect();
    let tokens = chunks.iter().filter(|chunk| matches!(chunk, Chunk::Token(_))).count();
    let Some(Chunk::Finish(finish)) = chunks.last() else { panic!("no finish") };
    assert!(tokens == finish.usage.completion_tokens || tokens == finish.usage.completion_tokens + 1);
    assert!(finish.timing.first_token >= finish.timing.prefill);
}

#[test]
fn a_model_that_cannot_fit_is_refused_with_numbers() {
    let options = LoadOptions::default().with_memory_limit(1_000_000);
    let error = Chat::open(nano().to_str().unwrap(), &options, &|_| {}).err().unwrap().to_string();
    assert!(error.contains("MB needed (weights") && error.contains("limit:    1 MB"), "{error}");
}

#[test]
fn a_prompt_saved_by_one_chat_is_used_by_another() {
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("prompt.safetensors");
    let system = "You are a helpful assistant. ".repeat(6);
    let saved = open(&LoadOptions::default()).session().with_system(&system).save_prompt(&path).unwrap();
    let chat = open(&LoadOptions::default());
    assert_eq!(chat.load_prompt(&path).unwrap(), saved);
    let reply = chat.generate("Hi", Some(&system), &short()).unwrap();
    assert_eq!(reply.finish.usage.cached_tokens, saved);
    let cold = open(&LoadOptions::default()).generate("Hi", Some(&system), &short()).unwrap();
    assert_eq!(reply.tokens, cold.tokens);
    let exact = open(&LoadOptions::default().with_exact(true));
    assert!(exact.load_prompt(&path).is_err(), "the state of another mode");
}

#[test]
fn unloading_and_talking_on() {
    let chat = open(&LoadOptions::default());
    let mut session = chat.session();
    let first = session.ask("Hi", &short()).unwrap();
    chat.unload().unwrap();
    assert_eq!(chat.memory_footprint().total_bytes(), 0);
    session.drop_last(2);
    assert_eq!(session.ask("Hi", &short()).unwrap().tokens, first.tokens);
}
