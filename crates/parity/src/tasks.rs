//! Task scores: dialogues with known answers.
//!
//! Each dialogue is rendered with the checkpoint's chat template, the model answers greedily, and the answer is right or
//! wrong. A file has one JSON object per line: `kind`, `match` ("contains", "json", "number", "exact",
//! "exact_word"), `thinking`, `messages`, `expect`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use q35_inference::{CancelToken, Model};
use serde::Deserialize;

use crate::ParityError;
use crate::greedy::greedy_tokens;

/// A dialogue and its expected answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Task {
    /// Group in which it is counted.
    pub kind: String,
    /// Rule that decides whether an answer is right.
    #[serde(rename = "match")]
    pub rule: Rule,
    /// True if thinking is enabled.
    #[serde(default)]
    pub thinking: bool,
    /// The conversation so far.
    pub messages: serde_json::Value,
    /// Expected answer, or text that it must contain.
    pub expect: String,
}

/// Rule that decides whether an answer is right.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Contains the expected text as whole words.
    Contains,
    /// Same as `Contains`, under another name.
    ExactWord,
    /// Equals the expected JSON value.
    Json,
    /// The last integer after the last `=` is the expected one.
    Number,
    /// Equals the expected text.
    Exact,
}

impl Task {
    /// Reads a file of tasks.
    ///
    /// # Errors
    /// Number of the first line that is not a task, and the reason.
    pub fn parse_lines(text: &str) -> Result<Vec<Self>, String> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines
            .map(|(index, line)| {
                serde_json::from_str(line).map_err(|error| format!("line {}: {error}", index + 1))
            })
            .collect()
    }

    /// True if `reply`, reasoning included, is right.
    pub fn passes(&self, reply: &str) -> bool {
        let answer = reply.rsplit("</think>").next().unwrap_or(reply).trim();
        match self.rule {
            Rule::Contains | Rule::ExactWord => contains_words(answer, &self.expect),
            Rule::Exact => answer == self.expect,
            Rule::Json => {
                let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
                parse(answer).is_some_and(|found| Some(found) == parse(&self.expect))
            }
            Rule::Number => {
                let tail = answer.rsplit('=').next().unwrap_or(answer);
                last_number(tail).is_some_and(|found| found == self.expect)
            }
        }
    }
}

/// True if `text` contains `words` with no letter, digit or underscore directly before or after.
fn contains_words(text: &str, words: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(words).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(word)
            && !text[at + words.len()..].chars().next().is_some_and(word)
    })
}

/// The last run of digits, with a minus sign directly before it.
fn last_number(text: &str) -> Option<&str> {
    let end = text.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = text[..end]
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(0, |at| at + text[at..].chars().next().map_or(1, char::len_utf8));
    let sign = text[..start].ends_with('-');
    Some(&text[start - usize::from(sign)..end])
}

/// The greedy reply to a prompt: at most `max_tokens` tokens, ending before any of `eos_ids`.
///
/// # Errors
/// The model fails, or `cancel` was used.
pub fn greedy_reply(
    model: &dyn Model,
    prompt: &[u32],
    max_tokens: usize,
    eos_ids: &[u32],
    cancel: &CancelToken,
) -> Result<Vec<u32>, ParityError> {
    greedy_tokens(model, "task", prompt, max_tokens, eos_ids, cancel, &mut || {})
}

/// [`greedy_reply`] to each of `prompts`, in their order, `workers` of them concurrently; `done` is called after each.
/// Dialogues are short: running whole dialogues in parallel scales better than parallel matrix products.
///
/// # Errors
/// The first error of any of them.
pub fn greedy_replies(
    model: &dyn Model,
    prompts: &[Vec<u32>],
    max_tokens: usize,
    eos_ids: &[u32],
    workers: usize,
    cancel: &CancelToken,
    done: &dyn Fn(),
) -> Result<Vec<Vec<u32>>, ParityError> {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..workers.clamp(1, prompts.len().max(1)) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(prompt) = prompts.get(index) else { break };
                    let reply = greedy_reply(model, prompt, max_tokens, eos_ids, cancel);
                    // The receiver is dropped after the first error.
                    if sender.send((index, reply)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut replies = vec![Vec::new(); prompts.len()];
        for (index, reply) in receiver {
            replies[index] = reply?;
            done();
        }
        Ok(replies)
    })
}

/// Score of the tasks of one kind and thinking mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindScore {
    /// The kind.
    pub kind: String,
    /// True if thinking was enabled.
    pub thinking: bool,
    /// Right answers.
    pub right: usize,
    /// Number of tasks.
    pub of: usize,
}

/// Scores by kind and thinking mode, in the order of first appearance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskScores {
    /// One entry per kind and thinking mode.
    pub kinds: Vec<KindScore>,
}

impl TaskScores {
    /// Counts one answer.
    pub fn push(&mut self, task: &Task, right: bool) {
        let existing = self.kinds.iter().position(|s| s.kind == task.kind && s.thinking == task.thinking);
        let index = existing.unwrap_or_else(|| {
            let (kind, thinking) = (task.kind.clone(), task.thinking);
            self.kinds.push(KindScore { kind, thinking, right: 0, of: 0 });
            self.kinds.len() - 1
        });
        self.kinds[index].right += usize::from(right);
        self.kinds[index].of += 1;
    }

    /// Score over all kinds; with `thinking`, over those of that mode.
    pub fn total(&self, thinking: Option<bool>) -> KindScore {
        let counted = self.kinds.iter().filter(|score| thinking.is_none_or(|mode| score.thinking == mode));
        let (right, of) = counted.fold((0, 0), |(right, of), score| (right + score.right, of + score.of));
        KindScore { kind: "all".into(), thinking: thinking.unwrap_or(false), right, of }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(rule: Rule, expect: &str) -> Task {
        let messages = serde_json::Value::Null;
        Task { kind: "k".into(), rule, thinking: false, messages, expect: expect.into() }
    }

    #[test]
    fn answers_are_judged_as_the_data_means_them() {
        let cases = [
            (Rule::Contains, "Alex", "Your name is Alex!", true),
            (Rule::Contains, "Alex", "Your name is Alexander!", false),
            (Rule::Contains, "Alex", "<think>Alex</think>I do not know.", false),
            (Rule::ExactWord, "star", "star", true),
            (Rule::ExactWord, "star", "stars", false),
            (Rule::Json, r#"{"a": 1, "b": [2]}"#, r#" {"b":[2],"a":1} "#, true),
            (Rule::Json, r#"{"a": 1}"#, r#"{"a": 1} and more"#, false),
            (Rule::Number, "35", "15 + 20 = 35", true),
            (Rule::Number, "35", "35 = 15 + 20", false),
            (Rule::Number, "-7", "The result is -7.", true),
            (Rule::Number, "7", "The result is -7.", false),
            (Rule::Number, "7", "no number", false),
            (Rule::Number, "12", "十 12", true),
            (Rule::Exact, "yes", " yes\n", true),
            (Rule::Exact, "yes", "yes!", false),
        ];
        for (rule, expect, reply, right) in cases {
            assert_eq!(task(rule, expect).passes(reply), right, "{rule:?} {expect} {reply}");
        }
    }

    #[test]
    fn lines_are_read_and_bad_ones_named() {
        let line = r#"{"kind": "sum", "match": "number", "messages": [], "expect": "3", "reply": "3"}"#;
        assert_eq!(Task::parse_lines(&format!("{line}\n\n{line}\n")).unwrap().len(), 2);
        let error = Task::parse_lines(&format!("{line}\n{{}}\n")).unwrap_err();
        assert!(error.starts_with("line 2: missing field `kind`"), "{error}");
    }

    #[test]
    fn scores_keep_the_order_of_kinds_and_tell_modes_apart() {
        let task = |kind: &str, thinking| Task { kind: kind.into(), thinking, ..task(Rule::Exact, "") };
        let mut scores = TaskScores::default();
        for (kind, thinking, right) in
            [("b", false, true), ("a", false, false), ("b", true, false), ("b", false, false)]
        {
            scores.push(&task(kind, thinking), right);
        }
        let found: Vec<_> =
            scores.kinds.iter().map(|s| (s.kind.as_str(), s.thinking, s.right, s.of)).collect();
        assert_eq!(found, [("b", false, 1, 2), ("a", false, 0, 1), ("b", true, 0, 1)]);
        let counts = |mode| (scores.total(mode).right, scores.total(mode).of);
        assert_eq!([None, Some(false), Some(true)].map(counts), [(1, 4), (1, 3), (0, 1)]);
    }
}
