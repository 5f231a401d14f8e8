//! One reply, from prompt to finish.

mod channels;
mod chunk;
mod loops;
mod run;
mod stop;

pub(crate) use channels::Splitter;
pub(crate) use channels::{CALL, CLOSE, OPEN, held_back};
pub use chunk::{Chunk, Finish, FinishReason, Reply, Timing, TokenDetail, Usage};
pub(crate) use run::{Context, Live, Prompt, Run};
