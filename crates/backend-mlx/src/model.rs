//! [`MlxModel`]: an MLX directory as a [`Model`].

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use mlx_rs::{Device, Dtype};
use q35_architecture::TextConfig;
use q35_format_mlx::MlxDirectory;
use q35_inference::{Model, ModelMemory, RunError, Sequence};
use q35_quant::FloatType;

use crate::delta::{DeltaRule, Sizes};
use crate::device::{GpuApi, MlxDevice};
use crate::elementwise::{Elementwise, LayerSizes};
use crate::engine::{Engine, HostTimes};
use crate::error::MlxBackendError;
use crate::qwen3_5::Network;
use crate::sequence::MlxSequence;
use crate::shared::Shared;
use crate::snapshot::layout;
use crate::weights::{ModelWeights, activation_type};
use crate::worker::Worker;

/// Tokens of a prefill chunk on a CPU.
const CPU_CHUNK: usize = 64;

/// Tokens of a prefill chunk on a GPU: enough to amortise the cost of a pass, and short enough for cancellation.
const GPU_CHUNK: usize = 256;

/// An MLX directory loaded into MLX. Dropping it frees the weights.
pub struct MlxModel {
    shared: Arc<Shared>,
}

impl MlxModel {
    /// Loads a directory's weights onto `device`.
    ///
    /// # Errors
    /// The device is not available, or a tensor cannot be read or has an unexpected form.
    pub fn load(directory: Arc<MlxDirectory>, device: MlxDevice) -> Result<Self, MlxBackendError> {
        let gpu = device.gpu_api()?;
        let config = directory.config().clone();
        let activations = activation_type(&directory, device)?;
        let source = Arc::clone(&directory);
        let worker = Worker::start(move || {
            // The default device is a setting of the current thread, the worker's.
            Device::set_default(&match gpu {
                None => Device::cpu(),
                Some(_) => Device::gpu(),
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
            let delta = DeltaRule::new(sizes, gpu);
            let sizes = LayerSizes {
                channels: config.linear_conv_dim() as i32,
                taps: config.linear_conv_kernel_dim as i32,
                value_heads: config.linear_num_value_heads as i32,
                value_dim: config.linear_value_head_dim as i32,
                intermediate: config.intermediate_size as i32,
                epsilon: config.rms_norm_eps as f32,
            };
            let elementwise = Elementwise::new(sizes, dtype, gpu);
            Ok(Engine::new(Network { config, weights, dtype, delta, elementwise }))
        })?;
        let (layout, unfused_reason, weight_bytes, bytes_per_token) = worker.run(|engine| {
            let Network { weights, dtype, delta, elementwise, .. } = &engine.network;
            let delta = delta.unfused_reason().map(|reason| format!("delta rule: {reason}"));
            let elementwise = elementwise.unfused_reason().map(|reason| format!("elementwise: {reason}"));
            let unfused_reason = delta.or(elementwise);
            Ok((layout(*dtype), unfused_reason, weights.size_bytes(), weights.bytes_per_token()))
        })?;
        let next_sequence = AtomicU64::new(0);
        let shared = Shared {
            config,
            worker,
            layout,
            gpu,
            activations,
            unfused_reason,
            weight_bytes,
            bytes_per_token,
            chunk: if gpu.is_some() { GPU_CHUNK } else { CPU_CHUNK },
            next_sequence,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The interface to the GPU, `None` on the CPU.
    pub fn gpu(&self) -> Option<GpuApi> {
        self.shared.gpu
    }

    /// Time that the worker thread has spent on passes, for measurements.
    ///
    /// # Errors
    /// The worker thread has ended.
    pub fn host_times(&self) -> Result<HostTimes, MlxBackendError> {
        self.shared.worker.run(|engine| Ok(engine.times()))
    }

    /// The reason for which a part of the layers runs as MLX operations instead of a fused kernel; `None` if all fused
    /// kernels are used.
    pub fn unfused_reason(&self) -> Option<&str> {
        self.shared.unfused_reason.as_deref()
    }

    /// Float type of the activations.
    pub fn activations(&self) -> FloatType {
        self.shared.activations
    }
}

impl Model for MlxModel {
    fn config(&self) -> &TextConfig {
        &self.shared.config
    }

    fn describe(&self) -> String {
        match self.shared.gpu.map(GpuApi::name) {
            None => "MLX on the CPU, f32".to_owned(),
            Some(api) if self.shared.unfused_reason.is_none() => {
                format!("MLX on the GPU ({api}, fused kernels)")
            }
            Some(api) => format!("MLX on the GPU ({api})"),
        }
    }

    fn new_sequence(&self, max_context: usize) -> Result<Box<dyn Sequence>, RunError> {
        Ok(Box::new(MlxSequence::start(Arc::clone(&self.shared), max_context)?))
    }

    fn context_limit(&self) -> Option<usize> {
        None
    }

    fn prefill_alignment(&self) -> usize {
        self.shared.chunk
    }

    fn memory(&self) -> ModelMemory {
        ModelMemory {
            mapped_bytes: 0,
            owned_bytes: self.shared.weight_bytes,
            weight_bytes_per_token: self.shared.bytes_per_token,
        }
    }
}
