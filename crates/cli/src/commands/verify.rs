//! `q35-convert verify`: checks the files of a converted model against its manifest.

use std::path::PathBuf;

use serde_json::json;

use crate::context::Context;
use crate::exit::Outcome;
use crate::output::{bytes, json as print_json, line};

/// Arguments of `q35-convert verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A directory with a manifest.json
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// Runs `q35-convert verify`: the answer is no if a file is missing, changed or unlisted.
///
/// # Errors
/// The manifest is absent, or a file cannot be read.
pub fn run(args: &Args, context: Context) -> anyhow::Result<Outcome> {
    let verification = q35_output_dir::verify(&args.dir)?;
    let files = verification.manifest.files.len();
    let intact = verification.problems.is_empty();
    if context.json {
        let problems: Vec<String> = verification.problems.iter().map(ToString::to_string).collect();
        print_json(&json!({
            "dir": args.dir, "intact": intact, "files": files, "bytes": verification.bytes, "problems": problems,
        }))?;
    } else if intact {
        line(format!(
            "{}: {files} files, {}, all as written",
            args.dir.display(),
            bytes(verification.bytes)
        ))?;
    } else {
        line(format!("{}: not as it was written", args.dir.display()))?;
        verification.problems.iter().try_for_each(|problem| line(format!("  {problem}")))?;
    }
    Ok(if intact { Outcome::Done } else { Outcome::No })
}
