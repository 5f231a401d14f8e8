//! The delta rule for one token as one Metal kernel. MLX operations need some thirty launches and read the state three
//! times.
//!
//! The kernel has never run on Metal (`scripts/mlx/check_kernel.sh` runs its source on a CPU). So [`StepKernel::checked`]
//! compares it with the operations when a model is loaded, and returns `None` if it fails or differs.

use mlx_rs::error::Result;
use mlx_rs::fast::{
    MetalKernel, MetalKernelApplyOptions, MetalKernelOptions, MetalKernelOutput, TemplateArg,
};
use mlx_rs::{Array, Dtype, random};

use super::operations::{self, Gates, Projected, Sizes};
use crate::host::to_host;

const SOURCE: &str = include_str!("../delta_step.metal");

/// Lanes of a SIMD group.
const LANES: i32 = 32;

/// Largest accepted difference between kernel and operations; outputs are of order one.
const TOLERANCE: f32 = 1e-4;

pub(crate) struct StepKernel {
    kernel: MetalKernel,
    sizes: Sizes,
}

impl StepKernel {
    /// The kernel, if it supports these sizes, compiles, and agrees with the operations on random inputs.
    pub fn checked(sizes: Sizes) -> Option<Self> {
        if sizes.key_dim % LANES != 0 {
            return None;
        }
        Self::compile_and_compare(sizes).ok().flatten()
    }

    fn compile_and_compare(sizes: Sizes) -> Result<Option<Self>> {
        let options = MetalKernelOptions { ensure_row_contiguous: true, ..Default::default() };
        let names = ["mixed", "a", "b", "a_log", "dt_bias", "state"];
        let kernel = MetalKernel::new("q35_delta_step", &names, &["out", "state_out"], SOURCE, options)?;
        let kernel = Self { kernel, sizes };
        let Sizes { key_heads, value_heads, key_dim, value_dim } = sizes;
        let seed = random::key(35)?;
        let normal = |shape: &[i32]| random::normal::<f32>(shape, None, None, &seed);
        let width = 2 * key_heads * key_dim + value_heads * value_dim;
        let projected = Projected {
            mixed: normal(&[1, width])?,
            a: normal(&[1, value_heads])?,
            b: normal(&[1, value_heads])?,
        };
        let (a_log, dt_bias) = (normal(&[value_heads])?, normal(&[value_heads])?);
        let gates = Gates { a_log: &a_log, dt_bias: &dt_bias };
        let state = normal(&[value_heads, value_dim, key_dim])?;
        let (out, after) = kernel.step(&projected, gates, &state)?;
        let (expected_out, expected_after) = operations::step(&projected, gates, sizes, &state)?;
        let agrees = |a: &Array, b: &Array| -> Result<bool> {
            let difference = to_host(&a.subtract(b)?.abs()?.max(None)?)?;
            // The comparison is false for NaN.
            Ok(difference.iter().all(|difference| *difference <= TOLERANCE))
        };
        Ok((agrees(&out, &expected_out)? && agrees(&after, &expected_after)?).then_some(kernel))
    }

    /// The rule for one token: output [1, H, V] and the next state [H, V, K].
    pub fn step(&self, projected: &Projected, gates: Gates<'_>, state: &Array) -> Result<(Array, Array)> {
        let Sizes { key_heads, value_heads, key_dim, value_dim } = self.sizes;
        let output = |shape: &[i32]| MetalKernelOutput { shape: shape.to_vec(), dtype: Dtype::Float32 };
        let outputs = [output(&[1, value_heads, value_dim]), output(&[value_heads, value_dim, key_dim])];
        let template = [("KEY_HEADS", key_heads), ("HEADS", value_heads), ("K", key_dim), ("V", value_dim)];
        let options = MetalKernelApplyOptions {
            template_args: template.map(|(name, size)| (name.to_owned(), TemplateArg::Int(size))).to_vec(),
            ..Default::default()
        };
        let arrays = [&projected.mixed, &projected.a, &projected.b, gates.a_log, gates.dt_bias, state];
        // SAFETY: the 32 lanes of each (column, head) write that row of `state_out` and one element of `out`, so every
        // element is written once; all reads are within inputs of exactly these shapes, which MLX passes row-contiguous;
        // K is a multiple of 32.
        let results = unsafe {
            let grid = (LANES, value_dim, value_heads);
            self.kernel.apply(&arrays, &outputs, grid, (LANES, value_dim.min(4), 1), options)?
        };
        let mut results = results.into_iter();
        match (results.next(), results.next()) {
            (Some(out), Some(after)) => Ok((out, after)),
            _ => Err(mlx_rs::error::Exception::custom("the kernel's two outputs are missing")),
        }
    }
}
