//! How far the fast mode is from the exact one on a model: `cargo run --release -p q35-backend-cpu --example modes -- DIR
//! [TOKENS]`. Prints one line of JSON with the KL divergence of the next token's distributions, exact to fast.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints its results")]

use std::error::Error;
use std::sync::Arc;

use q35_backend_cpu::{CpuModel, CpuOptions, Mode};
use q35_format_mlx::MlxDirectory;
use q35_inference::{LogitsFor, Model, Observer};
use q35_metrics::{Summarizer, compare_rows};

struct Keep(Vec<f32>);

impl Observer for Keep {
    fn logits(&mut self, _position: usize, row: &[f32]) {
        self.0 = row.to_vec();
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
    let (mut expected, mut got) = (Keep(Vec::new()), Keep(Vec::new()));
    let mut summary = Summarizer::default();
    for i in 0..tokens {
        let id = [((i * i * 131 + i * 7919 + 13) % directory.config().vocab_size) as u32];
        exact_run.extend(&id, LogitsFor::LastToken, &mut expected)?;
        fast_run.extend(&id, LogitsFor::LastToken, &mut got)?;
        summary.push(&compare_rows(&expected.0, &got.0)?);
    }
    let summary = summary.finish();
    println!(
        "{{\"tokens\": {tokens}, \"kl_mean\": {:e}, \"kl_p99\": {:e}, \"kl_max\": {:e}, \"top1_agreement\": {}}}",
        summary.kl.mean, summary.kl.p99, summary.kl.max, summary.top1_agreement
    );
    Ok(())
}
