//! The loop with scripted models.

use crate::fake::FakeModel;
use crate::{Chat, ChatError, Chunk, FinishReason, Format, LoadOptions, Reply, Sampling, Tool};
use serde_json::json;

fn chat(replies: &[&str]) -> Chat {
    FakeModel::scripted(replies).chat(&LoadOptions::default())
}

fn greedy() -> Sampling {
    Sampling::greedy().with_thinking(false)
}

fn say(replies: &[&str], sampling: &Sampling) -> Reply {
    chat(replies).generate("Hi", None, sampling).unwrap()
}

#[test]
fn the_model_ends_its_turn() {
    let reply = say(&["Hello 🦀 世界!"], &greedy());
    assert_eq!((reply.text.as_str(), reply.reasoning.as_str()), ("Hello 🦀 世界!", ""));
    assert_eq!(reply.finish.reason, FinishReason::Stop);
    assert_eq!(reply.finish.usage.completion_tokens, "Hello 🦀 世界!".len());
}

#[test]
fn every_chunk_is_whole_characters() {
    let text = "a🦀b世c";
    let chat = chat(&[text]);
    let chunks: Vec<Chunk> = chat.stream("Hi", None, &greedy()).unwrap().map(Result::unwrap).collect();
    let pieces: Vec<&str> = chunks
        .iter()
        .filter_map(|c| if let Chunk::Answer(t) = c { Some(t.as_str()) } else { None })
        .collect();
    assert_eq!(pieces, ["a", "🦀", "b", "世", "c"]);
    assert!(matches!(chunks.last(), Some(Chunk::Finish(_))));
}

#[test]
fn a_character_that_a_limit_cuts_is_left_out() {
    for (tokens, text) in [(1, "a"), (2, "a"), (4, "a"), (5, "a🦀"), (6, "a🦀b")] {
        let reply = say(&["a🦀b世c"], &greedy().with_max_tokens(tokens));
        assert_eq!((reply.text.as_str(), reply.finish.reason), (text, FinishReason::Length), "{tokens}");
        assert_eq!(reply.finish.usage.completion_tokens, tokens);
    }
}

#[test]
fn reasoning_is_told_apart() {
    let thinking = Sampling::greedy();
    let reply = say(&["Let me see.\n</think>\n\nFour."], &thinking);
    assert_eq!((reply.reasoning.as_str(), reply.text.as_str()), ("Let me see.", "Four."));
    assert_eq!(reply.finish.usage.thinking_tokens, "Let me see.\n".len() + 1);
}

#[test]
fn a_spent_budget_closes_reasoning_and_an_answer_follows() {
    let sampling = Sampling::greedy().with_max_thinking_tokens(7);
    // The script goes on where it was cut, so its next letters are the answer.
    let reply = say(&["I wonder 🦀 and wonder"], &sampling);
    assert_eq!(reply.reasoning, "I wonde");
    assert_eq!(reply.text, "r 🦀 and wonder");
    assert_eq!(reply.finish.usage.thinking_tokens, 7);
    // A model that wants to end at once owes an answer: the end marker is barred for its first token.
    let reply = say(&["I wonde"], &sampling);
    assert_eq!(reply.finish.usage.thinking_tokens, 7);
    assert!(reply.finish.usage.completion_tokens > 7, "{reply:?}");
}

#[test]
fn a_model_that_ends_its_turn_while_it_reasons_still_answers() {
    let reply = say(&["I wonder"], &Sampling::greedy());
    assert_eq!((reply.reasoning.as_str(), &reply.finish.reason), ("I wonder", &FinishReason::Stop));
    assert!(!reply.text.is_empty(), "{reply:?}");
    assert_eq!(reply.finish.usage.thinking_tokens, "I wonder".len());
}

#[test]
fn a_budget_of_zero_leaks_nothing() {
    let sampling = Sampling::greedy().with_max_thinking_tokens(0);
    for reply in ["Plain.", "<think>\nsecret\n</think>\n\nPlain."] {
        let reply = say(&[reply], &sampling);
        assert_eq!(reply.reasoning, "", "{reply:?}");
        assert!(!reply.text.contains("<think>") && !reply.text.contains("</think>"), "{reply:?}");
        assert_eq!(reply.finish.usage.thinking_tokens, 0);
    }
}

#[test]
fn a_template_that_always_thinks_is_closed_at_once() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n<think>\n";
    let options = LoadOptions::default().with_chat_template(template);
    let chat = FakeModel::scripted(&["Plain."]).chat(&options);
    let reply = chat.generate("Hi", None, &Sampling::greedy().with_max_thinking_tokens(0)).unwrap();
    assert_eq!((reply.reasoning.as_str(), reply.text.as_str()), ("", "Plain."));
}

#[test]
fn a_tool_call_ends_reasoning() {
    let tool = Tool::new("now", "Tells the time.", json!({"type": "object", "properties": {}}));
    let chat = chat(&["I need the time. <tool_call>\n<function=now>\n</function>\n</tool_call>"]);
    let mut session = chat.session().with_tools(vec![tool]);
    let reply = session.ask("When?", &Sampling::greedy()).unwrap();
    assert_eq!(reply.reasoning, "I need the time.");
    assert_eq!(reply.finish.reason, FinishReason::ToolCalls);
    assert_eq!(reply.finish.tool_calls.unwrap()[0].name, "now");
    let last = session.messages().last().unwrap();
    assert_eq!((last.content.as_str(), last.tool_calls.len()), ("", 1));
}

#[test]
fn a_broken_tool_call_is_an_error_in_the_finish() {
    let tool = Tool::new("now", "Tells the time.", json!({"type": "object", "properties": {}}));
    let chat = chat(&["<tool_call>\n{\"name\": \"now\"}\n</tool_call>"]);
    let reply = chat.session().with_tools(vec![tool]).ask("When?", &greedy()).unwrap();
    assert_eq!(reply.finish.reason, FinishReason::Stop);
    assert!(reply.finish.tool_calls.unwrap_err().to_string().contains("expected: <function="));
}

#[test]
fn reasoning_in_circles_is_closed_and_so_is_an_answer() {
    let circle = "and so on ".repeat(60);
    let sampling = Sampling {
        thinking: crate::Thinking { max_tokens: None, ..Default::default() },
        ..Sampling::greedy()
    };
    let reply = say(&[&circle], &sampling);
    assert!(reply.finish.usage.thinking_tokens < 100, "{reply:?}");
    assert_eq!(reply.finish.reason, FinishReason::Repetition, "the answer goes in circles as well");
    let unguarded = Sampling { loop_guard: None, ..greedy().with_max_tokens(5000) };
    assert_eq!(say(&[&circle], &unguarded).text, circle);
}

#[test]
fn length_and_stop_texts() {
    let reply = say(&["one two three"], &greedy().with_max_tokens(5));
    assert_eq!((reply.text.as_str(), reply.finish.reason), ("one t", FinishReason::Length));
    let chat = chat(&["one two three"]);
    let sampling = greedy().with_stop(["two t"]);
    let mut shown = String::new();
    for chunk in chat.stream("Hi", None, &sampling).unwrap() {
        match chunk.unwrap() {
            Chunk::Answer(text) => shown.push_str(&text),
            Chunk::Finish(finish) => assert_eq!(finish.reason, FinishReason::StopText),
            _ => {}
        }
        assert!("one ".starts_with(&shown), "{shown:?}");
    }
    assert_eq!(shown, "one ");
}

#[test]
fn a_full_window_ends_the_reply_or_refuses_the_prompt() {
    let model = FakeModel::scripted(&["a long reply that does not fit"]);
    let chat = model.chat(&LoadOptions::default().with_max_context(48));
    let reply = chat.generate("Hi", None, &greedy()).unwrap();
    assert_eq!(reply.finish.reason, FinishReason::ContextFull);
    assert!(!reply.text.is_empty());
    let error = chat.generate(&"long ".repeat(40), None, &greedy()).unwrap_err();
    assert!(matches!(error, ChatError::ContextFull { max_context: 48, .. }), "{error}");
}

#[test]
fn the_seed_decides() {
    let chat = FakeModel::babbling().chat(&LoadOptions::default());
    let sampling = Sampling::default().with_thinking(false).with_max_tokens(40).with_temperature(1.0);
    let say = |seed| chat.generate("Hi", None, &sampling.clone().with_seed(seed)).unwrap().text;
    assert_eq!(say(1), say(1));
    assert_ne!(say(1), say(2));
    let free = chat.generate("Hi", None, &sampling).unwrap();
    assert_eq!(say(free.finish.seed), free.text, "the reported seed repeats the reply");
}

#[test]
fn log_probabilities_come_with_every_token() {
    let reply = say(&["abc"], &greedy().with_logprobs(2));
    let ids: Vec<u32> = reply.tokens.iter().map(|token| token.id).collect();
    assert_eq!(ids, [97, 98, 99, 258], "the end marker too");
    assert!(reply.tokens.iter().all(|token| token.logprob > -1e-3 && token.alternatives.len() == 2));
}

#[test]
fn a_model_of_nans_is_an_error() {
    let model = FakeModel::new(std::sync::Arc::new(|_, _, row| row.fill(f32::NAN)));
    let chat = model.chat(&LoadOptions::default());
    for sampling in [greedy(), Sampling::default().with_thinking(false)] {
        assert!(chat.generate("Hi", None, &sampling).is_err());
    }
}

#[test]
fn babble_in_json_form_parses_at_any_limit() {
    let schema = json!({
        "type": "object", "required": ["name", "tags", "age"], "additionalProperties": false,
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"},
                       "tags": {"type": "array", "items": {"enum": ["red", "green"]}}},
    });
    let chat = FakeModel::babbling().chat(&LoadOptions::default());
    for seed in 0..12 {
        for (format, least) in [(Format::Json, 24), (Format::Schema(schema.clone()), 60)] {
            let limit = least + 13 * seed as usize;
            let sampling = Sampling::default().with_temperature(1.0).with_thinking(false).with_seed(seed);
            let sampling = sampling.with_max_tokens(limit).with_format(format);
            let reply = chat.generate("Hi", None, &sampling).unwrap();
            let parsed: serde_json::Value = serde_json::from_str(&reply.text)
                .unwrap_or_else(|e| panic!("limit {limit}: {e}: {}", reply.text));
            assert!(parsed.is_object());
            if let Format::Schema(_) = &sampling.format {
                assert!(
                    parsed["name"].is_string() && parsed["age"].is_number() && parsed["tags"].is_array(),
                    "{parsed}"
                );
            }
        }
    }
}

#[test]
fn the_form_binds_the_answer_and_not_the_reasoning() {
    let chat = chat(&["Hm, JSON.\n</think>{\"a\": 1}"]);
    let reply = chat.generate("Hi", None, &Sampling::greedy().with_format(Format::Json)).unwrap();
    assert_eq!((reply.reasoning.as_str(), reply.text.as_str()), ("Hm, JSON.", "{\"a\": 1}"));
    assert_eq!(reply.finish.reason, FinishReason::Stop);
    let error =
        chat.generate("Hi", None, &greedy().with_format(Format::Schema(json!({"type": 5})))).unwrap_err();
    assert!(matches!(error, ChatError::Grammar { .. }), "{error}");
}
