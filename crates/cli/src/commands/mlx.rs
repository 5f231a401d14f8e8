//! `q35-convert mlx`: from a checkpoint to an MLX model.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use q35_checkpoint::{Checkpoint, Inventory};
use q35_format_mlx::{Form, Progress, Recipe, RoundToNearest, Summary, WriteOptions};
use q35_output_dir::{Existing, Staging};
use q35_quant::affine::AffineSpec;
use q35_reference::Device;
use serde_json::{Value, json};

use crate::best::{BITS_PER_WEIGHT, Best, Budget};
use crate::commands::Context;
use crate::commands::parity::{after_conversion, in_words, outcome};
use crate::exit::Outcome;
use crate::known;
use crate::left_out;
use crate::output::{bytes, grouped, json as print_json, line, note};
use crate::progress::Watcher;
use crate::source::ModelArgs;

/// Arguments of `q35-convert mlx`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint to convert.
    #[command(flatten)]
    pub model: ModelArgs,

    /// The directory to write; it appears when everything in it is complete
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Bits of every weight, for --recipe rtn: 2, 3, 4, 5, 6 or 8; 4 if not given
    #[arg(long)]
    pub bits: Option<u32>,

    /// Weights that share a scale and a bias, for --recipe rtn: 32, 64 or 128; 64 if not given
    #[arg(long, value_name = "SIZE")]
    pub group_size: Option<usize>,

    /// How weights are rounded; best if not given, but rtn with --bits, --group-size, --for speech-swift or a
    /// checkpoint without tokenizer.json
    #[arg(long, value_enum)]
    pub recipe: Option<RecipeName>,

    /// Text to calibrate on instead of the tool's own, for --recipe best
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,

    /// Bits of a matrix weight on average, scales and biases included, for --recipe best; 4.65 if not given
    #[arg(long, value_name = "BITS")]
    pub bits_per_weight: Option<f64>,

    /// Size of the result in bytes of all tensors, for --recipe best
    #[arg(long, value_name = "BYTES", conflicts_with = "bits_per_weight")]
    pub max_bytes: Option<u64>,

    /// Where the float model computes for --recipe best; cpu if not given
    #[arg(long, value_enum, value_name = "DEVICE")]
    pub device: Option<Device>,

    /// Who is to open the result
    #[arg(long = "for", value_enum, value_name = "READER", default_value_t = Reader::MlxLm)]
    pub reader: Reader,

    /// Replace DIR if it exists
    #[arg(long)]
    pub force: bool,

    /// Skip the short parity check that follows; the manifest then says that nothing was verified
    #[arg(long)]
    pub no_verify: bool,
}

/// How weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RecipeName {
    /// To the nearest step: the same tensors, bit for bit, as mlx-lm writes
    Rtn,
    /// Calibrated on text: bits by sensitivity, rounding errors compensated
    Best,
}

/// Who is to open the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reader {
    /// mlx-lm and everything that reads its files
    MlxLm,
    /// The origin system's Swift package
    SpeechSwift,
}

impl From<Reader> for Form {
    fn from(reader: Reader) -> Self {
        match reader {
            Reader::MlxLm => Self::MlxLm,
            Reader::SpeechSwift => Self::SpeechSwift,
        }
    }
}

impl Args {
    /// The recipe asked for, by name or by an option that only one has.
    ///
    /// # Errors
    /// An option that says nothing to the recipe.
    fn recipe(&self) -> anyhow::Result<Option<RecipeName>> {
        let of_rtn = [("--bits", self.bits.is_some()), ("--group-size", self.group_size.is_some())];
        let of_best = [
            ("--calibration", self.calibration.is_some()),
            ("--bits-per-weight", self.bits_per_weight.is_some()),
            ("--max-bytes", self.max_bytes.is_some()),
            ("--device", self.device.is_some()),
        ];
        let first = |options: &[(&'static str, bool)]| options.iter().find(|(_, given)| *given).map(|o| o.0);
        let swift = self.reader == Reader::SpeechSwift;
        let recipe = match self.recipe {
            None if first(&of_best).is_some() => Some(RecipeName::Best),
            None if swift || first(&of_rtn).is_some() => Some(RecipeName::Rtn),
            named => named,
        };
        match (recipe, first(&of_rtn), first(&of_best)) {
            (Some(RecipeName::Best), ..) if swift => {
                bail!("--for speech-swift takes one number of bits for all matrices\nhint: use --recipe rtn")
            }
            (Some(RecipeName::Best), Some(option), _) => bail!(
                "{option} says nothing to --recipe best, which chooses for each matrix\n\
                 hint: --bits-per-weight sets the average"
            ),
            (Some(RecipeName::Rtn), _, Some(option)) => {
                bail!("{option} says nothing to --recipe rtn\nhint: use --recipe best")
            }
            (recipe, ..) => Ok(recipe),
        }
    }

    /// The calibrated model.
    fn calibrate(&self, checkpoint: &Checkpoint, target: &Path, watcher: Watcher) -> anyhow::Result<Best> {
        let budget = match self.max_bytes {
            Some(bytes) => Budget::Bytes(bytes),
            None => Budget::BitsPerWeight(self.bits_per_weight.unwrap_or(BITS_PER_WEIGHT)),
        };
        let device = self.device.unwrap_or_default();
        Best::calibrate(checkpoint, target, self.calibration.as_deref(), budget, device, watcher)
    }
}

/// The recipe where nothing speaks for one: the better one, if the checkpoint can read the text it takes.
fn usual_recipe(checkpoint: &Checkpoint) -> RecipeName {
    if checkpoint.dir().join("tokenizer.json").is_file() {
        note("note: --recipe best, which takes minutes; --recipe rtn takes seconds and loses far more");
        RecipeName::Best
    } else {
        note("note: --recipe rtn: without a tokenizer.json there is no text to calibrate on");
        RecipeName::Rtn
    }
}

/// Runs `q35-convert mlx`.
///
/// # Errors
/// The source cannot be used, or the output not be written.
pub fn run(args: &Args, context: Context) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let spec = AffineSpec::new(args.bits.unwrap_or(4), args.group_size.unwrap_or(64))?;
    let recipe = args.recipe()?;
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    // Refused before anything is fetched.
    let staging = Staging::begin(&args.out, existing)?;
    let source = args.model.resolve(context.watcher)?;
    staging.protect(&source.dir)?;
    let checkpoint = Arc::new(Checkpoint::open(&source.dir)?);
    known::check(&source, &checkpoint)?;
    let calibrated = match recipe.unwrap_or_else(|| usual_recipe(&checkpoint)) {
        RecipeName::Best => Some(args.calibrate(&checkpoint, staging.target(), context.watcher)?),
        RecipeName::Rtn => None,
    };
    let nearest = RoundToNearest(spec);
    let recipe: &dyn Recipe = calibrated.as_ref().map_or(&nearest, |best| best);
    let options = WriteOptions {
        form: args.reader.into(),
        source_is_hub: source.is_from_hub(),
        source_id: source.id.clone(),
        revision: source.revision.clone(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..WriteOptions::default()
    };
    let step = RefCell::new(None);
    let written =
        q35_format_mlx::write(&checkpoint, recipe, &options, staging.path(), &|event| match event {
            Progress::Started { bytes } => {
                step.replace(Some(context.watcher.bytes_step("quantizing", bytes)));
            }
            Progress::Converted { bytes, .. } => {
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
    if let Some(best) = &calibrated {
        best.forget();
    }

    let report = Report {
        target,
        inventory: checkpoint.inventory(),
        summary: &written.summary,
        spec: recipe.default_spec(),
        recipe: recipe.name(),
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
    spec: AffineSpec,
    recipe: &'a str,
    output_bytes: u64,
    elapsed: Duration,
    parity: Option<&'a q35_parity::ParityReport>,
}

impl Report<'_> {
    fn json(&self) -> Value {
        json!({
            "out": self.target,
            "bits": self.spec.bits(),
            "group_size": self.spec.group_size(),
            "recipe": self.recipe,
            "bits_per_weight": self.summary.bits_per_weight,
            "parameters": self.summary.parameters,
            "source_bytes": self.summary.source_bytes,
            "tensor_bytes": self.summary.tensor_bytes,
            "output_bytes": self.output_bytes,
            "quantized_tensors": self.summary.quantized,
            "kept_matrices": self.summary.kept_matrices,
            "left_out": left_out::to_json(self.inventory),
            "companions": self.summary.companions,
            "seconds": self.elapsed.as_secs_f64(),
            "parity": self.parity.map(q35_parity::ParityReport::summary),
        })
    }

    fn print(&self) -> anyhow::Result<()> {
        let summary = self.summary;
        line(format!(
            "{}: {} in {:.1} s\n  {} weights, {} bits in groups of {} ({}), {:.3} bits per weight\n  \
             {} of tensors, from {}",
            self.target.display(),
            bytes(self.output_bytes),
            self.elapsed.as_secs_f64(),
            grouped(summary.parameters),
            self.spec.bits(),
            self.spec.group_size(),
            self.recipe,
            summary.bits_per_weight,
            bytes(summary.tensor_bytes),
            bytes(summary.source_bytes),
        ))?;
        line(format!("  parity: {}", in_words(self.parity)))?;
        left_out::print(self.inventory, "  left out")?;
        if let Some(first) = summary.kept_matrices.first() {
            note(format!(
                "note: {} matrices stay in float because their rows do not divide into groups of {}: {first} and so on",
                summary.kept_matrices.len(),
                self.spec.group_size()
            ));
        }
        if !summary.companions.iter().any(|name| name == "tokenizer.json") {
            note("note: the source has no tokenizer.json, so the result cannot chat by itself");
        }
        Ok(())
    }
}
