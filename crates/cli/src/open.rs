//! Anything that the project can run, opened as a model: a float checkpoint, an MLX directory, Core ML packages.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use q35_checkpoint::Checkpoint;
use q35_coreml_backend::{CoreMlModel, Precision};
use q35_cpu::{CpuModel, CpuOptions, Mode};
use q35_mlx::MlxDirectory;
use q35_model::Model;
use q35_reference::{Device, Reference};

/// How a model is to be run. What does not apply to its kind is not looked at.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct RunArgs {
    /// Threads of the CPU backend; all processors if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Compute in f32 throughout, where the CPU backend would quantize activations for speed and the Core ML evaluator
    /// would round to fp16 as the package says
    #[arg(long)]
    pub exact: bool,

    /// Where the float reference computes
    #[arg(long, value_enum, default_value_t, value_name = "DEVICE")]
    pub device: DeviceArg,
}

/// Devices of the float reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceArg {
    /// The processor
    #[default]
    Cpu,
    /// Apple's GPU (a build with the feature `metal`)
    Metal,
    /// An NVIDIA GPU (a build with the feature `cuda`)
    Cuda,
}

impl From<DeviceArg> for Device {
    fn from(device: DeviceArg) -> Self {
        match device {
            DeviceArg::Cpu => Self::Cpu,
            DeviceArg::Metal => Self::Metal,
            DeviceArg::Cuda => Self::Cuda,
        }
    }
}

/// Opens the model in `dir`, whatever its kind.
///
/// # Errors
/// It is of no known kind, or cannot be read or run.
pub fn open(dir: &Path, how: RunArgs) -> anyhow::Result<Box<dyn Model>> {
    if MlxDirectory::recognises(dir) {
        let directory = Arc::new(MlxDirectory::open(dir)?);
        let mode = if how.exact { Mode::Exact } else { Mode::Fast };
        let options = CpuOptions { threads: how.threads(), mode };
        return Ok(Box::new(CpuModel::open(directory, options)?));
    }
    if is_coreml(dir) {
        let precision = if how.exact { Precision::Exact } else { Precision::Half };
        return Ok(Box::new(CoreMlModel::open(dir, precision)?));
    }
    let model = Reference::load(&Checkpoint::open(dir)?, how.device.into())
        .with_context(|| format!("cannot run {} on candle", dir.display()))?;
    Ok(Box::new(model))
}

/// Whether a directory holds Core ML packages.
fn is_coreml(dir: &Path) -> bool {
    let entries = dir.read_dir().into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|kind| kind == "mlpackage"))
}

impl RunArgs {
    /// Threads to compute with.
    pub fn threads(&self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(all, usize::from)
    }
}
