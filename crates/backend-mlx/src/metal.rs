//! The delta rule's step as one Metal kernel, where MLX's operations make some thirty launches and read the state
//! three times.
//!
//! It could not be run on Metal where it was written (`scripts/mlx/check_kernel.sh` runs its text on a CPU), so it is
//! not trusted: [`StepKernel::checked`] compares it with the operations on the machine that would use it, and gives
//! nothing where it fails or differs.

use mlx_rs::error::Result;
use mlx_rs::fast::{
    MetalKernel, MetalKernelApplyOptions, MetalKernelOptions, MetalKernelOutput, TemplateArg,
};
use mlx_rs::{Array, Dtype, random};

use crate::delta::{Gates, Projected, Sizes, step_by_operations};
use crate::engine::to_host;

const SOURCE: &str = include_str!("delta_step.metal");

/// Lanes of a SIMD group.
const LANES: i32 = 32;

/// Largest difference between kernel and operations that is rounding, where outputs are of size one.
const TOLERANCE: f32 = 1e-4;

pub(crate) struct StepKernel {
    kernel: MetalKernel,
    sizes: Sizes,
}

impl StepKernel {
    /// The kernel, if it suits these sizes, compiles here, and agrees with the operations on random inputs.
    pub fn checked(sizes: Sizes) -> Option<Self> {
        if sizes.key_dim % LANES != 0 {
            return None;
        }
        Self::compared(sizes).ok().flatten()
    }

    fn compared(sizes: Sizes) -> Result<Option<Self>> {
        let options = MetalKernelOptions { ensure_row_contiguous: true, ..Default::default() };
        let names = ["mixed", "a", "b", "a_log", "dt_bias", "state"];
        let kernel = MetalKernel::new("q35_delta_step", &names, &["out", "state_out"], SOURCE, options)?;
        let kernel = Self { kernel, sizes };
        let Sizes { key_heads, value_heads, key_dim, value_dim } = sizes;
        let seed = random::key(35)?;
        let draw = |shape: &[i32]| random::normal::<f32>(shape, None, None, &seed);
        let width = 2 * key_heads * key_dim + value_heads * value_dim;
        let projected =
            Projected { mixed: draw(&[1, width])?, a: draw(&[1, value_heads])?, b: draw(&[1, value_heads])? };
        let (a_log, dt_bias) = (draw(&[value_heads])?, draw(&[value_heads])?);
        let gates = Gates { a_log: &a_log, dt_bias: &dt_bias };
        let state = draw(&[value_heads, value_dim, key_dim])?;
        let (out, after) = kernel.step(&projected, gates, &state)?;
        let (want_out, want_after) = step_by_operations(&projected, gates, sizes, &state)?;
        let agrees = |a: &Array, b: &Array| -> Result<bool> {
            let worst = to_host(&a.subtract(b)?.abs()?.max(None)?)?;
            // False for what is not a number, too.
            Ok(worst.iter().all(|worst| *worst <= TOLERANCE))
        };
        Ok((agrees(&out, &want_out)? && agrees(&after, &want_after)?).then_some(kernel))
    }

    /// One token: output [1, H, V] and the state after it.
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
        // SAFETY: lanes 0 to 31 of each (column, head) write that row of `state_out` and one element of `out`, so every
        // element is written once; all reads lie inside inputs of exactly these shapes, which MLX hands over
        // row-contiguous; K is a multiple of 32.
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
