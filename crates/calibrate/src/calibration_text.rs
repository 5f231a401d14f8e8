//! The built-in calibration text.

/// Conversations in the chat template's format with and without thinking, prose, code, JSON and several languages,
/// written for this purpose or taken from this project's own sources; `scripts/calibration_text.py` assembles it.
/// Special tokens are written as text.
pub const DEFAULT_TEXT: &str = include_str!("../text/default.txt");

#[cfg(test)]
mod tests {
    use super::DEFAULT_TEXT;

    #[test]
    fn every_kind_of_text_is_present() {
        for sample in
            ["<|im_start|>assistant\n<think>\n\n</think>", "fn ", "def ", "{\"", "。", "ñ", "ü", "и"]
        {
            assert!(DEFAULT_TEXT.contains(sample), "no `{sample}`");
        }
    }
}
