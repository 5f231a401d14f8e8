//! The target MLX.

use q35_format_mlx::{Form, Plan, Recipe, RoundToNearest, WriteError, WriteOptions};
use q35_quant::affine::{AffineError, AffineSpec};

use crate::ConvertError;
use crate::calibrated_recipe::{CalibratedRecipe, Calibration};
use crate::target::{CardSection, Details, Job, Summary, Target, Written};

/// An MLX directory.
#[derive(Clone, Debug)]
pub struct Mlx {
    /// Rule that quantizes the matrices.
    pub recipe: MlxRecipe,
    /// Directory form.
    pub form: Form,
}

/// Rule that quantizes the matrices.
#[derive(Clone, Debug)]
pub enum MlxRecipe {
    /// Round to nearest.
    RoundToNearest(AffineSpec),
    /// Calibrated.
    Calibrated(Calibration),
}

/// Name of a recipe on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum RecipeName {
    /// Round to nearest: the same tensors, bit for bit, as mlx-lm writes
    Rtn,
    /// Calibrated on text: bits by sensitivity, rounding errors compensated
    #[cfg_attr(feature = "clap", value(alias = "best"))]
    Calibrated,
}

impl Mlx {
    /// Round to nearest with `bits` (2, 3, 4, 5, 6 or 8) and groups of `group_size` (32, 64 or 128), in mlx-lm's form.
    ///
    /// # Errors
    /// Other bits or group sizes.
    pub fn round_to_nearest(bits: u32, group_size: usize) -> Result<Self, AffineError> {
        let recipe = MlxRecipe::RoundToNearest(AffineSpec::new(bits, group_size)?);
        Ok(Self { recipe, form: Form::MlxLm })
    }

    /// Calibrated with the default settings (4.65 bits per weight), in mlx-lm's form.
    pub fn calibrated() -> Self {
        Self { recipe: MlxRecipe::Calibrated(Calibration::default()), form: Form::MlxLm }
    }

    /// The same target in another directory form.
    pub fn with_form(self, form: Form) -> Self {
        Self { form, ..self }
    }
}

impl Target for Mlx {
    fn kind(&self) -> &'static str {
        "mlx"
    }

    fn write(&self, job: &Job<'_>) -> Result<Written, ConvertError> {
        match &self.recipe {
            MlxRecipe::RoundToNearest(spec) => write(job, &RoundToNearest(*spec), self.form),
            MlxRecipe::Calibrated(calibration) => {
                let recipe = CalibratedRecipe::calibrate(calibration, job)?;
                let written = write(job, &recipe, self.form)?;
                Ok(Written { resume_dir: Some(recipe.resume_dir.clone()), ..written })
            }
        }
    }
}

fn write(job: &Job<'_>, recipe: &dyn Recipe, form: Form) -> Result<Written, ConvertError> {
    let failed = |source: WriteError| match source {
        WriteError::Cancelled => ConvertError::Cancelled { resume_dir: None },
        source => ConvertError::Mlx { dir: job.checkpoint.dir().to_owned(), source },
    };
    let options = WriteOptions { form, ..WriteOptions::default() };
    let plan = Plan::new(job.checkpoint, recipe, &options).map_err(failed)?;
    let files =
        job.quantize(plan.source_bytes(), |progress| plan.write(job.staging, progress)).map_err(failed)?;
    let (spec, counts) = (recipe.default_spec(), plan.summary());
    let notes = match counts.kept_matrices.first() {
        Some(first) => vec![format!(
            "{} matrices stay in float because their rows do not divide into groups of {}: {first} and so on",
            counts.kept_matrices.len(),
            spec.group_size()
        )],
        None => Vec::new(),
    };
    let card = card(recipe.name(), spec, form, &counts);
    let summary = Summary {
        parameters: counts.parameters,
        source_bytes: counts.source_bytes,
        details: Details::Mlx {
            spec,
            recipe: recipe.name().to_owned(),
            bits_per_weight: counts.bits_per_weight,
            tensor_bytes: counts.tensor_bytes,
            quantized_matrices: counts.quantized,
            kept_matrices: counts.kept_matrices,
        },
        notes,
    };
    Ok(Written {
        files,
        copied: Vec::new(),
        settings: plan.settings(),
        tensors: plan.tensor_records(),
        card,
        summary,
        resume_dir: None,
    })
}

fn card(recipe: &str, spec: AffineSpec, form: Form, counts: &q35_format_mlx::Summary) -> CardSection {
    let bits = spec.bits();
    let usage = match form {
        Form::MlxLm => {
            "Open it with mlx-lm:\n\n```bash\npip install mlx-lm\nmlx_lm.chat --model PATH\n```\n\n\
             or with q35, on any CPU:\n\n```bash\nq35-chat --model PATH\n```\n"
        }
        Form::SpeechSwift => {
            "Open it with speech-swift's Qwen3Chat, or with q35, on any CPU:\n\n```bash\nq35-chat --model PATH\n```\n"
        }
    };
    let kept = match counts.kept_matrices.len() {
        0 => String::new(),
        count => format!(
            " {count} matrices whose rows do not divide into groups of {} stay in float.",
            spec.group_size()
        ),
    };
    CardSection {
        library: "mlx",
        title: format!("Qwen3.5 text model, {bits}-bit MLX"),
        body: format!(
            "Matrices are quantized to {bits} bits in groups of {group} (affine, recipe `{recipe}`), \
             {bits_per_weight:.3} bits per weight with scales and biases.{kept} Norms, convolutions and decay \
             parameters keep the source's precision.\n\n{usage}",
            group = spec.group_size(),
            bits_per_weight = counts.bits_per_weight,
        ),
    }
}
