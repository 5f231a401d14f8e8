//! `q35-convert eval`: perplexity, KL and task scores of several models side by side.

use std::cell::{Cell, OnceCell};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use q35_backend::{Backend, Running};
use q35_inference::{CancelToken, Model};
use q35_parity::perplexity::{TextScore, Windows, score_text};
use q35_parity::tasks::{KindScore, Task, TaskScores, greedy_replies};
use q35_parity::{Artefact, CheckpointText, DEFAULT_SUITE, ParityError, Suite, TextEncoder};
use serde_json::{Value, json};

use crate::backend::{BackendArgs, VariantArg};
use crate::commands::parity::{ArithmeticArgs, threads};
use crate::context::Context;
use crate::exit::Outcome;
use crate::output::{Table, grouped, json as print_json, line, note};
use crate::progress::Step;
use crate::source::{Source, resolve};

/// Arguments of `q35-convert eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model in any form: a directory, a hub id, or q35-nano; may be given several times
    #[arg(long, value_name = "DIR|ID", required = true, num_args = 1..)]
    pub model: Vec<String>,

    /// The variant of each model.
    #[command(flatten)]
    pub variant: VariantArg,

    /// The model to compare with, usually the float checkpoint
    #[arg(long, value_name = "CKPT")]
    pub against: Option<String>,

    /// Perplexity on this text, and KL and top-1 against the float model [default without --chat: the texts of the parity
    /// suite]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,

    /// Task scores on dialogues with known answers, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub chat: Option<PathBuf>,

    /// Tokens in a window, which begins with an empty context
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub window: usize,

    /// Tokens from one window's beginning to the next's [default: the window]
    #[arg(long, value_name = "N")]
    pub stride: Option<usize>,

    /// Use at most so many tokens of the text
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,

    /// Use at most so many dialogues of each kind
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,

    /// Longest reply in a dialogue, in tokens
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_tokens: usize,

    /// Arithmetic of the models.
    #[command(flatten)]
    pub arithmetic: ArithmeticArgs,

    /// Threads [default: all processors]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// The backend.
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// One model of the table.
struct Row {
    name: String,
    /// Owns the embedded model's files.
    _source: Source,
    artefact: Artefact,
    model: Box<dyn Model>,
    /// Dialogues computed at once; one where the backend has a single queue.
    workers: usize,
    text: Option<TextScore>,
    tasks: Option<TaskScores>,
}

/// Runs `q35-convert eval`.
///
/// # Errors
/// A model or a file cannot be used.
pub fn run(args: &Args, context: Context) -> anyhow::Result<Outcome> {
    let stride = args.stride.unwrap_or(args.window);
    ensure!(args.window >= 2, "--window {}: at least 2 tokens are needed to predict one", args.window);
    ensure!(
        (1..=args.window).contains(&stride),
        "--stride {stride}: expected 1 to the window, {}",
        args.window
    );
    let windows = Windows { window: args.window, stride, most_tokens: args.tokens.unwrap_or(usize::MAX) };
    let against = args.against.iter().map(|name| open(name, None, args, context));
    let models = args.model.iter().map(|name| open(name, args.variant.name(), args, context));
    let mut rows = against.chain(models).collect::<anyhow::Result<Vec<_>>>()?;
    if let (Some(name), kind) = (&args.against, rows[0].artefact.kind())
        && !matches!(kind.as_str(), "float" | "mlx-float")
    {
        note(format!(
            "note: {name} is quantized itself ({kind}): differences are against it, not a float model"
        ));
    }
    let cancel = crate::interrupt::token()?;
    let mut tokens = 0;
    let evaluated = match (&args.text, &args.chat) {
        (Some(path), _) => Some((
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
            path.display().to_string(),
        )),
        (None, None) => Some((default_text()?, "the texts of the parity suite".to_owned())),
        (None, Some(_)) => None,
    };
    if let Some((text, name)) = &evaluated {
        tokens = score(&mut rows, text, name, windows, args, &cancel, context)?;
    }
    if let Some(path) = &args.chat {
        chat(&mut rows, path, args, &cancel, context)?;
    }
    if context.json {
        print_json(&as_json(&rows, args, windows, tokens))?;
    } else {
        print(&rows, args, windows)?;
    }
    Ok(Outcome::Done)
}

fn open(name: &str, variant: Option<&str>, args: &Args, context: Context) -> anyhow::Result<Row> {
    let source = resolve(name, None, variant, context.watcher)?;
    let artefact = Artefact::open(&source.dir, variant)?;
    let precision = args.arithmetic.precision();
    let mut options = args.backend.options(Backend::Cpu, Some(threads(args.threads)), precision);
    if artefact.kind() == "float" {
        // The float reference runs on no other backend.
        options.backend = Backend::Cpu;
    }
    let workers = if options.backend == Backend::Cpu { threads(args.threads) } else { 1 };
    let Running { model, .. } = artefact.open_model(&options)?;
    Ok(Row { name: name.to_owned(), _source: source, artefact, model, workers, text: None, tasks: None })
}

fn interrupted(error: ParityError) -> anyhow::Error {
    match error {
        ParityError::Cancelled => anyhow::anyhow!("interrupted"),
        error => error.into(),
    }
}

/// The texts of the default parity suite, conversations excluded. No recipe calibrates on them.
fn default_text() -> anyhow::Result<String> {
    let suite = Suite::from_json(DEFAULT_SUITE)?;
    Ok(suite.items.into_iter().filter_map(|item| item.text).collect::<Vec<_>>().join("\n\n"))
}

fn score(
    rows: &mut [Row],
    text: &str,
    name: &str,
    windows: Windows,
    args: &Args,
    cancel: &CancelToken,
    context: Context,
) -> anyhow::Result<usize> {
    let encoder = CheckpointText::open(rows[0].artefact.dir()).map_err(anyhow::Error::msg)?;
    let ids = encoder.encode(text).map_err(anyhow::Error::msg)?;
    let used = ids.len().min(windows.most_tokens);
    ensure!(used >= 2, "{name}: fewer than two tokens");
    let run = |title: &str, models: &[&dyn Model]| {
        let step: OnceCell<Step> = OnceCell::new();
        let seen = Cell::new(0);
        let progress = |done: u64, total: u64| {
            let step = step.get_or_init(|| context.watcher.counted_step(title, total));
            step.advance(done - seen.replace(done));
        };
        score_text(models, &ids, windows, cancel, &progress).map_err(interrupted)
    };
    // A comparison runs all models together; without one, each model by itself needs less memory.
    let scores = if args.against.is_some() {
        let models: Vec<&dyn Model> = rows.iter().map(|row| &*row.model).collect();
        run("tokens", &models)?
    } else {
        let each = rows.iter().map(|row| run(&row.name, &[&*row.model]));
        each.collect::<anyhow::Result<Vec<_>>>()?.concat()
    };
    for (row, score) in rows.iter_mut().zip(scores) {
        row.text = Some(score);
    }
    Ok(used)
}

fn chat(
    rows: &mut [Row],
    path: &Path,
    args: &Args,
    cancel: &CancelToken,
    context: Context,
) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let all =
        Task::parse_lines(&text).map_err(anyhow::Error::msg).with_context(|| path.display().to_string())?;
    let mut of_kind = std::collections::HashMap::new();
    let tasks: Vec<Task> = all
        .into_iter()
        .filter(|task| {
            let count = of_kind.entry(task.kind.clone()).or_insert(0usize);
            *count += 1;
            *count <= args.limit.unwrap_or(usize::MAX)
        })
        .collect();
    ensure!(!tasks.is_empty(), "{}: no dialogues", path.display());
    let step = context.watcher.counted_step("dialogues", (tasks.len() * rows.len()) as u64);
    for row in rows {
        let encoder = CheckpointText::open(row.artefact.dir())
            .map_err(anyhow::Error::msg)
            .with_context(|| row.name.clone())?;
        let ends = ends(row.artefact.dir(), &encoder)?;
        let prompts = tasks
            .iter()
            .map(|task| encoder.encode(&encoder.render(&task.messages, task.thinking)?))
            .collect::<Result<Vec<_>, _>>()
            .map_err(anyhow::Error::msg)?;
        let done = || step.advance(1);
        let replies =
            greedy_replies(&*row.model, &prompts, args.max_tokens, &ends, row.workers, cancel, &done)
                .map_err(interrupted)?;
        let mut scores = TaskScores::default();
        for (task, reply) in tasks.iter().zip(&replies) {
            scores.push(task, task.passes(&encoder.tokenizer().decode(reply)));
        }
        row.tasks = Some(scores);
    }
    Ok(())
}

/// The tokens that end a reply: those of generation_config.json and of the chat format.
fn ends(dir: &Path, text: &CheckpointText) -> anyhow::Result<Vec<u32>> {
    let path = dir.join("generation_config.json");
    let config: Option<Value> = if path.is_file() { Some(q35_checkpoint::read_json(&path)?) } else { None };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let mut ends: Vec<u32> = match config.as_ref().map(|config| &config["eos_token_id"]) {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    };
    ends.extend(["<|im_end|>", "<|endoftext|>"].iter().filter_map(|token| text.tokenizer().id_of(token)));
    if ends.is_empty() {
        bail!("{}: no token is known to end a reply", dir.display());
    }
    Ok(ends)
}

/// Relative change of perplexity from the first model, if that is the float model.
fn change(rows: &[Row], row: &Row, args: &Args) -> Option<f64> {
    args.against.as_ref()?;
    Some(row.text.as_ref()?.perplexity / rows[0].text.as_ref()?.perplexity - 1.0)
}

fn print(rows: &[Row], args: &Args, windows: Windows) -> anyhow::Result<()> {
    if rows[0].text.is_some() {
        line(text_table(rows, args))?;
        let tokens = rows[0].text.as_ref().map_or(0, |score| score.tokens);
        let Windows { window, stride, .. } = windows;
        line(format!("perplexity over {} tokens, window {window}, stride {stride}", grouped(tokens)))?;
    }
    if rows[0].tasks.is_some() {
        if rows[0].text.is_some() {
            line("")?;
        }
        line(task_table(rows))?;
    }
    Ok(())
}

fn text_table(rows: &[Row], args: &Args) -> String {
    let dash = || "-".to_owned();
    let titles = ["model", "bytes", "bits/weight", "perplexity", "change", "KL", "KL 99 %", "top-1"];
    let mut table = Table::with_titles(titles);
    for row in rows {
        let text = row.text.as_ref();
        let against = text.and_then(|score| score.against_first.as_ref());
        table.row([
            row.name.clone(),
            grouped(row.artefact.weight_bytes()),
            format!("{:.3}", row.artefact.bits_per_weight()),
            text.map_or_else(dash, |score| format!("{:.4}", score.perplexity)),
            change(rows, row, args).map_or_else(dash, |part| format!("{:+.2} %", 100.0 * part)),
            against.map_or_else(dash, |found| format!("{:.3e}", found.kl.mean)),
            against.map_or_else(dash, |found| format!("{:.3e}", found.kl.p99)),
            against.map_or_else(dash, |found| format!("{:.2} %", 100.0 * found.top1_agreement)),
        ]);
    }
    table.render()
}

/// A row per kind of task, a column per model.
fn task_table(rows: &[Row]) -> String {
    let scores: Vec<&TaskScores> = rows.iter().filter_map(|row| row.tasks.as_ref()).collect();
    // Paths are long, and models nearly always differ in the last component.
    let short =
        |name: &str| Path::new(name).file_name().map_or(name.into(), |n| n.to_string_lossy().into_owned());
    let mut titles = vec!["task".to_owned(), "thinking".to_owned(), "of".to_owned()];
    titles.extend(rows.iter().map(|row| short(&row.name)));
    let mut table = Table::with_title_row(titles);
    let mode = |thinking| if thinking { "on" } else { "off" }.to_owned();
    let mut add = |name: &str, thinking: String, of_model: &dyn Fn(&TaskScores) -> KindScore| {
        let found: Vec<KindScore> = scores.iter().map(|scores| of_model(scores)).collect();
        let mut cells = vec![name.to_owned(), thinking, found[0].of.to_string()];
        let percent = |score: &KindScore| 100.0 * score.right as f64 / score.of.max(1) as f64;
        cells.extend(found.iter().map(|score| format!("{} ({:.1} %)", score.right, percent(score))));
        table.add_row(cells);
    };
    for (index, kind) in scores[0].kinds.iter().enumerate() {
        add(&kind.kind, mode(kind.thinking), &|scores| scores.kinds[index].clone());
    }
    for thinking in [false, true] {
        if scores[0].total(Some(thinking)).of > 0 {
            add("all", mode(thinking), &|scores| scores.total(Some(thinking)));
        }
    }
    table.render()
}

fn as_json(rows: &[Row], args: &Args, windows: Windows, tokens: usize) -> Value {
    let models: Vec<Value> = rows
        .iter()
        .map(|row| {
            let against = row.text.as_ref().and_then(|score| score.against_first.as_ref());
            let tasks = row.tasks.as_ref().map(|tasks| {
                let score = |score: &KindScore| {
                    json!({"kind": score.kind, "thinking": score.thinking, "right": score.right, "of": score.of})
                };
                tasks.kinds.iter().map(score).collect::<Vec<_>>()
            });
            json!({
                "model": row.name,
                "backend": row.model.describe(),
                "weight_bytes": row.artefact.weight_bytes(),
                "bits_per_weight": row.artefact.bits_per_weight(),
                "perplexity": row.text.as_ref().map(|score| score.perplexity),
                "predicted_tokens": row.text.as_ref().map(|score| score.tokens),
                "perplexity_change": change(rows, row, args),
                "mean_kl": against.map(|found| found.kl.mean),
                "p99_kl": against.map(|found| found.kl.p99),
                "top1_agreement": against.map(|found| found.top1_agreement),
                "tasks": tasks,
            })
        })
        .collect();
    json!({
        "schema_version": 1,
        "window": windows.window, "stride": windows.stride, "tokens": tokens,
        "against": args.against, "models": models,
    })
}
