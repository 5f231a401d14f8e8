//! The arguments of `q35-chat`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use q35_runtime::{Format, Sampling};

use super::bench::Bench;
use super::serve::Serve;
use crate::backend::{BackendArgs, VariantArg};

/// Talks with a converted Qwen3.5 model
///
/// With --prompt it gives one answer, with --script it plays a conversation from a file, otherwise it holds a
/// conversation on the terminal (/help lists what can be said besides words).
///
/// Exit codes: 0, done; 1, it ran but a reply failed, was stopped or ended within its reasoning, or a template refused;
/// 2, it could not run. docs/chat.md describes scripts, saved conversations and the history of typed lines.
#[derive(Debug, Parser)]
#[command(name = "q35-chat", version, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Chat {
    /// Another command
    #[command(subcommand)]
    pub command: Option<Command>,

    /// A model: a directory, a hub id, or q35-nano for the small model in this program. A float checkpoint is quantized as
    /// it is opened; q35/quantized in the user's cache directory (~/.cache, ~/Library/Caches) keeps the result
    #[arg(long, value_name = "DIR|ID", required_unless_present = "render")]
    pub model: Option<String>,

    /// Loading.
    #[command(flatten)]
    pub load: LoadArgs,

    /// The system prompt
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Answer this and end; - reads it from stdin
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["script", "render"])]
    pub prompt: Option<String>,

    /// Play a conversation from a file of JSON lines; - reads stdin
    ///
    /// A line is a user message, {"user": "Hi"}, or any message as OpenAI's chat completions write it, {"role": "user",
    /// "content": "Hi"}. Beside it may stand settings of the reply: temperature, top_k, top_p, min_p,
    /// repetition_penalty, presence_penalty, frequency_penalty, seed, max_tokens, stop, thinking (true or false),
    /// max_thinking_tokens, schema (a JSON Schema, or true for any object), logprobs, cancel_after (tokens), roll_back.
    /// Other lines change the conversation: {"system": "..."}, {"messages": [...]}, {"tools": [...]}, {"reset": true},
    /// {"drop_last": 2}. A user or tool message gets a reply, unless the next line is the assistant's or a tool's.
    /// A file that /save wrote is a script as well.
    #[arg(long, value_name = "FILE", conflicts_with = "render")]
    pub script: Option<PathBuf>,

    /// Print one rendering of the chat template and end; - reads stdin
    #[arg(long, value_name = "CASE.json")]
    pub render: Option<PathBuf>,

    /// Keep no history of typed lines [default: the last 1000 in ~/.q35_chat_history, readable by you alone]
    #[arg(long)]
    pub no_history: bool,

    /// Print replies as JSON objects
    #[arg(long)]
    pub json: bool,

    /// Show reasoning, or hide it [default: show on a terminal]
    #[arg(long, value_enum)]
    pub show_thinking: Option<Shown>,

    /// Take the sampling settings that the checkpoint recommends, where none is given here
    #[arg(long)]
    pub checkpoint_sampling: bool,

    /// Sampling.
    #[command(flatten)]
    pub sampling: SamplingArgs,

    /// Print results and errors only
    #[arg(long, short)]
    pub quiet: bool,
}

/// Options of loading a model.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    /// Bits of a weight to which a float checkpoint is quantized as it is opened: 2, 3, 4, 5, 6 or 8
    #[arg(long, default_value_t = 8, value_parser = parse_bits)]
    pub bits: u32,

    /// Branch, tag or commit on the hub
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,

    /// The variant.
    #[command(flatten)]
    pub variant: VariantArg,

    /// Threads [default: as many as there are processors]
    #[arg(long)]
    pub threads: Option<usize>,

    /// Tokens of context
    #[arg(long, value_name = "TOKENS", default_value_t = 4096)]
    pub max_context: usize,

    /// Refuse to load what needs more memory than this
    #[arg(long, value_name = "MB")]
    pub memory_limit: Option<u64>,

    /// Compute with 32-bit activations
    #[arg(long)]
    pub exact: bool,

    /// Compute every prompt from its beginning
    #[arg(long)]
    pub no_prompt_cache: bool,

    /// Drop the oldest turns when the context is full, instead of refusing
    #[arg(long)]
    pub drop_oldest: bool,

    /// A chat template in place of the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// The backend.
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// Other commands of `q35-chat`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measures speed
    Bench(Bench),
    /// Serves the model over HTTP to clients of OpenAI's and Anthropic's APIs, with a page for browsers
    Serve(Box<Serve>),
}

/// Choice of what is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shown {
    /// Always
    Always,
    /// Never
    Never,
}

/// Sampling options. An option that is not given keeps the library's default.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 takes the most probable token always [default: 0.6]
    #[arg(long)]
    pub temperature: Option<f32>,

    /// Keep so many most probable tokens, 0 for all [default: 50]
    #[arg(long, value_name = "N")]
    pub top_k: Option<usize>,

    /// Keep the most probable tokens that reach this together [default: 0.95]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,

    /// Keep tokens at least this fraction as probable as the best [default: 0]
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,

    /// Penalise tokens that the reply has already [default: 1.1]
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f32>,

    /// Subtract this from the logits of tokens that the reply has already
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,

    /// Subtract this for each time that the reply has the token
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,

    /// The same seed gives the same text
    #[arg(long)]
    pub seed: Option<u64>,

    /// Most tokens of a reply [default: 512]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,

    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,

    /// Think before answering
    #[arg(long, overrides_with = "no_think")]
    pub think: bool,

    /// Answer without thinking
    #[arg(long)]
    pub no_think: bool,

    /// Most tokens of thinking [default: 100]
    #[arg(long, value_name = "N")]
    pub max_thinking_tokens: Option<usize>,

    /// The form of the answer
    #[arg(long, value_enum, default_value_t = FormatName::Text)]
    pub format: FormatName,

    /// Answer with JSON of this JSON Schema
    #[arg(long, value_name = "FILE")]
    pub schema: Option<PathBuf>,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// Any text
    #[default]
    Text,
    /// A JSON object
    Json,
}

impl SamplingArgs {
    /// These settings on top of the library's defaults.
    ///
    /// # Errors
    /// The schema cannot be read, or a setting makes no sense.
    pub fn build(&self) -> anyhow::Result<Sampling> {
        self.apply_to(Sampling::default())
    }

    /// These settings on top of `sampling`.
    ///
    /// # Errors
    /// The schema cannot be read, or a setting makes no sense.
    pub fn apply_to(&self, mut sampling: Sampling) -> anyhow::Result<Sampling> {
        set(&mut sampling.temperature, self.temperature);
        set(&mut sampling.top_k, self.top_k);
        set(&mut sampling.top_p, self.top_p);
        set(&mut sampling.min_p, self.min_p);
        set(&mut sampling.repetition_penalty, self.repetition_penalty);
        set(&mut sampling.presence_penalty, self.presence_penalty);
        set(&mut sampling.frequency_penalty, self.frequency_penalty);
        set(&mut sampling.max_tokens, self.max_tokens);
        sampling.seed = self.seed.or(sampling.seed);
        if !self.stop.is_empty() {
            sampling.stop = self.stop.clone();
        }
        sampling.thinking.enable = match (self.think, self.no_think) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => sampling.thinking.enable,
        };
        sampling.thinking.max_tokens = self.max_thinking_tokens.or(sampling.thinking.max_tokens);
        if self.format == FormatName::Json {
            sampling.format = Format::Json;
        }
        if let Some(path) = &self.schema {
            let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let schema =
                serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))?;
            sampling.format = Format::Schema(schema);
        }
        sampling.check()?;
        Ok(sampling)
    }
}

/// Bits of a weight that the MLX format has.
fn parse_bits(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(bits @ (2..=6 | 8)) => Ok(bits),
        _ => Err("expected 2, 3, 4, 5, 6 or 8".to_owned()),
    }
}

fn set<T>(option: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *option = value;
    }
}
