//! A checkpoint's tokenizer and chat template, for suites and tasks.

use std::path::Path;

use q35_text::{ChatTemplate, Clock, RenderInput, Tokenizer};

use crate::TextEncoder;

/// The tokenizer and the chat template of one directory.
pub struct CheckpointText {
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl CheckpointText {
    /// Reads both from `dir`.
    ///
    /// # Errors
    /// Either is missing or malformed.
    pub fn open(dir: &Path) -> Result<Self, String> {
        let tokenizer = Tokenizer::from_dir(dir).map_err(|error| error.to_string())?;
        let template =
            ChatTemplate::from_dir(dir, tokenizer.special_tokens()).map_err(|error| error.to_string())?;
        // A template may print today's date; a suite must produce the same tokens every day.
        Ok(Self { tokenizer, template: template.with_clock(Clock::fixed(1_700_000_000)) })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}

impl CheckpointText {
    /// The text of `ids` with special tokens written out.
    pub fn visible_text(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.tokenizer.bytes_of(*id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The text of a reply up to its end-of-turn token.
    pub fn reply_text(&self, ids: &[u32]) -> String {
        let ends = ["<|im_end|>", "<|endoftext|>"].map(|token| self.tokenizer.id_of(token));
        let end = ids.iter().position(|id| ends.contains(&Some(*id))).unwrap_or(ids.len());
        self.visible_text(&ids[..end])
    }
}

impl TextEncoder for CheckpointText {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.tokenizer.encode(text).map_err(|error| error.to_string())
    }

    fn render(&self, messages: &serde_json::Value, thinking: bool) -> Result<String, String> {
        let messages = messages.as_array().ok_or("`messages` is not a list")?;
        let input = RenderInput::new(messages).with_generation_prompt(true).with_thinking(Some(thinking));
        self.template.render(&input).map_err(|error| error.to_string())
    }
}
