//! Compares a directory of packages with stored logits: `compare_logits DIR EXPECTED.safetensors [half]`. The file holds
//! `input_ids` [n] and `logits` [n, vocab], for example those that other software computed with the same packages.
//!
//! Prints the divergence of all tokens processed one by one and, if the packages have a prefill function, that of the
//! last token after a prefill in chunks.
#![allow(clippy::print_stdout, reason = "an example is a program")]

use anyhow::{Context, Result, bail};
use q35_backend_coreml::{CoreMlModel, Precision};
use q35_checkpoint::SafetensorsFile;
use q35_inference::{LogitsFor, Model, Observer};
use q35_metrics::{Summarizer, compare_rows};

#[derive(Default)]
struct Collect(Vec<Vec<f32>>);

impl Observer for Collect {
    fn logits(&mut self, _position: usize, row: &[f32]) {
        self.0.push(row.to_vec());
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, expected, options @ ..] = &arguments[..] else {
        bail!("usage: compare_logits DIR EXPECTED.safetensors [half]")
    };
    let precision =
        if options.iter().any(|option| option == "half") { Precision::Half } else { Precision::Exact };
    let file = SafetensorsFile::open(expected.as_ref())?;
    let ids = file.tensor("input_ids").context("no input_ids")?;
    let width = ids.data.len() / ids.shape.iter().product::<usize>().max(1);
    let ids: Vec<u32> =
        ids.data.chunks_exact(width).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let logits = file.tensor("logits").context("no logits")?;
    let logits: Vec<f32> =
        logits.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let expected: Vec<&[f32]> = logits.chunks_exact(logits.len() / ids.len()).collect();

    let model = CoreMlModel::open(dir.as_ref(), precision)?;
    println!("{}", model.describe());
    let mut sequence = model.new_sequence(ids.len())?;
    let mut found = Collect::default();
    let started = std::time::Instant::now();
    sequence.extend(&ids, LogitsFor::AllTokens, &mut found)?;
    println!("{} tokens in {:.2} s", ids.len(), started.elapsed().as_secs_f64());
    report("token by token", &expected, &found.0)?;
    if model.prefill_alignment() > 1 {
        sequence.reset();
        let mut found = Collect::default();
        sequence.extend(&ids, LogitsFor::LastToken, &mut found)?;
        report("after a prefill", &expected[expected.len() - 1..], &found.0)?;
    }
    Ok(())
}

fn report(label: &str, expected: &[&[f32]], found: &[Vec<f32>]) -> Result<()> {
    let (mut summary, mut worst) = (Summarizer::default(), 0.0f32);
    for (expected, found) in expected.iter().zip(found) {
        summary.push(&compare_rows(expected, found)?);
        let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let difference = expected.iter().zip(found).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        worst = worst.max(difference / largest);
    }
    let summary = summary.finish();
    println!(
        "{label}: mean KL {:.3e}, top-1 {:.1} %, relative difference {worst:.2e}",
        summary.kl.mean,
        100.0 * summary.top1_agreement
    );
    Ok(())
}
