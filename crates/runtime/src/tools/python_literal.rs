//! Python literals, as a chat template prints values into history and as models then write them: `True`, `None`, lists,
//! tuples, dicts, and strings in either quotes. JSON's `true`, `false` and `null` are accepted as well.

use serde_json::{Map, Number, Value};

/// Parses a whole text as one literal; `None` if it is not one.
pub(super) fn parse(text: &str) -> Option<Value> {
    let mut parser = Parser { rest: text.trim() };
    let value = parser.value(0)?;
    parser.rest.trim().is_empty().then_some(value)
}

/// Nesting beyond which a text is refused.
const MAX_DEPTH: usize = 64;

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Consumes `token` after white space.
    fn eat(&mut self, token: char) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.skip_space();
        let first = self.rest.chars().next().filter(|_| depth < MAX_DEPTH)?;
        match first {
            '[' => self.sequence('[', ']', depth).map(|(items, _)| Value::Array(items)),
            '(' => match self.sequence('(', ')', depth)? {
                // Parentheses without a comma only group.
                (mut items, false) if items.len() == 1 => items.pop(),
                (items, _) => Some(Value::Array(items)),
            },
            '{' => self.dict(depth),
            '\'' | '"' => self.string().map(Value::from),
            _ => self.word(),
        }
    }

    /// The items between two brackets, and true if there was a comma.
    fn sequence(&mut self, open: char, close: char, depth: usize) -> Option<(Vec<Value>, bool)> {
        self.eat(open);
        let (mut items, mut comma) = (Vec::new(), false);
        while !self.eat(close) {
            if !items.is_empty() && !self.eat(',') {
                return None;
            }
            comma |= !items.is_empty();
            if comma && self.eat(close) {
                break;
            }
            items.push(self.value(depth + 1)?);
        }
        Some((items, comma))
    }

    fn dict(&mut self, depth: usize) -> Option<Value> {
        self.eat('{');
        let mut fields = Map::new();
        while !self.eat('}') {
            if !fields.is_empty() && !self.eat(',') {
                return None;
            }
            if !fields.is_empty() && self.eat('}') {
                break;
            }
            let key = match self.value(depth + 1)? {
                Value::String(key) => key,
                // `json.dumps` writes other keys as their text.
                key @ (Value::Number(_) | Value::Bool(_) | Value::Null) => key.to_string(),
                _ => return None,
            };
            if !self.eat(':') {
                return None;
            }
            let value = self.value(depth + 1)?;
            if fields.insert(key, value).is_some() {
                return None;
            }
        }
        Some(Value::Object(fields))
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.rest.chars().next()?;
        let mut chars = self.rest[1..].char_indices();
        let mut text = String::new();
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.rest = &self.rest[1 + at + 1..];
                    return Some(text);
                }
                '\\' => {
                    let (_, escape) = chars.next()?;
                    let code = |chars: &mut std::str::CharIndices<'_>, digits: usize| {
                        let hex: String = chars.take(digits).map(|(_, c)| c).collect();
                        char::from_u32(u32::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == digits)?)
                    };
                    let decoded = match escape {
                        'n' => '\n',
                        't' => '\t',
                        'r' => '\r',
                        'b' => '\u{8}',
                        'f' => '\u{c}',
                        'x' => code(&mut chars, 2)?,
                        'u' => code(&mut chars, 4)?,
                        'U' => code(&mut chars, 8)?,
                        '\\' | '\'' | '"' | '/' => escape,
                        '\n' => continue,
                        // Python keeps the backslash of an unknown escape.
                        other => {
                            text.push('\\');
                            other
                        }
                    };
                    text.push(decoded);
                }
                c => text.push(c),
            }
        }
        None
    }

    fn word(&mut self) -> Option<Value> {
        let delimiter = |c: char| c.is_whitespace() || matches!(c, ',' | ':' | ']' | '}' | ')');
        let end = self.rest.find(delimiter).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            "None" | "null" => Some(Value::Null),
            _ => number(word),
        }
    }
}

fn number(word: &str) -> Option<Value> {
    if !word.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.')) {
        return None;
    }
    let digits = word.strip_prefix('+').unwrap_or(word);
    let integer = digits.replace('_', "");
    if let Ok(integer) = integer.parse::<i64>() {
        return Some(integer.into());
    }
    if let Ok(integer) = integer.parse::<u64>() {
        return Some(integer.into());
    }
    let valid = digits.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E'));
    digits.parse::<f64>().ok().filter(|_| valid).and_then(Number::from_f64).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn literals() {
        let cases = [
            ("True", json!(true)),
            (" None ", json!(null)),
            ("-3", json!(-3)),
            ("1_000", json!(1000)),
            ("2.5e3", json!(2500.0)),
            (".5", json!(0.5)),
            ("[1, 'a', \"b\", [True, None],]", json!([1, "a", "b", [true, null]])),
            ("{'a': {'b': [False]}, 1: 'x'}", json!({"a": {"b": [false]}, "1": "x"})),
            ("(1, 2)", json!([1, 2])),
            ("(1)", json!(1)),
            ("(1,)", json!([1])),
            ("()", json!([])),
            ("{}", json!({})),
            (r#"'it\'s \x41 \u00e9 \n \q'"#, json!("it's A é \n \\q")),
            ("{'世': \"it's\"}", json!({"世": "it's"})),
            ("[true, null]", json!([true, null])),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "Oslo",
            "[1, 2",
            "[1 2]",
            "{'a'}",
            "{1}",
            "'a",
            "1 2",
            "{'a': 1, 'a': 2}",
            "nan",
            "inf",
            "[,]",
            "0x10",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&"[".repeat(10_000)), None);
    }

    proptest! {
        #[test]
        fn json_is_read_as_json(list in prop::collection::vec(any::<i32>(), 0..5), text in "[a-z\"\\\\\n é世]{0,9}") {
            let value = json!({"list": list, "text": text, "nested": {"t": [true, null, 0.5]}});
            prop_assert_eq!(parse(&value.to_string()), Some(value));
        }

        #[test]
        fn any_text_is_survived(text in "[\\[\\](){}'\",: 1a\\\\世.-]{0,30}") {
            let _ = parse(&text);
        }
    }
}
