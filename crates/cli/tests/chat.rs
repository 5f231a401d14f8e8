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
        (&["--model", "q35-nano", "--backend", "mlx", "--device", "cuda", "--prompt", "Hi"], "cpu or metal"),
        #[cfg(not(any(feature = "mlx", target_vendor = "apple")))]
        (&["--model", "q35-nano", "--backend", "mlx", "--prompt", "Hi"], "built without MLX"),
        (&["--model", "q35-nano", "--prompt", "Hi", "--top-p", "0"], "option `top_p`"),
        (&["--model", "q35-nano", "--prompt", "Hi", "--memory-limit", "1"], "does not fit in memory"),
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
    assert!(lines[0]["error"].as_str().unwrap().contains("does not fit"));
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
