//! Exit codes: 0, the command succeeded; 1, it ran and its answer is no; 2, it could not run; 130, Ctrl-C stopped
//! it.

use std::process::ExitCode;

/// The outcome of a command that could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Success.
    Done,
    /// The command ran and its answer is no: files differ, models are too far apart.
    No,
    /// Ctrl-C stopped the command.
    Interrupted,
}

/// The exit code, after printing an error to stderr.
pub fn report(result: anyhow::Result<Outcome>) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        Ok(Outcome::Interrupted) => ExitCode::from(130),
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

/// The error and its causes, without causes that an outer message already contains.
pub fn message(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}\n  because: {cause}");
        }
    }
    text
}

/// True if the reader of stdout has closed the pipe, which is no error of this program.
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
    fn causes_are_printed_once() {
        let error = anyhow!("disk on fire").context("cannot read x: disk on fire").context("converting");
        assert_eq!(message(&error), "converting\n  because: cannot read x: disk on fire");
    }
}
