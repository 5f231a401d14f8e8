//! The model as the rest of the project sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mlx_rs::{Device, Dtype};
use q35_architecture::TextConfig;
use q35_format_mlx::MlxDirectory;
use q35_inference::{Model, ModelMemory, RunError, Sequence};
use q35_quant::FloatType;

use crate::delta::{DeltaRule, Sizes};
use crate::engine::Engine;
use crate::ffi::gpu_is_available;
use crate::forward::Network;
use crate::sequence::MlxSequence;
use crate::snapshot::layout;
use crate::weights::{ModelWeights, activation_type};
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
    /// The GPU where there is one.
    fn default() -> Self {
        if gpu_is_available() { Self::Gpu } else { Self::Cpu }
    }
}

/// Why MLX cannot run a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MlxBackendError {
    /// There is no GPU that MLX can use. (Asking MLX for it would end the process.)
    #[error(
        "MLX has no GPU here\n  expected: a build for macOS, on a machine with Metal\nhint: use MLX's CPU device"
    )]
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
    /// An earlier call failed half way, and the state with it.
    #[error("an earlier call failed half way; reset the sequence or restore a snapshot")]
    Lost,
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
    /// Of snapshots.
    pub layout: String,
    next_sequence: AtomicU64,
    device: MlxDevice,
    activations: FloatType,
    /// Whether decoding uses the kernel of our own.
    fused: bool,
    weight_bytes: u64,
    bytes_per_token: u64,
}

impl MlxModel {
    /// Loads a directory's weights onto `device`.
    ///
    /// # Errors
    /// No such device, or weights that cannot be read or do not fit.
    pub fn load(directory: Arc<MlxDirectory>, device: MlxDevice) -> Result<Self, MlxBackendError> {
        if device == MlxDevice::Gpu && !gpu_is_available() {
            return Err(MlxBackendError::NoGpu);
        }
        let config = directory.config().clone();
        let activations = activation_type(&directory, device)?;
        let source = Arc::clone(&directory);
        let worker = Worker::start(move || {
            // The default device is a setting of the thread that computes.
            Device::set_default(&match device {
                MlxDevice::Cpu => Device::cpu(),
                MlxDevice::Gpu => Device::gpu(),
            });
            let dtype = match activations {
                FloatType::Bf16 => Dtype::Bfloat16,
                FloatType::F16 => Dtype::Float16,
                FloatType::F32 => Dtype::Float32,
            };
            let weights = ModelWeights::load(&source, dtype)?;
            let config = source.config().clone();
            let sizes = Sizes {
                key_heads: config.linear_num_key_heads as i32,
                value_heads: config.linear_num_value_heads as i32,
                key_dim: config.linear_key_head_dim as i32,
                value_dim: config.linear_value_head_dim as i32,
            };
            let delta = DeltaRule::new(sizes, device == MlxDevice::Gpu);
            Ok(Engine::new(Network { config, weights, dtype, delta }))
        })?;
        let (layout, fused, weight_bytes, bytes_per_token) = worker.run(|engine| {
            let Network { weights, dtype, delta, .. } = &engine.network;
            Ok((layout(*dtype), delta.is_fused(), weights.size_bytes(), weights.bytes_per_token()))
        })?;
        let next_sequence = AtomicU64::new(0);
        let shared = Shared {
            config,
            worker,
            layout,
            next_sequence,
            device,
            activations,
            fused,
            weight_bytes,
            bytes_per_token,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What activations are kept in.
    pub fn activations(&self) -> FloatType {
        self.shared.activations
    }
}

impl Model for MlxModel {
    fn config(&self) -> &TextConfig {
        &self.shared.config
    }

    fn describe(&self) -> String {
        match self.shared.device {
            MlxDevice::Cpu => "MLX on the CPU, f32".to_owned(),
            MlxDevice::Gpu if self.shared.fused => "MLX on the GPU (Metal, fused delta step)".to_owned(),
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

    fn prefill_alignment(&self) -> usize {
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
