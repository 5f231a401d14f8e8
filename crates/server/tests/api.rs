//! The server over a scripted model, through real sockets.

mod support;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use q35_server::{Server, ServerConfig};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// A running server; stops when dropped.
struct Running {
    address: SocketAddr,
    consumed: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn start(config: ServerConfig, delay: Duration) -> Self {
        let (report, started) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let (chat, consumed) = support::scripted_chat(delay).unwrap();
                let config = ServerConfig { port: 0, model_id: "scripted".into(), ..config };
                let server = Server::bind(config, || Ok::<_, q35_runtime::ChatError>(chat)).await.unwrap();
                report.send((server.address(), consumed)).unwrap();
                server.run(async { stopped.await.unwrap_or_default() }).await.unwrap();
            });
        });
        let (address, consumed) = started.recv().unwrap();
        let running = Self { address, consumed, stop: Some(stop), thread: Some(thread) };
        let deadline = Instant::now() + Duration::from_secs(10);
        while running.get("/health").0 != 200 {
            assert!(Instant::now() < deadline, "the server does not become ready");
            std::thread::sleep(Duration::from_millis(5));
        }
        running
    }

    fn quick() -> Self {
        Self::start(ServerConfig::default(), Duration::ZERO)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut response = agent().get(self.url(path)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut response = agent().post(self.url(path)).send_json(body).unwrap();
        (response.status().as_u16(), response.body_mut().read_json().unwrap())
    }

    fn chat(&self, text: &str, fields: Value) -> (u16, Value) {
        self.post("/v1/chat/completions", &chat_request(text, fields))
    }

    /// The `data:` lines of a stream.
    fn stream(&self, path: &str, body: &Value) -> Vec<String> {
        let response = agent().post(self.url(path)).send_json(body).unwrap();
        assert_eq!(response.status().as_u16(), 200);
        let lines = BufReader::new(response.into_body().into_reader()).lines().map(Result::unwrap);
        lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_owned)).collect()
    }

    /// The chunks of a streamed chat completion. Checks the end mark.
    fn chunks(&self, text: &str, mut fields: Value) -> Vec<Value> {
        fields["stream"] = true.into();
        let mut lines = self.stream("/v1/chat/completions", &chat_request(text, fields));
        assert_eq!(lines.pop().as_deref(), Some("[DONE]"));
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)));
    config.build().into()
}

fn chat_request(text: &str, fields: Value) -> Value {
    let mut request = json!({
        "model": "scripted", "messages": [{"role": "user", "content": text}],
        "chat_template_kwargs": {"enable_thinking": false}, "temperature": 0, "repetition_penalty": 1,
    });
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

fn weather() -> Value {
    let parameters =
        json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    json!([{"type": "function", "function": {"name": "weather", "description": "d", "parameters": parameters}}])
}

#[test]
fn a_reply_has_the_fields_that_clients_read() {
    let server = Running::quick();
    let (status, reply) = server.chat("Hi", json!({}));
    assert_eq!(status, 200, "{reply}");
    assert_eq!(reply["object"], "chat.completion");
    assert_eq!(reply["model"], "scripted");
    let choice = &reply["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!("Hello there."), &json!("stop"))
    );
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(choice["message"].get("tool_calls").is_none());
    let usage = &reply["usage"];
    assert_eq!(usage["completion_tokens"], 12);
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
    );
}

#[test]
fn a_stream_begins_with_the_role_and_ends_with_the_reason() {
    let server = Running::quick();
    let chunks = server.chunks("Hi", json!({}));
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": null}));
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("stop")));
    let text: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "Hello there.");
    assert!(
        chunks.iter().all(|chunk| !chunk["choices"].as_array().unwrap().is_empty()),
        "no usage chunk unasked"
    );
    let chunks = server.chunks("Hi", json!({"stream_options": {"include_usage": true}}));
    let usage = chunks.last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(12)));
}

#[test]
fn reasoning_and_answer_are_separate() {
    let server = Running::quick();
    let on = json!({"chat_template_kwargs": {"enable_thinking": true}});
    let (_, reply) = server.chat("think", on.clone());
    let message = &reply["choices"][0]["message"];
    assert_eq!(message["content"], "Done.");
    assert!(message["reasoning_content"].as_str().unwrap().contains("I consider it."));
    assert!(reply["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);
    let chunks = server.chunks("think", on);
    let join = |field: &str| -> String {
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str()).collect()
    };
    assert_eq!(join("content"), "Done.");
    assert!(join("reasoning_content").contains("I consider it."));
}

#[test]
fn tool_calls_are_whole_and_typed_from_the_first_delta_on() {
    let server = Running::quick();
    let (_, reply) = server.chat("weather in Oslo and Rome", json!({"tools": weather()}));
    let choice = &reply["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{reply}");
    assert_eq!(choice["message"]["content"], "I look.");
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[1]["function"], json!({"name": "weather", "arguments": "{\"city\":\"Rome\"}"}));
    assert_ne!(calls[0]["id"], calls[1]["id"]);

    let chunks = server.chunks("weather in Oslo and Rome", json!({"tools": weather()}));
    let deltas: Vec<&Value> =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0)).collect();
    for index in 0..2 {
        let parts: Vec<&&Value> = deltas.iter().filter(|delta| delta["index"] == index).collect();
        assert_eq!(
            (&parts[0]["type"], &parts[0]["function"]["name"]),
            (&json!("function"), &json!("weather"))
        );
        assert_eq!(parts[0]["function"]["arguments"], "");
        assert!(parts[0]["id"].is_string());
        let arguments: String =
            parts.iter().filter_map(|part| part["function"]["arguments"].as_str()).collect();
        assert!(serde_json::from_str::<Value>(&arguments).unwrap()["city"].is_string());
    }
    let text: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "I look.");
    assert!(chunks.iter().all(|chunk| chunk["choices"][0]["delta"]["tool_calls"] != json!([])));
}

#[test]
fn a_marker_that_is_only_mentioned_is_text() {
    let server = Running::quick();
    let (_, reply) = server.chat("mention", json!({}));
    assert_eq!(reply["choices"][0]["message"]["content"], "The marker is `<tool_call>` and means nothing.");
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
}

#[test]
fn unreadable_calls_stay_text_and_say_why() {
    let server = Running::quick();
    let (_, reply) = server.chat("broken call", json!({"tools": weather()}));
    let choice = &reply["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert!(choice["message"]["content"].as_str().unwrap().contains("<function=nothing>"), "{reply}");
    assert!(choice["tool_call_error"].as_str().unwrap().contains("nothing"));
}

#[test]
fn a_forced_call_is_a_call() {
    let server = Running::quick();
    for choice in [json!("required"), json!({"type": "function", "function": {"name": "weather"}})] {
        // The script says something else; the grammar prevails.
        let fields = json!({"tools": weather(), "tool_choice": choice, "max_tokens": 200});
        let (_, reply) = server.chat("weather", fields);
        let choice = &reply["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{reply}");
        assert_eq!(choice["message"]["tool_calls"][0]["function"]["name"], "weather");
    }
    let (_, reply) = server.chat("weather", json!({"tools": weather(), "tool_choice": "none"}));
    assert!(reply["choices"][0]["message"].get("tool_calls").is_none());
}

#[test]
fn an_answer_follows_its_schema() {
    let server = Running::quick();
    let schema = json!({"type": "object", "required": ["name", "age"], "additionalProperties": false,
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema}});
    let (status, reply) = server.chat("as JSON", json!({"response_format": format}));
    assert_eq!(status, 200, "{reply}");
    let content = reply["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(content).unwrap(), json!({"name": "Ada", "age": 36}));
    let (_, reply) = server.chat("as JSON", json!({"response_format": {"type": "json_object"}}));
    assert!(
        serde_json::from_str::<Value>(reply["choices"][0]["message"]["content"].as_str().unwrap()).is_ok()
    );
}

#[test]
fn log_probabilities_come_with_and_without_a_stream() {
    let server = Running::quick();
    let fields = json!({"logprobs": true, "top_logprobs": 2});
    let (_, reply) = server.chat("unicode", fields.clone());
    let entries = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    assert!(String::from_utf8(bytes).unwrap().starts_with("Grüße, 世界 🚀"));
    assert!(entries.iter().all(|entry| entry["top_logprobs"].as_array().unwrap().len() == 2));
    let streamed: usize = server
        .chunks("unicode", fields)
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().map(Vec::len))
        .sum();
    assert_eq!(streamed, entries.len());
}

#[test]
fn several_choices_and_stop_texts() {
    let server = Running::quick();
    let (_, reply) = server.chat("count", json!({"n": 3, "stop": [" 5"]}));
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    assert!(choices.iter().all(|choice| choice["message"]["content"] == "1 2 3 4"));
    let (_, reply) = server.chat("count", json!({"max_tokens": 5}));
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    let (_, reply) = server.chat("count", json!({"max_completion_tokens": 5}));
    assert_eq!(reply["usage"]["completion_tokens"], 5);
}

#[test]
fn unsupported_values_are_refused_by_name() {
    let server = Running::quick();
    let cases = [
        (json!({"temperature": 3}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"response_format": {"type": "grammar"}}), "response_format.type"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": [{"type": "retrieval"}]}), "tools[0].type"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"n": 99}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"reasoning_effort": "extreme"}), "reasoning_effort"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content[0]",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}),
            "response_format",
        ),
    ];
    for (fields, param) in cases {
        let (status, reply) = server.chat("Hi", fields.clone());
        assert_eq!((status, &reply["error"]["param"]), (400, &json!(param)), "{fields}: {reply}");
        assert_eq!(reply["error"]["type"], "invalid_request_error");
    }
    let (status, _) = server.chat("Hi", json!({"user": "u", "metadata": {"a": "b"}, "some_new_field": 1}));
    assert_eq!(status, 200, "unknown fields are ignored");
    let (status, reply) = server.chat("Hi", json!({"model": "gpt-4"}));
    assert_eq!((status, &reply["error"]["code"]), (404, &json!("model_not_found")));
    let (status, reply) = server.chat(&"long ".repeat(4000), json!({}));
    assert_eq!((status, &reply["error"]["code"]), (400, &json!("context_length_exceeded")));
}

#[test]
fn malformed_requests_are_client_errors() {
    let config = ServerConfig { body_bytes: 2000, ..ServerConfig::default() };
    let server = Running::start(config, Duration::ZERO);
    let send = |content_type: &str, body: &str| {
        let request = agent().post(server.url("/v1/chat/completions")).header("content-type", content_type);
        let response = request.send(body.to_owned()).unwrap();
        response.status().as_u16()
    };
    assert_eq!(send("text/plain", "{}"), 415);
    assert_eq!(send("application/json", "{"), 400);
    assert_eq!(send("application/json", "[]"), 400);
    assert_eq!(send("application/json", "{} trailing"), 400);
    assert_eq!(
        send("application/json", &format!("{{\"messages\": [], \"x\": \"{}\"}}", "a".repeat(3000))),
        413
    );
    assert_eq!(server.get("/v1/nothing").0, 404);
    assert_eq!(server.get("/v1/chat/completions").0, 405);
}

#[test]
fn the_key_and_the_host_are_checked() {
    let config = ServerConfig { api_key: Some("secret".into()), ..ServerConfig::default() };
    let server = Running::start(config, Duration::ZERO);
    let status = |header: &str, value: &str| {
        agent().get(server.url("/v1/models")).header(header, value).call().unwrap().status().as_u16()
    };
    assert_eq!(status("x-other", "x"), 401);
    assert_eq!(status("authorization", "Bearer wrong"), 401);
    assert_eq!(status("authorization", "Bearer secret"), 200);
    assert_eq!(status("x-api-key", "secret"), 200);
    assert_eq!(server.get("/health").0, 200);
    let foreign = agent().get(server.url("/health")).header("host", "evil.example").call().unwrap();
    assert_eq!(foreign.status().as_u16(), 403);
}

#[test]
fn a_client_that_leaves_stops_the_computation() {
    let server = Running::start(ServerConfig::default(), Duration::from_millis(5));
    let request = chat_request("count", json!({"stream": true}));
    let response = agent().post(server.url("/v1/chat/completions")).send_json(&request).unwrap();
    let mut lines = BufReader::new(response.into_body().into_reader()).lines();
    while !lines.next().unwrap().unwrap().contains("\"content\":\"") {}
    drop(lines);
    std::thread::sleep(Duration::from_millis(300));
    let after = server.consumed.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(
        server.consumed.load(Ordering::Relaxed),
        after,
        "no token is computed for a client that is gone"
    );
}

#[test]
fn conversations_advance_together_and_a_full_queue_refuses() {
    let config = ServerConfig { concurrent: 2, queue: 1, ..ServerConfig::default() };
    let server = Running::start(config, Duration::from_millis(2));
    let results: Vec<u16> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| server.chat("count", json!({})).0)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(results.contains(&200) && results.contains(&429), "{results:?}");
    assert!(results.iter().all(|status| matches!(status, 200 | 429)), "{results:?}");
}

#[test]
fn the_next_turn_finds_the_conversation_cached() {
    let server = Running::quick();
    let (_, first) = server.chat("Hi", json!({}));
    let content = first["choices"][0]["message"]["content"].as_str().unwrap();
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content},
        {"role": "user", "content": "And?"}]);
    // The snapshot is taken after the reply was delivered.
    std::thread::sleep(Duration::from_millis(100));
    let (_, second) = server.chat("", json!({"messages": messages}));
    let usage = &second["usage"];
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached >= first["usage"]["prompt_tokens"].as_u64().unwrap(), "{usage}");
}

#[test]
fn texts_are_continued_and_tokenized() {
    let server = Running::quick();
    let request =
        json!({"prompt": "Say count: ", "temperature": 0, "repetition_penalty": 1, "max_tokens": 5});
    let (status, reply) = server.post("/v1/completions", &request);
    assert_eq!((status, &reply["object"]), (200, &json!("text_completion")), "{reply}");
    assert_eq!(reply["choices"][0]["text"], "1 2 3");
    let (_, tokens) = server.post("/tokenize", &json!({"content": "Grüße 世"}));
    let (_, text) = server.post("/detokenize", &json!({"tokens": tokens["tokens"]}));
    assert_eq!(text["content"], "Grüße 世");
}

#[test]
fn metrics_and_documents() {
    let server = Running::quick();
    server.chat("Hi", json!({}));
    let (_, metrics) = server.get("/metrics");
    assert!(metrics.contains("q35_replies_total 1\n"), "{metrics}");
    assert!(metrics.contains("path=\"/v1/chat/completions\",status=\"200\"} 1"));
    let (_, models) = server.get("/v1/models");
    assert!(models.contains("\"id\":\"scripted\""));
    let (_, document) = server.get("/openapi.json");
    assert!(document.contains("/v1/chat/completions"));
    let (status, page) = server.get("/");
    assert!(status == 200 && page.contains("<title>q35 chat</title>") && page.len() < 80_000);
}

#[test]
fn responses_api_replies_and_streams() {
    let server = Running::quick();
    let request = json!({"input": "Hi", "reasoning": {"effort": "none"}, "temperature": 0});
    let (status, reply) = server.post("/v1/responses", &request);
    assert_eq!((status, &reply["status"]), (200, &json!("completed")), "{reply}");
    assert_eq!(reply["output"][0]["content"][0]["text"], "Hello there.");
    let mut request = json!({"input": "weather", "reasoning": {"effort": "none"}, "stream": true,
        "tools": [{"type": "function", "name": "weather", "parameters": weather()[0]["function"]["parameters"]}]});
    let events: Vec<Value> = server
        .stream("/v1/responses", &request)
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], *kinds.last().unwrap()), ("response.created", "response.completed"));
    assert!(kinds.contains(&"response.function_call_arguments.done"));
    assert_eq!(events.last().unwrap()["response"]["output"][0]["name"], "weather");
    request["previous_response_id"] = "resp_1".into();
    assert_eq!(server.post("/v1/responses", &request).0, 400);
}

#[test]
fn messages_api_replies_streams_and_counts() {
    let server = Running::quick();
    let request = json!({"model": "scripted", "max_tokens": 50, "thinking": {"type": "disabled"}, "temperature": 0,
        "messages": [{"role": "user", "content": "Hi"}]});
    let (status, reply) = server.post("/v1/messages", &request);
    assert_eq!((status, &reply["stop_reason"]), (200, &json!("end_turn")), "{reply}");
    assert_eq!(reply["content"], json!([{"type": "text", "text": "Hello there."}]));
    let (_, count) = server.post("/v1/messages/count_tokens", &request);
    let total = reply["usage"]["input_tokens"].as_u64().unwrap()
        + reply["usage"]["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(count["input_tokens"].as_u64(), Some(total));
    let mut streamed = request.clone();
    streamed["stream"] = true.into();
    let kinds: Vec<String> = server
        .stream("/v1/messages", &streamed)
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds[..2], ["message_start", "content_block_start"]);
    assert_eq!(kinds[kinds.len() - 2..], ["message_delta", "message_stop"]);
    let (status, error) = server.post("/v1/messages", &json!({"messages": []}));
    assert_eq!(
        (status, &error["type"], &error["error"]["type"]),
        (400, &json!("error"), &json!("invalid_request_error"))
    );
}
