//! One reply, from prompt to finish.
//!
//! [`Run`] is the loop. Its parts: [`chooser`] picks a token, [`output`] turns tokens into text and sorts it into
//! reasoning and answer ([`channels`], [`stop_text`]), [`thinking`] limits the reasoning, [`repetition`] notices loops.

mod channels;
mod chooser;
mod chunk;
mod output;
mod repetition;
mod run;
mod stop_text;
mod thinking;

pub(crate) use channels::{CLOSE, ChannelSplitter, OPEN};
pub use chunk::{Chunk, Finish, FinishReason, Reply, Timing, TokenDetail, Usage};
pub(crate) use run::{Context, Prompt, Run};
