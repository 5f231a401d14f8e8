//! Errors of opening a model and generating replies.

use q35_inference::RunError;
use q35_text::{TemplateError, TokenizerError};

use crate::message::MessageError;
use crate::open::OpenError;
use crate::tools::ToolCallError;

/// An error of opening a model or generating a reply.
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
    /// An option has an invalid value.
    #[error("option `{option}`\n  expected: {expected}\n  found:    {found}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// The values that are accepted.
        expected: &'static str,
        /// The given value.
        found: String,
    },
    /// The conversation does not fit the context window.
    #[error(
        "the conversation does not fit: {needed} tokens with room for {max_context}\n\
         hint: raise max_context, shorten the conversation, or let the oldest turns be dropped"
    )]
    ContextFull {
        /// Number of tokens of the prompt, and one for the reply.
        needed: usize,
        /// Size of the context window in tokens.
        max_context: usize,
    },
    /// The weights were unloaded and automatic reloading is off.
    #[error("the model is not loaded\nhint: call load(), or allow automatic reloading")]
    NotLoaded,
    /// Replies are being generated, so the model cannot be unloaded.
    #[error("{replies} replies are being generated\nhint: cancel them first")]
    Busy {
        /// Number of replies.
        replies: usize,
    },
    /// The JSON schema or grammar cannot be enforced.
    #[error("the reply's form cannot be enforced: {message}")]
    Grammar {
        /// The grammar library's message.
        message: String,
    },
    /// The reply holds an invalid tool call.
    #[error(transparent)]
    ToolCall(#[from] ToolCallError),
    /// A message cannot be read.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A system prompt is not the first message.
    #[error(
        "message {index} is a system prompt\n  expected: a system prompt as the first message only\n\
         hint: replace the first message instead"
    )]
    SystemMessage {
        /// Its index, from 0.
        index: usize,
    },
    /// The conversation has no message with this index.
    #[error("the conversation has {messages} messages, none with index {index}")]
    NoSuchMessage {
        /// The given index, from 0.
        index: usize,
        /// Number of messages.
        messages: usize,
    },
    /// A saved prompt snapshot cannot be used.
    #[error("the prompt snapshot `{}` cannot be used\n  expected: {expected}\n  found:    {found}", path.display())]
    SnapshotFile {
        /// The file.
        path: std::path::PathBuf,
        /// The value that this model needs.
        expected: String,
        /// The value in the file.
        found: String,
    },
    /// A directory's generation_config.json cannot be used.
    #[error("`{}` cannot be used: {message}\nhint: correct the file, or remove it", path.display())]
    GenerationConfig {
        /// The file.
        path: std::path::PathBuf,
        /// The defect.
        message: String,
    },
    /// Sampling settings of the checkpoint were requested, and it has none.
    #[error("the model has no generation_config.json, so there are no sampling settings of the checkpoint")]
    NoCheckpointSampling,
    /// A file could not be read or written.
    #[error("`{}`", path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
}

impl From<OpenError> for ChatError {
    fn from(error: OpenError) -> Self {
        Self::Open(Box::new(error))
    }
}
