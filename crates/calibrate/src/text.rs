//! The calibration text that comes with the tool.

/// Conversations in the chat template's form with and without thinking, prose, code, JSON and several languages,
/// written for this purpose or taken from this project's own sources; `scripts/calibration_text.py` puts it together.
/// Special tokens are spelled out.
pub const DEFAULT_TEXT: &str = include_str!("../text/default.txt");

#[cfg(test)]
mod tests {
    use super::DEFAULT_TEXT;

    #[test]
    fn every_kind_is_there() {
        for sign in ["<|im_start|>assistant\n<think>\n\n</think>", "fn ", "def ", "{\"", "。", "ñ", "ü", "и"]
        {
            assert!(DEFAULT_TEXT.contains(sign), "no `{sign}`");
        }
    }
}
