//! Counters in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use q35_runtime::Finish;

/// Counters since the start of the server.
#[derive(Default)]
pub(crate) struct Metrics {
    /// Requests by path and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    reasoning_tokens: AtomicU64,
    replies: AtomicU64,
    prefill_micros: AtomicU64,
    decode_micros: AtomicU64,
    first_token_micros: AtomicU64,
}

/// Values that are read at the time of the scrape.
pub(crate) struct Gauges {
    pub(crate) waiting: usize,
    pub(crate) active: usize,
    pub(crate) loaded: bool,
    pub(crate) memory_bytes: u64,
}

impl Metrics {
    pub(crate) fn request(&self, path: &'static str, status: u16) {
        // The map is valid after every step, so a poisoned lock may be taken.
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((path, status)).or_default() += 1;
    }

    pub(crate) fn reply(&self, finish: &Finish) {
        let add = |counter: &AtomicU64, value: u64| counter.fetch_add(value, Ordering::Relaxed);
        let micros = |duration: Duration| duration.as_micros() as u64;
        add(&self.prompt_tokens, finish.usage.prompt_tokens as u64);
        add(&self.cached_tokens, finish.usage.cached_tokens as u64);
        add(&self.completion_tokens, finish.usage.completion_tokens as u64);
        add(&self.reasoning_tokens, finish.usage.thinking_tokens as u64);
        add(&self.replies, 1);
        add(&self.prefill_micros, micros(finish.timing.prefill));
        add(&self.decode_micros, micros(finish.timing.decode));
        add(&self.first_token_micros, micros(finish.timing.first_token));
    }

    /// The page that Prometheus scrapes.
    pub(crate) fn render(&self, gauges: &Gauges) -> String {
        let mut page = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, value: String| {
            let _ = writeln!(page, "# HELP q35_{name} {help}\n# TYPE q35_{name} {kind}\nq35_{name} {value}");
        };
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed).to_string();
        let seconds = |counter: &AtomicU64| (counter.load(Ordering::Relaxed) as f64 / 1e6).to_string();
        metric("replies_total", "counter", "Finished replies.", count(&self.replies));
        metric(
            "prompt_tokens_total",
            "counter",
            "Prompt tokens of finished replies.",
            count(&self.prompt_tokens),
        );
        metric(
            "cached_tokens_total",
            "counter",
            "Prompt tokens that the prompt cache supplied.",
            count(&self.cached_tokens),
        );
        metric("completion_tokens_total", "counter", "Generated tokens.", count(&self.completion_tokens));
        metric(
            "reasoning_tokens_total",
            "counter",
            "Generated tokens of reasoning.",
            count(&self.reasoning_tokens),
        );
        metric("prefill_seconds_total", "counter", "Time in prefill.", seconds(&self.prefill_micros));
        metric("decode_seconds_total", "counter", "Time in decode.", seconds(&self.decode_micros));
        metric(
            "first_token_seconds_total",
            "counter",
            "Sum of the times to the first token.",
            seconds(&self.first_token_micros),
        );
        metric("requests_waiting", "gauge", "Choices in the queue.", gauges.waiting.to_string());
        metric("requests_active", "gauge", "Choices that generate now.", gauges.active.to_string());
        metric("model_loaded", "gauge", "1 if the weights are loaded.", u8::from(gauges.loaded).to_string());
        metric(
            "memory_bytes",
            "gauge",
            "Memory of weights, caches and snapshots.",
            gauges.memory_bytes.to_string(),
        );
        page.push_str("# HELP q35_http_requests_total Requests by path and status.\n");
        page.push_str("# TYPE q35_http_requests_total counter\n");
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for ((path, status), total) in &*requests {
            let _ = writeln!(page, "q35_http_requests_total{{path=\"{path}\",status=\"{status}\"}} {total}");
        }
        page
    }
}
