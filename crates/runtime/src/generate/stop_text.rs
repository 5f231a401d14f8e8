//! Stop texts: strings that end the answer.

use super::channels::held_back;

/// Passes text through up to the first stop text, and never a part of one.
#[derive(Clone, Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    pending: String,
    hit: bool,
}

impl StopMatcher {
    pub(crate) fn new(stops: &[String]) -> Self {
        Self { stops: stops.to_vec(), pending: String::new(), hit: false }
    }

    /// Adds text; returns the text that can no longer be part of a stop text.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if self.hit {
            return String::new();
        }
        self.pending.push_str(text);
        let first = self.stops.iter().filter_map(|stop| self.pending.find(stop.as_str())).min();
        let keep = match first {
            Some(at) => {
                self.hit = true;
                at
            }
            None => self.pending.len() - held_back(&self.pending, &self.stops),
        };
        let rest = self.pending.split_off(keep);
        std::mem::replace(&mut self.pending, rest)
    }

    /// True once a stop text is complete.
    pub(crate) fn is_hit(&self) -> bool {
        self.hit
    }

    /// Ends the text: an incomplete stop text is returned as text.
    pub(crate) fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        if self.hit { String::new() } else { rest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_of_a_stop_text_shows() {
        let mut matcher = StopMatcher::new(&["STOP".into(), "ende".into()]);
        assert_eq!(matcher.push("go ST"), "go ");
        assert_eq!(matcher.push("AY en"), "STAY ");
        assert_eq!(matcher.push("d."), "end.");
        assert_eq!(matcher.push(" S"), " ");
        assert_eq!(matcher.push("TOP more"), "");
        assert!(matcher.is_hit());
        assert_eq!((matcher.push("x"), matcher.finish()), (String::new(), String::new()));
    }

    #[test]
    fn a_beginning_is_text_in_the_end() {
        let mut matcher = StopMatcher::new(&["STOP".into()]);
        assert_eq!((matcher.push("ab STO"), matcher.finish()), ("ab ".into(), "STO".into()));
    }

    proptest! {
        #[test]
        fn equals_cutting_the_whole_text(
            text in "[ab世]{0,40}", stops in prop::collection::vec("[ab世]{1,4}", 0..3),
            cuts in prop::collection::vec(1usize..5, 0..40)
        ) {
            // A stop text is found as soon as it is complete, so the earliest to end counts.
            let ends = |n: usize| stops.iter().any(|s| text[..n].ends_with(s.as_str()));
            let end = (1..=text.len()).filter(|n| text.is_char_boundary(*n)).find(|n| ends(*n));
            let expected = match end {
                None => text.as_str(),
                Some(n) => &text[..stops.iter().filter(|s| text[..n].ends_with(s.as_str())).map(|s| n - s.len()).min().unwrap_or(n)],
            };
            let mut matcher = StopMatcher::new(&stops);
            let mut out = String::new();
            for c in text.chars() {
                out.push_str(&matcher.push(&c.to_string()));
            }
            out.push_str(&matcher.finish());
            prop_assert_eq!(&out, expected);
            // In larger pieces a longer look may find an earlier start, but never shows a stop text.
            let (mut matcher, mut out, mut rest) = (StopMatcher::new(&stops), String::new(), text.as_str());
            for cut in cuts {
                let at = rest.char_indices().nth(cut).map_or(rest.len(), |(at, _)| at);
                out.push_str(&matcher.push(&rest[..at]));
                rest = &rest[at..];
            }
            out.push_str(&matcher.push(rest));
            out.push_str(&matcher.finish());
            prop_assert!(stops.iter().all(|s| !out.contains(s.as_str())));
        }
    }
}
