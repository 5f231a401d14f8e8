//! `q35-chat bench`: speed of prefill and decode, measured as llama-bench does.

use std::time::{Duration, Instant};

use anyhow::ensure;
use q35_artefact::{QuantizeOptions, quantize_checkpoint};
use q35_inference::{LogitsFor, Observer, Sequence};
use serde::Serialize;

use crate::backend::VariantArg;
use crate::exit::Outcome;
use crate::open::{RunArgs, open};
use crate::output::{Table, json, line};
use crate::progress::Watcher;
use crate::source::{self, NANO};

/// Measures how fast a model runs: prefill, decode, loading, memory
///
/// Tokens are random ones; every repetition starts anew. Prefill gives the logits of its last token only. The
/// bandwidth is the decode speed times the bytes of weights that a token reads.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// A converted model's directory, a float checkpoint, a hub id, or q35-nano for the small model in this program
    #[arg(long, value_name = "DIR|ID")]
    model: String,

    /// Branch, tag or commit on the hub
    #[arg(long, value_name = "REV")]
    revision: Option<String>,

    /// The variant.
    #[command(flatten)]
    variant: VariantArg,

    /// Tokens of the prompt; 0 skips prefill
    #[arg(short = 'p', long, value_name = "TOKENS", default_value_t = 512)]
    prompt: usize,

    /// Tokens decoded one by one; 0 skips decode
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 64)]
    generate: usize,

    /// Tokens in the context before either measurement
    #[arg(short = 'd', long, value_name = "TOKENS", default_value_t = 0)]
    depth: usize,

    /// Repetitions; figures are medians
    #[arg(short = 'r', long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,

    /// Start cold: no untimed run first
    #[arg(long)]
    no_warmup: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    how: RunArgs,
}

/// Result of a benchmark. Speeds are in tokens per second; a skipped measurement is null.
#[derive(Debug, Serialize)]
struct BenchResult {
    model: String,
    backend: String,
    threads: usize,
    prompt: usize,
    generate: usize,
    depth: usize,
    repetitions: u32,
    load_s: f64,
    prefill_tok_s: Option<f64>,
    prefill_tok_s_range: Option<[f64; 2]>,
    decode_tok_s: Option<f64>,
    decode_tok_s_range: Option<[f64; 2]>,
    weight_bytes_per_token: u64,
    decode_gb_s: Option<f64>,
    resident_bytes: Option<u64>,
    mapped_bytes: u64,
    owned_bytes: u64,
    cache_bytes: u64,
    scratch_bytes: u64,
}

impl Bench {
    /// Runs the command.
    ///
    /// # Errors
    /// The model cannot be opened or run.
    pub(super) fn run(&self) -> anyhow::Result<Outcome> {
        ensure!(self.prompt + self.generate > 0, "nothing to measure: both --prompt and --generate are 0");
        let (watcher, variant) = (Watcher::detect(self.json), self.variant.name());
        let source = source::resolve(&self.model, self.revision.as_deref(), variant, watcher)?;
        // The embedded model is measured as chat runs it; any other float checkpoint on the float reference.
        let quantized = match source.id.as_deref() == Some(NANO) {
            true => Some(quantize_checkpoint(&source.dir, &QuantizeOptions::default(), &|_| {})?),
            false => None,
        };
        let dir = quantized.as_ref().map_or(&source.dir, |quantized| &quantized.artefact.dir);
        let start = Instant::now();
        let model = open(dir, variant, self.how)?;
        let load = start.elapsed();
        let mut sequence = model.new_sequence(self.depth + self.prompt.max(self.generate))?;
        let ids = random_ids(self.depth + self.prompt.max(self.generate), model.config().vocab_size);
        let (before, after) = ids.split_at(self.depth);
        if !self.no_warmup {
            sequence.extend(&ids[..1], LogitsFor::LastToken, &mut Ignore)?;
            sequence.reset();
        }
        sequence.extend(before, LogitsFor::None, &mut Ignore)?;
        // At depth 0 a reset restores the state without a snapshot that would count as memory.
        let start_state = if self.depth > 0 { Some(sequence.snapshot()?) } else { None };
        let rewind = |sequence: &mut dyn Sequence| match &start_state {
            Some(snapshot) => sequence.restore(snapshot),
            None => {
                sequence.reset();
                Ok(())
            }
        };
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        for _ in 0..self.repetitions {
            if self.prompt > 0 {
                rewind(&mut *sequence)?;
                prefill.push(timed(|| {
                    sequence.extend(&after[..self.prompt], LogitsFor::LastToken, &mut Ignore)
                })?);
            }
            if self.generate > 0 {
                rewind(&mut *sequence)?;
                decode.push(timed(|| decode_each(&mut *sequence, &after[..self.generate]))?);
            }
        }
        let memory = model.memory();
        let (prefill, decode) = (Speeds::of(self.prompt, prefill), Speeds::of(self.generate, decode));
        let result = BenchResult {
            model: self.model.clone(),
            backend: model.describe(),
            threads: self.how.threads(),
            prompt: self.prompt,
            generate: self.generate,
            depth: self.depth,
            repetitions: self.repetitions,
            load_s: load.as_secs_f64(),
            prefill_tok_s: prefill.as_ref().map(|speeds| speeds.median),
            prefill_tok_s_range: prefill.as_ref().map(|speeds| speeds.range),
            decode_tok_s: decode.as_ref().map(|speeds| speeds.median),
            decode_tok_s_range: decode.as_ref().map(|speeds| speeds.range),
            weight_bytes_per_token: memory.weight_bytes_per_token,
            decode_gb_s: decode
                .as_ref()
                .map(|speeds| speeds.median * memory.weight_bytes_per_token as f64 / 1e9),
            resident_bytes: resident_bytes(),
            mapped_bytes: memory.mapped_bytes,
            owned_bytes: memory.owned_bytes,
            cache_bytes: sequence.cache_bytes(),
            scratch_bytes: sequence.scratch_bytes(),
        };
        if self.json {
            json(&result)?
        } else {
            result.print()?
        }
        Ok(Outcome::Done)
    }
}

impl BenchResult {
    fn print(&self) -> std::io::Result<()> {
        line(format!("{}: {}", self.model, self.backend))?;
        let mut table = Table::with_titles(["", "tokens/s", "slowest", "fastest"]);
        let mut speed = |name: String, median: Option<f64>, range: Option<[f64; 2]>| {
            if let (Some(median), Some([slowest, fastest])) = (median, range) {
                table.row([name, format!("{median:.1}"), format!("{slowest:.1}"), format!("{fastest:.1}")]);
            }
        };
        let depth = if self.depth > 0 { format!(" after {}", self.depth) } else { String::new() };
        speed(format!("prefill {}{depth}", self.prompt), self.prefill_tok_s, self.prefill_tok_s_range);
        speed(format!("decode {}{depth}", self.generate), self.decode_tok_s, self.decode_tok_s_range);
        line(table.render())?;
        let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        if let Some(rate) = self.decode_gb_s {
            let bytes = megabytes(self.weight_bytes_per_token);
            line(format!("a token reads {bytes} of weights: {rate:.1} GB/s"))?;
        }
        let resident = self.resident_bytes.map_or("unknown".to_owned(), megabytes);
        line(format!(
            "loaded in {:.3} s; resident {resident}: weights {} mapped and {} owned, caches {}, scratch {}",
            self.load_s,
            megabytes(self.mapped_bytes),
            megabytes(self.owned_bytes),
            megabytes(self.cache_bytes),
            megabytes(self.scratch_bytes)
        ))
    }
}

/// Tokens per second over the repetitions.
struct Speeds {
    median: f64,
    /// Slowest and fastest.
    range: [f64; 2],
}

impl Speeds {
    /// `None` without measurements.
    fn of(tokens: usize, mut times: Vec<Duration>) -> Option<Self> {
        times.sort();
        let speed = |time: &Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
        let range = [speed(times.last()?), speed(times.first()?)];
        Some(Self { median: speed(&times[times.len() / 2]), range })
    }
}

fn timed<E>(work: impl FnOnce() -> Result<(), E>) -> Result<Duration, E> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn decode_each(sequence: &mut dyn Sequence, ids: &[u32]) -> Result<(), q35_inference::RunError> {
    ids.iter().try_for_each(|id| sequence.extend(&[*id], LogitsFor::LastToken, &mut Ignore))
}

struct Ignore;

impl Observer for Ignore {
    fn logits(&mut self, _position: usize, row: &[f32]) {
        std::hint::black_box(row);
    }
}

/// Pseudo-random token ids, the same in every run: Knuth's multiplicative hash of the index.
fn random_ids(count: usize, vocab_size: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_769) >> 8) % vocab_size as u32).collect()
}

/// Resident memory of this process, where the system publishes it in a file.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_time_is_the_speed() {
        let seconds = |times: &[u64]| times.iter().copied().map(Duration::from_secs).collect();
        let speeds = Speeds::of(12, seconds(&[4, 1, 2])).unwrap();
        assert_eq!((speeds.median, speeds.range), (6.0, [3.0, 12.0]));
        assert!(Speeds::of(12, Vec::new()).is_none());
    }

    #[test]
    fn tokens_are_of_the_vocabulary_and_differ() {
        let ids = random_ids(100, 50);
        assert!(ids.iter().all(|&id| id < 50));
        assert!((0..50).filter(|id| ids.contains(id)).count() > 30);
    }
}
