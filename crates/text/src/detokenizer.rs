//! Incremental decoding: token ids to whole characters.

use crate::Tokenizer;

/// Decodes a growing sequence of ids into text that always ends between UTF-8 characters.
///
/// A token may end in the middle of a character (emoji and CJK often do); its bytes wait until the rest comes. Bytes
/// that can never become a character are replaced by U+FFFD, exactly as decoding all of them at once would. Special
/// tokens such as `<|im_end|>` decode to no text.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    pending: Vec<u8>,
}

impl Detokenizer {
    /// A decoder without pending bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes `id` and returns the characters that it completed: often one word, sometimes nothing.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        if !tokenizer.is_special(id) {
            self.pending.extend_from_slice(tokenizer.bytes_of(id));
        }
        self.take_complete()
    }

    /// Ends the text: U+FFFD for an incomplete character, otherwise nothing.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[..valid]));
                    let Some(invalid) = error.error_len() else {
                        self.pending.drain(..valid);
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.pending.drain(..valid + invalid);
                }
            }
        }
    }

    #[cfg(test)]
    fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        self.take_complete()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn characters_wait_until_they_are_whole() {
        let mut stream = Detokenizer::new();
        let crab = "🦀".as_bytes();
        assert_eq!(stream.push_bytes(&crab[..1]), "");
        assert_eq!(stream.push_bytes(&crab[1..3]), "");
        assert_eq!(stream.push_bytes(&[crab[3], b'!']), "🦀!");
        assert_eq!(stream.push_bytes(&"世".as_bytes()[..2]), "");
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(stream.finish(), "");
    }

    proptest! {
        #[test]
        fn any_cut_of_any_bytes_gives_what_decoding_at_once_gives(
            text in ".{0,24}", noise in prop::collection::vec(any::<u8>(), 0..12), cuts in prop::collection::vec(1usize..5, 0..60)
        ) {
            let mut bytes = text.into_bytes();
            bytes.extend(noise);
            let (mut stream, mut out, mut rest) = (Detokenizer::new(), String::new(), &bytes[..]);
            for cut in cuts {
                let (piece, left) = rest.split_at(cut.min(rest.len()));
                out.push_str(&stream.push_bytes(piece));
                rest = left;
            }
            out.push_str(&stream.push_bytes(rest));
            out.push_str(&stream.finish());
            prop_assert_eq!(out, String::from_utf8_lossy(&bytes));
        }
    }
}
