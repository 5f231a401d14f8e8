//! `q35-chat` as a user runs it: the real program on the embedded model.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn chat(arguments: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_q35-chat"))
        .args(arguments)
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn play(arguments: &[&str], script: &[Value]) -> Vec<Value> {
    let script: String = script.iter().map(|line| format!("{line}\n")).collect();
    let output = chat(&[&["--model", "q35-nano", "--script", "-", "--json"], arguments].concat(), &script);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_rendering_is_printed_exactly() {
    let case = json!({"messages": [{"role": "user", "content": "Hi"}], "enable_thinking": false});
    let output = chat(&["--model", "q35-nano", "--render", "-"], &case.to_string());
    let expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
    assert_eq!((stdout(&output).as_str(), output.status.code()), (expected, Some(0)));
}

#[test]
fn a_refusing_template_has_the_last_word() {
    let case = json!({"messages": [{"role": "narrator", "content": "Hi"}]});
    let output = chat(&["--render", "-"], &case.to_string());
    assert_eq!(
        (stdout(&output).as_str(), stderr(&output).as_str(), output.status.code()),
        ("", "Unexpected message role.\n", Some(1))
    );
}

#[test]
fn what_cannot_run_ends_with_2() {
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_str().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["--prompt", "Hi"], "--model"),
        (&["--model", empty, "--prompt", "Hi"], "holds no model"),
        (&["--model", "q35-nano", "--backend", "coreml", "--prompt", "Hi"], "cannot run an MLX model"),
        #[cfg(not(feature = "mlx"))]
        (
            &["--model", "q35-nano", "--backend", "mlx", "--device", "gpu", "--prompt", "Hi"],
            "built without MLX",
        ),
        #[cfg(not(feature = "mlx"))]
        (&["--model", "q35-nano", "--backend", "mlx", "--prompt", "Hi"], "built without MLX"),
        (&["--model", "q35-nano", "--prompt", "Hi", "--top-p", "0"], "--top-p\n  expected: a number above 0"),
        (&["--model", "q35-nano", "--prompt", "Hi", "--memory-limit", "1"], "does not fit in memory"),
        (&["--model", "q35-nano", "--prompt", "Hi", "--memory-limit", "1"], "--max-context"),
        (&["--model", "q35-nano", "--script", "no-such-file"], "cannot read no-such-file"),
        (&["--render", "no-such-file"], "cannot read no-such-file"),
    ];
    for (arguments, message) in cases {
        let output = chat(arguments, "");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(message), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn one_answer_as_text_and_as_json() {
    let base =
        ["--model", "q35-nano", "--prompt", "-", "--temperature", "0", "--max-tokens", "16", "--no-think"];
    let text = chat(&base, "Hello!");
    assert!(text.status.success(), "{}", stderr(&text));
    let object = chat(&[&base[..], &["--json"]].concat(), "Hello!");
    let object: Value = serde_json::from_str(&stdout(&object)).unwrap();
    assert_eq!(stdout(&text), format!("{}\n", object["text"].as_str().unwrap()));
    for field in ["text", "reasoning", "finish_reason", "usage", "timing"] {
        assert!(!object[field].is_null(), "{field}: {object}");
    }
}

#[test]
fn a_script_is_a_conversation() {
    let quick = json!({"user": "x", "temperature": 0, "max_tokens": 12, "thinking": false});
    let with = |extra: Value| {
        let mut line = quick.clone();
        line.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        line
    };
    let script = [
        json!({"system": "You are a helpful assistant."}),
        with(json!({"user": "My name is Ada."})),
        with(json!({"user": "What is my name?"})),
        with(json!({"user": "Tell me a story.", "max_tokens": 60, "cancel_after": 5})),
        json!({"drop_last": 2}),
        with(
            json!({"user": "JSON, please.", "max_tokens": 40, "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}),
        ),
        json!({"reset": true}),
        with(json!({"user": "My name is Ada."})),
    ];
    let replies = play(&[], &script);
    assert_eq!(replies.len(), 5);
    assert_eq!(replies[0]["usage"]["cached_tokens"], 0);
    let count = |index: usize, name: &str| replies[index]["usage"][name].as_u64().unwrap();
    assert!(count(1, "cached_tokens") > 0 && count(1, "cached_tokens") < count(1, "prompt_tokens"));
    assert_eq!((count(2, "completion_tokens"), replies[2]["finish_reason"].as_str()), (5, Some("cancelled")));
    let object: Value = serde_json::from_str(replies[3]["text"].as_str().unwrap()).unwrap();
    assert!(object["a"].is_number());
    assert_eq!(replies[4]["text"], replies[0]["text"], "after a reset the conversation begins anew");
    assert!(count(4, "cached_tokens") > 0, "but its system prompt need not be computed again");
    let cold = play(&["--no-prompt-cache"], &script);
    for (warm, cold) in replies.iter().zip(&cold) {
        assert_eq!((&warm["text"], &cold["usage"]["cached_tokens"]), (&cold["text"], &json!(0)));
    }
}

#[test]
fn a_turn_that_fails_is_told_and_the_script_goes_on() {
    let script = format!(
        "{}\n{}\n",
        json!({"user": "long ".repeat(300), "max_tokens": 4}),
        json!({"user": "Hi", "max_tokens": 4})
    );
    let output = chat(&["--model", "q35-nano", "--max-context", "100", "--script", "-", "--json"], &script);
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let error = lines[0]["error"].as_str().unwrap();
    assert!(error.contains("does not fit") && error.contains("--max-context"), "{error}");
    assert!(lines[1]["text"].is_string());
    assert_eq!(lines[0]["line"], 1);
}

#[test]
fn a_script_that_cannot_be_played_is_told_before_it_begins() {
    let fine = "{\"user\": \"Hi\"}";
    let cases: &[(&[u8], &str)] = &[
        (b"{\"usr\": \"Hi\"}", "column 6: unknown field `usr`"),
        (b"{\"user\": ", "column 8: EOF while parsing a value"),
        (b"\"Hi\"", "expected an object such as {\"user\": \"Hi\"}"),
        (b"{\"temperature\": 1}", "the line does nothing"),
        (b"{\"user\": \"Hi\", \"temperature\": -1}", "option `temperature`"),
        (b"{\"user\": \"Hi\", \"max_tokens\": 0}", "option `max_tokens`"),
        (b"{\"user\": \"caf\xe9\"}", "not UTF-8"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("talk.jsonl");
    for (line, message) in cases {
        std::fs::write(&file, [fine.as_bytes(), b"\r\n\r\n", line, b"\n"].concat()).unwrap();
        let output = chat(&["--model", "q35-nano", "--script", file.to_str().unwrap()], "");
        let told = stderr(&output);
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(2), ""), "{message}");
        assert!(told.contains("talk.jsonl, line 3") && told.contains(message), "{message}: {told}");
    }
}

#[test]
fn a_script_may_come_from_windows() {
    let line = json!({"user": "Hi", "temperature": 0, "max_tokens": 4, "thinking": false});
    let plain = chat(&["--model", "q35-nano", "--script", "-"], &format!("{line}\n{line}\n"));
    let windows = chat(&["--model", "q35-nano", "--script", "-"], &format!("\u{feff}{line}\r\n{line}\r\n"));
    assert_eq!((windows.status.code(), stdout(&windows)), (Some(0), stdout(&plain)));
}

#[test]
fn a_script_may_consist_of_messages() {
    let quick = json!({"role": "user", "content": "My name is Ada.", "temperature": 0, "max_tokens": 12, "thinking": false});
    let plain = play(
        &[],
        &[json!({"user": "My name is Ada.", "temperature": 0, "max_tokens": 12, "thinking": false})],
    );
    assert_eq!(play(&[], std::slice::from_ref(&quick))[0]["text"], plain[0]["text"]);
    let mut question = quick.clone();
    question["content"] = json!([{"type": "text", "text": "What is "}, {"type": "text", "text": "my name?"}]);
    let call = json!({"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}});
    let script = [
        json!({"role": "developer", "content": "You are a helpful assistant."}),
        json!({"role": "user", "content": "My name is Ada."}),
        json!({"role": "assistant", "content": "Hello Ada."}),
        question.clone(),
        json!({"reset": true}),
        json!({"role": "user", "content": "When?"}),
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": "1", "content": "Noon.", "max_tokens": 4}),
        json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}),
    ];
    let replies = play(&[], &script);
    assert_eq!(replies.len(), 3, "given replies are not generated: {replies:?}");
    assert!(replies[0]["text"].as_str().unwrap().contains("Ada"));
    let late = [json!({"role": "user", "content": "Hi"}), json!({"role": "system", "content": "Late."})];
    let late: String = late.iter().map(|line| format!("{line}\n")).collect();
    let output = chat(&["--model", "q35-nano", "--max-tokens", "2", "--script", "-"], &late);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("first message only"), "{}", stderr(&output));
}

#[test]
fn a_reply_that_ends_within_its_reasoning_says_so() {
    let base =
        ["--model", "q35-nano", "--prompt", "Hi", "--think", "--max-tokens", "1", "--show-thinking", "never"];
    let output = chat(&base, "");
    assert_eq!((stdout(&output).trim(), output.status.code()), ("", Some(1)));
    let told = stderr(&output);
    assert!(told.contains("no answer") && told.contains("--max-tokens"), "{told}");
}

#[test]
fn json_that_a_limit_closed_names_its_fields() {
    let dir = tempfile::tempdir().unwrap();
    let schema = dir.path().join("schema.json");
    let fields = json!({"story": {"type": "string", "minLength": 200}, "page": {"type": "integer"}});
    let object = json!({"type": "object", "properties": fields, "required": ["story", "page"]});
    std::fs::write(&schema, object.to_string()).unwrap();
    let base = [
        "--model",
        "q35-nano",
        "--prompt",
        "Tell me a story.",
        "--temperature",
        "0",
        "--no-think",
        "--schema",
    ];
    let base = [&base[..], &[schema.to_str().unwrap()]].concat();
    let output = chat(&[&base[..], &["--max-tokens", "4"]].concat(), "");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--max-tokens") && stderr(&output).contains("shortest valid answer"));
    std::fs::write(&schema, object.to_string().replace("200", "0")).unwrap();
    let output = chat(&[&base[..], &["--max-tokens", "20", "--json"]].concat(), "");
    let reply: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let answer: Value = serde_json::from_str(reply["text"].as_str().unwrap()).unwrap();
    assert!(answer["page"].is_i64(), "{reply}");
    match reply["finish_reason"].as_str() {
        Some("stop") => assert!(reply["closed_fields"].is_null(), "{reply}"),
        reason => {
            assert_eq!(reason, Some("length"), "{reply}");
            assert!(!reply["closed_fields"].as_array().unwrap().is_empty());
            assert!(stderr(&output).contains("invented or shortened"));
        }
    }
    assert!(reply["seed"].as_u64().unwrap() < 1 << 53);
}

#[test]
fn commands_confirm_and_openai_history_loads() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, history: Value| {
        let path = dir.path().join(name);
        std::fs::write(&path, history.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = write(
        "good.json",
        json!({"messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "My name is Ada."}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"type": "function", "function": {"name": "note", "arguments": "{\"name\": \"Ada\"}"}}]},
            {"role": "tool", "content": "ok"},
        ]}),
    );
    let bad =
        write("bad.json", json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]));
    let saved = dir.path().join("saved.json");
    let lines = [
        "/system Be kind.",
        "/system",
        "/think on",
        "/think off",
        "/think auto",
        "/think maybe",
        "/seed 7",
        "/seed off",
        &format!("/load {bad}"),
        &format!("/load {good}"),
        &format!("/save {}", saved.display()),
        "/undo",
        "/undo",
        "/reset",
        "/save",
    ];
    let output = chat(&["--model", "q35-nano", "--max-tokens", "4"], &lines.join("\n"));
    let told = stderr(&output);
    for confirmation in [
        "system prompt set",
        "system prompt removed",
        "thinking on",
        "thinking off",
        "template",
        "/think takes on, off or auto",
        "seed 7",
        "a new seed for each reply",
        "messages[0].content[0].type",
        "4 messages read from",
        "4 messages written to",
        "3 messages removed, 1 left",
        "nothing to undo",
        "conversation forgotten, system prompt kept",
        "/save takes a file",
    ] {
        assert!(told.contains(confirmation), "{confirmation}: {told}");
    }
    let saved: Value = serde_json::from_slice(&std::fs::read(saved).unwrap()).unwrap();
    assert_eq!(saved[1]["content"], "My name is Ada.");
    assert_eq!(saved[2]["tool_calls"][0]["function"]["arguments"], json!({"name": "Ada"}));
}

#[test]
fn help_and_documentation_describe_scripts_and_history() {
    let help = stdout(&chat(&["--help"], ""));
    for word in ["\"role\"", "drop_last", "--no-history", ".q35_chat_history"] {
        assert!(help.contains(word), "{word}: {help}");
    }
}

#[test]
fn without_a_terminal_each_line_is_a_turn() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("talk.json");
    let said =
        format!("/seed 1\nHello!\n/save {0}\n/reset\n/load {0}\n/stats\n/nonsense\n/quit\n", file.display());
    let output = chat(&["--model", "q35-nano", "--max-tokens", "8"], &said);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("memory: weights"));
    assert!(stderr(&output).contains("/nonsense is not known"));
    let saved: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(saved.as_array().unwrap().len(), 2);
}
