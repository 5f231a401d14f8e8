//! `q35-convert parity`: comparison of a converted model with its float original.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context as _, bail, ensure};
use q35_backend::{Backend, Precision, RunOptions, Running};
use q35_inference::CancelToken;
use q35_parity::{
    Artefact, Candidate, CheckOptions, CheckpointText, DEFAULT_SUITE, DEFAULT_THRESHOLDS, Grade, ParityError,
    ParityReport, Progress, Prompt, ReferencePass, Source, Stage, Suite, Thresholds, check,
};

use crate::backend::{BackendArgs, VariantArg};
use crate::context::Context;
use crate::exit::Outcome;
use crate::output::line;
use crate::progress::{Step, Watcher};
use crate::source::resolve;

/// Arguments of `q35-convert parity`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The float checkpoint: a directory, a hub id, or q35-nano
    #[arg(long, value_name = "CKPT")]
    pub reference: String,

    /// The converted model: a directory, a hub id, or q35-nano
    #[arg(long, value_name = "DIR|ID")]
    pub candidate: String,

    /// The variant of the candidate.
    #[command(flatten)]
    pub variant: VariantArg,

    /// Lowest grade to accept: faithful, close, degraded or destroyed; none judges the implementation alone
    #[arg(
        long,
        value_name = "GRADE",
        default_value = "close",
        value_parser = required_grade,
        conflicts_with = "weights_only"
    )]
    pub require: RequiredGrade,

    /// Texts to compare on, a file like manifests/suite.json [default: that suite]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "ids_file"])]
    pub suite: Option<PathBuf>,

    /// Compare on this text instead of a suite
    #[arg(long, value_name = "FILE", conflicts_with = "ids_file")]
    pub text: Option<PathBuf>,

    /// Compare on these token ids instead of a suite: a JSON list, or a list of lists
    #[arg(long, value_name = "FILE")]
    pub ids_file: Option<PathBuf>,

    /// Largest number of positions to compare [default: 512 of a text, all of a suite]
    #[arg(long, value_name = "N")]
    pub positions: Option<usize>,

    /// Use the short part of the suite
    #[arg(long)]
    pub short: bool,

    /// Limits, a file like manifests/thresholds.json [default: that file]
    #[arg(long, value_name = "FILE")]
    pub thresholds: Option<PathBuf>,

    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write the report as one HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Write the report as Markdown
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,

    /// Save the pass of the float reference in a file
    #[arg(long, value_name = "FILE", conflicts_with = "use_reference")]
    pub save_reference: Option<PathBuf>,

    /// Use a saved pass of the float reference, of the same source and texts
    #[arg(long, value_name = "FILE")]
    pub use_reference: Option<PathBuf>,

    /// Compare weights only; run nothing, and give no grade
    #[arg(long)]
    pub weights_only: bool,

    /// Length of the greedy continuations to compare, in tokens
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub greedy: usize,

    /// Precision of the candidate.
    #[command(flatten)]
    pub arithmetic: ArithmeticArgs,

    /// Threads [default: all processors]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// Execution backend
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// Arithmetic of converted models.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ArithmeticArgs {
    /// Compute Core ML packages in f32 instead of the f16 that they were written for
    #[arg(long, conflicts_with = "fast")]
    pub exact: bool,

    /// Compute MLX directories in the CPU backend's fast mode, as chat does, instead of in f32
    #[arg(long)]
    pub fast: bool,
}

impl ArithmeticArgs {
    /// The requested precision; without a flag the one that the model was written for.
    pub fn precision(self) -> Precision {
        match (self.exact, self.fast) {
            (true, _) => Precision::Exact,
            (_, true) => Precision::Fast,
            _ => Precision::Declared,
        }
    }
}

/// Runs `q35-convert parity`.
///
/// # Errors
/// Either model or one of the files cannot be used, or the reference is quantized. A candidate that is not computed right,
/// or below the required grade, is [`Outcome::No`].
pub fn run(args: &Args, context: Context) -> anyhow::Result<Outcome> {
    let source = resolve(&args.reference, None, None, context.watcher)?;
    let reference = Artefact::open(&source.dir, None)?;
    ensure_float(&reference, &args.reference)?;
    let variant = args.variant.name();
    let candidate_source = resolve(&args.candidate, None, variant, context.watcher)?;
    let candidate = Artefact::open(&candidate_source.dir, variant)?;
    let prompts = if args.weights_only { Vec::new() } else { prompts(args, &reference)? };
    let thresholds = match &args.thresholds {
        Some(path) => thresholds(&read(path)?).with_context(|| path.display().to_string())?,
        None => thresholds(DEFAULT_THRESHOLDS)?,
    };
    let options = CheckOptions {
        run: !args.weights_only,
        require: args.require.0,
        greedy_tokens: args.greedy,
        use_reference: args.use_reference.as_deref().map(ReferencePass::open).transpose()?,
        save_reference: args.save_reference.clone(),
        ..CheckOptions::default()
    };
    let job = Job {
        reference_name: args.reference.clone(),
        candidate_name: args.candidate.clone(),
        reference: &reference,
        candidate: &candidate,
        hash: Some(reference.hash().context("hashing the source")?),
        prompts: &prompts,
        thresholds: &thresholds,
        how: args.backend.options(Backend::Cpu, Some(threads(args.threads)), args.arithmetic.precision()),
    };
    let mut report = job.run(options, context.watcher, &crate::interrupt::token()?)?;
    if let Ok(text) = CheckpointText::open(reference.dir()) {
        report.decode_tokens(&text);
    }
    line(report.to_table().trim_end())?;
    let files = [
        (&args.json, report.to_json()),
        (&args.html, report.to_html()),
        (&args.markdown, report.to_markdown()),
    ];
    for (path, text) in files {
        if let Some(path) = path {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(if report.accepted() { Outcome::Done } else { Outcome::No })
}

/// The value of `--require`: the lowest accepted grade, if the fidelity verdict is required at all.
#[derive(Clone, Copy, Debug)]
pub struct RequiredGrade(Option<Grade>);

fn required_grade(value: &str) -> Result<RequiredGrade, String> {
    match value {
        "none" => Ok(RequiredGrade(None)),
        value => value.parse().map(|grade| RequiredGrade(Some(grade))),
    }
}

/// Refuses a quantized reference: fidelity to it would hide the loss of its own quantization.
fn ensure_float(reference: &Artefact, name: &str) -> anyhow::Result<()> {
    let kind = reference.kind();
    ensure!(
        matches!(kind.as_str(), "float" | "mlx-float"),
        "the reference is quantized: {name}\n  expected: a float checkpoint\n  found:    {kind}\n\
         hint: name the float model that it was converted from; `q35-convert eval --against A --model B` compares any \
         two models"
    );
    Ok(())
}

/// Inputs of one check.
pub(crate) struct Job<'a> {
    pub(crate) reference_name: String,
    pub(crate) candidate_name: String,
    pub(crate) reference: &'a Artefact,
    pub(crate) candidate: &'a Artefact,
    pub(crate) hash: Option<String>,
    pub(crate) prompts: &'a [Prompt],
    pub(crate) thresholds: &'a Thresholds,
    pub(crate) how: RunOptions,
}

impl Job<'_> {
    pub(crate) fn run(
        self,
        options: CheckOptions,
        watcher: Watcher,
        cancel: &CancelToken,
    ) -> anyhow::Result<ParityReport> {
        let threads = threads(self.how.threads);
        let Running { model, activations } = self.candidate.open_model(&self.how)?;
        let source = Source { name: self.reference_name, hash: self.hash, weights: self.reference.weights() };
        let candidate = Candidate {
            name: self.candidate_name,
            kind: self.candidate.kind(),
            recipe: recipe(self.candidate.dir()),
            size_bytes: Some(self.candidate.weight_bytes()),
            weights: self.candidate.weights(),
            storage: &|spec| self.candidate.storage(spec),
            model: options.run.then_some(&*model),
            activations,
        };
        let tool = format!("q35-convert {}", env!("CARGO_PKG_VERSION"));
        let date = jiff::Timestamp::now().round(jiff::Unit::Second)?.to_string();
        let options = CheckOptions { tool, date, threads, ..options };
        let bars = Bars::new(watcher);
        let report =
            check(&source, &candidate, self.prompts, self.thresholds, options, cancel, &|progress| {
                bars.show(progress)
            });
        match report {
            Err(ParityError::Cancelled) => bail!("interrupted; nothing was judged"),
            report => Ok(report?),
        }
    }
}

/// Recipe and encoding options in a directory's manifest.
fn recipe(dir: &Path) -> Option<String> {
    let manifest =
        q35_output_dir::Manifest::parse(&std::fs::read(dir.join(q35_output_dir::MANIFEST)).ok()?).ok()?;
    let value = |name: &str| {
        let value = manifest.settings.get(name)?;
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    // Manifests keep the recipe's earlier name, so that artefacts stay equal to the byte.
    let recipe = value("recipe").map(|recipe| match recipe.as_str() {
        "best" => "recipe calibrated".to_owned(),
        recipe => format!("recipe {recipe}"),
    });
    let group = value("group_size").map(|size| format!("groups of {size}"));
    let encoding = value("encoding").map(|encoding| format!("encoding {encoding}"));
    let parts: Vec<String> = [recipe, group, encoding].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// The requested number of threads, or one per processor.
pub(crate) fn threads(requested: Option<usize>) -> usize {
    requested.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
}

fn thresholds(text: &str) -> anyhow::Result<Thresholds> {
    Thresholds::from_json(text).map_err(anyhow::Error::msg)
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn prompts(args: &Args, reference: &Artefact) -> anyhow::Result<Vec<Prompt>> {
    if let Some(path) = &args.ids_file {
        return of_ids(&read(path)?, args.positions, reference).with_context(|| path.display().to_string());
    }
    let text = CheckpointText::open(reference.dir())
        .map_err(anyhow::Error::msg)
        .context("the checkpoint's tokenizer is needed to turn texts into tokens; --ids-file does without")?;
    if let Some(path) = &args.text {
        let mut ids = q35_parity::TextEncoder::encode(&text, &read(path)?).map_err(anyhow::Error::msg)?;
        ids.truncate(args.positions.unwrap_or(512));
        ensure!(ids.len() >= 2, "{}: fewer than two tokens", path.display());
        let name = path.file_name().map_or_else(|| "text".into(), |name| name.to_string_lossy().into_owned());
        return Ok(vec![Prompt { greedy: true, ..Prompt::new(name, "text", ids) }]);
    }
    let suite = match &args.suite {
        Some(path) => Suite::from_json(&read(path)?).with_context(|| path.display().to_string())?,
        None => Suite::from_json(DEFAULT_SUITE)?,
    };
    Ok(suite.prompts(&text, args.short, args.positions)?)
}

fn of_ids(text: &str, most: Option<usize>, reference: &Artefact) -> anyhow::Result<Vec<Prompt>> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Ids {
        One(Vec<u32>),
        Several(Vec<Vec<u32>>),
    }
    let lists = match serde_json::from_str(text).context("expected a JSON list of token ids")? {
        Ids::One(ids) => vec![ids],
        Ids::Several(lists) => lists,
    };
    let vocab_size = reference.weights().config().vocab_size;
    let mut remaining = most.unwrap_or(usize::MAX);
    let mut prompts = Vec::new();
    for (index, mut ids) in lists.into_iter().enumerate() {
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
            bail!("token id {id} is outside the vocabulary of {vocab_size}");
        }
        ids.truncate(remaining);
        remaining -= ids.len();
        if ids.len() >= 2 {
            prompts.push(Prompt { greedy: index == 0, ..Prompt::new(format!("ids-{index}"), "ids", ids) });
        }
    }
    ensure!(!prompts.is_empty(), "no list of at least two token ids");
    Ok(prompts)
}

/// Progress bar of the current stage.
struct Bars {
    watcher: Watcher,
    current: Mutex<RefCell<Option<(Stage, u64, Step)>>>,
}

impl Bars {
    fn new(watcher: Watcher) -> Self {
        Self { watcher, current: Mutex::new(RefCell::new(None)) }
    }

    fn show(&self, progress: Progress) {
        let Ok(current) = self.current.lock() else { return };
        let mut current = current.borrow_mut();
        if current.as_ref().is_none_or(|(stage, ..)| *stage != progress.stage) {
            let step = self.watcher.counted_step(&progress.stage.to_string(), progress.total);
            *current = Some((progress.stage, 0, step));
        }
        if let Some((_, done, step)) = &mut *current {
            step.advance(progress.done.saturating_sub(*done));
            *done = progress.done.max(*done);
        }
    }
}
