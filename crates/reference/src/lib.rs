//! The float reference: Qwen3.5's text model in f32 on candle.
