//! Chat over the converted models.
//!
//! [`Chat`] is a loaded model, [`Session`] a conversation with it, [`ReplyStream`] a reply while it comes. Any backend
//! that implements [`q35_inference::Model`] can be chatted with.
//!
//! The crate knows how to talk; it does not know how weights are converted, and it prints nothing.
//!
//! ```
//! use q35_runtime::{Chat, Sampling};
//!
//! # let files = q35_backend_tests::nano_mlx();
//! # let model = files.path_str();
//! let chat = Chat::from_pretrained(model)?;
//! let mut session = chat.session().with_system("You are a helpful assistant.");
//! session.ask("My name is Ada.", &Sampling::greedy().with_thinking(false))?;
//! let reply = session.ask("What is my name?", &Sampling::greedy().with_thinking(false))?;
//! assert!(reply.text.contains("Ada"));
//! # Ok::<(), q35_runtime::ChatError>(())
//! ```
#![deny(missing_docs)]
#![deny(unsafe_code)]

mod allocator;
#[cfg(feature = "async")]
mod asynchronous;
mod chat;
mod engine;
mod error;
mod generate;
mod generation_config;
mod grammar;
mod json_schema;
mod language;
mod memory;
mod message;
mod open;
mod options;
mod prompt_cache;
mod sampler;
mod sampling;
mod session;
mod session_state;
mod snapshot_file;
mod tool_call_grammar;
mod tools;
mod voice;

#[cfg(test)]
mod fake;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "async")]
pub use asynchronous::AsyncReply;
pub use chat::Chat;
pub use error::ChatError;
pub use generate::{Chunk, Finish, FinishReason, Reply, Timing, TokenDetail, Usage};
pub use memory::MemoryFootprint;
pub use message::{Message, MessageError, Role};
pub use open::{MemoryEstimate, OpenError, OpenEvent};
pub use options::{LoadOptions, WindowPolicy};
pub use q35_artefact::{ArtefactDir, ArtefactError, ArtefactKind, QuantizeEvent, QuantizeOptions};
pub use q35_backend::{Backend, ComputeUnits, Device, Precision, RunOptions};
pub use q35_hub::HubOptions;
pub use q35_inference::CancelToken;
pub use sampling::{Format, LoopGuard, Sampling, Thinking};
pub use session::{CutReply, ReplyStream, Session};
pub use tools::{BrokenToolCalls, Tool, ToolCall, ToolCallError};
pub use voice::{
    SentenceStream, Sentences, SpeakError, Speaker, Speech, Spoken, Utterance, speak, speakable,
};
