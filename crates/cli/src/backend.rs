//! Command-line options of every command that runs a model.

use std::path::PathBuf;

use q35_backend::{Backend, ComputeUnits, Device, Precision, RunOptions};

/// `--backend`, `--device`, `--compute-units`. A backend ignores the options that do not concern it.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Backend")]
pub struct BackendArgs {
    /// Backend that runs a converted model [default: auto to chat, cpu to measure]
    #[arg(long, value_enum)]
    pub backend: Option<Backend>,

    /// Device of MLX or of the float reference [default: MLX uses the GPU where there is one, the reference the CPU]
    #[arg(long, value_enum, value_name = "DEVICE")]
    pub device: Option<Device>,

    /// Compute units that Apple's Core ML may use
    #[arg(long, value_enum, default_value_t, value_name = "UNITS")]
    pub compute_units: ComputeUnits,
}

/// `--variant`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct VariantArg {
    /// Variant of a model that is published in several precisions, each in a sub-directory: int4, int8
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
}

impl VariantArg {
    /// The requested variant.
    pub fn name(&self) -> Option<&str> {
        self.variant.as_deref()
    }
}

impl BackendArgs {
    /// The options of running a model; `default_backend` without `--backend`.
    pub fn options(
        &self,
        default_backend: Backend,
        threads: Option<usize>,
        precision: Precision,
    ) -> RunOptions {
        RunOptions {
            backend: self.backend.unwrap_or(default_backend),
            device: self.device,
            compute_units: self.compute_units,
            threads,
            precision,
            compiled_cache: compiled_cache(),
            ..RunOptions::default()
        }
    }
}

/// The directory that caches packages compiled by Apple's Core ML.
pub fn compiled_cache() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(PathBuf::from(home).join("Library/Caches/q35/coreml"))
}
