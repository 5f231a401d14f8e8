//! What can be chosen about a conversion.

use std::fmt;
use std::str::FromStr;

use q35_architecture::TextConfig;
use q35_format_mil::DType;

/// The settings of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How the model is cut into packages.
    pub layout: Layout,
    /// Where caches live between calls.
    pub cache: Cache,
    /// How INT8 weights are written.
    pub encoding: Encoding,
    /// Who looks the embedding up.
    pub embedding: Embedding,
    /// Parts of the vocabulary projection; [`None`] takes the fewest within the Neural Engine's published limits.
    pub head_splits: Option<usize>,
    /// The type that activations have.
    pub compute: Compute,
    /// Tokens that the key/value caches hold.
    pub context: usize,
    /// Tokens that `prefill` takes at once.
    pub prefill_chunk: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            layout: Layout::Multifunction,
            cache: Cache::State,
            encoding: Encoding::Channel,
            embedding: Embedding::Inside,
            head_splits: None,
            compute: Compute::F16,
            context: 2048,
            prefill_chunk: 64,
        }
    }
}

/// Defines an enum whose variants have names on the command line.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name on the command line and in the manifest.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let names: Vec<&str> = Self::ALL.iter().map(|one| one.name()).collect();
                Self::ALL.iter().copied().find(|one| one.name() == text).ok_or_else(|| names.join(", "))
            }
        }
    };
}

choice! {
    /// How the model is cut into packages.
    Layout {
        /// `model.mlpackage` with the functions `prefill` and `decode` over one weight file.
        Multifunction = "multifunction",
        /// `prefill.mlpackage` and `decode.mlpackage`, each complete.
        Split = "split",
        /// `embedding.mlpackage` and `decoder.mlpackage` as the speech-swift app loads them.
        SpeechSwift = "speech-swift",
    }
}

choice! {
    /// Where caches live between calls.
    Cache {
        /// Keys and values of all layers in one MLState, the linear layers' states as packed inputs and outputs.
        State = "state",
        /// Every cache an input and an output, layer by layer.
        Io = "io",
    }
}

choice! {
    /// How INT8 weights are written. The numbers are the same for all but `block32`.
    Encoding {
        /// `constexpr_blockwise_shift_scale`, one scale per output channel.
        Channel = "channel",
        /// `constexpr_blockwise_shift_scale`, one scale per 32 weights of a row.
        Block32 = "block32",
        /// `constexpr_lut_to_dense` with the identity as its table, then a scale per output channel.
        Lut = "lut",
        /// `constexpr_affine_dequantize`, unsigned, the operator of iOS 16.
        Affine = "affine",
    }
}

choice! {
    /// Who looks the embedding up.
    Embedding {
        /// The package.
        Inside = "model",
        /// The caller, who passes `inputs_embeds`.
        Host = "host",
    }
}

choice! {
    /// The type that activations have.
    Compute {
        /// Half precision, the only one that the Neural Engine has.
        F16 = "f16",
        /// Single precision.
        F32 = "f32",
    }
}

impl Compute {
    /// As an element type.
    pub fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
        }
    }
}

/// Why a model cannot be converted with these settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting} cannot be {found}\n  expected: {expected}\nhint: {hint}")]
pub struct OptionsError {
    /// The setting.
    pub setting: &'static str,
    /// Its value.
    pub found: String,
    /// What would do.
    pub expected: String,
    /// What to do about it.
    pub hint: &'static str,
}

/// No activation may have a dimension larger than this on the Neural Engine (as Anemll states it).
pub const LARGEST_DIMENSION: usize = 16_384;
/// Elements that share a scale in [`Encoding::Block32`].
pub const BLOCK: usize = 32;
/// The longest context whose position table and caches are still written.
const LONGEST_CONTEXT: usize = 1 << 17;
/// The masks of a chunk are matrices of its length, and its triangular inverse a product of such.
const LONGEST_CHUNK: usize = 512;

impl Options {
    /// Parts of the vocabulary projection.
    pub fn splits(&self, config: &TextConfig) -> usize {
        self.head_splits.unwrap_or_else(|| config.vocab_size.div_ceil(LARGEST_DIMENSION))
    }

    /// Whether these settings go together and with the model.
    ///
    /// # Errors
    /// They do not.
    pub fn check(&self, config: &TextConfig) -> Result<(), OptionsError> {
        let within = |setting, found: usize, most: usize, hint| {
            if (1..=most).contains(&found) {
                return Ok(());
            }
            Err(OptionsError { setting, found: found.to_string(), expected: format!("1 to {most}"), hint })
        };
        let most = LONGEST_CONTEXT.min(config.max_position_embeddings);
        within("--context", self.context, most, "give a length that the model was made for")?;
        within(
            "--prefill-chunk",
            self.prefill_chunk,
            LONGEST_CHUNK,
            "64 is what the Neural Engine is reported to take",
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
                ("--embedding", self.embedding.name(), Embedding::Inside.name()),
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

    #[test]
    fn names_are_read_back() {
        for encoding in Encoding::ALL {
            assert_eq!(encoding.name().parse(), Ok(*encoding));
        }
        assert_eq!("int4".parse::<Encoding>(), Err("channel, block32, lut, affine".into()));
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
