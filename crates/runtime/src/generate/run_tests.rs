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
    let chat =
        chat(&["<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\nnow()\n</tool_call>"]);
    let reply = chat.session().with_tools(vec![tool]).ask("When?", &greedy()).unwrap();
    assert_eq!(reply.finish.reason, FinishReason::Stop);
    let broken = reply.finish.tool_calls.unwrap_err();
    assert!(broken.to_string().contains("expected: <function="), "{broken}");
    assert_eq!(broken.valid.len(), 1, "the valid call is not lost");
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

fn now() -> Tool {
    Tool::new("now", "Tells the time.", json!({"type": "object", "properties": {}}))
}

#[test]
fn a_mentioned_tool_call_ends_nothing() {
    let reasoning = "The form is <tool_call> and so on, as in `<tool_call><function=now>`.";
    let script = format!("{reasoning}\n</think>\n\nIn ticks: `<tool_call>`.");
    for tools in [vec![], vec![now()]] {
        let reply = chat(&[&script]).session().with_tools(tools).ask("How?", &Sampling::greedy()).unwrap();
        assert_eq!((reply.reasoning.as_str(), reply.text.as_str()), (reasoning, "In ticks: `<tool_call>`."));
        assert_eq!((reply.finish.reason, reply.finish.tool_calls), (FinishReason::Stop, Ok(vec![])));
    }
    let call = "I look. <tool_call>\n<function=now>\n</function>\n</tool_call>\n</think>\n\nDone.";
    let reply = chat(&[call]).session().ask("How?", &Sampling::greedy()).unwrap();
    assert!(reply.reasoning.contains("<tool_call>"), "no tools are offered: {reply:?}");
    assert_eq!(reply.text, "Done.");
}

#[test]
fn text_around_calls_stays_in_the_conversation() {
    let chat = chat(&["I look.\n<tool_call>\n<function=now>\n</function>\n</tool_call>\nA moment."]);
    let mut session = chat.session().with_tools(vec![now()]);
    let reply = session.ask("When?", &greedy()).unwrap();
    assert_eq!(reply.finish.reason, FinishReason::ToolCalls);
    assert_eq!(session.messages()[1].content, "I look.\n\nA moment.");
}

#[test]
fn tools_beside_a_json_form_are_refused() {
    let mut session = chat(&["{}"]).session().with_tools(vec![now()]);
    let error = session.ask("Hi", &greedy().with_format(Format::Json)).unwrap_err();
    assert!(matches!(error, ChatError::Option { option: "format", .. }), "{error}");
}

fn schema(properties: serde_json::Value) -> Format {
    let required: Vec<&String> = properties.as_object().unwrap().keys().collect();
    Format::Schema(json!({
        "type": "object", "properties": properties, "required": required, "additionalProperties": false,
    }))
}

#[test]
fn json_that_a_limit_closed_says_so() {
    let format =
        schema(json!({"name": {"type": "string"}, "age": {"type": "integer"}, "ok": {"type": "boolean"}}));
    let script = r#"{"name": "Ada Lovelace", "age": 36, "ok": true}"#;
    let reply = say(&[script], &greedy().with_format(format.clone()).with_max_tokens(100));
    assert_eq!((reply.text.as_str(), &reply.finish.reason), (script, &FinishReason::Stop));
    assert!(reply.finish.closed_fields.is_empty());
    let reply = say(&[script], &greedy().with_format(format.clone()).with_max_tokens(script.len()));
    assert_eq!((reply.text.as_str(), &reply.finish.reason), (script, &FinishReason::Stop), "it just fits");
    let reply = say(&[script], &greedy().with_format(format.clone()).with_max_tokens(40));
    let value: serde_json::Value = serde_json::from_str(&reply.text).unwrap();
    assert_eq!(reply.finish.reason, FinishReason::Length, "{value}");
    assert_eq!(reply.finish.closed_fields, ["/name", "/age", "/ok"], "{value}");
    assert!("Ada Lovelace".starts_with(value["name"].as_str().unwrap()));
    let error =
        chat(&[script]).generate("Hi", None, &greedy().with_format(format).with_max_tokens(10)).unwrap_err();
    assert!(matches!(error, ChatError::Option { option: "max_tokens", .. }), "{error}");
}

#[test]
fn json_fits_a_context_that_ends() {
    let format = schema(json!({"text": {"type": "string"}}));
    let model =
        FakeModel::scripted(&[r#"{"text": "a long text that does not fit into the context window"}"#]);
    let chat = model.chat(&LoadOptions::default().with_max_context(90));
    let reply = chat.generate("Hi", None, &greedy().with_format(format)).unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(&reply.text).is_ok(), "{reply:?}");
    assert_eq!(
        (reply.finish.reason, reply.finish.closed_fields),
        (FinishReason::ContextFull, vec!["/text".to_owned()])
    );
}

#[test]
fn reasoning_leaves_room_for_the_shortest_answer() {
    let format = schema(json!({"name": {"type": "string"}, "age": {"type": "integer"}}));
    let thinking = crate::Thinking { max_tokens: None, ..Default::default() };
    let endless = (0..400).map(|i| format!("thought {i}, ")).collect::<String>();
    let chat = chat(&[&endless]);
    for max_tokens in [24, 25, 30, 60] {
        let sampling = Sampling { thinking: thinking.clone(), ..Sampling::greedy() };
        let sampling = sampling.with_format(format.clone()).with_max_tokens(max_tokens);
        let reply = chat.generate("Hi", None, &sampling).unwrap();
        let value: serde_json::Value = serde_json::from_str(&reply.text)
            .unwrap_or_else(|error| panic!("{max_tokens}: {error}: {reply:?}"));
        assert!(value["age"].is_i64() && value["name"].is_string(), "{value}");
        assert_eq!(reply.finish.reason, FinishReason::Length);
        assert!(reply.finish.usage.completion_tokens <= max_tokens);
    }
}

#[test]
fn a_runaway_value_is_closed_by_the_loop_guard() {
    let number = schema(json!({"x": {"type": "number"}, "y": {"type": "integer"}}));
    let reply = say(&[&format!("{{\"x\": 3.41248{}", "9".repeat(400))], &greedy().with_format(number));
    let value: serde_json::Value = serde_json::from_str(&reply.text).unwrap();
    assert!(value["x"].as_f64().unwrap() > 3.41 && reply.text.len() < 120, "{reply:?}");
    assert_eq!(
        (reply.finish.reason, reply.finish.closed_fields),
        (FinishReason::Repetition, vec!["/x".into(), "/y".into()])
    );
    let text = schema(json!({"s": {"type": "string"}}));
    let reply =
        say(&[&format!("{{\"s\": \"{}", "and so on ".repeat(60))], &greedy().with_format(text.clone()));
    assert!(serde_json::from_str::<serde_json::Value>(&reply.text).is_ok(), "{reply:?}");
    assert_eq!(reply.finish.reason, FinishReason::Repetition);
    let script = format!("{{\"s\": \"{}\"}}", "and so on ".repeat(40));
    let unguarded = Sampling { loop_guard: None, ..greedy().with_format(text).with_max_tokens(600) };
    assert_eq!(say(&[&script], &unguarded).text, script);
}

#[test]
fn a_drawn_seed_is_an_exact_number_in_javascript() {
    for _ in 0..20 {
        assert!(say(&["a"], &greedy()).finish.seed < 1 << 53);
    }
}

/// Schemas as pydantic and zod write them: every answer of a babbling model is valid.
#[test]
fn schemas_of_common_libraries() {
    let pydantic = json!({
        "$defs": {
            "Cat": {"title": "Cat", "type": "object", "required": ["kind", "lives"], "properties": {
                "kind": {"const": "cat", "title": "Kind", "type": "string"}, "lives": {"title": "Lives", "type": "integer"}}},
            "Dog": {"title": "Dog", "type": "object", "required": ["kind"], "properties": {
                "kind": {"const": "dog", "title": "Kind", "type": "string"},
                "owner": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "null"}], "default": null, "title": "Owner"}}},
            "Color": {"enum": ["red", "green"], "title": "Color", "type": "string"},
        },
        "title": "Home", "type": "object", "required": ["pet", "born", "colors", "price"],
        "properties": {
            "pet": {"discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}, "propertyName": "kind"},
                    "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "title": "Pet"},
            "born": {"format": "date", "title": "Born", "type": "string"},
            "colors": {"items": {"$ref": "#/$defs/Color"}, "type": "array", "uniqueItems": true, "title": "Colors"},
            "price": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1000}, {"pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$", "type": "string"}]},
        },
    });
    let zod = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
        "properties": {
            "email": {"type": "string", "format": "email", "pattern":
                "^(?!\\.)(?!.*\\.\\.)([A-Za-z0-9_'+\\-\\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\\-]*\\.)+[A-Za-z]{2,}$"},
            "scores": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer",
                "minimum": -9007199254740991i64, "maximum": 9007199254740991i64}},
            "pair": {"type": "array", "prefixItems": [{"type": "string", "maxLength": 3}, {"type": "boolean"}]},
            "note": {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}]},
        },
        "required": ["email", "scores", "pair", "note"], "additionalProperties": false,
    });
    let chat = FakeModel::babbling().chat(&LoadOptions::default());
    for schema in [pydantic, zod] {
        for seed in 0..4 {
            let sampling = Sampling::default().with_thinking(false).with_temperature(1.0).with_seed(seed);
            let sampling = sampling.with_max_tokens(260).with_format(Format::Schema(schema.clone()));
            let reply = chat.generate("Hi", None, &sampling).unwrap();
            let value: serde_json::Value =
                serde_json::from_str(&reply.text).unwrap_or_else(|error| panic!("{error}: {}", reply.text));
            let conforms = crate::json_schema::conform(&schema, &schema, &value);
            assert!(conforms.is_ok(), "{value}: {conforms:?}");
        }
    }
}

#[test]
fn refused_schemas_name_keyword_and_place() {
    let cases = [
        (json!({"properties": {"a": {"not": {"type": "string"}}}}), "`not` at /properties/a"),
        (json!({"properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}), "`pattern` at /properties/a"),
        (json!({"type": "object", "properties": {"a": {}}, "minProperties": 3}), "at the schema's root"),
        (json!({"items": {"$ref": "#/$defs/missing"}}), "`$ref` at /items"),
        (json!({"properties": {"a": {"type": "text"}}}), "`type` at /properties/a"),
    ];
    for (schema, expected) in cases {
        let sampling = greedy().with_format(Format::Schema(schema.clone()));
        let error = chat(&["{}"]).generate("Hi", None, &sampling).unwrap_err().to_string();
        assert!(error.contains(expected), "{schema}: {error}");
        assert!(
            !error.contains("coerce") && !error.contains("lenient") && !error.contains("x-guidance"),
            "{error}"
        );
    }
}

/// Strings of a format or pattern end in time, however the model goes on.
#[test]
fn patterned_strings_are_closed_before_the_limit() {
    let strings = [
        json!({"format": "email"}),
        json!({"format": "date-time"}),
        json!({"format": "uuid"}),
        json!({"format": "uri"}),
        json!({"format": "duration"}),
        json!({"format": "ipv6"}),
        json!({"pattern": "^[a-z]+-[0-9]{3,}$"}),
        json!({"format": "base64"}),
        json!({"minLength": 30}),
    ];
    let chat = FakeModel::babbling().chat(&LoadOptions::default());
    for mut string in strings {
        string["type"] = json!("string");
        let form = schema(json!({"s": string, "n": {"type": "integer"}}));
        let sampling = Sampling::default().with_thinking(false).with_temperature(1.0).with_seed(3);
        let reply = chat.generate("Hi", None, &sampling.with_max_tokens(90).with_format(form)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&reply.text)
            .unwrap_or_else(|error| panic!("{string}: {error}: {}", reply.text));
        let conforms = crate::json_schema::conform(&string, &string, &value["s"]);
        assert!(conforms.is_ok() && value["n"].is_i64(), "{string}: {value}");
    }
}

#[test]
fn unique_items_stay_unique() {
    let chat = FakeModel::babbling().chat(&LoadOptions::default());
    let items = [
        json!({"enum": ["red", "reed", "green"]}),
        json!({"type": "integer", "minimum": 0, "maximum": 3}),
        json!({"type": "boolean"}),
    ];
    for (item, least) in items.iter().zip([3, 3, 2]) {
        let set = json!({"type": "array", "items": item, "uniqueItems": true, "minItems": least});
        for (seed, max_tokens) in (0..6).zip([40, 45, 60, 120, 300, 512]) {
            let sampling = Sampling::default().with_thinking(false).with_temperature(2.0).with_seed(seed);
            let sampling = sampling.with_max_tokens(max_tokens).with_format(Format::Schema(set.clone()));
            let reply = chat.generate("Hi", None, &sampling).unwrap();
            let value: serde_json::Value = serde_json::from_str(&reply.text).unwrap();
            assert!(crate::json_schema::conform(&set, &set, &value).is_ok(), "{item}: {value}");
        }
    }
}
