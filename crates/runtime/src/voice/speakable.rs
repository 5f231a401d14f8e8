//! Conversion of Markdown to words that a voice can speak.

/// The words of Markdown text, without emphasis, heading marks, list bullets, link targets, table rules, HTML tags,
/// code marks and emoji. A link keeps its words, a bare address its host. White space becomes single spaces.
///
/// ```
/// assert_eq!(q35_runtime::speakable("- see [the *docs*](https://a.b/c) 🚀"), "see the docs");
/// ```
pub fn speakable(markdown: &str) -> String {
    let lines: Vec<String> = markdown.lines().map(|line| inline(line_start(line))).collect();
    collapse(&lines.join(" "))
}

/// The line without heading marks, bullets, quote marks and rules.
fn line_start(line: &str) -> &str {
    let mut rest = line.trim();
    if rest.len() >= 3 && rest.chars().all(|c| matches!(c, '-' | '*' | '_' | '=' | '|' | ':' | ' ')) {
        return "";
    }
    loop {
        let stripped = rest.trim_start_matches('#');
        let next = if stripped.len() < rest.len() && stripped.starts_with(' ') {
            stripped.trim_start()
        } else if let Some(after) =
            ["- ", "* ", "+ ", "> ", "• ", "[ ] ", "[x] "].iter().find_map(|m| rest.strip_prefix(m))
        {
            after.trim_start()
        } else {
            return rest;
        };
        rest = next;
    }
}

fn inline(line: &str) -> String {
    let chars: Vec<char> = line.chars().collect();
    let mut out = String::with_capacity(line.len());
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        let before = out.chars().next_back();
        let after = chars.get(at + 1).copied();
        if let Some(length) = address(&chars[at..]).filter(|_| !before.is_some_and(char::is_alphanumeric)) {
            out.push_str(&host(&chars[at..at + length]));
            at += length;
            continue;
        }
        match c {
            '!' if after == Some('[') => {}
            '[' => {
                if let Some(link) = link(&chars[at..]) {
                    out.push_str(&inline(&link.words));
                    at += link.length;
                    continue;
                }
                out.push(c);
            }
            '<' => match tag(&chars[at..]) {
                Some(length) => {
                    at += length;
                    continue;
                }
                None => out.push(c),
            },
            '*' | '~' if spaced(before) && spaced(after) => out.push(c),
            '*' | '`' | '~' => {}
            '_' => match (before, after) {
                (Some(b), Some(a)) if b.is_alphanumeric() && a.is_alphanumeric() => out.push(' '),
                _ => {}
            },
            '|' => out.push_str(if out.trim().is_empty() || after.is_none() { " " } else { ", " }),
            '&' => out.push_str(" and "),
            '\\' if after.is_some_and(|a| a.is_ascii_punctuation()) => {}
            c if is_picture(c) => out.push(' '),
            c => out.push(c),
        }
        at += 1;
    }
    out
}

fn spaced(neighbour: Option<char>) -> bool {
    neighbour.is_none_or(char::is_whitespace)
}

struct Link {
    words: String,
    /// Number of characters from `[` to `)`, both included.
    length: usize,
}

/// Parses `[words](address)` or `[words][reference]`.
fn link(chars: &[char]) -> Option<Link> {
    let middle = chars.iter().position(|c| *c == ']')?;
    let close = match chars.get(middle + 1)? {
        '(' => ')',
        '[' => ']',
        _ => return None,
    };
    let end = middle + 2 + chars[middle + 2..].iter().position(|c| *c == close)?;
    Some(Link { words: chars[1..middle].iter().collect(), length: end + 1 })
}

/// Number of characters of an HTML tag at the start of `chars`.
fn tag(chars: &[char]) -> Option<usize> {
    let first = chars.get(1)?;
    if !first.is_ascii_alphabetic() && *first != '/' && *first != '!' {
        return None;
    }
    let end = chars.iter().position(|c| *c == '>')?;
    (!chars[1..end].contains(&'<')).then_some(end + 1)
}

/// Number of characters of a web address at the start of `chars`.
fn address(chars: &[char]) -> Option<usize> {
    let starts = |prefix: &str| prefix.chars().enumerate().all(|(i, c)| chars.get(i) == Some(&c));
    if !starts("http://") && !starts("https://") && !starts("www.") {
        return None;
    }
    let mut end = chars
        .iter()
        .position(|c| c.is_whitespace() || matches!(c, ')' | ']' | '>' | '"'))
        .unwrap_or(chars.len());
    while end > 0 && matches!(chars[end - 1], '.' | ',' | '!' | '?' | ';' | ':') {
        end -= 1;
    }
    Some(end)
}

/// The host of an address, without `www`.
fn host(chars: &[char]) -> String {
    let address: String = chars.iter().collect();
    let rest = address.split_once("://").map_or(address.as_str(), |(_, rest)| rest);
    let host = rest.split(['/', '?', '#', ':']).next().unwrap_or(rest);
    host.trim_start_matches("www.").to_owned()
}

/// True for emoji, pictographs, their joiners and modifiers, arrows and ornaments, which a voice would spell out.
fn is_picture(c: char) -> bool {
    matches!(c as u32,
        0x200D | 0x20E3 | 0xFE00..=0xFE0F | 0x2190..=0x21FF | 0x2300..=0x23FF | 0x2500..=0x27BF | 0x2900..=0x297F
        | 0x2B00..=0x2BFF | 0x1F000..=0x1FAFF | 0xE0020..=0xE007F)
}

/// Collapses white space to single spaces, and to none before punctuation.
fn collapse(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        let is_punctuation = word.chars().all(|c| matches!(c, ',' | '.' | '!' | '?' | ';'));
        if !out.is_empty() && !is_punctuation {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_said() {
        let cases = [
            ("## A *big* title", "A big title"),
            ("- [x] done: `cargo test` works", "done: cargo test works"),
            ("> quoted **strongly**", "quoted strongly"),
            ("1. First", "1. First"),
            (
                "see [the docs](https://docs.rs/x) or https://www.example.com/a?b=1.",
                "see the docs or example.com.",
            ),
            ("![a cat](cat.png) sits", "a cat sits"),
            ("snake_case and _soft_ and __loud__", "snake case and soft and loud"),
            ("2 * 3 is 6", "2 * 3 is 6"),
            ("a<br/>b x < y <b>c</b>", "ab x < y c"),
            ("| one | two |", "one, two"),
            ("|---|:-:|", ""),
            ("salt & pepper", "salt and pepper"),
            ("ship it 🚀👩‍👩‍👧 now ❤️!", "ship it now!"),
            ("flags 🇫🇷 done ✅.", "flags done."),
            ("naïve café 世界 100% $5", "naïve café 世界 100% $5"),
            ("***", ""),
            ("a \\* b", "a * b"),
        ];
        for (markdown, expected) in cases {
            assert_eq!(speakable(markdown), expected, "{markdown:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived_and_cleaned_once_for_all(text in "\\PC{0,60}") {
            let once = speakable(&text);
            prop_assert!(!once.contains("  ") && !once.contains('\n'));
            prop_assert!(!once.chars().any(is_picture));
        }
    }
}
