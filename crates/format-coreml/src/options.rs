//! Settings of a conversion to Core ML.

use q35_architecture::TextConfig;
use q35_format_mil::DType;
use serde_json::{Map, Value, json};

/// The settings of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Division of the model into packages.
    pub layout: Layout,
    /// Form of the caches between calls.
    pub cache: Cache,
    /// Encoding of INT8 weights.
    pub encoding: Encoding,
    /// Place of the embedding look-up.
    pub embedding: Embedding,
    /// Number of parts of the language-model head; [`None`] is the fewest within the published limits of the Neural
    /// Engine.
    pub head_splits: Option<usize>,
    /// Type of activations.
    pub compute: Compute,
    /// Capacity of the key/value caches in tokens.
    pub context: usize,
    /// Tokens per call of `prefill`.
    pub prefill_chunk: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            layout: Layout::Multifunction,
            cache: Cache::State,
            encoding: Encoding::Channel,
            embedding: Embedding::Model,
            head_splits: None,
            compute: Compute::F16,
            context: 2048,
            prefill_chunk: 64,
        }
    }
}

/// Division of the model into packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Layout {
    /// model.mlpackage with the functions prefill and decode over one weight file
    Multifunction,
    /// prefill.mlpackage and decode.mlpackage, each complete
    Split,
    /// embedding.mlpackage and decoder.mlpackage, the packages that speech-swift loads
    #[cfg_attr(feature = "clap", value(skip))]
    SpeechSwift,
}

impl Layout {
    /// Every layout.
    pub const ALL: &'static [Self] = &[Self::Multifunction, Self::Split, Self::SpeechSwift];

    /// Name on the command line and in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Multifunction => "multifunction",
            Self::Split => "split",
            Self::SpeechSwift => "speech-swift",
        }
    }

    /// File names of the packages.
    pub fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Multifunction => &["model.mlpackage"],
            Self::Split => &["prefill.mlpackage", "decode.mlpackage"],
            Self::SpeechSwift => &["embedding.mlpackage", "decoder.mlpackage"],
        }
    }
}

/// Form of the caches between calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Cache {
    /// Keys and values in one state, the linear layers' states packed as inputs and outputs
    State,
    /// Every cache an input and an output, layer by layer
    Io,
}

impl Cache {
    /// Every form.
    pub const ALL: &'static [Self] = &[Self::State, Self::Io];

    /// Name on the command line and in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Io => "io",
        }
    }
}

/// Encoding of INT8 weights. All encodings but [`Self::Block32`] store the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Encoding {
    /// One scale per output channel (constexpr_blockwise_shift_scale)
    Channel,
    /// One scale per 32 weights of a row (constexpr_blockwise_shift_scale)
    Block32,
    /// A look-up table, then one scale per output channel (constexpr_lut_to_dense)
    Lut,
    /// Unsigned with a zero point, the operator of iOS 16 (constexpr_affine_dequantize)
    Affine,
}

impl Encoding {
    /// Every encoding.
    pub const ALL: &'static [Self] = &[Self::Channel, Self::Block32, Self::Lut, Self::Affine];

    /// Name on the command line and in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Channel => "channel",
            Self::Block32 => "block32",
            Self::Lut => "lut",
            Self::Affine => "affine",
        }
    }
}

/// Place of the embedding look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Embedding {
    /// In the package
    Model,
    /// In the caller, who passes inputs_embeds from the rows of embedding.safetensors
    Host,
}

impl Embedding {
    /// Every place.
    pub const ALL: &'static [Self] = &[Self::Model, Self::Host];

    /// Name on the command line and in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Host => "host",
        }
    }
}

/// Type of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Compute {
    /// Half precision, the only one that the Neural Engine computes in
    F16,
    /// Single precision
    F32,
}

impl Compute {
    /// Every type.
    pub const ALL: &'static [Self] = &[Self::F16, Self::F32];

    /// Name on the command line and in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// The element type in MIL.
    pub fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
        }
    }
}

/// Error of settings that do not fit each other or the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting} cannot be {found}\n  expected: {expected}\nhint: {hint}")]
pub struct OptionsError {
    /// The setting.
    pub setting: &'static str,
    /// Its value.
    pub found: String,
    /// Values that are accepted.
    pub expected: String,
    /// Advice.
    pub hint: &'static str,
}

/// Largest dimension of an activation on the Neural Engine, according to the documentation of Anemll.
pub const LARGEST_DIMENSION: usize = 16_384;
/// Weights that share a scale in [`Encoding::Block32`].
pub const BLOCK: usize = 32;
/// Largest context, which bounds the position tables and caches.
const MAX_CONTEXT: usize = 1 << 17;
/// Largest prefill chunk: masks and the triangular inverse are square matrices of its length.
const MAX_CHUNK: usize = 512;

impl Options {
    /// The settings by name, for the manifest and the metadata of packages.
    pub(crate) fn settings(&self) -> Map<String, Value> {
        let settings = json!({
            "layout": self.layout.name(),
            "cache": self.cache.name(),
            "encoding": self.encoding.name(),
            "embedding": self.embedding.name(),
            "compute": self.compute.name(),
            "context": self.context,
            "prefill_chunk": self.prefill_chunk,
        });
        settings.as_object().cloned().unwrap_or_default()
    }

    /// Number of parts of the language-model head.
    pub fn splits(&self, config: &TextConfig) -> usize {
        self.head_splits.unwrap_or_else(|| config.vocab_size.div_ceil(LARGEST_DIMENSION))
    }

    /// Checks that the settings fit each other and the model.
    ///
    /// # Errors
    /// The first setting that does not fit.
    pub fn check(&self, config: &TextConfig) -> Result<(), OptionsError> {
        let within = |setting, found: usize, most: usize, hint| {
            if (1..=most).contains(&found) {
                return Ok(());
            }
            Err(OptionsError { setting, found: found.to_string(), expected: format!("1 to {most}"), hint })
        };
        let most = MAX_CONTEXT.min(config.max_position_embeddings);
        within("--context", self.context, most, "use a length within the model's max_position_embeddings")?;
        within(
            "--prefill-chunk",
            self.prefill_chunk,
            MAX_CHUNK,
            "the Neural Engine is reported to work with 64",
        )?;
        within(
            "--head-splits",
            self.splits(config),
            config.vocab_size.min(1024),
            "leave it out for the default",
        )?;
        if self.layout == Layout::SpeechSwift {
            for (setting, found, expected) in [
                ("--cache", self.cache.name(), Cache::State.name()),
                ("--embedding", self.embedding.name(), Embedding::Model.name()),
            ] {
                if found != expected {
                    let (found, expected) = (found.to_owned(), expected.to_owned());
                    let hint = "speech-swift loads two packages of one form; leave this out";
                    return Err(OptionsError { setting, found, expected, hint });
                }
            }
        }
        if config.linear_conv_kernel_dim < 2
            && config.layers_of(q35_architecture::LayerKind::LinearAttention).next().is_some()
        {
            return Err(OptionsError {
                setting: "linear_conv_kernel_dim",
                found: config.linear_conv_kernel_dim.to_string(),
                expected: "2 or more".into(),
                hint: "a convolution of one tap has no state, and a package cannot hold empty tensors",
            });
        }
        if self.encoding == Encoding::Block32 {
            let widths = [
                config.hidden_size,
                config.intermediate_size,
                config.attention_query_dim(),
                config.linear_value_dim(),
            ];
            if let Some(width) = widths.into_iter().find(|width| width % BLOCK != 0) {
                return Err(OptionsError {
                    setting: "--encoding",
                    found: format!("block32 for rows of {width}"),
                    expected: "rows whose length is a multiple of 32".into(),
                    hint: "use --encoding channel",
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use q35_testkit::tiny;

    #[cfg(feature = "clap")]
    #[test]
    fn names_are_the_command_lines_and_unknown_ones_are_refused() {
        use clap::ValueEnum;
        for encoding in Encoding::ALL {
            assert_eq!(Encoding::from_str(encoding.name(), false), Ok(*encoding));
        }
        for cache in Cache::ALL {
            assert_eq!(Cache::from_str(cache.name(), false), Ok(*cache));
        }
        for embedding in Embedding::ALL {
            assert_eq!(Embedding::from_str(embedding.name(), false), Ok(*embedding));
        }
        for compute in Compute::ALL {
            assert_eq!(Compute::from_str(compute.name(), false), Ok(*compute));
        }
        assert!(Encoding::from_str("int4", false).is_err());
        // Chosen by --for, which decides caches and embedding too.
        assert!(Layout::from_str(Layout::SpeechSwift.name(), false).is_err());
    }

    #[test]
    fn the_head_is_split_within_the_published_limit() {
        let mut config = tiny();
        assert_eq!(Options::default().splits(&config), 1);
        config.vocab_size = 248_320;
        assert_eq!(Options::default().splits(&config), 16);
        assert_eq!(Options { head_splits: Some(5), ..Options::default() }.splits(&config), 5);
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused() {
        let says = |options: Options, config: &TextConfig, expected: &str| {
            let error = options.check(config).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        let (config, options) = (tiny(), Options::default());
        options.check(&config).unwrap();
        says(Options { context: 0, ..options }, &config, "--context cannot be 0");
        says(Options { context: 1 << 20, ..options }, &config, "expected: 1 to 4096");
        says(Options { prefill_chunk: 4096, ..options }, &config, "--prefill-chunk cannot be 4096");
        says(Options { head_splits: Some(0), ..options }, &config, "--head-splits cannot be 0");
        says(
            Options { layout: Layout::SpeechSwift, cache: Cache::Io, ..options },
            &config,
            "--cache cannot be io",
        );
        let odd = TextConfig { intermediate_size: 100, ..config };
        says(Options { encoding: Encoding::Block32, ..options }, &odd, "block32 for rows of 100");
    }
}
