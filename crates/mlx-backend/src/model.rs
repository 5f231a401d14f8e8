//! The model as the rest of the project sees it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mlx_rs::Device;
use q35_mlx::MlxDirectory;
use q35_model::{Model, ModelMemory, RunError, Sequence, TextConfig};

use crate::delta::DeltaRule;
use crate::engine::Engine;
use crate::sequence::MlxSequence;
use crate::weights::ModelWeights;
use crate::worker::Worker;

/// Where MLX computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlxDevice {
    /// MLX's CPU backend, in f32.
    Cpu,
    /// Apple's GPU through Metal, in the type of the checkpoint's scales.
    Gpu,
}

impl Default for MlxDevice {
    /// The GPU where this build has one.
    fn default() -> Self {
        if cfg!(target_os = "macos") { Self::Gpu } else { Self::Cpu }
    }
}

/// Why MLX cannot run a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MlxBackendError {
    /// The build of MLX has no GPU. (Asking MLX itself would end the process.)
    #[error("this build of MLX has no GPU\nhint: use the CPU device, or a macOS build")]
    NoGpu,
    /// MLX's own word.
    #[error("MLX: {0}")]
    Mlx(#[from] mlx_rs::error::Exception),
    /// A tensor of the directory is not what the model needs.
    #[error("tensor `{name}` was expected {expected}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What was expected.
        expected: &'static str,
    },
    /// The thread could not be started.
    #[error("cannot start MLX's thread: {0}")]
    Thread(std::io::Error),
    /// The thread has ended.
    #[error("MLX's thread has stopped")]
    Stopped,
}

impl From<MlxBackendError> for RunError {
    fn from(error: MlxBackendError) -> Self {
        Self::Backend { backend: "MLX", message: error.to_string() }
    }
}

/// An MLX directory loaded into MLX. Dropping it frees the weights.
pub struct MlxModel {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub config: TextConfig,
    pub worker: Worker,
    next_sequence: AtomicU64,
    device: MlxDevice,
    weight_bytes: u64,
    bytes_per_token: u64,
}

impl MlxModel {
    /// Loads a directory's weights onto `device`.
    ///
    /// # Errors
    /// No such device, or weights that cannot be read or do not fit.
    pub fn load(directory: Arc<MlxDirectory>, device: MlxDevice) -> Result<Self, MlxBackendError> {
        if device == MlxDevice::Gpu && !cfg!(target_os = "macos") {
            return Err(MlxBackendError::NoGpu);
        }
        let config = directory.config().clone();
        let source = Arc::clone(&directory);
        let worker = Worker::start(move || {
            // The default device is a setting of the thread that computes.
            Device::set_default(&match device {
                MlxDevice::Cpu => Device::cpu(),
                MlxDevice::Gpu => Device::gpu(),
            });
            let (weights, dtype) = ModelWeights::load(&source, device)?;
            let config = source.config().clone();
            let delta = DeltaRule::new(
                device == MlxDevice::Gpu,
                config.linear_num_value_heads as i32,
                config.linear_key_head_dim as i32,
                config.linear_value_head_dim as i32,
            );
            Ok(Engine { config, weights, dtype, delta, sequences: HashMap::new() })
        })?;
        let (weight_bytes, bytes_per_token) =
            worker.run(|engine| Ok((engine.weights.size_bytes(), engine.weights.bytes_per_token())))?;
        let next_sequence = AtomicU64::new(0);
        let shared = Shared { config, worker, next_sequence, device, weight_bytes, bytes_per_token };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl Model for MlxModel {
    fn config(&self) -> &TextConfig {
        &self.shared.config
    }

    fn describe(&self) -> String {
        match self.shared.device {
            MlxDevice::Cpu => "MLX on the CPU, f32".to_owned(),
            MlxDevice::Gpu => "MLX on the GPU (Metal)".to_owned(),
        }
    }

    fn new_sequence(&self, max_context: usize) -> Result<Box<dyn Sequence>, RunError> {
        let id = self.shared.next_sequence.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(MlxSequence::start(Arc::clone(&self.shared), id, max_context)?))
    }

    fn context_limit(&self) -> Option<usize> {
        None
    }

    fn prefill_grid(&self) -> usize {
        crate::sequence::PIECE
    }

    fn memory(&self) -> ModelMemory {
        ModelMemory {
            mapped_bytes: 0,
            owned_bytes: self.shared.weight_bytes,
            weight_bytes_per_token: self.shared.bytes_per_token,
        }
    }
}
