//! The alphabet of byte-level BPE: each byte is written as one printable character in a vocabulary file.
//!
//! A printable Latin-1 byte is written as its own code point; the 68 others are numbered upwards from U+0100 in byte order.

/// True if a byte's character is the byte's own code point.
fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The inverse table: bytes by character of the alphabet.
pub(crate) struct Alphabet {
    /// Indexed by code point; the alphabet ends at U+0143.
    bytes: [Option<u8>; 0x144],
}

impl Alphabet {
    pub(crate) fn new() -> Self {
        let mut bytes = [None; 0x144];
        let mut next = 0x100;
        for byte in 0..=255u8 {
            let code_point = if is_printable(byte) {
                usize::from(byte)
            } else {
                next += 1;
                next - 1
            };
            bytes[code_point] = Some(byte);
        }
        Self { bytes }
    }

    /// The bytes of a vocabulary entry; `None` if one of its characters is outside the alphabet.
    pub(crate) fn decode(&self, entry: &str) -> Option<Vec<u8>> {
        entry.chars().map(|c| self.bytes.get(c as usize).copied().flatten()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_letters() {
        let alphabet = Alphabet::new();
        for (entry, bytes) in
            [("Ġhello", &b" hello"[..]), ("Ċ", b"\n"), ("ĠðŁ", b" \xf0\x9f"), ("Ń", b"\xad")]
        {
            assert_eq!(alphabet.decode(entry).as_deref(), Some(bytes), "{entry}");
        }
        assert_eq!(alphabet.decode("a b"), None, "a plain space is not a letter of the alphabet");
        assert_eq!(alphabet.decode("世"), None);
    }

    #[test]
    fn every_byte_has_exactly_one_letter() {
        let mut seen: Vec<u8> = Alphabet::new().bytes.iter().copied().flatten().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
    }
}
