//! The delta rule as one GPU kernel. MLX operations need some thirty launches per token and read the state three times;
//! for a chunk they need hundreds.
//!
//! One source serves Metal and CUDA. [`DeltaKernel::checked`] compares it with the operations when a model is loaded, and
//! rejects it if it fails or differs; it has never run on Metal (`scripts/mlx/check_kernel.sh` runs it on a CPU).

use mlx_rs::error::Result;
use mlx_rs::{Array, Device, Dtype, random, with_device};

use super::operations::{self, Gates, Projected, Sizes};
use crate::custom_kernel::{CustomKernel, Launch, LaunchSpec};
use crate::device::GpuApi;
use crate::host::to_host;

const SOURCE: &str = include_str!("delta_rule.metal");

/// Lanes of a SIMD group (a warp in CUDA).
const LANES: i32 = 32;

/// Largest accepted difference between kernel and operations; outputs are of order one.
const TOLERANCE: f32 = 1e-4;

pub(crate) struct DeltaKernel {
    kernel: CustomKernel,
    sizes: Sizes,
    /// Launch for one token.
    step: Launch,
}

impl DeltaKernel {
    /// The kernel, if it supports these sizes, compiles, and agrees with the operations on random inputs of one and of
    /// several tokens.
    ///
    /// # Errors
    /// The reason for which the kernel cannot be used.
    pub fn checked(sizes: Sizes, api: GpuApi) -> std::result::Result<Self, String> {
        if sizes.key_dim % LANES != 0 {
            return Err(format!("the key width {} is not a multiple of {LANES}", sizes.key_dim));
        }
        let kernel = Self::compile(sizes, api).map_err(|error| error.to_string())?;
        for tokens in [1, 5] {
            let difference = kernel.largest_difference(tokens).map_err(|error| error.to_string())?;
            // Also rejects NaN.
            if difference.is_nan() || difference > TOLERANCE {
                return Err(format!("it differs from the operations by {difference:e} for {tokens} tokens"));
            }
        }
        Ok(kernel)
    }

    fn compile(sizes: Sizes, api: GpuApi) -> Result<Self> {
        let inputs = ["mixed", "a", "b", "a_log", "dt_bias", "state"];
        let kernel = CustomKernel::new(api, "q35_delta_rule", &inputs, &["out", "state_out"], SOURCE)?;
        let step = launch(&kernel, sizes, 1)?;
        Ok(Self { kernel, sizes, step })
    }

    /// Largest difference between the results of the kernel and of the operations on random inputs.
    fn largest_difference(&self, tokens: i32) -> Result<f32> {
        let Sizes { key_heads, value_heads, key_dim, value_dim } = self.sizes;
        let width = 2 * key_heads * key_dim + value_heads * value_dim;
        let normal = |shape: &[i32], seed: u64| random::normal::<f32>(shape, None, None, &random::key(seed)?);
        let projected = Projected {
            mixed: normal(&[tokens, width], 0)?,
            a: normal(&[tokens, value_heads], 1)?,
            b: normal(&[tokens, value_heads], 2)?,
        };
        let (a_log, dt_bias) = (normal(&[value_heads], 3)?, normal(&[value_heads], 4)?);
        let gates = Gates { a_log: &a_log, dt_bias: &dt_bias };
        let state = normal(&[value_heads, value_dim, key_dim], 5)?;
        let (out, after) = self.run(&projected, gates, &state)?;
        // On the CPU, because f32 products on a GPU may be rounded to TF32.
        let expected = with_device(Device::cpu(), || match tokens {
            1 => operations::step(&projected, gates, self.sizes, &state),
            _ => operations::chunks(&projected, gates, self.sizes, &state),
        })?;
        let mut largest = 0f32;
        for (found, expected) in [(&out, &expected.0), (&after, &expected.1)] {
            for (found, expected) in to_host(found)?.iter().zip(to_host(expected)?) {
                let difference = (found - expected).abs();
                if difference.is_nan() {
                    return Ok(f32::NAN);
                }
                largest = largest.max(difference);
            }
        }
        Ok(largest)
    }

    /// Applies the rule to T tokens: outputs [T, H, V], f32, and the next state [H, V, K].
    pub fn run(&self, projected: &Projected, gates: Gates<'_>, state: &Array) -> Result<(Array, Array)> {
        let tokens = projected.mixed.dim(0);
        let several;
        let launch = match tokens {
            1 => &self.step,
            _ => {
                several = launch(&self.kernel, self.sizes, tokens)?;
                &several
            }
        };
        let inputs = [&projected.mixed, &projected.a, &projected.b, gates.a_log, gates.dt_bias, state];
        // SAFETY: the 32 lanes of each (column, head) write that row of `state_out` and one element of `out` per token, so
        // every element is written once; all reads are within inputs of exactly these shapes, which MLX passes
        // row-contiguous; K is a multiple of 32, and V of the columns of a thread group.
        let results = unsafe { self.kernel.apply(launch, &inputs)? };
        let mut results = results.into_iter();
        match (results.next(), results.next()) {
            (Some(out), Some(after)) => Ok((out, after)),
            _ => Err(mlx_rs::error::Exception::custom("the kernel's two outputs are missing")),
        }
    }
}

fn launch(kernel: &CustomKernel, sizes: Sizes, tokens: i32) -> Result<Launch> {
    let Sizes { key_heads, value_heads, key_dim, value_dim } = sizes;
    // A divisor of V: CUDA launches whole blocks.
    let columns = [4, 2, 1].into_iter().find(|columns| value_dim % columns == 0).unwrap_or(1);
    kernel.launch(&LaunchSpec {
        outputs: &[
            (&[tokens, value_heads, value_dim], Dtype::Float32),
            (&[value_heads, value_dim, key_dim], Dtype::Float32),
        ],
        types: &[],
        constants: &[("KEY_HEADS", key_heads), ("HEADS", value_heads), ("K", key_dim), ("V", value_dim)],
        grid: [LANES, value_dim, value_heads],
        group: [LANES, columns, 1],
    })
}
