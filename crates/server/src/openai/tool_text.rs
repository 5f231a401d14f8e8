//! Separation of an answer's text from the markup of its tool calls, while it streams.

/// Texts that may begin a tool call.
const MARKERS: [&str; 2] = ["<tool_call>", "<function="];

/// Withholds text from the first marker on, and white space before it, until the reply has ended: only then it is certain
/// whether the marker began a call or was mentioned.
#[derive(Debug, Default)]
pub(crate) struct ToolText {
    withheld: String,
    found: bool,
}

impl ToolText {
    /// Accepts more of the answer and returns the part that is certainly text.
    pub(crate) fn push(&mut self, text: &str) -> String {
        self.withheld.push_str(text);
        if self.found {
            return String::new();
        }
        let marker = MARKERS.iter().filter_map(|marker| self.withheld.find(marker)).min();
        self.found = marker.is_some();
        let end = marker.unwrap_or_else(|| self.withheld.len() - partial_marker(&self.withheld));
        let certain = self.withheld[..end].trim_end().len();
        self.withheld.drain(..certain).collect()
    }

    /// The withheld rest: text if the reply has no calls, nothing otherwise.
    pub(crate) fn finish(self, has_calls: bool) -> String {
        if has_calls { String::new() } else { self.withheld }
    }
}

/// Length of the longest suffix of `text` that is the beginning of a marker.
fn partial_marker(text: &str) -> usize {
    let partial = |marker: &&str| (1..marker.len()).rev().find(|length| text.ends_with(&marker[..*length]));
    MARKERS.iter().filter_map(partial).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(parts: &[&str], has_calls: bool) -> (Vec<String>, String) {
        let mut text = ToolText::default();
        let shown = parts.iter().map(|part| text.push(part)).collect();
        (shown, text.finish(has_calls))
    }

    #[test]
    fn calls_are_never_shown() {
        let (shown, rest) = stream(&["I look.", "\n\n", "<tool", "_call>\n<function=", "f>"], true);
        assert_eq!((shown.concat(), rest), ("I look.".into(), String::new()));
    }

    #[test]
    fn text_without_calls_is_complete() {
        for parts in [vec!["a < b", " and <tool> ", "x\n"], vec!["mention `<tool_call>` here"], vec!["end <"]]
        {
            let (shown, rest) = stream(&parts, false);
            assert_eq!(shown.concat() + &rest, parts.concat());
        }
    }

    #[test]
    fn a_partial_marker_waits_for_its_rest() {
        let (shown, _) = stream(&["so <tool_", "box>"], false);
        assert_eq!(shown, ["so", " <tool_box>"]);
    }
}
