//! `q35-convert tokenize`: token ids of a text.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use q35_artefact::ArtefactDir;
use q35_parity::{CheckpointText, TextEncoder};
use q35_text::Tokenizer;
use serde_json::{Value, json};

use crate::backend::VariantArg;
use crate::context::Context;
use crate::exit::Outcome;
use crate::output::{json as print_json, line};
use crate::source::{ModelArgs, resolve};

/// Arguments of `q35-convert tokenize`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: ModelArgs,

    #[command(flatten)]
    variant: VariantArg,

    /// The text
    #[arg(value_name = "TEXT", required_unless_present = "file")]
    text: Option<String>,

    /// Read the text from a file; - reads stdin
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,

    /// Render the text as a user's message with the model's chat template first, generation prompt included
    #[arg(long)]
    chat: bool,
}

/// Runs `q35-convert tokenize`: prints a JSON list of token ids, as `logits --ids-file` and `parity --ids-file` read it;
/// with `--json` an object with the `ids` and the text of each of the `tokens`.
///
/// # Errors
/// The model has no usable tokenizer, or the text cannot be read.
pub fn run(args: &Args, context: Context) -> anyhow::Result<Outcome> {
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read(path)?,
        (None, None) => bail!("expected a text or --file"),
    };
    let variant = args.variant.name();
    let source = resolve(&args.source.model, args.source.revision.as_deref(), variant, context.watcher)?;
    let dir = ArtefactDir::recognise(&source.dir, variant)?.dir;
    let ids = match args.chat {
        true => encode_message(&dir, &text)?,
        false => encode_text(&dir, &text)?,
    };
    if context.json {
        let tokenizer = open_tokenizer(&dir)?;
        let tokens: Vec<String> =
            ids.iter().map(|id| String::from_utf8_lossy(tokenizer.bytes_of(*id)).into_owned()).collect();
        print_json(&json!({"ids": ids, "tokens": tokens}))?;
    } else {
        line(serde_json::to_string(&ids)?)?;
    }
    Ok(Outcome::Done)
}

/// The token ids of a text, by the tokenizer of the model in `dir`.
///
/// # Errors
/// The directory holds no model with a usable tokenizer, or the text has no tokens.
pub fn encode(dir: &Path, variant: Option<&str>, text: &str) -> anyhow::Result<Vec<u32>> {
    encode_text(&ArtefactDir::recognise(dir, variant)?.dir, text)
}

fn encode_text(dir: &Path, text: &str) -> anyhow::Result<Vec<u32>> {
    let ids = open_tokenizer(dir)?.encode(text)?;
    ensure!(!ids.is_empty(), "the text has no tokens");
    Ok(ids)
}

fn encode_message(dir: &Path, text: &str) -> anyhow::Result<Vec<u32>> {
    let encoder = CheckpointText::open(dir).map_err(anyhow::Error::msg)?;
    let messages: Value = json!([{"role": "user", "content": text}]);
    let rendered = encoder.render(&messages, false).map_err(anyhow::Error::msg)?;
    encoder.encode(&rendered).map_err(anyhow::Error::msg)
}

fn open_tokenizer(dir: &Path) -> anyhow::Result<Tokenizer> {
    Tokenizer::from_dir(dir).with_context(|| format!("{} has no usable tokenizer", dir.display()))
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
        return Ok(text);
    }
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
