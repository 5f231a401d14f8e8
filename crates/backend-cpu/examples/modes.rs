//! KL divergence of the fast mode from the exact one on a model: `cargo run --release -p q35-backend-cpu --example modes -- DIR
//! [TOKENS]`. Prints one line of JSON with statistics over the next-token distributions.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints its results")]

use std::error::Error;
use std::sync::Arc;

use q35_backend_cpu::{CpuModel, CpuOptions, Mode};
use q35_format_mlx::MlxDirectory;
use q35_inference::{LogitsFor, Model, Observer};
use q35_metrics::{Summarizer, compare_rows};

/// Keeps the last logits.
struct LastLogits(Vec<f32>);

impl Observer for LastLogits {
    fn logits(&mut self, _position: usize, logits: &[f32]) {
        self.0 = logits.to_vec();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("the model's directory is missing")?;
    let tokens: usize = arguments.next().map_or(Ok(256), |count| count.parse())?;
    let directory = Arc::new(MlxDirectory::open(directory.as_ref())?);
    let open = |mode| CpuModel::open(Arc::clone(&directory), CpuOptions::default().with_mode(mode));
    let (exact, fast) = (open(Mode::Exact)?, open(Mode::Fast)?);
    let (mut exact_run, mut fast_run) = (exact.new_sequence(tokens)?, fast.new_sequence(tokens)?);
    let (mut expected, mut actual) = (LastLogits(Vec::new()), LastLogits(Vec::new()));
    let mut summary = Summarizer::default();
    for i in 0..tokens {
        let id = [((i * i * 131 + i * 7919 + 13) % directory.config().vocab_size) as u32];
        exact_run.extend(&id, LogitsFor::LastToken, &mut expected)?;
        fast_run.extend(&id, LogitsFor::LastToken, &mut actual)?;
        summary.push(&compare_rows(&expected.0, &actual.0)?);
    }
    let summary = summary.finish();
    println!(
        "{{\"tokens\": {tokens}, \"kl_mean\": {:e}, \"kl_p99\": {:e}, \"kl_max\": {:e}, \"top1_agreement\": {}}}",
        summary.kl.mean, summary.kl.p99, summary.kl.max, summary.top1_agreement
    );
    Ok(())
}
