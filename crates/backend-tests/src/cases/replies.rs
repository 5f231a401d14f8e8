//! The contents of a reply.

use q35_runtime::{Chunk, Format, Sampling};
use serde_json::{Value, json};

use crate::Backend;
use crate::same::short;

/// The same seed on a new chat, and on one thread if the backend allows to choose.
pub fn the_same_seed_gives_the_same_text(backend: &Backend) {
    let say = |seed, threads: Option<usize>| {
        let chat = backend.chat_with(|options| match threads {
            Some(threads) => options.with_threads(threads),
            None => options,
        });
        let sampling = Sampling::default().with_seed(seed).with_max_tokens(24).with_thinking(false);
        chat.generate("Tell me a story.", None, &sampling.with_temperature(1.5)).unwrap()
    };
    let text = say(1, None).text;
    assert_eq!(say(1, None).text, text, "{}", backend.name);
    assert_eq!(say(1, Some(1)).text, text, "{}: one thread", backend.name);
    assert!((2..6).any(|seed| say(seed, None).text != text), "{}: seeds change nothing", backend.name);
}

/// The probabilities of the whole vocabulary sum to one, and the greedy choice is the first alternative.
pub fn log_probabilities_are_those_of_a_distribution(backend: &Backend) {
    let sampling = short(backend).with_logprobs(1 << 20);
    let reply = backend.chat().generate("What is two plus three?", None, &sampling).unwrap();
    assert!(!reply.tokens.is_empty());
    for token in &reply.tokens {
        let total: f64 = token.alternatives.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
        assert!((total - 1.0).abs() < 1e-4, "{}: {total}", backend.name);
        assert_eq!(token.alternatives[0], (token.id, token.logprob), "{}", backend.name);
    }
}

/// The embedded model remembers a name on every backend.
pub fn a_name_is_remembered(backend: &Backend) {
    let chat = backend.chat();
    let mut session = chat.session();
    session.ask("My name is Ada.", &short(backend)).unwrap();
    let reply = session.ask("What is my name?", &short(backend)).unwrap();
    assert!(reply.text.contains("Ada"), "{}: {:?}", backend.name, reply.text);
}

/// The chunks of text add up to the reply, and every token precedes the text that it completes.
pub fn chunks_are_whole_and_add_up(backend: &Backend) {
    let chat = backend.chat();
    let sampling = short(backend).with_max_tokens(40);
    let whole = chat.generate("Tell me a story.", None, &sampling).unwrap();
    let chunks: Vec<Chunk> =
        chat.stream("Tell me a story.", None, &sampling).unwrap().map(Result::unwrap).collect();
    let text: String = chunks
        .iter()
        .filter_map(|chunk| if let Chunk::Answer(text) = chunk { Some(text.as_str()) } else { None })
        .collect();
    assert_eq!(text, whole.text, "{}", backend.name);
    let tokens = chunks.iter().filter(|chunk| matches!(chunk, Chunk::Token(_))).count();
    let Some(Chunk::Finish(finish)) = chunks.last() else { panic!("{}: no finish", backend.name) };
    // The end marker is a token, but not a completion token.
    assert!([0, 1].contains(&(tokens - finish.usage.completion_tokens)), "{}", backend.name);
    assert!(finish.timing.first_token >= finish.timing.prefill, "{}", backend.name);
}

/// Answers in JSON parse at any temperature, and at any limit, even one that would cut the answer off.
pub fn answers_in_json_parse(backend: &Backend) {
    let schema = json!({
        "type": "object", "required": ["city", "degrees"], "additionalProperties": false,
        "properties": {"city": {"type": "string", "maxLength": 20}, "degrees": {"type": "integer"}},
    });
    let chat = backend.chat();
    for seed in 0..backend.steps as u64 / 2 {
        let sampling = Sampling::default().with_seed(seed).with_thinking(false).with_temperature(1.5);
        let sampling =
            sampling.with_max_tokens(40 + 2 * seed as usize).with_format(Format::Schema(schema.clone()));
        let reply = chat.generate("The weather in Oslo, please.", None, &sampling).unwrap();
        let value: Value = serde_json::from_str(&reply.text)
            .unwrap_or_else(|error| panic!("{}: {error}: {}", backend.name, reply.text));
        assert!(value["city"].is_string() && value["degrees"].is_i64(), "{}: {value}", backend.name);
    }
}
