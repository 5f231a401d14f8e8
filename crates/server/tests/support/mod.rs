//! A model that emits scripted replies, so that tool calls, reasoning, errors and timing are deterministic.
#![allow(dead_code, reason = "each user of this module uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use q35_architecture::TextConfig;
use q35_inference::{
    LogitsFor, Model, ModelMemory, Observer, RecurrentState, RunError, Sequence, Snapshot, SnapshotTensor,
    StateType,
};
use q35_runtime::{Chat, ChatError, LoadOptions};
use q35_text::Tokenizer;
use serde_json::json;

/// Rows of the logits: the test kit's byte tokenizer and some padding.
const VOCABULARY: usize = 288;

/// Replies by a text that the last user or tool turn contains; the first match counts.
pub const SCRIPT: &[(&str, &str)] = &[
    ("tool_response", "The tool says so."),
    (
        "weather in Oslo and Rome",
        "I look.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n\
      </tool_call>\n<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
    ),
    (
        "weather",
        "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
    ),
    (
        "magic function",
        "<tool_call>\n<function=magic_function>\n<parameter=input>\n3\n</parameter>\n</function>\n</tool_call>",
    ),
    ("no arguments", "<tool_call>\n<function=magic_function_no_args>\n</function>\n</tool_call>"),
    ("broken call", "<tool_call>\n<function=nothing>\n</function>\n</tool_call>"),
    ("mention", "The marker is `<tool_call>` and means nothing."),
    ("as JSON", "{\"name\": \"Ada\", \"age\": 36}"),
    ("a joke", "{\"setup\": \"Why?\", \"punchline\": \"Because.\"}"),
    (
        "count",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40",
    ),
    ("think", "I consider it.\n</think>\n\nDone."),
    ("unicode", "Grüße, 世界 🚀"),
    ("", "Hello there."),
];

/// A model over [`SCRIPT`]. Consumed tokens are counted in `consumed`; every decoded token takes `delay`.
pub struct ScriptedModel {
    config: TextConfig,
    tokenizer: Arc<Tokenizer>,
    delay: Duration,
    consumed: Arc<AtomicUsize>,
}

/// A chat over the script, with the counter of consumed tokens.
pub fn scripted_chat(delay: Duration) -> Result<(Chat, Arc<AtomicUsize>), ChatError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    q35_testkit::write_tokenizer(dir.path());
    let config = TextConfig::from_json(&json!({
        "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": VOCABULARY, "intermediate_size": 96,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "model_type": "qwen3_5_text",
    }))
    .expect("a valid configuration");
    let consumed = Arc::new(AtomicUsize::new(0));
    let tokenizer = Arc::new(Tokenizer::from_dir(dir.path())?);
    let model: Arc<dyn Model> =
        Arc::new(ScriptedModel { config, tokenizer, delay, consumed: consumed.clone() });
    let path = dir.path().to_owned();
    let open = move || {
        // The files must exist as long as the model may be opened again.
        let _ = &dir;
        Ok(model.clone())
    };
    let options = LoadOptions::default().with_max_context(8192);
    Ok((Chat::with_model(&path, &options, open)?, consumed))
}

impl ScriptedModel {
    /// Logits after `ids`: the next token of the scripted reply.
    fn logits(&self, ids: &[u32]) -> Vec<f32> {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.tokenizer.bytes_of(*id)).copied().collect();
        // The reply begins after the assistant's mark, or in a text without one after the last colon.
        let after = |mark: &[u8]| (mark.len()..=bytes.len()).rev().find(|end| bytes[..*end].ends_with(mark));
        let start = after(b"<|im_start|>assistant\n").or_else(|| after(b": ")).unwrap_or(0);
        let (before, written) = bytes.split_at(start);
        let before = String::from_utf8_lossy(before);
        let turn = &before[before.rfind("<|im_start|>user\n").unwrap_or(0)..];
        let reply = SCRIPT.iter().find(|(marker, _)| turn.contains(marker)).map_or("", |(_, reply)| reply);
        let prefixes: [&[u8]; 2] = [b"<think>\n\n</think>\n\n", b"<think>\n"];
        let written = prefixes.iter().find_map(|prefix| written.strip_prefix(*prefix)).unwrap_or(written);
        // Reasoning that was closed by force is not part of the script.
        let close = b"</think>\n\n";
        let closed = (close.len()..=written.len()).rev().find(|end| written[..*end].ends_with(close));
        let written = match closed {
            Some(end) if !reply.contains("</think>") => &written[end..],
            _ => written,
        };
        let mut logits = vec![-20.0; VOCABULARY];
        let end = self.tokenizer.id_of("<|im_end|>").unwrap_or(0);
        // A character may be written in part, so the tokens of the whole reply are followed.
        let ids = self.tokenizer.encode(reply).unwrap_or_default();
        let mut length = 0;
        let next = ids.into_iter().find(|id| {
            let starts_here = length == written.len();
            length += self.tokenizer.bytes_of(*id).len();
            starts_here
        });
        let next = next.filter(|_| reply.as_bytes().starts_with(written));
        logits[next.unwrap_or(end) as usize] = 20.0;
        logits
    }
}

impl Model for ScriptedModel {
    fn config(&self) -> &TextConfig {
        &self.config
    }

    fn describe(&self) -> String {
        "scripted".into()
    }

    fn new_sequence(&self, max_context: usize) -> Result<Box<dyn Sequence>, RunError> {
        let model = Self {
            config: self.config.clone(),
            tokenizer: self.tokenizer.clone(),
            delay: self.delay,
            consumed: self.consumed.clone(),
        };
        Ok(Box::new(ScriptedSequence { model, ids: Vec::new(), max_context }))
    }

    fn context_limit(&self) -> Option<usize> {
        None
    }

    fn prefill_alignment(&self) -> usize {
        1
    }

    fn memory(&self) -> ModelMemory {
        ModelMemory::default()
    }
}

struct ScriptedSequence {
    model: ScriptedModel,
    ids: Vec<u32>,
    max_context: usize,
}

impl Sequence for ScriptedSequence {
    fn position(&self) -> usize {
        self.ids.len()
    }

    fn max_context(&self) -> usize {
        self.max_context
    }

    fn extend(
        &mut self,
        ids: &[u32],
        logits: LogitsFor,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        for (at, id) in ids.iter().enumerate() {
            if observer.cancelled() {
                return Err(RunError::Cancelled);
            }
            std::thread::sleep(self.model.delay);
            self.ids.push(*id);
            self.model.consumed.fetch_add(1, Ordering::Relaxed);
            if logits == LogitsFor::AllTokens || (logits == LogitsFor::LastToken && at + 1 == ids.len()) {
                observer.logits(self.ids.len() - 1, &self.model.logits(&self.ids));
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, RunError> {
        let data = self.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let tensor =
            SnapshotTensor { name: "ids".into(), dtype: StateType::F32, shape: vec![self.ids.len()], data };
        Ok(Snapshot { position: self.ids.len(), layout: "scripted-1".into(), tensors: vec![tensor] })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RunError> {
        let words = snapshot.tensors.first().map(|tensor| tensor.data.chunks_exact(4)).into_iter().flatten();
        self.ids = words.map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
        Ok(())
    }

    fn reset(&mut self) {
        self.ids.clear();
    }

    fn cache_bytes(&self) -> u64 {
        4 * self.ids.len() as u64
    }

    fn scratch_bytes(&self) -> u64 {
        0
    }

    fn recurrent_states(&self) -> Result<Vec<RecurrentState>, RunError> {
        Ok(Vec::new())
    }
}
