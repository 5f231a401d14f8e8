//! Chat over the converted models: sessions, sampling, prompt cache, streaming.
