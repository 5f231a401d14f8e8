//! Recognition of the beginning of a tool call in streamed text, and of code, in which a tag is only mentioned.

use super::{CALL, FUNCTION};

/// Tracks if streamed Markdown is inside code: a fenced block, or backticks on the current line.
#[derive(Clone, Debug, Default)]
pub(crate) struct CodeTracker {
    /// Length of the fence that opened the current block.
    fence: Option<usize>,
    /// Length of the backtick run that opened inline code on this line.
    inline: Option<usize>,
    /// Length of the backtick run that the text ends with.
    run: usize,
    /// True until the line has a character other than a space or a backtick.
    line_start: bool,
    /// True before the first character.
    started: bool,
}

impl CodeTracker {
    /// Adds a character.
    fn push(&mut self, c: char) {
        if !self.started {
            self.started = true;
            self.line_start = true;
        }
        if c == '`' {
            self.run += 1;
            return;
        }
        self.end_run();
        match c {
            '\n' => {
                self.inline = None;
                self.line_start = true;
            }
            ' ' => {}
            _ => self.line_start = false,
        }
    }

    fn end_run(&mut self) {
        let run = std::mem::take(&mut self.run);
        match (run, self.fence, self.inline) {
            (0, ..) => return,
            (_, Some(open), _) if self.line_start && run >= open => self.fence = None,
            (_, Some(_), _) => {}
            (3.., None, None) if self.line_start => self.fence = Some(run),
            (_, None, Some(open)) if run == open => self.inline = None,
            (_, None, Some(_)) => {}
            (_, None, None) => self.inline = Some(run),
        }
        self.line_start = false;
    }

    /// Adds text.
    pub(crate) fn push_str(&mut self, text: &str) {
        text.chars().for_each(|c| self.push(c));
    }

    /// True if the last character is inside code.
    fn is_in_code(&self) -> bool {
        self.fence.is_some() || self.inline.is_some()
    }
}

/// The position of a tool call in text that may continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallStart {
    /// A call begins at this byte offset.
    At(usize),
    /// The text from this byte offset on may become the beginning of a call.
    Undecided(usize),
    /// No call begins.
    None,
}

/// Finds the first call of one of the tools `names` in `text`, which continues the text that `code` has seen. A call is
/// `<tool_call>` with a function or a JSON object inside, or a function without its wrapper.
pub(crate) fn find_call_start(text: &str, code: &CodeTracker, names: &[String]) -> CallStart {
    if names.is_empty() || !text.contains('<') {
        return CallStart::None;
    }
    let mut code = code.clone();
    for (at, c) in text.char_indices() {
        code.push(c);
        if c == '<' && !code.is_in_code() {
            match begins_call(&text[at..], names) {
                Some(true) => return CallStart::At(at),
                Some(false) => {}
                None => return CallStart::Undecided(at),
            }
        }
    }
    CallStart::None
}

/// True if `text` begins with a call; `None` if that depends on text to come.
fn begins_call(text: &str, names: &[String]) -> Option<bool> {
    let Some(inside) = text.strip_prefix(CALL) else {
        if CALL.starts_with(text) {
            return None;
        }
        return begins_function(text, names);
    };
    let inside = inside.trim_start();
    match inside.strip_prefix('{') {
        Some(json) => {
            let json = json.trim_start();
            if json.is_empty() { None } else { Some(json.starts_with('"')) }
        }
        None if inside.is_empty() => None,
        None => begins_function(inside, names),
    }
}

/// True if `text` begins with `<function=NAME>` of an offered tool; `None` if that depends on text to come.
fn begins_function(text: &str, names: &[String]) -> Option<bool> {
    let Some(rest) = text.strip_prefix(FUNCTION) else {
        return if FUNCTION.starts_with(text) { None } else { Some(false) };
    };
    match rest.split_once('>') {
        Some((name, _)) => Some(names.iter().any(|offered| offered == name.trim())),
        None if names.iter().any(|offered| offered.starts_with(rest.trim_start())) => None,
        None => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn find(text: &str) -> CallStart {
        find_call_start(text, &CodeTracker::default(), &["now".to_owned()])
    }

    #[test]
    fn calls_begin_where_a_function_or_an_object_follows() {
        use CallStart::{At, None as Nothing, Undecided};
        let cases = [
            ("I look. <tool_call>\n<function=now>", At(8)),
            ("<tool_call>{\"name\"", At(0)),
            ("x\n<function=now>\n", At(2)),
            ("The tag <tool_call> begins a call.", Nothing),
            ("`<tool_call>` then `<function=now>`", Nothing),
            ("```xml\n<tool_call>\n<function=now>\n```\n", Nothing),
            ("```\ncode\n```\n<tool_call><function=now>", At(13)),
            ("an odd ` here\n<tool_call><function=now>", At(14)),
            ("``a ` b`` <tool_call> {\"", At(10)),
            ("<tool_call><function=other>", Nothing),
            ("<function=other>", Nothing),
            ("a < b and <tool", Undecided(10)),
            ("<tool_call>", Undecided(0)),
            ("<tool_call>\n", Undecided(0)),
            ("<tool_call>\n<func", Undecided(0)),
            ("<tool_call>\n<function=no", Undecided(0)),
            ("<tool_call> {", Undecided(0)),
            ("<function=nothing", Nothing),
            ("plain", Nothing),
        ];
        for (text, expected) in cases {
            assert_eq!(find(text), expected, "{text:?}");
        }
        assert_eq!(find_call_start("<tool_call><function=now>", &CodeTracker::default(), &[]), Nothing);
    }

    proptest! {
        #[test]
        fn the_division_of_the_text_does_not_matter(parts in prop::collection::vec(prop::sample::select(vec![
            "<tool_call>", "<function=now>", "`", "```", "\n", " ", "a", "{\"", "<",
        ]), 0..10), cut in 0usize..40) {
            let text = parts.concat();
            let cut = text.char_indices().nth(cut).map_or(text.len(), |(at, _)| at);
            let whole = find(&text);
            // Text before the cut that was undecided is seen again together with the rest.
            let before = match find(&text[..cut]) {
                CallStart::At(at) => {
                    prop_assert_eq!(whole, CallStart::At(at));
                    return Ok(());
                }
                CallStart::Undecided(at) => at,
                CallStart::None => cut,
            };
            let mut code = CodeTracker::default();
            code.push_str(&text[..before]);
            let rest = match find_call_start(&text[before..], &code, &["now".to_owned()]) {
                CallStart::At(at) => CallStart::At(before + at),
                CallStart::Undecided(at) => CallStart::Undecided(before + at),
                CallStart::None => CallStart::None,
            };
            prop_assert_eq!(rest, whole);
        }
    }
}
