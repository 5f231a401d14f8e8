//! Rendering of conversations to token ids, and the prompt lengths that stay the same as a conversation grows.
//!
//! A template may rewrite history: the think block at the end of a prompt is gone when the next turn is rendered. The
//! stable part is found by asking the template: the conversation is rendered again with made-up continuations, and the
//! ids that all renderings share are stable. If a real continuation shares less, a snapshot taken there is not found;
//! a wrong state is never used.

use q35_text::RenderInput;
use serde_json::{Value, json};

use crate::generate::ChannelSplitter;
use crate::language::Language;
use crate::message::{Message, Role};
use crate::tools::Tool;
use crate::{ChatError, WindowPolicy};

/// Renders the conversations of one session.
pub(super) struct PromptPlanner<'a> {
    pub(super) language: &'a Language,
    pub(super) tools: &'a [Tool],
    /// The template's variable `enable_thinking`.
    pub(super) thinking: Option<bool>,
}

/// A prompt that fits the context window.
pub(super) struct FittedPrompt {
    pub(super) ids: Vec<u32>,
    pub(super) splitter: ChannelSplitter,
    /// Number of messages dropped after the system prompt.
    pub(super) dropped: usize,
}

impl PromptPlanner<'_> {
    /// The prompt for a reply to `messages`, shortened if the window requires it and the policy allows it.
    pub(super) fn fit(
        &self,
        messages: &[Message],
        max_context: usize,
        max_tokens: usize,
        policy: WindowPolicy,
    ) -> Result<FittedPrompt, ChatError> {
        let mut dropped = 0;
        loop {
            let remaining = self.without_dropped(messages, dropped);
            let (text, ids) =
                self.language.encode(&self.input(&to_json(&remaining), &self.tools_json(), true))?;
            // A dropped turn should make room for a whole reply, not only for its first token.
            let room = match policy {
                WindowPolicy::Refuse => 1,
                WindowPolicy::DropOldest => max_tokens.min(max_context / 4).max(1),
            };
            if ids.len() + room <= max_context {
                return Ok(FittedPrompt { ids, splitter: ChannelSplitter::after_prompt(&text), dropped });
            }
            match (policy, oldest_turn(&remaining)) {
                (WindowPolicy::DropOldest, Some(length)) => dropped += length,
                (WindowPolicy::DropOldest, None) if ids.len() < max_context => {
                    return Ok(FittedPrompt { ids, splitter: ChannelSplitter::after_prompt(&text), dropped });
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

    /// Number of the prompt's leading ids that stay when the conversation continues.
    pub(super) fn stable_length(&self, messages: &[Message], ids: &[u32]) -> Option<usize> {
        let reasoned = json!({"role": "assistant", "content": "42", "reasoning_content": "hm"});
        let continuations = [
            vec![json!({"role": "assistant", "content": "Yes"}), json!({"role": "user", "content": "Why"})],
            vec![reasoned, json!({"role": "user", "content": "1"})],
        ];
        self.shared_length(messages, ids, &continuations)
    }

    /// Number of the prompt's leading ids that all conversations with the same system prompt and tools share.
    pub(super) fn system_length(&self, messages: &[Message], ids: &[u32]) -> Option<usize> {
        let system = messages.first().filter(|first| first.role == Role::System);
        if system.is_none() && self.tools.is_empty() {
            return None;
        }
        let start: Vec<Message> = system.cloned().into_iter().collect();
        let continuations =
            [vec![json!({"role": "user", "content": "Why"})], vec![json!({"role": "user", "content": "1"})]];
        self.shared_length(&start, ids, &continuations)
    }

    /// The leading ids of the next turn's prompt, independent of its message.
    pub(super) fn next_turn_prefix(&self, messages: &[Message]) -> Result<Option<Vec<u32>>, ChatError> {
        let mut first: Vec<Value> = to_json(messages);
        first.push(json!({"role": "user", "content": "Why"}));
        let (_, mut ids) = self.language.encode(&self.input(&first, &self.tools_json(), true))?;
        let shared = self.shared_length(messages, &ids, &[vec![json!({"role": "user", "content": "1"})]]);
        Ok(shared.map(|length| {
            ids.truncate(length);
            ids
        }))
    }

    /// Length of the prefix of `ids` that the renderings with all continuations share; `None` if the template refuses
    /// one of them, or the length is 0.
    fn shared_length(
        &self,
        messages: &[Message],
        ids: &[u32],
        continuations: &[Vec<Value>],
    ) -> Option<usize> {
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

/// Number of messages of the oldest turn that may be dropped: up to the second user message. `None` if there is only
/// one turn.
fn oldest_turn(messages: &[Message]) -> Option<usize> {
    let system = usize::from(messages.first().is_some_and(|first| first.role == Role::System));
    let users = messages.iter().enumerate().skip(system).filter(|(_, message)| message.role == Role::User);
    users.map(|(index, _)| index - system).find(|index| *index > 0)
}
