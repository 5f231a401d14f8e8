//! Text processing around a model: tokenizer, chat template, incremental decoding.
//!
//! - [`Tokenizer`]: a checkpoint's `tokenizer.json`, text to ids and ids to bytes.
//! - [`ChatTemplate`]: a checkpoint's own Jinja template, rendered byte for byte as transformers renders it.
//! - [`Detokenizer`]: ids to whole characters, token by token.
//!
//! The crate must not know models or sampling: ids are plain numbers here.
//!
//! ```
//! use q35_text::{ChatTemplate, RenderInput};
//! let template = ChatTemplate::new("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")?;
//! let messages = [serde_json::json!({"role": "user", "content": "Hi"})];
//! assert_eq!(template.render(&RenderInput::new(&messages))?, "<user>Hi");
//! # Ok::<(), q35_text::TemplateError>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod byte_level;
mod detokenizer;
mod template;
mod tokenizer;
mod tokenizer_file;

pub use detokenizer::Detokenizer;
pub use template::{BUILT_IN_TEMPLATE, ChatTemplate, Clock, RenderInput, TemplateError};
pub use tokenizer::{SpecialTokens, Tokenizer, TokenizerError};
