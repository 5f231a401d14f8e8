//! `q35-convert mlx`: converts a checkpoint to an MLX directory.

use std::path::{Path, PathBuf};

use anyhow::bail;
use q35_checkpoint::Checkpoint;
use q35_convert::{
    Budget, Calibration, DEFAULT_BITS_PER_WEIGHT, Mlx, MlxRecipe, RecipeName, describe_duration,
    estimate_calibration, estimate_round_to_nearest,
};
use q35_format_mlx::Form;
use q35_quant::affine::AffineSpec;
use q35_reference::Device;

use crate::context::Context;
use crate::conversion::{self, OutputArgs};
use crate::exit::Outcome;
use crate::output::note;
use crate::source::ModelArgs;

/// Arguments of `q35-convert mlx`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint to convert.
    #[command(flatten)]
    pub model: ModelArgs,

    /// The directory to write.
    #[command(flatten)]
    pub output: OutputArgs,

    /// Bits of every weight, for --recipe rtn: 2, 3, 4, 5, 6 or 8; 4 if not given
    #[arg(long)]
    pub bits: Option<u32>,

    /// Weights that share a scale and a bias, for --recipe rtn: 32, 64 or 128; 64 if not given
    #[arg(long, value_name = "SIZE")]
    pub group_size: Option<usize>,

    /// Rule that quantizes the weights; calibrated if not given, but rtn with --bits, --group-size,
    /// --for speech-swift or a checkpoint without tokenizer.json
    #[arg(long, value_enum)]
    pub recipe: Option<RecipeName>,

    /// Calibration text instead of the built-in one, for --recipe calibrated
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,

    /// Average bits of a matrix weight, scales and biases included, for --recipe calibrated; 4.65 if not given
    #[arg(long, value_name = "BITS")]
    pub bits_per_weight: Option<f64>,

    /// Size of the result in bytes of all tensors, for --recipe calibrated
    #[arg(long, value_name = "BYTES", conflicts_with = "bits_per_weight")]
    pub max_bytes: Option<u64>,

    /// Device that computes the float model for --recipe calibrated; cpu if not given
    #[arg(long, value_enum, value_name = "DEVICE")]
    pub device: Option<Device>,

    /// Program that is to open the result
    #[arg(long = "for", value_enum, value_name = "READER", default_value_t = Form::MlxLm)]
    pub form: Form,
}

impl Args {
    /// The recipe, by name or by an option that only one recipe has.
    ///
    /// # Errors
    /// An option that the recipe does not have.
    fn recipe_name(&self) -> anyhow::Result<Option<RecipeName>> {
        let rtn_options = [("--bits", self.bits.is_some()), ("--group-size", self.group_size.is_some())];
        let calibrated_options = [
            ("--calibration", self.calibration.is_some()),
            ("--bits-per-weight", self.bits_per_weight.is_some()),
            ("--max-bytes", self.max_bytes.is_some()),
            ("--device", self.device.is_some()),
        ];
        let first = |options: &[(&'static str, bool)]| {
            options.iter().find(|(_, present)| *present).map(|(name, _)| *name)
        };
        let (rtn_option, calibrated_option) = (first(&rtn_options), first(&calibrated_options));
        let swift = self.form == Form::SpeechSwift;
        let recipe = match self.recipe {
            None if calibrated_option.is_some() => Some(RecipeName::Calibrated),
            None if swift || rtn_option.is_some() => Some(RecipeName::Rtn),
            named => named,
        };
        match (recipe, rtn_option, calibrated_option) {
            (Some(RecipeName::Calibrated), ..) if swift => {
                bail!("--for speech-swift needs one number of bits for all matrices\nhint: use --recipe rtn")
            }
            (Some(RecipeName::Calibrated), Some(option), _) => bail!(
                "{option} has no effect with --recipe calibrated, which chooses for each matrix\n\
                 hint: --bits-per-weight sets the average"
            ),
            (Some(RecipeName::Rtn), _, Some(option)) => {
                bail!("{option} has no effect with --recipe rtn\nhint: use --recipe calibrated")
            }
            (recipe, ..) => Ok(recipe),
        }
    }

    fn calibration(&self) -> Calibration {
        Calibration {
            budget: match self.max_bytes {
                Some(bytes) => Budget::Bytes(bytes),
                None => Budget::BitsPerWeight(self.bits_per_weight.unwrap_or(DEFAULT_BITS_PER_WEIGHT)),
            },
            text: self.calibration.clone(),
            device: self.device.unwrap_or_default(),
        }
    }
}

/// The recipe if no option decides: calibrated, if the checkpoint has a tokenizer for the calibration text.
fn default_recipe(dir: &Path) -> RecipeName {
    if dir.join("tokenizer.json").is_file() {
        RecipeName::Calibrated
    } else {
        note("note: --recipe rtn: without a tokenizer.json there is no text to calibrate on");
        RecipeName::Rtn
    }
}

/// Prints how long a calibration will take, and the alternative. A checkpoint that cannot be opened is refused later.
fn note_duration(dir: &Path, calibration: &Calibration) {
    let Ok(checkpoint) = Checkpoint::open(dir) else { return };
    note(format!(
        "note: --recipe calibrated takes about {} here if nothing else is running; --recipe rtn takes about {} and \
         loses far more",
        describe_duration(estimate_calibration(&checkpoint, calibration)),
        describe_duration(estimate_round_to_nearest(&checkpoint)),
    ));
}

/// Runs `q35-convert mlx`.
///
/// # Errors
/// The source cannot be used, or the output cannot be written.
pub fn run(args: &Args, context: Context) -> anyhow::Result<Outcome> {
    let spec = AffineSpec::new(args.bits.unwrap_or(4), args.group_size.unwrap_or(64))?;
    let recipe = args.recipe_name()?;
    conversion::run(&args.model, &args.output, context, |source| {
        let recipe = match recipe.unwrap_or_else(|| default_recipe(&source.dir)) {
            RecipeName::Rtn => MlxRecipe::RoundToNearest(spec),
            RecipeName::Calibrated => {
                let calibration = args.calibration();
                note_duration(&source.dir, &calibration);
                MlxRecipe::Calibrated(calibration)
            }
        };
        Ok(Box::new(Mlx { recipe, form: args.form }))
    })
}
