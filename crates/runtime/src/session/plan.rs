//! From messages to ids, and to the lengths at which a prompt will stay the same.
//!
//! A template may rewrite history: the think block that the prompt ended with is gone when the next turn is rendered.
//! What stays is found by asking the template: the conversation is rendered again with made-up continuations, and the
//! ids that all renderings share are stable. Should a real continuation share less, a snapshot taken there is simply
//! not found; a wrong state is never used.

use q35_text::RenderInput;
use serde_json::{Value, json};

use crate::generate::Splitter;
use crate::language::Language;
use crate::message::{Message, Role};
use crate::tools::Tool;
use crate::{ChatError, WindowPolicy};

/// Renders one session's conversations.
pub(super) struct Planner<'a> {
    pub(super) language: &'a Language,
    pub(super) tools: &'a [Tool],
    /// `enable_thinking` for the template.
    pub(super) thinking: Option<bool>,
}

/// A prompt that fits.
pub(super) struct Turn {
    pub(super) ids: Vec<u32>,
    pub(super) splitter: Splitter,
    /// Messages left out after the system prompt.
    pub(super) dropped: usize,
}

impl Planner<'_> {
    /// The prompt for a reply to `messages`, shortened if the policy allows and the window demands.
    pub(super) fn fit(
        &self,
        messages: &[Message],
        max_context: usize,
        max_tokens: usize,
        policy: WindowPolicy,
    ) -> Result<Turn, ChatError> {
        let mut dropped = 0;
        loop {
            let kept = self.without_dropped(messages, dropped);
            let (text, ids) = self.language.encode(&self.input(&to_json(&kept), &self.tools_json(), true))?;
            // A dropped turn should make room for a reply, not for its first word only.
            let room = match policy {
                WindowPolicy::Refuse => 1,
                WindowPolicy::DropOldest => max_tokens.min(max_context / 4).max(1),
            };
            if ids.len() + room <= max_context {
                return Ok(Turn { ids, splitter: Splitter::after_prompt(&text), dropped });
            }
            match (policy, oldest_turn(&kept)) {
                (WindowPolicy::DropOldest, Some(length)) => dropped += length,
                (WindowPolicy::DropOldest, None) if ids.len() < max_context => {
                    return Ok(Turn { ids, splitter: Splitter::after_prompt(&text), dropped });
                }
                _ => return Err(ChatError::ContextFull { needed: ids.len() + 1, max_context }),
            }
        }
    }

    /// The conversation without `dropped` messages after the system prompt.
    pub(super) fn without_dropped(&self, messages: &[Message], dropped: usize) -> Vec<Message> {
        let system = usize::from(messages.first().is_some_and(|first| first.role == Role::System));
        messages[..system].iter().chain(&messages[system + dropped..]).cloned().collect()
    }

    /// How many of the prompt's ids stay when the conversation goes on.
    pub(super) fn stable_length(&self, messages: &[Message], ids: &[u32]) -> Option<usize> {
        let reasoned = json!({"role": "assistant", "content": "42", "reasoning_content": "hm"});
        let continuations = [
            vec![json!({"role": "assistant", "content": "Yes"}), json!({"role": "user", "content": "Why"})],
            vec![reasoned, json!({"role": "user", "content": "1"})],
        ];
        self.shared(messages, ids, &continuations)
    }

    /// How many of the prompt's ids any conversation with the same beginning (system prompt and tools) would share.
    pub(super) fn system_length(&self, messages: &[Message], ids: &[u32]) -> Option<usize> {
        let system = messages.first().filter(|first| first.role == Role::System);
        if system.is_none() && self.tools.is_empty() {
            return None;
        }
        let start: Vec<Message> = system.cloned().into_iter().collect();
        let continuations =
            [vec![json!({"role": "user", "content": "Why"})], vec![json!({"role": "user", "content": "1"})]];
        self.shared(&start, ids, &continuations)
    }

    /// The ids that the next turn will begin with, whatever is said.
    pub(super) fn next_turn_prefix(&self, messages: &[Message]) -> Result<Option<Vec<u32>>, ChatError> {
        let mut first: Vec<Value> = to_json(messages);
        first.push(json!({"role": "user", "content": "Why"}));
        let (_, mut ids) = self.language.encode(&self.input(&first, &self.tools_json(), true))?;
        let shared = self.shared(messages, &ids, &[vec![json!({"role": "user", "content": "1"})]]);
        Ok(shared.map(|length| {
            ids.truncate(length);
            ids
        }))
    }

    /// Length of the prefix of `ids` that the renderings with each continuation share; `None` if the template refuses
    /// one of them, or nothing is shared.
    fn shared(&self, messages: &[Message], ids: &[u32], continuations: &[Vec<Value>]) -> Option<usize> {
        let tools = self.tools_json();
        let mut shared = ids.len();
        for continuation in continuations {
            let mut longer = to_json(messages);
            longer.extend(continuation.iter().cloned());
            let (_, other) = self.language.encode(&self.input(&longer, &tools, true)).ok()?;
            shared = ids[..shared].iter().zip(&other).take_while(|(a, b)| a == b).count();
        }
        (shared > 0).then_some(shared)
    }

    fn tools_json(&self) -> Option<Value> {
        (!self.tools.is_empty()).then(|| self.tools.iter().map(Tool::to_json).collect())
    }

    fn input<'b>(&self, messages: &'b [Value], tools: &'b Option<Value>, prompt: bool) -> RenderInput<'b> {
        RenderInput::new(messages)
            .with_tools(tools.as_ref())
            .with_thinking(self.thinking)
            .with_generation_prompt(prompt)
    }
}

fn to_json(messages: &[Message]) -> Vec<Value> {
    messages.iter().map(Message::to_json).collect()
}

/// Messages of the oldest turn that may be dropped: up to the second user message. `None` if there is only one turn.
fn oldest_turn(messages: &[Message]) -> Option<usize> {
    let system = usize::from(messages.first().is_some_and(|first| first.role == Role::System));
    let users = messages.iter().enumerate().skip(system).filter(|(_, message)| message.role == Role::User);
    users.map(|(index, _)| index - system).find(|index| *index > 0)
}
