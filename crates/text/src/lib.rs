//! Text on its way in and out of a model.
//!
//! - [`Tokenizer`]: a checkpoint's `tokenizer.json`, text to ids and ids to bytes.
//! - [`ChatTemplate`]: a checkpoint's own Jinja template, rendered byte for byte as transformers renders it.
//! - [`Detokenizer`]: ids in, whole characters out.
//!
//! It knows neither models nor sampling: ids are numbers, and what produces them is somebody else's concern.
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
