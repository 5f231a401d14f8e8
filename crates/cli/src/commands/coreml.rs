//! `q35-convert coreml`: converts a checkpoint to Core ML packages.

use clap::ValueEnum;
use q35_convert::CoreMl;
use q35_format_coreml::{Cache, Compute, Embedding, Encoding, Layout, Options};

use crate::context::Context;
use crate::conversion::{self, OutputArgs};
use crate::exit::Outcome;
use crate::source::ModelArgs;

/// Arguments of `q35-convert coreml`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint to convert.
    #[command(flatten)]
    pub model: ModelArgs,

    /// The directory to write.
    #[command(flatten)]
    pub output: OutputArgs,

    /// Packages for another reader than Core ML at large
    #[arg(long = "for", value_enum, value_name = "READER", conflicts_with_all = ["layout", "cache", "embedding"])]
    pub reader: Option<Reader>,

    /// Division of the model into packages
    #[arg(long, value_enum, default_value_t = Options::default().layout)]
    pub layout: Layout,

    /// Form of the caches between calls
    #[arg(long, value_enum, default_value_t = Options::default().cache)]
    pub cache: Cache,

    /// Encoding of INT8 weights; all but block32 store the same numbers
    #[arg(long, value_enum, default_value_t = Options::default().encoding)]
    pub encoding: Encoding,

    /// Place of the embedding look-up
    #[arg(long, value_enum, default_value_t = Options::default().embedding)]
    pub embedding: Embedding,

    /// Parts of the vocabulary projection [default: the fewest of at most 16384 rows]
    #[arg(long, value_name = "N")]
    pub head_splits: Option<usize>,

    /// Type of activations; the Neural Engine computes in f16
    #[arg(long, value_enum, default_value_t = Options::default().compute)]
    pub compute: Compute,

    /// Capacity of the caches
    #[arg(long, value_name = "TOKENS", default_value_t = Options::default().context)]
    pub context: usize,

    /// Tokens per call of prefill
    #[arg(long, value_name = "TOKENS", default_value_t = Options::default().prefill_chunk)]
    pub prefill_chunk: usize,
}

/// A program that opens the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reader {
    /// The Swift package speech-swift: embedding.mlpackage and decoder.mlpackage
    SpeechSwift,
}

impl Args {
    fn options(&self) -> Options {
        Options {
            layout: self.reader.map_or(self.layout, |Reader::SpeechSwift| Layout::SpeechSwift),
            cache: self.cache,
            encoding: self.encoding,
            embedding: self.embedding,
            head_splits: self.head_splits,
            compute: self.compute,
            context: self.context,
            prefill_chunk: self.prefill_chunk,
        }
    }
}

/// Runs `q35-convert coreml`.
///
/// # Errors
/// The source cannot be used, or the output cannot be written.
pub fn run(args: &Args, context: Context) -> anyhow::Result<Outcome> {
    conversion::run(&args.model, &args.output, context, |_| Ok(Box::new(CoreMl::new(args.options()))))
}
