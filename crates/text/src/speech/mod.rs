//! A growing text, cut into pieces that a voice can speak.

mod clean;
mod sentences;

pub use clean::speakable;
pub use sentences::Sentences;
