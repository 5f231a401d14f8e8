//! What can go wrong between a directory and a reply.

use q35_inference::RunError;
use q35_text::{TemplateError, TokenizerError};

use crate::open::OpenError;
use crate::tools::ToolCallError;

/// Why there is no reply, or no more of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The model could not be opened.
    #[error(transparent)]
    Open(Box<OpenError>),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template refused the conversation or failed on it.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The model failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// An option has a value that makes no sense.
    #[error("option `{option}`\n  expected: {expected}\n  found:    {found}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What would be accepted.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// The conversation does not fit the context window.
    #[error(
        "the conversation does not fit: {needed} tokens with room for {max_context}\n\
         hint: raise max_context, shorten the conversation, or let the oldest turns be dropped"
    )]
    ContextFull {
        /// Tokens of the prompt, and one for the reply.
        needed: usize,
        /// The window.
        max_context: usize,
    },
    /// The weights were unloaded and may not be loaded again by themselves.
    #[error("the model is not loaded\nhint: call load(), or allow automatic reloading")]
    NotLoaded,
    /// Replies are being generated, so the model cannot be unloaded.
    #[error("{replies} replies are being generated\nhint: cancel them first")]
    Busy {
        /// How many.
        replies: usize,
    },
    /// The JSON schema or grammar cannot be enforced.
    #[error("the reply's form cannot be enforced: {message}")]
    Grammar {
        /// The grammar library's words.
        message: String,
    },
    /// The reply holds a tool call that is not in the agreed form.
    #[error(transparent)]
    ToolCall(#[from] ToolCallError),
    /// A message was addressed that the conversation does not have.
    #[error("the conversation has {messages} messages, number {index} was addressed")]
    NoSuchMessage {
        /// The index asked for, from 0.
        index: usize,
        /// How many there are.
        messages: usize,
    },
    /// A saved prompt snapshot cannot be used.
    #[error("the prompt snapshot `{}` cannot be used\n  expected: {expected}\n  found:    {found}", path.display())]
    SnapshotFile {
        /// The file.
        path: std::path::PathBuf,
        /// What this model needs.
        expected: String,
        /// What the file holds.
        found: String,
    },
    /// A file could not be read or written.
    #[error("`{}`", path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl From<OpenError> for ChatError {
    fn from(error: OpenError) -> Self {
        Self::Open(Box::new(error))
    }
}
