//! How far two next-token distributions are apart: KL divergence, top-k agreement, cosine, perplexity.
//!
//! Pure functions over rows of logits and streaming summaries of them. Knows nothing of models, files or tokens.
