//! The computations as GPU kernels, for which MLX operations need three to eight launches each. Letters as in [`super`].
//!
//! One source per kernel serves Metal and CUDA. [`Kernels::checked`] compares them with the operations when a model is
//! loaded.

use mlx_rs::error::{Exception, Result};
use mlx_rs::{Array, Device, Dtype, random, with_device};

use super::{LayerSizes, operations};
use crate::custom_kernel::{CustomKernel, Launch, LaunchSpec};
use crate::device::GpuApi;
use crate::host::to_host;

/// Lanes of a SIMD group (a warp in CUDA).
const LANES: i32 = 32;

/// Threads of an elementwise kernel's thread group.
const GROUP: i32 = 128;

/// Largest accepted difference between kernels and operations in f32; results are of order one.
const TOLERANCE: f32 = 1e-4;

pub(crate) struct Kernels {
    sizes: LayerSizes,
    dtype: Dtype,
    convolution: Kernel,
    gated_norm: Kernel,
    swiglu: Kernel,
}

/// A kernel and its launch for one token.
struct Kernel {
    kernel: CustomKernel,
    one_token: Launch,
}

type Shape = fn(&CustomKernel, LayerSizes, Dtype, i32) -> Result<Launch>;

impl Kernels {
    /// The kernels, if they support these sizes, compile, and agree with the operations on random inputs.
    ///
    /// # Errors
    /// The reason for which they cannot be used.
    pub fn checked(sizes: LayerSizes, dtype: Dtype, api: GpuApi) -> std::result::Result<Self, String> {
        if sizes.value_dim % LANES != 0 {
            return Err(format!("the value width {} is not a multiple of {LANES}", sizes.value_dim));
        }
        let reason = |error: Exception| error.to_string();
        let in_f32 = Self::compile(sizes, Dtype::Float32, api).map_err(reason)?;
        for tokens in [1, 5] {
            let difference = in_f32.largest_difference(tokens).map_err(reason)?;
            // Also rejects NaN.
            if difference.is_nan() || difference > TOLERANCE {
                return Err(format!("they differ from the operations by {difference:e} for {tokens} tokens"));
            }
        }
        let kernels = Self::compile(sizes, dtype, api).map_err(reason)?;
        // Compiles the variants for `dtype`; their rounding is that of the type.
        let difference = kernels.largest_difference(1).map_err(reason)?;
        if difference.is_nan() || difference > 0.1 {
            return Err(format!("they differ from the operations by {difference:e} in {dtype:?}"));
        }
        Ok(kernels)
    }

    fn compile(sizes: LayerSizes, dtype: Dtype, api: GpuApi) -> Result<Self> {
        let kernel = |name, inputs: &[&str], outputs: &[&str], source: &str, launch: Shape| {
            let kernel = CustomKernel::new(api, name, inputs, outputs, source)?;
            let one_token = launch(&kernel, sizes, dtype, 1)?;
            Ok::<_, Exception>(Kernel { kernel, one_token })
        };
        let gated_norm =
            format!("constexpr float EPSILON = {:e}f;\n{}", sizes.epsilon, include_str!("gated_norm.metal"));
        Ok(Self {
            sizes,
            dtype,
            convolution: kernel(
                "q35_convolution",
                &["window", "x", "weight"],
                &["out", "window_out"],
                include_str!("convolution.metal"),
                convolution_launch,
            )?,
            gated_norm: kernel(
                "q35_gated_norm",
                &["x", "z", "weight"],
                &["out"],
                &gated_norm,
                gated_norm_launch,
            )?,
            swiglu: kernel(
                "q35_swiglu",
                &["gate", "up"],
                &["out"],
                include_str!("swiglu.metal"),
                swiglu_launch,
            )?,
        })
    }

    /// Largest difference between the results of kernels and operations on random inputs.
    fn largest_difference(&self, tokens: i32) -> Result<f32> {
        let LayerSizes { channels, taps, value_heads, value_dim, intermediate, epsilon } = self.sizes;
        let normal = |shape: &[i32], seed: u64, dtype: Dtype| {
            random::normal::<f32>(shape, None, None, &random::key(seed)?)?.as_dtype(dtype)
        };
        let width = value_heads * value_dim;
        let window = normal(&[taps - 1, channels], 1, self.dtype)?;
        let (x, taps) =
            (normal(&[tokens, channels], 2, self.dtype)?, normal(&[taps, channels], 3, self.dtype)?);
        let heads = normal(&[tokens, value_heads, value_dim], 4, Dtype::Float32)?;
        let (z, weight) =
            (normal(&[tokens, width], 5, self.dtype)?, normal(&[value_dim], 6, Dtype::Float32)?);
        let (gate, up) = (
            normal(&[tokens, intermediate], 7, self.dtype)?,
            normal(&[tokens, intermediate], 8, self.dtype)?,
        );
        let (out, next) = self.convolution(&window, &x, &taps)?;
        let found = [out, next, self.gated_norm(&heads, &z, &weight)?, self.swiglu(&gate, &up)?];
        // On the CPU, in f32.
        let expected = with_device(Device::cpu(), || {
            let f32 = |x: &Array| x.as_dtype(Dtype::Float32);
            let (out, next) = operations::convolution(&f32(&window)?, &f32(&x)?, &f32(&taps)?)?;
            let norm = operations::gated_norm(&heads, &f32(&z)?, &weight, epsilon, Dtype::Float32)?;
            Ok::<_, Exception>([out, next, norm, operations::swiglu(&f32(&gate)?, &f32(&up)?)?])
        })?;
        let mut largest = 0f32;
        for (found, expected) in found.iter().zip(&expected) {
            for (found, expected) in to_host(found)?.iter().zip(to_host(expected)?) {
                let difference = (found - expected).abs() / expected.abs().max(1.0);
                if difference.is_nan() {
                    return Ok(f32::NAN);
                }
                largest = largest.max(difference);
            }
        }
        Ok(largest)
    }

    pub fn convolution(&self, window: &Array, x: &Array, weight: &Array) -> Result<(Array, Array)> {
        let results = self.run(&self.convolution, convolution_launch, x.dim(0), &[window, x, weight])?;
        let mut results = results.into_iter();
        results.next().zip(results.next()).ok_or_else(missing)
    }

    pub fn gated_norm(&self, x: &Array, z: &Array, weight: &Array) -> Result<Array> {
        let results = self.run(&self.gated_norm, gated_norm_launch, x.dim(0), &[x, z, weight])?;
        results.into_iter().next().ok_or_else(missing)
    }

    pub fn swiglu(&self, gate: &Array, up: &Array) -> Result<Array> {
        let results = self.run(&self.swiglu, swiglu_launch, gate.dim(0), &[gate, up])?;
        results.into_iter().next().ok_or_else(missing)
    }

    fn run(&self, kernel: &Kernel, launch: Shape, tokens: i32, inputs: &[&Array]) -> Result<Vec<Array>> {
        let several;
        let launch = match tokens {
            1 => &kernel.one_token,
            _ => {
                several = launch(&kernel.kernel, self.sizes, self.dtype, tokens)?;
                &several
            }
        };
        // SAFETY: each thread (or SIMD group) writes its own elements of the outputs, which cover them; threads beyond the
        // outputs return; all reads are within inputs of the documented shapes, which MLX passes row-contiguous.
        unsafe { kernel.kernel.apply(launch, inputs) }
    }
}

fn missing() -> Exception {
    Exception::custom("an output of a kernel is missing")
}

fn convolution_launch(kernel: &CustomKernel, sizes: LayerSizes, dtype: Dtype, tokens: i32) -> Result<Launch> {
    let LayerSizes { channels, taps, .. } = sizes;
    kernel.launch(&LaunchSpec {
        outputs: &[(&[tokens, channels], dtype), (&[taps - 1, channels], dtype)],
        types: &[("T", dtype)],
        constants: &[("TAPS", taps), ("CHANNELS", channels)],
        grid: [round_up(channels, GROUP), tokens, 1],
        group: [GROUP, 1, 1],
    })
}

fn gated_norm_launch(kernel: &CustomKernel, sizes: LayerSizes, dtype: Dtype, tokens: i32) -> Result<Launch> {
    let LayerSizes { value_heads, value_dim, .. } = sizes;
    let rows = [4, 2, 1].into_iter().find(|rows| value_heads % rows == 0).unwrap_or(1);
    kernel.launch(&LaunchSpec {
        outputs: &[(&[tokens, value_heads * value_dim], dtype)],
        types: &[("T", dtype)],
        constants: &[("V", value_dim)],
        grid: [LANES, tokens * value_heads, 1],
        group: [LANES, rows, 1],
    })
}

fn swiglu_launch(kernel: &CustomKernel, sizes: LayerSizes, dtype: Dtype, tokens: i32) -> Result<Launch> {
    kernel.launch(&LaunchSpec {
        outputs: &[(&[tokens, sizes.intermediate], dtype)],
        types: &[("T", dtype)],
        constants: &[],
        grid: [round_up(tokens * sizes.intermediate, GROUP), 1, 1],
        group: [GROUP, 1, 1],
    })
}

fn round_up(value: i32, multiple: i32) -> i32 {
    (value + multiple - 1) / multiple * multiple
}
