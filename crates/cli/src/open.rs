//! Anything that the project can run, opened as a model: a float checkpoint, an MLX directory, Core ML packages.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use q35_backend::{Backend, open_coreml, open_mlx};
use q35_checkpoint::Checkpoint;
use q35_format_mlx::MlxDirectory;
use q35_inference::Model;
use q35_reference::Reference;

use crate::backend::{BackendArgs, BackendName};

/// How a model is to be run. What does not apply to its kind is not looked at.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct RunArgs {
    /// Threads of the CPU backend; all processors if not given
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Compute in f32 throughout, where the CPU backend would quantize activations for speed and the Core ML evaluator
    /// would round to fp16 as the package says
    #[arg(long)]
    pub exact: bool,

    /// Who computes
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// Opens the model in `dir`, whatever its kind.
///
/// # Errors
/// It is of no known kind, or cannot be read or run.
pub fn open(dir: &Path, how: RunArgs) -> anyhow::Result<Box<dyn Model>> {
    let options = how.backend.options(Backend::Cpu, Some(how.threads()), how.exact)?;
    if MlxDirectory::recognises(dir) {
        let directory = Arc::new(MlxDirectory::open(dir)?);
        return Ok(open_mlx(directory, &options)?.model);
    }
    if is_coreml(dir) {
        return Ok(open_coreml(dir, &options)?.model);
    }
    let checkpoint = Checkpoint::open(dir)?;
    if let Some(BackendName::Mlx | BackendName::Coreml) = how.backend.backend {
        bail!("{} is a float checkpoint, which only the float reference runs", dir.display());
    }
    let model = Reference::load(&checkpoint, how.backend.reference_device())
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
