//! The demo: converts the embedded model to both formats, compares each with the float model, and talks with it.

use std::path::Path;

use anyhow::Context as _;
use q35_convert::{ConvertOptions, CoreMl, Mlx, Source, Target, convert};
use q35_format_coreml::Options;
use q35_runtime::{Chat, Chunk, Sampling, Usage};

use crate::conversion::StageBars;
use crate::exit::Outcome;
use crate::output::{Table, bytes, grouped, line};
use crate::progress::Watcher;

/// Questions, each with a word of its expected answer.
const TURNS: [(&str, &str); 4] = [
    ("Hello! My name is Ada.", "Ada"),
    ("What is 27 + 15?", "42"),
    ("What is a rocket?", "rocket"),
    ("What's my name?", "Ada"),
];

/// Name of the Core ML output.
const COREML: &str = "Core ML INT8";
/// Name of the MLX output to talk with.
const MLX: &str = "MLX INT8";

/// Runs the demo. The answer is no if a conversion fails its parity check or a reply lacks the expected word.
///
/// # Errors
/// A step could not run.
pub fn run() -> anyhow::Result<Outcome> {
    let watcher = Watcher::detect(false);
    line(
        "q35-nano: a toy of 7 million parameters with exactly the layers of Qwen3.5, embedded in this program.\n",
    )?;
    let source = Source::embedded()?;
    let work = tempfile::tempdir().context("cannot make a temporary directory")?;

    line("1. Convert to MLX and Core ML, and compare each with the float model")?;
    let mut table = Table::with_titles([
        "",
        "size",
        "seconds",
        "KL to float",
        "top-1 as float",
        "computed right",
        "fidelity",
    ]);
    let float = bytes(std::fs::metadata(source.dir.join("model.safetensors"))?.len());
    table.add_row(vec!["float".to_owned(), float]);
    let coreml = CoreMl::new(Options { context: 512, ..Options::default() });
    let targets: [(&str, &dyn Target); 3] = [
        (MLX, &Mlx::round_to_nearest(8, 64)?),
        ("MLX INT4", &Mlx::round_to_nearest(4, 64)?),
        (COREML, &coreml),
    ];
    let (mut passed, mut positions) = (true, 0);
    for (name, target) in targets {
        let options = ConvertOptions::new(work.path().join(name));
        let bars = StageBars::new(watcher);
        let report = convert(&source, target, &options, &|progress| bars.show(progress))?;
        let parity = report.parity.as_ref().context("the conversion was not verified")?;
        let total = parity.total.as_ref().context("the conversion was not run")?;
        passed &= parity.passed;
        positions = total.positions;
        table.row([
            name.into(),
            bytes(report.output_bytes()),
            format!("{:.1}", report.elapsed.as_secs_f64()),
            format!("{:.1e}", total.kl.mean),
            format!("{:.1} %", 100.0 * total.top1_agreement),
            if parity.passed { "yes" } else { "NO" }.into(),
            report.grade().map_or_else(String::new, |grade| grade.to_string()),
        ]);
    }
    line(table.render())?;
    line(format!(
        "   over {} positions; seconds include the comparison; INT4 is rounded to nearest (q35-convert mlx calibrates)\n",
        grouped(positions as u64)
    ))?;

    line(format!("2. Talk with the {MLX} model, temperature 0"))?;
    let mlx = talk(&work.path().join(MLX), &TURNS)?;
    line(format!("3. The {COREML} model, on the evaluator"))?;
    let coreml = talk(&work.path().join(COREML), &TURNS[1..2])?;
    Ok(if passed && mlx && coreml { Outcome::Done } else { Outcome::No })
}

/// Asks the questions in one session. Returns true if every answer has its expected word.
fn talk(dir: &Path, turns: &[(&str, &str)]) -> anyhow::Result<bool> {
    let chat = Chat::from_pretrained(&dir.to_string_lossy())?;
    let mut session = chat.session();
    let sampling = Sampling::default().with_temperature(0.0).with_max_tokens(64).with_thinking(false);
    let (mut total, mut seconds, mut as_expected) = (Usage::default(), 0.0, true);
    for (question, expected) in turns {
        line(format!("   you:  {question}"))?;
        let mut text = String::new();
        for chunk in session.send(*question, &sampling)? {
            match chunk? {
                Chunk::Answer(part) => text.push_str(&part),
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
        if !text.contains(expected) {
            as_expected = false;
            line(format!("   (expected an answer with `{expected}`)"))?;
        }
    }
    line(format!(
        "\n   {} tokens at {:.0} per second; {} of {} prompt tokens came from the prompt cache\n",
        total.completion_tokens,
        total.completion_tokens as f64 / seconds.max(1e-9),
        total.cached_tokens,
        total.prompt_tokens,
    ))?;
    Ok(as_expected)
}
