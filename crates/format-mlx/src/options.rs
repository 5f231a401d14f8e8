//! Settings of a conversion to MLX.

/// Directory form: the layout of config.json and of tensor names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Form {
    /// mlx-lm and everything that reads its files
    #[default]
    MlxLm,
    /// The Swift package speech-swift (Qwen3Chat): a flat config.json and bare tensor names
    SpeechSwift,
}

impl Form {
    /// Name on the command line and in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::MlxLm => "mlx-lm",
            Self::SpeechSwift => "speech-swift",
        }
    }
}

/// Settings of [`crate::Plan`].
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Directory form.
    pub form: Form,
    /// Largest weight file in bytes; a larger model is split into shards.
    pub shard_bytes: u64,
}

impl Default for WriteOptions {
    /// mlx-lm's form and its limit of 5 GiB per file.
    fn default() -> Self {
        Self { form: Form::MlxLm, shard_bytes: 5 << 30 }
    }
}
