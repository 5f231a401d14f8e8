//! How a process ends: 0, it did what was asked; 1, it ran and the answer is no; 2, it could not run.

use std::process::ExitCode;

/// The answer of a command that could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did what was asked.
    Done,
    /// It ran, and the answer is no: files differ, models are too far apart.
    No,
}

/// The exit code, after printing an error to stderr.
pub fn report(result: anyhow::Result<Outcome>) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        Err(error) => {
            if !is_broken_pipe(&error) {
                eprint_error(&error);
            }
            ExitCode::from(2)
        }
    }
}

#[expect(clippy::print_stderr, reason = "the one place where errors are printed")]
fn eprint_error(error: &anyhow::Error) {
    eprintln!("error: {}", message(error));
}

/// The error and its causes, those left out that an outer message repeats already.
pub fn message(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}\n  because: {cause}");
        }
    }
    text
}

/// Whether the reader of our output has gone away, which is its right.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn causes_are_told_once() {
        let error = anyhow!("disk on fire").context("cannot read x: disk on fire").context("converting");
        assert_eq!(message(&error), "converting\n  because: cannot read x: disk on fire");
    }
}
