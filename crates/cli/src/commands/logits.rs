//! `q35-convert logits`: a model's logits for given tokens, in a safetensors file.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use q35_architecture::TextConfig;
use q35_inference::{HiddenStateAt, LogitsFor, Observer};
use q35_metrics::argmax;
use serde_json::json;

use crate::backend::VariantArg;
use crate::commands::tokenize::encode;
use crate::context::Context;
use crate::exit::Outcome;
use crate::open::{RunArgs, open};
use crate::output::{json as print_json, line};
use crate::source::{ModelArgs, resolve};

/// Arguments of `q35-convert logits`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: ModelArgs,

    #[command(flatten)]
    variant: VariantArg,

    /// A JSON list of token ids, as `q35-convert tokenize` writes it
    #[arg(long, value_name = "FILE", required_unless_present = "prompt")]
    ids_file: Option<PathBuf>,

    /// A text instead, encoded by the model's tokenizer as it is, without the chat template
    #[arg(long, value_name = "TEXT", conflicts_with = "ids_file")]
    prompt: Option<String>,

    /// Number of greedy tokens to generate after the given ones
    #[arg(long, value_name = "N", default_value_t = 0)]
    steps: usize,

    /// Also write the residual stream: hidden.embed, and hidden.I after each layer
    #[arg(long)]
    states: bool,

    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    #[command(flatten)]
    how: RunArgs,
}

/// Runs `q35-convert logits`. The file holds `input_ids` `[T]` i64, `logits` `[T + steps, vocab]` f32 (row t predicts token
/// t + 1; the last `steps` rows come from decoding the greedy tokens) and `decoded_ids` `[steps]` i64.
///
/// # Errors
/// The model cannot be opened or run, or the file cannot be written.
pub fn run(args: &Args, context: Context) -> anyhow::Result<Outcome> {
    let ids = args.ids_file.as_deref().map(read_ids).transpose()?;
    let variant = args.variant.name();
    let source = resolve(&args.source.model, args.source.revision.as_deref(), variant, context.watcher)?;
    let ids = match (ids, &args.prompt) {
        (Some(ids), _) => ids,
        (None, Some(prompt)) => encode(&source.dir, variant, prompt)?,
        (None, None) => bail!("expected --ids-file or --prompt"),
    };
    let model = open(&source.dir, variant, args.how)?;
    let config = model.config().clone();
    let (vocab, rows) = (config.vocab_size, ids.len() + args.steps);
    let mut sequence = model.new_sequence(rows)?;

    let step = context.watcher.counted_step("tokens", rows as u64);
    let mut file = LogitsFile::create(args, ids.len(), &config)?;
    let hidden = args.states.then(BTreeMap::new);
    let mut watch = Watch { hidden, row: Vec::new(), file: &mut file, step: &step };
    sequence.extend(&ids, LogitsFor::AllTokens, &mut watch)?;
    let hidden = watch.hidden.take();
    let mut decoded = Vec::with_capacity(args.steps);
    for _ in 0..args.steps {
        // A row of NaN alone has no largest logit; token 0 then, as transformers' argmax answers.
        let next = argmax(&watch.row).unwrap_or(0) as u32;
        decoded.push(next);
        sequence.extend(&[next], LogitsFor::LastToken, &mut watch)?;
    }
    file.finish(&ids, &decoded, &hidden.unwrap_or_default())?;

    let summary = json!({
        "out": args.out, "backend": model.describe(), "rows": rows, "vocab_size": vocab, "decoded_ids": decoded,
    });
    if context.json {
        print_json(&summary)?;
    } else {
        line(format!("{}: logits [{rows}, {vocab}] by {}", args.out.display(), model.describe()))?;
    }
    Ok(Outcome::Done)
}

fn read_ids(path: &Path) -> anyhow::Result<Vec<u32>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let ids: Vec<u32> = serde_json::from_slice(&text).with_context(|| {
        format!("{}: expected a JSON list of token ids such as [1, 2, 3]", path.display())
    })?;
    ensure!(!ids.is_empty(), "{}: expected at least one token id, found none", path.display());
    Ok(ids)
}

/// Writes each row of logits at once, so that memory does not grow with the number of tokens.
struct Watch<'a> {
    hidden: Option<BTreeMap<HiddenStateAt, Vec<f32>>>,
    /// The last row of logits.
    row: Vec<f32>,
    file: &'a mut LogitsFile,
    step: &'a crate::progress::Step,
}

impl Observer for Watch<'_> {
    fn logits(&mut self, _position: usize, row: &[f32]) {
        self.row.clear();
        self.row.extend_from_slice(row);
        self.file.row(row);
        self.step.advance(1);
    }

    fn wants_hidden(&self) -> bool {
        self.hidden.is_some()
    }

    fn hidden(&mut self, site: HiddenStateAt, _position: usize, rows: &[f32]) {
        if let Some(hidden) = self.hidden.as_mut().filter(|_| hidden_name(site).is_some()) {
            hidden.entry(site).or_default().extend_from_slice(rows);
        }
    }
}

/// The safetensors file, written front to back as a temporary sibling and renamed when complete.
struct LogitsFile {
    out: PathBuf,
    body: BufWriter<tempfile::NamedTempFile>,
    rows: usize,
    written: usize,
    failure: Option<std::io::Error>,
}

impl LogitsFile {
    /// Writes the header, since every size is known before the model runs. The logits come first in the file.
    fn create(args: &Args, tokens: usize, config: &TextConfig) -> anyhow::Result<Self> {
        let rows = tokens + args.steps;
        let mut header = serde_json::Map::new();
        let mut end = 0;
        let mut tensor = |name: &str, dtype: &str, shape: &[usize], size: usize| {
            let from = end;
            end += shape.iter().product::<usize>() * size;
            header.insert(
                name.to_owned(),
                json!({"dtype": dtype, "shape": shape, "data_offsets": [from, end]}),
            );
        };
        tensor("logits", "F32", &[rows, config.vocab_size], 4);
        tensor("input_ids", "I64", &[tokens], 8);
        tensor("decoded_ids", "I64", &[args.steps], 8);
        if args.states {
            let sites = std::iter::once(HiddenStateAt::Embedding)
                .chain((0..config.num_hidden_layers).map(HiddenStateAt::AfterMlp));
            for name in sites.filter_map(hidden_name) {
                tensor(&name, "F32", &[tokens, config.hidden_size], 4);
            }
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');

        let beside = args.out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let body = tempfile::NamedTempFile::new_in(beside)
            .with_context(|| format!("cannot write in {}", beside.display()))?;
        let mut body = BufWriter::with_capacity(1 << 20, body);
        body.write_all(&(header.len() as u64).to_le_bytes())?;
        body.write_all(&header)?;
        Ok(Self { out: args.out.clone(), body, rows, written: 0, failure: None })
    }

    /// Observers cannot fail, so `finish` returns the first failure.
    fn row(&mut self, row: &[f32]) {
        let outcome = write_f32(&mut self.body, row);
        self.written += 1;
        self.failure = self.failure.take().or(outcome.err());
    }

    fn finish(
        mut self,
        ids: &[u32],
        decoded: &[u32],
        hidden: &BTreeMap<HiddenStateAt, Vec<f32>>,
    ) -> anyhow::Result<()> {
        if self.written != self.rows {
            bail!("the backend returned {} rows of logits, expected {}", self.written, self.rows);
        }
        let mut write = || -> std::io::Result<()> {
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            for id in ids.iter().chain(decoded) {
                self.body.write_all(&i64::from(*id).to_le_bytes())?;
            }
            hidden.values().try_for_each(|values| write_f32(&mut self.body, values))?;
            self.body.flush()
        };
        let outcome = write();
        let whole = outcome.and_then(|()| self.body.into_inner().map_err(|error| error.into_error()));
        let cannot = || format!("cannot write {}", self.out.display());
        whole.with_context(cannot)?.persist(&self.out).with_context(cannot)?;
        Ok(())
    }
}

fn write_f32(to: &mut impl Write, values: &[f32]) -> std::io::Result<()> {
    values.iter().try_for_each(|value| to.write_all(&value.to_le_bytes()))
}

/// The name of a hidden state in the file; `None` if it is not written.
fn hidden_name(site: HiddenStateAt) -> Option<String> {
    match site {
        HiddenStateAt::Embedding => Some("hidden.embed".to_owned()),
        HiddenStateAt::AfterMlp(layer) => Some(format!("hidden.{layer}")),
        HiddenStateAt::AfterAttention(_) | HiddenStateAt::FinalNorm => None,
    }
}
