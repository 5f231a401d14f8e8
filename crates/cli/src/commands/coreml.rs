//! `q35-convert coreml`: from a checkpoint to Core ML packages.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum;
use q35_checkpoint::{Checkpoint, Inventory};
use q35_format_coreml::{
    Cache, Compute, Embedding, Encoding, Layout, Options, Progress, Provenance, Summary,
};
use q35_output_dir::{Existing, Staging};
use serde_json::{Value, json};

use crate::commands::Context;
use crate::commands::parity::{after_conversion, in_words, outcome};
use crate::exit::Outcome;
use crate::known;
use crate::left_out;
use crate::output::{bytes, grouped, json as print_json, line, note};
use crate::source::ModelArgs;

/// Arguments of `q35-convert coreml`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint to convert.
    #[command(flatten)]
    pub model: ModelArgs,

    /// The directory to write; it appears when everything in it is complete
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Packages for another reader than Core ML at large
    #[arg(long = "for", value_enum, value_name = "READER", conflicts_with_all = ["layout", "cache", "embedding"])]
    pub reader: Option<Reader>,

    /// One package with two functions, or two packages
    #[arg(long, value_enum, default_value_t = LayoutName::Multifunction)]
    pub layout: LayoutName,

    /// Where caches live between calls
    #[arg(long, value_enum, default_value_t = CacheName::State)]
    pub cache: CacheName,

    /// How INT8 weights are written; all but block32 stand for the same numbers
    #[arg(long, value_enum, default_value_t = EncodingName::Channel)]
    pub encoding: EncodingName,

    /// Who looks token ids up in the embedding
    #[arg(long, value_enum, default_value_t = EmbeddingName::Model)]
    pub embedding: EmbeddingName,

    /// Parts of the vocabulary projection [default: the fewest of at most 16384 rows]
    #[arg(long, value_name = "N")]
    pub head_splits: Option<usize>,

    /// Type of activations; the Neural Engine computes in f16
    #[arg(long, value_enum, default_value_t = ComputeName::F16)]
    pub compute: ComputeName,

    /// Tokens that the caches hold
    #[arg(long, value_name = "TOKENS", default_value_t = Options::default().context)]
    pub context: usize,

    /// Tokens that prefill takes at once
    #[arg(long, value_name = "TOKENS", default_value_t = Options::default().prefill_chunk)]
    pub prefill_chunk: usize,

    /// Replace DIR if it exists
    #[arg(long)]
    pub force: bool,

    /// Skip the short parity check that follows; the manifest then says that nothing was verified
    #[arg(long)]
    pub no_verify: bool,
}

/// Who is to open the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reader {
    /// The origin system's Swift package: embedding.mlpackage and decoder.mlpackage
    SpeechSwift,
}

/// Defines the command line's names for a choice of the library.
macro_rules! names {
    ($(#[$doc:meta])* $name:ident as $library:ident { $($(#[$variant_doc:meta])* $variant:ident => $theirs:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl From<$name> for $library {
            fn from(name: $name) -> Self {
                match name { $($name::$variant => Self::$theirs,)* }
            }
        }
    };
}

names! {
    /// One package or two.
    LayoutName as Layout {
        /// model.mlpackage with the functions prefill and decode over one weight file
        Multifunction => Multifunction,
        /// prefill.mlpackage and decode.mlpackage, each complete
        Split => Split,
    }
}

names! {
    /// Where caches live.
    CacheName as Cache {
        /// Keys and values in one state, the linear layers' states packed as inputs and outputs
        State => State,
        /// Every cache an input and an output, layer by layer
        Io => Io,
    }
}

names! {
    /// How INT8 weights are written.
    EncodingName as Encoding {
        /// One scale per output channel
        Channel => Channel,
        /// One scale per 32 weights of a row
        Block32 => Block32,
        /// A look-up table, then one scale per output channel
        Lut => Lut,
        /// Unsigned with a zero point, the operator of iOS 16
        Affine => Affine,
    }
}

names! {
    /// Who looks the embedding up.
    EmbeddingName as Embedding {
        /// The package
        Model => Inside,
        /// The caller, from embedding.safetensors
        Host => Host,
    }
}

names! {
    /// Type of activations.
    ComputeName as Compute {
        /// Half precision
        F16 => F16,
        /// Single precision
        F32 => F32,
    }
}

impl Args {
    fn options(&self) -> Options {
        Options {
            layout: self.reader.map_or(self.layout.into(), |Reader::SpeechSwift| Layout::SpeechSwift),
            cache: self.cache.into(),
            encoding: self.encoding.into(),
            embedding: self.embedding.into(),
            head_splits: self.head_splits,
            compute: self.compute.into(),
            context: self.context,
            prefill_chunk: self.prefill_chunk,
        }
    }
}

/// Runs `q35-convert coreml`.
///
/// # Errors
/// The source cannot be used, or the output not be written.
pub fn run(args: &Args, context: Context) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    // Refused before anything is fetched.
    let staging = Staging::begin(&args.out, existing)?;
    let source = args.model.resolve(context.watcher)?;
    staging.protect(&source.dir)?;
    let checkpoint = Arc::new(Checkpoint::open(&source.dir)?);
    known::check(&source, &checkpoint)?;
    let options = args.options();
    let provenance = Provenance {
        source_is_hub: source.is_from_hub(),
        source_id: source.id.clone(),
        revision: source.revision.clone(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let step = RefCell::new(None);
    let written =
        q35_format_coreml::write(&checkpoint, &options, &provenance, staging.path(), &|event| match event {
            Progress::Started { bytes } => {
                step.replace(Some(context.watcher.bytes_step("quantizing", bytes)));
            }
            Progress::Converted { bytes } => {
                if let Some(step) = &*step.borrow() {
                    step.advance(bytes);
                }
            }
            _ => {}
        })
        .with_context(|| format!("converting {}", source.dir.display()))?;
    drop(step);
    let reference = (!args.no_verify).then_some((&checkpoint, args.model.model.as_str()));
    let (parity, manifest) = after_conversion(reference, written.manifest, staging.path(), context.watcher)?;
    let manifest = staging.seal(manifest, written.files)?;
    let target = staging.target().to_owned();
    let output_bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
    staging.publish()?;

    let report = Report {
        target,
        inventory: checkpoint.inventory(),
        summary: &written.summary,
        options,
        output_bytes,
        elapsed: started.elapsed(),
        parity: parity.as_ref(),
    };
    if context.json {
        print_json(&report.json())?
    } else {
        report.print()?
    }
    Ok(outcome(parity.as_ref()))
}

struct Report<'a> {
    target: PathBuf,
    inventory: &'a Inventory,
    summary: &'a Summary,
    options: Options,
    output_bytes: u64,
    elapsed: Duration,
    parity: Option<&'a q35_parity::ParityReport>,
}

impl Report<'_> {
    fn json(&self) -> Value {
        json!({
            "out": self.target,
            "packages": self.summary.packages,
            "layout": self.options.layout.name(),
            "cache": self.options.cache.name(),
            "encoding": self.options.encoding.name(),
            "embedding": self.options.embedding.name(),
            "compute": self.options.compute.name(),
            "context": self.options.context,
            "prefill_chunk": self.options.prefill_chunk,
            "head_splits": self.summary.head_splits,
            "parameters": self.summary.parameters,
            "quantized_weights": self.summary.quantized_weights,
            "source_bytes": self.summary.source_bytes,
            "output_bytes": self.output_bytes,
            "left_out": left_out::to_json(self.inventory),
            "companions": self.summary.companions,
            "seconds": self.elapsed.as_secs_f64(),
            "parity": self.parity.map(q35_parity::ParityReport::summary),
        })
    }

    fn print(&self) -> anyhow::Result<()> {
        let (summary, options) = (self.summary, &self.options);
        line(format!(
            "{}: {} in {:.1} s\n  {}: {} weights, {} of them INT8 ({}), activations {}, {} tokens of context",
            self.target.display(),
            bytes(self.output_bytes),
            self.elapsed.as_secs_f64(),
            summary.packages.join(", "),
            grouped(summary.parameters),
            grouped(summary.quantized_weights),
            options.encoding,
            options.compute,
            options.context,
        ))?;
        line(format!("  parity: {}", in_words(self.parity)))?;
        left_out::print(self.inventory, "  left out")?;
        if options.layout == Layout::SpeechSwift {
            note(
                "note: speech-swift loads compiled packages: run `xcrun coremlcompiler compile` on each of them on a Mac",
            );
        }
        if !summary.companions.iter().any(|name| name == "tokenizer.json") {
            note("note: the source has no tokenizer.json, so the result cannot chat by itself");
        }
        Ok(())
    }
}
