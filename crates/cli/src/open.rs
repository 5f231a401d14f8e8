//! `--threads`, `--exact` and the backend options, and opening any model with them.

use std::path::Path;

use q35_artefact::ArtefactDir;
use q35_backend::{Backend, Precision};
use q35_inference::Model;

use crate::backend::BackendArgs;

/// Options of running a model of any kind. A backend ignores the options that do not concern it.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct RunArgs {
    /// Threads of the CPU backend [default: one per processor]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Compute in f32 throughout, where the CPU backend would quantize activations for speed and the Core ML evaluator
    /// would round to f16 as the package declares
    #[arg(long)]
    pub exact: bool,

    /// The backend.
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// Opens the model in `dir`, of any kind: a float checkpoint runs on the float reference.
///
/// # Errors
/// The directory holds no model, not that variant, or the model cannot be read or run.
pub fn open(dir: &Path, variant: Option<&str>, args: RunArgs) -> anyhow::Result<Box<dyn Model>> {
    let precision = if args.exact { Precision::Exact } else { Precision::Fast };
    let options = args.backend.options(Backend::Cpu, Some(args.threads()), precision);
    Ok(ArtefactDir::recognise(dir, variant)?.open_model(&options)?.model)
}

impl RunArgs {
    /// Number of threads to compute with.
    pub fn threads(&self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(all, usize::from)
    }
}
