//! `--render`: one rendering of a chat template, byte for byte.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context as _, bail};
use q35_text::{BUILT_IN_TEMPLATE, ChatTemplate, RenderInput, SpecialTokens, TemplateError, Tokenizer};
use serde_json::Value;

use super::args::Chat;
use crate::exit::Outcome;
use crate::output::note;
use crate::source;

/// Keys of a case that are not variables of the template.
const RESERVED_KEYS: [&str; 7] =
    ["name", "messages", "tools", "add_generation_prompt", "enable_thinking", "expect", "error"];

pub(super) fn run(args: &Chat, case: &Path) -> anyhow::Result<Outcome> {
    let mut text = String::new();
    if case == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
    } else {
        text = std::fs::read_to_string(case).with_context(|| format!("cannot read {}", case.display()))?;
    }
    let case: Value = serde_json::from_str(&text).context("the case is not one JSON object")?;
    let Some(messages) = case.get("messages").and_then(Value::as_array) else {
        bail!("the case has no list of `messages`");
    };
    let flag = |name: &str| match case.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(anyhow::anyhow!("`{name}` is {other}, not true or false")),
    };
    let mut input = RenderInput::new(messages)
        .with_tools(case.get("tools").filter(|tools| !tools.is_null()))
        .with_thinking(flag("enable_thinking")?)
        .with_generation_prompt(flag("add_generation_prompt")?.unwrap_or(true));
    let fields = case.as_object().into_iter().flatten();
    let others = fields.filter(|(name, _)| !RESERVED_KEYS.contains(&name.as_str()));
    input.extra = others.map(|(name, value)| (name.clone(), value.clone())).collect();
    match template(args)?.render(&input) {
        Ok(rendering) => {
            let mut out = std::io::stdout().lock();
            out.write_all(rendering.as_bytes())?;
            out.flush()?;
            Ok(Outcome::Done)
        }
        Err(error @ (TemplateError::Refused { .. } | TemplateError::Failed { .. })) => {
            note(error.to_string());
            Ok(Outcome::No)
        }
        Err(error) => Err(error.into()),
    }
}

/// The template of --chat-template, or else of the model, or else the built-in one, with the model's special tokens.
fn template(args: &Chat) -> anyhow::Result<ChatTemplate> {
    let watcher = crate::progress::Watcher::Quiet;
    let model = match &args.model {
        Some(model) => {
            Some(source::resolve(model, args.load.revision.as_deref(), args.load.variant.name(), watcher)?)
        }
        None => None,
    };
    let tokens = match &model {
        Some(model) if model.dir.join("tokenizer.json").is_file() => {
            Tokenizer::from_dir(&model.dir)?.special_tokens().clone()
        }
        _ => SpecialTokens::new(),
    };
    Ok(match (&args.load.chat_template, &model) {
        (Some(path), _) => {
            let source =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            ChatTemplate::new(&source)?.with_special_tokens(&tokens)
        }
        (None, Some(model)) => ChatTemplate::from_dir(&model.dir, &tokens)?,
        (None, None) => ChatTemplate::new(BUILT_IN_TEMPLATE)?,
    })
}
