//! Regular expressions of schemas: matching, and forms of well-known ones that a grammar can use.

use fancy_regex::Regex;

/// True if `text` contains a match of `pattern`; `None` if the pattern is not a valid expression.
pub(super) fn is_match(pattern: &str, text: &str) -> Option<bool> {
    Regex::new(pattern).ok()?.is_match(text).ok()
}

/// Patterns with look-around that common libraries write, and equivalents without it, which grammars support. For
/// `duration` the format alone is stricter than the pattern, so the pattern is left out.
const EQUIVALENTS: [(&str, Option<&str>); 3] = [
    // zod 4: z.email()
    (
        r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
        Some(
            r"^([A-Za-z0-9_'+\-]+\.)*[A-Za-z0-9_'+\-]*[A-Za-z0-9_+\-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
        ),
    ),
    // pydantic 2: Decimal
    (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", Some(r"^[+\-]?(\d+\.?\d*|\.\d+)$")),
    // zod 4: z.iso.duration()
    (r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$", None),
];

/// The equivalent of a well-known pattern: `Some(None)` if the pattern may be left out beside its format.
pub(super) fn equivalent(pattern: &str) -> Option<Option<&'static str>> {
    EQUIVALENTS.iter().find(|(known, _)| *known == pattern).map(|(_, equivalent)| *equivalent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalents_match_the_same_texts() {
        let texts = [
            "a@b.co",
            "a.b@c.org",
            ".a@b.co",
            "a..b@c.co",
            "a.@b.co",
            "a'@b.co",
            "o'x@b.co",
            "a@b..co",
            "a@b",
            "@b.co",
            "+a-b_c@x-y.z0.com",
            "a.b.c@d.ef",
            "",
            "1",
            "-1.5",
            "+.5",
            "5.",
            ".",
            "-",
            "+-",
            "00",
            "0.",
            "1e5",
            "-.",
        ];
        for (pattern, equivalent) in EQUIVALENTS {
            let Some(equivalent) = equivalent else { continue };
            assert!(!equivalent.contains("(?!") && !equivalent.contains("(?="));
            for text in texts {
                assert_eq!(is_match(pattern, text), is_match(equivalent, text), "{pattern}: {text:?}");
            }
        }
    }
}
