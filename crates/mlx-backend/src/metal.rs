//! The delta rule's step as one Metal kernel: two passes over the state where MLX's operations make six.
//!
//! It could not be run where it was written, so it is not trusted: [`StepKernel::checked`] compares it with the
//! operations on the machine that would use it, and gives nothing where it fails or differs.

use mlx_rs::error::Result;
use mlx_rs::fast::{
    MetalKernel, MetalKernelApplyOptions, MetalKernelOptions, MetalKernelOutput, TemplateArg,
};
use mlx_rs::{Array, Dtype, random};

use crate::delta::{Inputs, step_by_operations};

/// One thread per value column of a head; it walks the key axis twice. `K` and `V` are template parameters.
const SOURCE: &str = r"
    const uint column = thread_position_in_grid.x;
    const uint head = thread_position_in_grid.y;
    const float decay = metal::exp(log_decay[head]);
    const device float* keys = k + head * K;
    const device float* queries = q + head * K;
    const device float* before = state + head * K * V + column;
    device float* after = state_out + head * K * V + column;
    float seen = 0;
    for (uint i = 0; i < K; ++i) { seen += before[i * V] * keys[i]; }
    const float delta = beta[head] * (v[head * V + column] - decay * seen);
    float read = 0;
    for (uint i = 0; i < K; ++i) {
        const float updated = decay * before[i * V] + keys[i] * delta;
        after[i * V] = updated;
        read += updated * queries[i];
    }
    out[head * V + column] = read;
";

/// Largest difference between kernel and operations that is rounding: both sum a few hundred products in f32.
const TOLERANCE: f32 = 1e-4;

pub(crate) struct StepKernel(MetalKernel);

impl StepKernel {
    /// The kernel, if it exists here and agrees with the operations on random inputs of this model's shape.
    pub fn checked(heads: i32, key_dim: i32, value_dim: i32) -> Option<Self> {
        let attempt = || -> Result<Option<Self>> {
            let options = MetalKernelOptions { ensure_row_contiguous: true, ..Default::default() };
            let names = ["q", "k", "v", "log_decay", "beta", "state"];
            let kernel =
                Self(MetalKernel::new("q35_delta_step", &names, &["out", "state_out"], SOURCE, options)?);
            let draw = |shape: &[i32]| random::normal::<f32>(shape, None, None, None);
            let inputs = Inputs {
                q: draw(&[heads, 1, key_dim])?,
                k: draw(&[heads, 1, key_dim])?.multiply(Array::from_f32((key_dim as f32).sqrt().recip()))?,
                v: draw(&[heads, 1, value_dim])?,
                log_decay: draw(&[heads, 1])?.abs()?.negative()?,
                beta: draw(&[heads, 1])?.abs()?,
            };
            let state = draw(&[heads, key_dim, value_dim])?;
            let (out, after) = kernel.step(&inputs, &state)?;
            let (want_out, want_after) = step_by_operations(&inputs, &state)?;
            let differs = |a: &Array, b: &Array| -> Result<bool> {
                let worst = a.subtract(b)?.abs()?.max(None)?.try_item::<f32>()?;
                Ok(worst.is_nan() || worst > TOLERANCE * (key_dim as f32).sqrt())
            };
            Ok((!differs(&out, &want_out)? && !differs(&after, &want_after)?).then_some(kernel))
        };
        attempt().ok().flatten()
    }

    /// One token: output [H, 1, V] and the state after it.
    pub fn step(&self, inputs: &Inputs, state: &Array) -> Result<(Array, Array)> {
        let (heads, key_dim, value_dim) = (state.dim(0), state.dim(1), state.dim(2));
        let output = |shape: &[i32]| MetalKernelOutput { shape: shape.to_vec(), dtype: Dtype::Float32 };
        let outputs = [output(&[heads, 1, value_dim]), output(&[heads, key_dim, value_dim])];
        let template = [("K", key_dim), ("V", value_dim)];
        let options = MetalKernelApplyOptions {
            template_args: template.map(|(name, size)| (name.to_owned(), TemplateArg::Int(size))).to_vec(),
            ..Default::default()
        };
        let arrays = [&inputs.q, &inputs.k, &inputs.v, &inputs.log_decay, &inputs.beta, state];
        let threads = (value_dim, heads, 1);
        // SAFETY: one thread per column of each head, so every element of both outputs is written once, and all reads
        // lie inside inputs of exactly these shapes, which MLX hands over row-contiguous.
        let mut results =
            unsafe { self.0.apply(&arrays, &outputs, threads, (value_dim.min(256), 1, 1), options)? };
        let after = results.pop();
        let out = results.pop();
        Ok(out.zip(after).expect("two outputs were declared"))
    }
}
