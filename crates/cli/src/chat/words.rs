//! Errors in the words of the command line: flags in place of the library's option names.

use q35_runtime::ChatError;

/// Rewrites an error that names an option of the library. Below a context, such as a line of a script, the name is that of
/// a field and stays.
pub(super) fn in_flags(error: anyhow::Error) -> anyhow::Error {
    let text = error.chain().next().and_then(|first| first.downcast_ref::<ChatError>()).and_then(flag_text);
    text.map_or(error, anyhow::Error::msg)
}

/// The text of an error that names an option of the library, with its flag; `None` for other errors.
pub(super) fn flag_text(error: &ChatError) -> Option<String> {
    match error {
        ChatError::Option { option, expected, found } => {
            let flag = option.replace(['_', ' '], "-");
            Some(format!("--{flag}\n  expected: {expected}\n  found:    {found}"))
        }
        ChatError::ContextFull { needed, max_context } => Some(format!(
            "the conversation does not fit: {needed} tokens with room for {max_context}\n\
             hint: raise --max-context, shorten the conversation, or let --drop-oldest make room"
        )),
        ChatError::Open(error) => {
            let text = error.to_string();
            let library = "a smaller max_context or prompt cache";
            text.contains(library)
                .then(|| text.replace(library, "a smaller --max-context, --no-prompt-cache"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags() {
        let error = ChatError::Option { option: "top_p", expected: "a number", found: "0".into() };
        assert_eq!(in_flags(error.into()).to_string(), "--top-p\n  expected: a number\n  found:    0");
        let error = ChatError::ContextFull { needed: 12, max_context: 8 };
        let text = in_flags(error.into()).to_string();
        assert!(text.contains("--max-context") && !text.contains("max_context"), "{text}");
        assert_eq!(in_flags(ChatError::NotLoaded.into()).to_string(), ChatError::NotLoaded.to_string());
    }
}
