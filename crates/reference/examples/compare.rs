//! Runs a checkpoint through the float reference and compares with logits of other software, in a safetensors file with
//! `input_ids` [T] i64, `logits` [T + steps, vocab] f32 and `decoded_ids` [steps] i64.
//!
//! `cargo run --release -p q35-reference --example compare -- CHECKPOINT LOGITS.safetensors`

#![allow(clippy::print_stdout)] // The line is the result.

use std::time::Instant;

use q35_checkpoint::Checkpoint;
use q35_inference::{LogitsFor, Model, Observer};
use q35_metrics::{argmax, compare_rows};
use q35_reference::{Device, Reference};

struct Compare<'a> {
    expected: &'a [u8],
    kl: f64,
    difference: f32,
    rows: usize,
    best: u32,
}

impl Observer for Compare<'_> {
    fn logits(&mut self, position: usize, row: &[f32]) {
        let bytes = 4 * row.len();
        let expected = &self.expected[position * bytes..(position + 1) * bytes];
        let expected: Vec<f32> =
            expected.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        self.kl += compare_rows(&expected, row).expect("finite rows").kl;
        self.difference =
            expected.iter().zip(row).map(|(a, b)| (a - b).abs()).fold(self.difference, f32::max);
        self.rows += 1;
        self.best = argmax(row).expect("a row") as u32;
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, checkpoint, logits] = arguments.as_slice() else { return Err("CHECKPOINT LOGITS".into()) };
    let bytes = std::fs::read(logits)?;
    let file = safetensors::SafeTensors::deserialize(&bytes)?;
    let ids = |name: &str| -> Result<Vec<u32>, safetensors::SafeTensorError> {
        let data = file.tensor(name)?.data();
        Ok(data.chunks_exact(8).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    let (input_ids, decoded_ids) = (ids("input_ids")?, ids("decoded_ids")?);
    let started = Instant::now();
    let model = Reference::load(&Checkpoint::open(checkpoint.as_ref())?, Device::Cpu)?;
    let loaded = started.elapsed();
    let mut compare =
        Compare { expected: file.tensor("logits")?.data(), kl: 0.0, difference: 0.0, rows: 0, best: 0 };
    let mut sequence = model.new_sequence(input_ids.len() + decoded_ids.len())?;
    let started = Instant::now();
    sequence.extend(&input_ids, LogitsFor::AllTokens, &mut compare)?;
    let prefilled = started.elapsed();
    let started = Instant::now();
    let mut same = 0;
    for id in &decoded_ids {
        same += usize::from(compare.best == *id);
        sequence.extend(&[*id], LogitsFor::LastToken, &mut compare)?;
    }
    println!(
        "{} rows: mean KL {:.2e}, largest difference {:.2e}, greedy {same}/{}; load {loaded:.2?}, prefill {prefilled:.2?}, \
         decode {:.2?}",
        compare.rows,
        compare.kl / compare.rows as f64,
        compare.difference,
        decoded_ids.len(),
        started.elapsed()
    );
    Ok(())
}
