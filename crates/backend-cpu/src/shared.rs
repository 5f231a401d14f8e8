//! State that all sequences of a model share.

use std::sync::Arc;

use q35_architecture::TextConfig;
use q35_format_mlx::MlxDirectory;
use q35_kernels::{Isa, Mode, Pool};

use crate::weights::ModelWeights;

/// Weights, thread pool and settings of an opened model.
#[derive(Debug)]
pub(crate) struct Shared {
    pub directory: Arc<MlxDirectory>,
    pub weights: ModelWeights,
    pub pool: Pool,
    pub isa: Isa,
    pub mode: Mode,
}

impl Shared {
    pub(crate) fn config(&self) -> &TextConfig {
        self.directory.config()
    }
}
