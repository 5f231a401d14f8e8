//! `uniqueItems`: the items of arrays so far, followed byte by byte. llguidance does not support the keyword, because a
//! grammar has no memory of earlier items.

use std::sync::Arc;

use serde_json::Value;

use crate::json_schema::{equal, requires_unique_items};

/// The containers that are open in an answer, with the items of arrays that must be unique.
#[derive(Clone, Debug)]
pub(super) struct UniqueItems {
    schema: Arc<Value>,
    text: Vec<u8>,
    open: Vec<Container>,
    in_string: bool,
    escaped: bool,
    /// Number of items that were completed in unique arrays, and of unique arrays that were closed.
    completed: usize,
}

#[derive(Clone, Debug)]
enum Container {
    Object { key: Option<String>, string_start: usize },
    Array { index: usize, item_start: usize, unique: bool, seen: Vec<Value> },
}

impl UniqueItems {
    pub(super) fn new(schema: &Value) -> Self {
        let schema = Arc::new(schema.clone());
        Self { schema, text: Vec::new(), open: Vec::new(), in_string: false, escaped: false, completed: 0 }
    }

    /// True inside of an array whose items must be unique.
    pub(super) fn is_inside(&self) -> bool {
        self.open.iter().any(|container| matches!(container, Container::Array { unique: true, .. }))
    }

    /// Number of items completed so far; it grows when an item or an array ends without a repetition.
    pub(super) fn completed(&self) -> usize {
        self.completed
    }

    /// Adds a byte of the answer. Returns false if it completes an item that the array has already.
    pub(super) fn push(&mut self, byte: u8) -> bool {
        self.text.push(byte);
        let at = self.text.len() - 1;
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => {
                    self.in_string = false;
                    self.end_string(at);
                }
                _ => {}
            }
            return true;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if let Some(Container::Object { string_start, .. }) = self.open.last_mut() {
                    *string_start = at;
                }
                true
            }
            b'{' => {
                self.open.push(Container::Object { key: None, string_start: at });
                true
            }
            b'[' => {
                let unique = requires_unique_items(&self.schema, &self.path());
                self.open.push(Container::Array { index: 0, item_start: at + 1, unique, seen: Vec::new() });
                true
            }
            b',' => match self.open.last_mut() {
                Some(Container::Object { key, .. }) => {
                    *key = None;
                    true
                }
                _ => self.end_item(at),
            },
            b']' => {
                let distinct = self.end_item(at);
                if let Some(Container::Array { unique: true, .. }) = self.open.pop() {
                    self.completed += 1;
                }
                distinct
            }
            b'}' => {
                self.open.pop();
                true
            }
            _ => true,
        }
    }

    fn end_string(&mut self, at: usize) {
        if let Some(Container::Object { key: key @ None, string_start }) = self.open.last_mut() {
            *key = serde_json::from_slice(&self.text[*string_start..=at]).ok();
        }
    }

    /// Ends the current item of an array. Returns false if a unique array has it already.
    fn end_item(&mut self, at: usize) -> bool {
        let Some(Container::Array { index, item_start, unique, seen }) = self.open.last_mut() else {
            return true;
        };
        let item = self.text[*item_start..at].trim_ascii();
        *item_start = at + 1;
        *index += 1;
        if !*unique || item.is_empty() {
            return true;
        }
        let Ok(item) = serde_json::from_slice::<Value>(item) else { return true };
        if seen.iter().any(|one| equal(one, &item)) {
            return false;
        }
        seen.push(item);
        self.completed += 1;
        true
    }

    /// The keys and indices of the value that begins now.
    fn path(&self) -> Vec<Value> {
        let step = |container: &Container| match container {
            Container::Object { key, .. } => Value::from(key.clone().unwrap_or_default()),
            Container::Array { index, .. } => Value::from(*index),
        };
        self.open.iter().map(step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Length of the longest prefix without a repeated item.
    fn accepted(schema: &Value, text: &str) -> usize {
        let mut items = UniqueItems::new(schema);
        text.bytes().take_while(|byte| items.push(*byte)).count()
    }

    #[test]
    fn repetitions_are_noticed_where_they_end() {
        let set = json!({"type": "array", "uniqueItems": true});
        let cases = [
            (set.clone(), "[1, 2, 1|]"),
            (set.clone(), "[1, 1.0|, 3]"),
            (set.clone(), "[\"a,]\", \"b\", \"a,]\"|]"),
            (set.clone(), "[{\"a\": [1, 1]}, {\"a\": [1, 1]}|]"),
            (set.clone(), "[[], {}]|"),
            (
                json!({"properties": {"s": set.clone(), "l": {"type": "array"}}}),
                "{\"l\": [1, 1], \"s\": [1, 1|]}",
            ),
            (json!({"items": set.clone()}), "[[1], [1], [2, 2|]]"),
            (
                json!({"$defs": {"S": set.clone()}, "anyOf": [{"type": "null"}, {"$ref": "#/$defs/S"}]}),
                "[true, true|]",
            ),
            (json!({"prefixItems": [{}, set.clone()]}), "[[1, 1], [1, 1|]]"),
            (json!({"additionalProperties": set}), "{\"a\\\"b\": [null, null|]}"),
        ];
        for (schema, marked) in cases {
            let text = marked.replacen('|', "", 1);
            assert_eq!(accepted(&schema, &text), marked.find('|').unwrap(), "{schema}: {text}");
        }
    }
}
