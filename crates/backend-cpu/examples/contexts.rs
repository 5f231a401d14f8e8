//! Decode speed after a short and a long context, alternating in one process so that load on the machine affects both:
//! `cargo run --release -p q35-backend-cpu --example contexts -- DIR THREADS [ROUNDS]`. Prints one line of JSON.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints its results")]

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use q35_backend_cpu::{CpuModel, CpuOptions};
use q35_format_mlx::MlxDirectory;
use q35_inference::{Discard, LogitsFor, Model, Sequence, Snapshot};

const CONTEXTS: [usize; 2] = [128, 8192];
const DECODED: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("the model's directory is missing")?;
    let threads: usize = arguments.next().ok_or("the number of threads is missing")?.parse()?;
    let rounds: usize = arguments.next().map_or(Ok(9), |count| count.parse())?;
    let directory = Arc::new(MlxDirectory::open(directory.as_ref())?);
    let vocabulary = directory.config().vocab_size;
    let model = CpuModel::open(directory, CpuOptions::default().with_threads(threads))?;
    let ids: Vec<u32> = (0..CONTEXTS[1] + DECODED).map(|i| ((i * 7919 + 13) % vocabulary) as u32).collect();
    let mut sequences = Vec::new();
    for context in CONTEXTS {
        let mut sequence = model.new_sequence(context + DECODED)?;
        sequence.extend(&ids[..context], LogitsFor::None, &mut Discard)?;
        let start = sequence.snapshot()?;
        sequences.push((context, sequence, start));
    }
    let mut speeds = [const { Vec::new() }; 2];
    for _ in 0..rounds {
        for ((context, sequence, start), speeds) in sequences.iter_mut().zip(&mut speeds) {
            speeds.push(decode(&mut **sequence, start, &ids[*context..][..DECODED])?);
        }
    }
    let [short, long] = speeds.each_ref().map(|speeds| median(speeds.clone()));
    let ratios = speeds[1].iter().zip(&speeds[0]).map(|(long, short)| long / short).collect();
    println!(
        "{{\"threads\": {threads}, \"rounds\": {rounds}, \"contexts\": {CONTEXTS:?}, \"decode_tok_s\": [{short:.2}, \
         {long:.2}], \"ratio\": {:.4}}}",
        median(ratios)
    );
    Ok(())
}

/// Tokens per second after `start`. The first token is not timed: it warms the caches.
fn decode(sequence: &mut dyn Sequence, start: &Snapshot, ids: &[u32]) -> Result<f64, Box<dyn Error>> {
    sequence.restore(start)?;
    sequence.extend(&ids[..1], LogitsFor::LastToken, &mut Discard)?;
    let begin = Instant::now();
    for id in &ids[1..] {
        sequence.extend(std::slice::from_ref(id), LogitsFor::LastToken, &mut Discard)?;
    }
    Ok((ids.len() - 1) as f64 / begin.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
