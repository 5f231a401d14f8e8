//! Errors of reading a configuration.

/// A `config.json` that does not describe a supported model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A field is absent, or null.
    #[error("config.json has no `{field}`")]
    Missing {
        /// The field's name.
        field: &'static str,
    },
    /// A field has a value that cannot be used.
    #[error("config.json: `{field}`\n  expected: {expected}\n  found:    {found}")]
    Invalid {
        /// The field's name.
        field: &'static str,
        /// Accepted values.
        expected: String,
        /// Value found, as JSON.
        found: String,
    },
    /// A key selects arithmetic that is not implemented.
    #[error(
        "config.json: `{key}` is not supported\n  expected: {expected}\n  found:    {found}\nhint: {hint}"
    )]
    Unsupported {
        /// The key, with the object that holds it.
        key: String,
        /// Supported values.
        expected: String,
        /// Value found, as JSON.
        found: String,
        /// The remedy.
        hint: &'static str,
    },
    /// Another architecture.
    #[error(
        "unsupported architecture `{found}`\n  expected: model_type `qwen3_5` (nested text_config) or `qwen3_5_text`\n\
         hint: only dense Qwen3.5 text models can be converted"
    )]
    Architecture {
        /// `model_type` as found.
        found: String,
    },
}
