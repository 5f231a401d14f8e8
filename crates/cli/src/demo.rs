//! The demo: converts the embedded model, holds it against the float reference, and talks with it.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use q35_backend_cpu::{CpuModel, CpuOptions, Mode};
use q35_checkpoint::Checkpoint;
use q35_format_mlx::{MlxDirectory, RoundToNearest, WriteOptions};
use q35_inference::{LogitsFor, Model, Observer, RunError};
use q35_metrics::{Summarizer, Summary, compare_rows};
use q35_quant::affine::AffineSpec;
use q35_reference::{Device, Reference};
use q35_runtime::{Chat, Chunk, Sampling, Usage};
use q35_text::Tokenizer;

use crate::exit::Outcome;
use crate::output::{Table, bytes, grouped, line};
use crate::progress::Watcher;
use crate::source::{NANO, resolve};

/// Text for the comparison with the float model: what the model is for, and what it is not.
const TEXT: &str = "<|im_start|>user\nMy name is Ada and I live in Quito.<|im_end|>\n<|im_start|>assistant\n<think>\n\n\
</think>\n\nNice to meet you, Ada!<|im_end|>\n<|im_start|>user\nWhat is 27 + 15?<|im_end|>\n<|im_start|>assistant\n\
<think>\n\n</think>\n\n27 + 15 = 42<|im_end|>\nThe for loop is used to iterate over the elements of a sequence such as \
a string, tuple or list. If the function returns an error, the value is dropped and the caller has to handle it.";

/// A conversation whose answers are known.
const TURNS: [(&str, &str); 4] = [
    ("Hello! My name is Ada.", "Ada"),
    ("What is 27 + 15?", "42"),
    ("What is a rocket?", "rocket"),
    ("What's my name?", "Ada"),
];

/// Runs the demo: the answer is no when a reply is not the known one.
///
/// # Errors
/// A step could not run.
pub fn run() -> anyhow::Result<Outcome> {
    let watcher = Watcher::detect(false);
    line(
        "q35-nano: a toy of 7 million parameters with exactly the layers of Qwen3.5, embedded in this program.\n",
    )?;
    let source = resolve(NANO, None, None, watcher)?;
    let work = tempfile::tempdir().context("cannot make a temporary directory")?;

    line("1. Convert to MLX, round to nearest, groups of 64")?;
    let checkpoint = Checkpoint::open(&source.dir)?;
    let reference = Reference::load(&checkpoint, Device::Cpu)?;
    let ids = Tokenizer::from_dir(&source.dir)?.encode(TEXT)?;
    let expected = Logits::of(&reference, &ids)?;
    let mut table =
        Table::with_titles(["", "size", "bits/weight", "seconds", "KL to float", "top-1 as float"]);
    table.row([
        "float".into(),
        bytes(std::fs::metadata(source.dir.join("model.safetensors"))?.len()),
        "16".into(),
        String::new(),
        String::new(),
        String::new(),
    ]);
    for bits in [8, 4] {
        let out = work.path().join(format!("int{bits}"));
        let converted = convert(&checkpoint, bits, &out)?;
        let summary = compare(&out, &ids, &expected)?;
        table.row([
            format!("INT{bits}"),
            bytes(converted.tensor_bytes),
            format!("{:.2}", converted.bits_per_weight),
            format!("{:.2}", converted.seconds),
            format!("{:.1e}", summary.kl.mean),
            format!("{:.1} %", 100.0 * summary.top1_agreement),
        ]);
    }
    line(table.render())?;
    line(format!(
        "   over {} positions; the float model runs on candle, the converted ones on {}\n",
        grouped(ids.len() as u64),
        open(&work.path().join("int4"))?.describe(),
    ))?;

    line("2. Talk with the INT4 model, temperature 0")?;
    talk(&work.path().join("int4"))
}

struct Converted {
    tensor_bytes: u64,
    bits_per_weight: f64,
    seconds: f64,
}

fn convert(checkpoint: &Checkpoint, bits: u32, out: &Path) -> anyhow::Result<Converted> {
    let started = Instant::now();
    std::fs::create_dir(out)?;
    let recipe = RoundToNearest(AffineSpec::new(bits, 64)?);
    let options = WriteOptions { source_id: Some(NANO.to_owned()), ..WriteOptions::default() };
    let summary = q35_format_mlx::write(checkpoint, &recipe, &options, out, &|_| {})?.summary;
    let seconds = started.elapsed().as_secs_f64();
    Ok(Converted { tensor_bytes: summary.tensor_bytes, bits_per_weight: summary.bits_per_weight, seconds })
}

fn open(dir: &Path) -> anyhow::Result<CpuModel> {
    let directory = Arc::new(MlxDirectory::open(dir)?);
    Ok(CpuModel::open(directory, CpuOptions::default().with_mode(Mode::Fast))?)
}

fn compare(dir: &Path, ids: &[u32], expected: &Logits) -> anyhow::Result<Summary> {
    let found = Logits::of(&open(dir)?, ids)?;
    let mut summarizer = Summarizer::default();
    for (reference, candidate) in expected.0.iter().zip(&found.0) {
        summarizer.push(&compare_rows(reference, candidate)?);
    }
    Ok(summarizer.finish())
}

/// A row of logits for each token; a small model and a short text only.
#[derive(Default)]
struct Logits(Vec<Vec<f32>>);

impl Logits {
    fn of(model: &dyn Model, ids: &[u32]) -> Result<Self, RunError> {
        let mut rows = Self::default();
        model.new_sequence(ids.len())?.extend(ids, LogitsFor::AllTokens, &mut rows)?;
        Ok(rows)
    }
}

impl Observer for Logits {
    fn logits(&mut self, _position: usize, row: &[f32]) {
        self.0.push(row.to_vec());
    }
}

fn talk(dir: &Path) -> anyhow::Result<Outcome> {
    let chat = Chat::from_pretrained(&dir.to_string_lossy())?;
    let mut session = chat.session();
    let sampling = Sampling::default().with_temperature(0.0).with_max_tokens(64).with_thinking(false);
    let (mut total, mut seconds, mut known) = (Usage::default(), 0.0, true);
    for (question, answer) in TURNS {
        line(format!("   you:  {question}"))?;
        let mut text = String::new();
        for chunk in session.send(question, &sampling)? {
            match chunk? {
                Chunk::Answer(piece) => text.push_str(&piece),
                Chunk::Finish(finish) => {
                    total.prompt_tokens += finish.usage.prompt_tokens;
                    total.cached_tokens += finish.usage.cached_tokens;
                    total.completion_tokens += finish.usage.completion_tokens;
                    seconds += finish.timing.decode.as_secs_f64();
                }
                _ => {}
            }
        }
        line(format!("   nano: {text}"))?;
        if !text.contains(answer) {
            known = false;
            line(format!("   (expected an answer with `{answer}`)"))?;
        }
    }
    line(format!(
        "\n   {} tokens at {:.0} a second; of {} prompt tokens the prompt cache spared {}",
        total.completion_tokens,
        total.completion_tokens as f64 / seconds.max(1e-9),
        total.prompt_tokens,
        total.cached_tokens,
    ))?;
    Ok(if known { Outcome::Done } else { Outcome::No })
}
