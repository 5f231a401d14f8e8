//! Sentence boundaries in streamed text.

/// Splits streamed Markdown into sentences. Each is returned as soon as it is certainly complete, cleaned by
/// [`crate::speakable`]. Parts without words (rules, code blocks, lone emoji) are left out.
///
/// ```
/// let mut sentences = q35_runtime::Sentences::new();
/// let mut spoken = Vec::new();
/// for chunk in ["Dr. Hale paid 3.5", "0 euros. **Then", "** he left!", " 你好。再见"] {
///     spoken.extend(sentences.push(chunk));
/// }
/// spoken.extend(sentences.finish());
/// assert_eq!(spoken, ["Dr. Hale paid 3.50 euros.", "Then he left!", "你好。", "再见"]);
/// ```
#[derive(Clone, Debug)]
pub struct Sentences {
    pending: String,
    in_code: bool,
    longest: usize,
}

/// Default maximum length of a part, in characters: about fifteen seconds of speech.
const LONGEST: usize = 240;

/// Words whose full stop never ends a sentence.
const ABBREVIATIONS: &[&str] = &[
    "mr", "mrs", "ms", "dr", "prof", "st", "mt", "rev", "gen", "col", "capt", "lt", "sgt", "hon", "gov",
    "sen", "rep", "vs", "e.g", "i.e", "cf", "approx", "ca", "ed", "eds", "al", "bzw", "z.b", "d.h", "u.s",
    "u.k",
];

/// Words whose full stop does not end a sentence when a number follows: "no. 5", but "No. It is dry."
const BEFORE_NUMBERS: &[&str] = &[
    "no", "nos", "nr", "fig", "figs", "vol", "pp", "p", "ch", "sec", "jan", "feb", "mar", "apr", "jun",
    "jul", "aug", "sep", "sept", "oct", "nov", "dec",
];

impl Default for Sentences {
    fn default() -> Self {
        Self::new()
    }
}

impl Sentences {
    /// A splitter without text.
    pub fn new() -> Self {
        Self { pending: String::new(), in_code: false, longest: LONGEST }
    }

    /// Sets the maximum length in characters. Longer sentences are split at a comma or a space, so that a voice need not
    /// wait for a sentence that does not end.
    pub fn with_longest(mut self, characters: usize) -> Self {
        self.longest = characters.max(16);
        self
    }

    /// Adds text; returns the sentences that it completed.
    pub fn push(&mut self, text: &str) -> Vec<String> {
        self.pending.push_str(text);
        let mut complete = Vec::new();
        while let Some(end) = self.boundary() {
            let rest = self.pending.split_off(end);
            let sentence = std::mem::replace(&mut self.pending, rest);
            complete.extend(self.clean(&sentence));
        }
        complete
    }

    /// Ends the text; returns the rest.
    pub fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.pending);
        let sentence = self.clean(&rest);
        self.in_code = false;
        sentence
    }

    /// The speakable form of a sentence; `None` for code lines, fences and parts without words.
    fn clean(&mut self, sentence: &str) -> Option<String> {
        if is_fence(sentence) {
            self.in_code = !self.in_code;
            return None;
        }
        if self.in_code {
            return None;
        }
        let words = crate::speakable(sentence);
        words.chars().any(char::is_alphanumeric).then_some(words)
    }

    /// Byte offset of the end of the first sentence that is certainly complete.
    fn boundary(&self) -> Option<usize> {
        let line_end = self.pending.find('\n').map(|at| at + 1);
        // A line inside a fence, or one that may still become a fence, is processed as a whole.
        let start = self.pending.trim_start_matches([' ', '\t']);
        if self.in_code || start.starts_with("```") || "```".starts_with(start) {
            return line_end;
        }
        let line = &self.pending[..line_end.unwrap_or(self.pending.len())];
        let mut searched = list_marker(line);
        while let Some(at) = line[searched..].find(ends_sentence).map(|at| at + searched) {
            match judge(line, at, line_end.is_some()) {
                Boundary::Ends(end) => return Some(end),
                Boundary::GoesOn(next) => searched = next,
                Boundary::Unsure => break,
            }
        }
        line_end.or_else(|| self.forced_boundary(line))
    }

    /// Split point of a sentence that is too long: after the last comma, otherwise the last space, before the limit.
    fn forced_boundary(&self, line: &str) -> Option<usize> {
        let (limit, _) = line.char_indices().nth(self.longest)?;
        let head = &line[..limit];
        let comma = head.rfind([',', ';', ':', '，', '、', '；', '：']).filter(|at| *at > limit / 4);
        let space = || head.rfind(char::is_whitespace).filter(|at| *at > 0);
        let at = comma.or_else(space)?;
        Some(at + head[at..].chars().next().map_or(1, char::len_utf8))
    }
}

/// The judgement of an end mark.
enum Boundary {
    /// The sentence ends before this offset.
    Ends(usize),
    /// The sentence continues; the search continues from this offset.
    GoesOn(usize),
    /// The decision needs more text.
    Unsure,
}

fn ends_sentence(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '…') || is_wide_end(c)
}

fn is_wide_end(c: char) -> bool {
    matches!(c, '。' | '！' | '？' | '．' | '｡')
}

fn closes(c: char) -> bool {
    matches!(
        c,
        '"' | '\''
            | ')'
            | ']'
            | '}'
            | '*'
            | '_'
            | '”'
            | '’'
            | '»'
            | '」'
            | '』'
            | '）'
            | '】'
            | '》'
            | '`'
            | '~'
    )
}

/// Judges the run of end marks that begins at `at`. `complete` is true if the line cannot grow.
fn judge(line: &str, at: usize, complete: bool) -> Boundary {
    let marks: &str = &line[at..];
    let run: usize = marks.chars().take_while(|c| ends_sentence(*c)).map(char::len_utf8).sum();
    let closing: usize = marks[run..].chars().take_while(|c| closes(*c)).map(char::len_utf8).sum();
    let end = at + run + closing;
    let mut after = line[end..].chars();
    let Some(next) = after.next() else {
        return if complete { Boundary::Ends(end) } else { Boundary::Unsure };
    };
    if marks[..run].chars().any(is_wide_end) {
        return Boundary::Ends(end);
    }
    if !next.is_whitespace() {
        return Boundary::GoesOn(end);
    }
    let dots_only = marks[..run].chars().all(|c| matches!(c, '.' | '…'));
    let following = line[end..].chars().find(|c| !c.is_whitespace());
    if dots_only && run == 1 {
        let word = last_word(&line[..at]);
        if is_abbreviation(word) {
            return Boundary::GoesOn(end);
        }
        if before_numbers(word) && following.is_some_and(|first| first.is_ascii_digit()) {
            return Boundary::GoesOn(end);
        }
    }
    if !dots_only && closing == 0 {
        return Boundary::Ends(end);
    }
    // After dots, or a quoted end, a lower-case letter continues the sentence.
    match following {
        Some(first) if first.is_lowercase() => Boundary::GoesOn(end),
        Some(_) => Boundary::Ends(end),
        None if complete => Boundary::Ends(end),
        None => Boundary::Unsure,
    }
}

/// The last word of the text before a full stop.
fn last_word(before: &str) -> &str {
    let start = |c: char| c.is_whitespace() || matches!(c, '(' | '[' | '"' | '“' | '\'' | '*' | '_');
    before.rsplit(start).next().unwrap_or_default()
}

/// True if a word is an abbreviation or an initial.
fn is_abbreviation(word: &str) -> bool {
    let mut letters = word.chars();
    let initial = matches!((letters.next(), letters.next()), (Some(c), None) if c.is_uppercase() && c != 'I');
    initial || ABBREVIATIONS.contains(&word.to_lowercase().as_str())
}

fn before_numbers(word: &str) -> bool {
    BEFORE_NUMBERS.contains(&word.to_lowercase().as_str())
}

/// Bytes of a list marker such as `12. ` at the start of a line, whose full stop is no end.
fn list_marker(line: &str) -> usize {
    let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
    let digits = line[indent..].chars().take_while(char::is_ascii_digit).count();
    let marker = indent + digits;
    if (1..=3).contains(&digits) && line[marker..].starts_with('.') { marker + 1 } else { 0 }
}

fn is_fence(piece: &str) -> bool {
    piece.trim_start().starts_with("```")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all_at_once(text: &str) -> Vec<String> {
        let mut sentences = Sentences::new();
        let mut pieces = sentences.push(text);
        pieces.extend(sentences.finish());
        pieces
    }

    #[test]
    fn where_sentences_end() {
        let cases: &[(&str, &[&str])] = &[
            ("Hello there. How are you? Fine!", &["Hello there.", "How are you?", "Fine!"]),
            ("Mr. and Mrs. Smith met Dr. J. Doe.", &["Mr. and Mrs. Smith met Dr. J. Doe."]),
            ("It costs 3.14 euros. Pi.", &["It costs 3.14 euros.", "Pi."]),
            ("Use e.g. this one. See fig. 3.", &["Use e.g. this one.", "See fig. 3."]),
            ("Is it wet? No. It is dry.", &["Is it wet?", "No.", "It is dry."]),
            ("Take no. 5 on Nov. 3. Or no. 6.", &["Take no. 5 on Nov. 3.", "Or no. 6."]),
            ("Well... maybe. Wait... No.", &["Well... maybe.", "Wait...", "No."]),
            ("Hmm… Right… or not.", &["Hmm…", "Right… or not."]),
            ("\"Stop!\" he said. \"Why?\" She left.", &["\"Stop!\" he said.", "\"Why?\"", "She left."]),
            ("(See above.) Next one.", &["(See above.)", "Next one."]),
            ("Really?! Yes.", &["Really?!", "Yes."]),
            ("你好。「走吧！」他说？是的", &["你好。", "「走吧！」", "他说？", "是的"]),
            ("So do I. Then we go.", &["So do I.", "Then we go."]),
            ("Visit example.com today. Ok.", &["Visit example.com today.", "Ok."]),
            ("at 5 p.m. we eat. At 6 p.m. We go.", &["at 5 p.m. we eat.", "At 6 p.m.", "We go."]),
            (
                "List:\n1. First one\n2. Second one. With more\n- third",
                &["List:", "1. First one", "2. Second one.", "With more", "third"],
            ),
            ("# Title\n\nText **bold. More** text.", &["Title", "Text bold.", "More text."]),
            ("Before.\n```rust\nlet x = 1. + 2.;\n```\nAfter.", &["Before.", "After."]),
            ("🎉🎉\n---\nGo! 🚀", &["Go!"]),
            ("no end", &["no end"]),
            ("", &[]),
        ];
        for (text, expected) in cases {
            assert_eq!(all_at_once(text), *expected, "{text:?}");
        }
    }

    #[test]
    fn a_piece_comes_as_soon_as_it_is_certain() {
        let mut sentences = Sentences::new();
        assert!(sentences.push("Hello there!").is_empty(), "a quote may follow");
        assert_eq!(sentences.push(" "), ["Hello there!"]);
        assert!(sentences.push("Good. ").is_empty(), "a small letter may follow");
        assert_eq!(sentences.push("N"), ["Good."]);
        assert_eq!(sentences.push("ow\n"), ["Now"]);
        assert_eq!(sentences.push("走吧。走"), ["走吧。"]);
    }

    #[test]
    fn endless_sentences_are_cut_where_one_breathes() {
        let mut sentences = Sentences::new().with_longest(20);
        assert_eq!(sentences.push("one two three, four five six seven"), ["one two three,"]);
        assert_eq!(sentences.push(" eight nine ten"), ["four five six"]);
        assert_eq!(sentences.finish().as_deref(), Some("seven eight nine ten"));
    }

    proptest! {
        #[test]
        fn how_the_text_arrives_does_not_matter(
            words in prop::collection::vec(prop::sample::select(vec![
                "Hi", "Dr.", "you.", "3.5", "a\n", "```\n", "“Go!”", "他。", "e.g.", "...", "- x", "1.", "**b.**", "🎉", "What?!", "```",
            ]), 0..14),
            cuts in prop::collection::vec(1usize..4, 0..80),
        ) {
            let text = words.join(" ");
            let (mut sentences, mut pieces, mut rest) = (Sentences::new(), Vec::new(), text.as_str());
            for cut in cuts {
                let at = rest.char_indices().nth(cut).map_or(rest.len(), |(at, _)| at);
                let (piece, left) = rest.split_at(at);
                pieces.extend(sentences.push(piece));
                rest = left;
            }
            pieces.extend(sentences.push(rest));
            pieces.extend(sentences.finish());
            prop_assert_eq!(pieces, all_at_once(&text));
        }
    }
}
