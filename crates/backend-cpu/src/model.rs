//! An opened model.

use std::collections::BTreeMap;
use std::sync::Arc;

use q35_architecture::TextConfig;
use q35_format_mlx::MlxDirectory;
use q35_inference::{Model, ModelMemory, RunError, Sequence};
use q35_kernels::{Isa, Mode, Pool};

use crate::sequence::CpuSequence;
use crate::shared::Shared;
use crate::weights::ModelWeights;
use crate::{CpuError, CpuOptions};

/// An MLX model directory, run on the CPU.
#[derive(Debug)]
pub struct CpuModel {
    shared: Arc<Shared>,
}

impl CpuModel {
    /// Opens the weights of `directory` in place and starts `options.threads - 1` threads.
    ///
    /// # Errors
    /// A tensor is missing, or no kernel reads its format.
    pub fn open(directory: Arc<MlxDirectory>, options: CpuOptions) -> Result<Self, CpuError> {
        let weights = ModelWeights::find(&directory)?;
        let pool = Pool::new(options.threads);
        let shared = Shared { directory, weights, pool, isa: Isa::detect(), mode: options.mode };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Number of computing threads.
    pub fn threads(&self) -> usize {
        self.shared.pool.threads()
    }

    /// Arithmetic of the products.
    pub fn mode(&self) -> Mode {
        self.shared.mode
    }
}

impl Model for CpuModel {
    fn config(&self) -> &TextConfig {
        self.shared.config()
    }

    fn describe(&self) -> String {
        // The format of most weight bytes names the model.
        let mut bytes_of: BTreeMap<Option<(usize, usize)>, usize> = BTreeMap::new();
        for matrix in self.shared.weights.matrices() {
            *bytes_of.entry(matrix.quantization()).or_default() += matrix.size_bytes(&self.shared.directory);
        }
        let form = match bytes_of.into_iter().max_by_key(|(_, bytes)| *bytes) {
            Some((Some((bits, group)), _)) => format!("int{bits} group {group}"),
            _ => "float".to_owned(),
        };
        let mode = match self.shared.mode {
            Mode::Exact => "exact",
            Mode::Fast => "fast",
        };
        let (isa, threads) = (self.shared.isa.name(), self.threads());
        let plural = if threads == 1 { "" } else { "s" };
        format!("CPU ({isa}, {threads} thread{plural}), MLX {form}, {mode}")
    }

    fn new_sequence(&self, max_context: usize) -> Result<Box<dyn Sequence>, RunError> {
        Ok(Box::new(CpuSequence::new(Arc::clone(&self.shared), max_context)))
    }

    fn context_limit(&self) -> Option<usize> {
        None
    }

    fn prefill_alignment(&self) -> usize {
        1
    }

    fn memory(&self) -> ModelMemory {
        let Shared { directory, weights, .. } = &*self.shared;
        let copied = directory.copied_bytes();
        ModelMemory {
            mapped_bytes: directory.weight_bytes() - copied,
            owned_bytes: copied + weights.owned_bytes() as u64,
            weight_bytes_per_token: weights.bytes_per_token(directory) as u64,
        }
    }
}
