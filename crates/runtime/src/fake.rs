//! Fake models for tests: the logits are a function of all tokens so far.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use q35_architecture::TextConfig;
use q35_inference::{
    LogitsFor, Model, ModelMemory, Observer, RecurrentState, RunError, Sequence, Snapshot, SnapshotTensor,
    StateType,
};
use serde_json::json;

use crate::{Chat, LoadOptions};

/// Number of logits: the vocabulary of the test kit's byte tokenizer, and padding.
pub(crate) const ROWS: usize = 288;

/// Writes the logits [vocab] after a history of ids; also receives a hash of the state.
pub(crate) type Rule = Arc<dyn Fn(&[u32], u64, &mut [f32]) + Send + Sync>;

/// A model whose state is its whole history and a hash of it. As the rounding of a real model, the hash also depends
/// on chunk boundaries that are not aligned.
pub(crate) struct FakeModel {
    config: TextConfig,
    rule: Rule,
    pub(crate) alignment: usize,
    pub(crate) consumed: Arc<AtomicUsize>,
}

impl FakeModel {
    pub(crate) fn new(rule: Rule) -> Self {
        let config = json!({
            "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": ROWS, "intermediate_size": 96,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
            "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "model_type": "qwen3_5_text",
        });
        let config = TextConfig::from_json(&config).unwrap();
        Self { config, rule, alignment: 1, consumed: Arc::default() }
    }

    /// A model that answers each prompt with the next of `replies` and then ends its turn. A reply begins at the end of
    /// the prompt, after the thinking tags.
    pub(crate) fn scripted(replies: &[&str]) -> Self {
        let replies: Vec<Vec<u32>> = replies.iter().map(|reply| bytes(reply)).collect();
        let turn = bytes("<|im_start|>assistant\n");
        Self::new(Arc::new(move |history, _, row| {
            let starts: Vec<usize> =
                (turn.len()..=history.len()).filter(|n| history[..*n].ends_with(&turn)).collect();
            let reply = &replies[(starts.len() - 1).min(replies.len() - 1)];
            let written = &history[prompt_end(history, *starts.last().unwrap())..];
            // Forced tokens are not part of the script.
            let next = (0..=reply.len()).rev().find(|n| ends_with_script(written, &reply[..*n])).unwrap_or(0);
            row.fill(-20.0);
            row[reply.get(next).map_or(258, |id| *id as usize)] = 20.0;
        }))
    }

    /// A model of pseudo-random printable text that depends on every token before, and ends its turn at random.
    pub(crate) fn babbling() -> Self {
        Self::new(Arc::new(|_, hash, row| {
            for (id, logit) in row.iter_mut().enumerate() {
                let noise = mix(hash ^ mix(id as u64)) >> 40;
                *logit = noise as f32 / (1u64 << 24) as f32 * 8.0;
                *logit -= if (32..127).contains(&id) || id == 258 { 0.0 } else { 30.0 };
            }
        }))
    }

    /// Sets the prefill alignment: other chunk boundaries change the results.
    pub(crate) fn with_alignment(mut self, alignment: usize) -> Self {
        self.alignment = alignment;
        self
    }

    /// A chat with this model and the test kit's tokenizer.
    pub(crate) fn chat(self, options: &LoadOptions) -> Chat {
        let dir = tempfile::tempdir().unwrap();
        q35_testkit::write_tokenizer(dir.path());
        let model: Arc<dyn Model> = Arc::new(self);
        let path = dir.path().to_owned();
        let open = move || {
            // The files must exist as long as the model may be opened again.
            let _ = &dir;
            Ok(model.clone())
        };
        Chat::with_model(&path, options, open).unwrap()
    }
}

/// The ids of a text in the test kit's tokenizer: bytes, and the tags.
pub(crate) fn bytes(text: &str) -> Vec<u32> {
    let tags = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
        "<think>",
        "</think>",
    ];
    let (mut ids, mut rest) = (Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        match tags.iter().position(|tag| rest.starts_with(tag)) {
            Some(index) => {
                ids.push(256 + index as u32);
                rest = &rest[tags[index].len()..];
            }
            None => {
                let (head, tail) = rest.split_at(first.len_utf8());
                ids.extend(head.bytes().map(u32::from));
                rest = tail;
            }
        }
    }
    ids
}

/// End of the prompt: the position after the thinking tags that the template adds.
fn prompt_end(history: &[u32], start: usize) -> usize {
    let closed = bytes("<think>\n\n</think>\n\n");
    let open = bytes("<think>\n");
    let rest = &history[start..];
    start
        + if rest.starts_with(&closed) {
            closed.len()
        } else if rest.starts_with(&open) {
            open.len()
        } else {
            0
        }
}

/// True if `written` contains `script` in order, with or without forced tokens in between.
fn ends_with_script(written: &[u32], script: &[u32]) -> bool {
    let mut rest = script.iter();
    let mut wanted = rest.next();
    for id in written {
        if Some(id) == wanted {
            wanted = rest.next();
        }
    }
    wanted.is_none()
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Model for FakeModel {
    fn config(&self) -> &TextConfig {
        &self.config
    }

    fn describe(&self) -> String {
        "fake".into()
    }

    fn new_sequence(&self, max_context: usize) -> Result<Box<dyn Sequence>, RunError> {
        Ok(Box::new(FakeSequence {
            rule: self.rule.clone(),
            consumed: self.consumed.clone(),
            alignment: self.alignment,
            max_context,
            history: Vec::new(),
            hash: 1,
        }))
    }

    fn context_limit(&self) -> Option<usize> {
        None
    }

    fn prefill_alignment(&self) -> usize {
        self.alignment
    }

    fn memory(&self) -> ModelMemory {
        ModelMemory { mapped_bytes: 1000, owned_bytes: 100, weight_bytes_per_token: 900 }
    }
}

struct FakeSequence {
    rule: Rule,
    consumed: Arc<AtomicUsize>,
    alignment: usize,
    max_context: usize,
    history: Vec<u32>,
    hash: u64,
}

impl Sequence for FakeSequence {
    fn position(&self) -> usize {
        self.history.len()
    }

    fn max_context(&self) -> usize {
        self.max_context
    }

    fn extend(&mut self, ids: &[u32], rows: LogitsFor, observer: &mut dyn Observer) -> Result<(), RunError> {
        if self.history.len() + ids.len() > self.max_context {
            return Err(RunError::ContextFull {
                needed: self.history.len() + ids.len(),
                max_context: self.max_context,
            });
        }
        for (index, id) in ids.iter().enumerate() {
            if index % 16 == 0 && observer.cancelled() {
                return Err(RunError::Cancelled);
            }
            if *id as usize >= ROWS {
                return Err(RunError::Token { id: *id, position: self.history.len(), vocab_size: ROWS });
            }
            self.history.push(*id);
            self.hash = mix(self.hash ^ u64::from(*id).wrapping_mul(0x9E37_79B9));
            self.consumed.fetch_add(1, Ordering::Relaxed);
            let last = index + 1 == ids.len();
            if rows == LogitsFor::AllTokens || (rows == LogitsFor::LastToken && last) {
                let mut row = vec![0.0; ROWS];
                (self.rule)(&self.history, self.hash, &mut row);
                observer.logits(self.history.len() - 1, &row);
            }
        }
        if !self.history.len().is_multiple_of(self.alignment) {
            self.hash = mix(self.hash ^ 0xC07);
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, RunError> {
        let history: Vec<u8> = self.history.iter().flat_map(|id| id.to_le_bytes()).collect();
        let tensor = |name: &str, data: Vec<u8>| SnapshotTensor {
            name: name.into(),
            dtype: StateType::I8,
            shape: vec![data.len()],
            data,
        };
        let tensors = vec![tensor("history", history), tensor("hash", self.hash.to_le_bytes().to_vec())];
        Ok(Snapshot { position: self.history.len(), layout: "fake-1".into(), tensors })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RunError> {
        let tensor = |name| snapshot.tensor(name).map(|tensor| tensor.data.as_slice());
        let (Some(history), Some(hash)) = (tensor("history"), tensor("hash")) else {
            return Err(RunError::Snapshot { expected: "fake-1".into(), found: snapshot.layout.clone() });
        };
        self.history = history.chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
        self.hash = u64::from_le_bytes(hash.try_into().unwrap());
        Ok(())
    }

    fn reset(&mut self) {
        self.history.clear();
        self.hash = 1;
    }

    fn cache_bytes(&self) -> u64 {
        4 * self.history.len() as u64
    }

    fn scratch_bytes(&self) -> u64 {
        16
    }

    fn recurrent_states(&self) -> Result<Vec<RecurrentState>, RunError> {
        Ok(Vec::new())
    }
}
