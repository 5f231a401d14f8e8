//! The values of a JSON answer that come from closing it.

/// JSON Pointers of the values in `json` that end after byte `cut`: invented values, and those that the cut shortened.
/// An object that began before the cut is represented by its members; the empty pointer is the whole answer.
pub(crate) fn closed_fields(json: &str, cut: usize) -> Vec<String> {
    let mut scanner = Scanner { bytes: json.as_bytes(), at: 0, cut, fields: Vec::new() };
    scanner.value("", true);
    scanner.fields
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    cut: usize,
    fields: Vec<String>,
}

impl Scanner<'_> {
    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    /// Scans a value. `report` is false inside of a value that is reported as a whole.
    fn value(&mut self, pointer: &str, report: bool) {
        let Some(first) = self.peek() else { return };
        let begins_after = self.at >= self.cut;
        let members = report && !begins_after;
        let slot = self.fields.len();
        match first {
            b'{' => self.object(pointer, members),
            b'[' => self.array(pointer, members),
            b'"' => drop(self.string()),
            _ => {
                let end = |byte: &u8| matches!(byte, b',' | b']' | b'}') || byte.is_ascii_whitespace();
                let rest = &self.bytes[self.at..];
                self.at += rest.iter().position(end).unwrap_or(rest.len());
            }
        }
        let itself = begins_after || first != b'{';
        // A number that ends at the cut could have had more digits.
        let number = first == b'-' || first.is_ascii_digit();
        if report && itself && (self.at > self.cut || (number && self.at == self.cut)) {
            self.fields.insert(slot, pointer.to_owned());
        }
    }

    fn object(&mut self, pointer: &str, report: bool) {
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    let name = self.string().replace('~', "~0").replace('/', "~1");
                    if self.peek() == Some(b':') {
                        self.at += 1;
                        self.value(&format!("{pointer}/{name}"), report);
                    }
                }
                Some(b',') => self.at += 1,
                end => return self.at += usize::from(end.is_some()),
            }
        }
    }

    fn array(&mut self, pointer: &str, report: bool) {
        self.at += 1;
        let mut index = 0;
        loop {
            match self.peek() {
                Some(b',') => self.at += 1,
                end @ (None | Some(b']' | b'}')) => return self.at += usize::from(end.is_some()),
                Some(_) => {
                    self.value(&format!("{pointer}/{index}"), report);
                    index += 1;
                }
            }
        }
    }

    /// Scans a string and returns its text.
    fn string(&mut self) -> String {
        let start = self.at;
        self.at += 1;
        while let Some(byte) = self.bytes.get(self.at) {
            self.at += match byte {
                b'\\' => 2,
                b'"' => break,
                _ => 1,
            };
        }
        self.at = (self.at + 1).min(self.bytes.len());
        serde_json::from_slice(&self.bytes[start..self.at]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bar marks the cut.
    #[test]
    fn values_after_the_cut() {
        let cases: &[(&str, &[&str])] = &[
            (r#"{"a": 1, "b": "x|", "c": 0}"#, &["/b", "/c"]),
            (r#"{"a": 1, "b": "x"|, "c": {"d": 0, "e": []}}"#, &["/c"]),
            (r#"{"a": {"b": 1, "c|": 0}, "d": null}"#, &["/a/c", "/d"]),
            (r#"{"list": ["one", "tw|"]}"#, &["/list", "/list/1"]),
            (r#"{"list": ["one"|]}"#, &["/list"]),
            (r#"{"list": ["one"]|}"#, &[]),
            (r#"{"a/b": 3.41|, "~": 0}"#, &["/a~1b", "/~0"]),
            (r#"{"n": 3|1}"#, &["/n"]),
            (r#"|{"a": 1}"#, &[""]),
            (r#"[1, 2|]"#, &["", "/1"]),
            (r#"{"q": "a\"|b"}"#, &["/q"]),
            (r#"{"a": 1}|"#, &[]),
        ];
        for (marked, expected) in cases {
            let cut = marked.find('|').unwrap();
            assert_eq!(closed_fields(&marked.replacen('|', "", 1), cut), *expected, "{marked}");
        }
        for broken in ["", "{", "{\"a", "{\"a\":", "[1,", "{]", "\"\\"] {
            closed_fields(broken, 0);
        }
    }
}
