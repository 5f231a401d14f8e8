//! Text on its way in and out of a model: tokenizer, chat template, whole-character streams, sentences.
