//! Progress of long steps on stderr: a bar on a terminal, one line a step elsewhere, nothing when a program reads.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::note;

/// Who is watching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watcher {
    /// Someone at a terminal.
    Terminal,
    /// A log.
    Log,
    /// Nobody.
    Nobody,
}

impl Watcher {
    /// Looks at stderr, unless nobody wants to see progress.
    pub fn detect(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Self::Nobody,
            (false, true) => Self::Terminal,
            (false, false) => Self::Log,
        }
    }

    /// Begins a step of `total_bytes`.
    pub fn bytes_step(self, title: &str, total_bytes: u64) -> Step {
        self.step(title, total_bytes, "{msg:<28} {bar:30} {bytes:>10} of {total_bytes} {elapsed:>4}")
    }

    /// Begins a step of `total` things.
    pub fn counted_step(self, title: &str, total: u64) -> Step {
        self.step(title, total, "{msg:<28} {bar:30} {pos:>6} of {len} {elapsed:>4}, {eta} left")
    }

    /// Begins a step of `total` things that takes minutes, with the time left.
    pub fn long_step(self, title: &str, total: u64) -> Step {
        self.step(title, total, "{msg:<28} {bar:30} {pos:>6} of {len} {elapsed:>4}, {eta} left")
    }

    fn step(self, title: &str, total: u64, template: &str) -> Step {
        if self == Self::Log {
            note(title);
        }
        let bar = match self {
            Self::Terminal => {
                // A template that does not parse would be a mistake of this file; the default bar does then.
                let style =
                    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = ProgressBar::new(total).with_style(style).with_message(title.to_owned());
                bar.enable_steady_tick(Duration::from_millis(100));
                bar
            }
            _ => ProgressBar::hidden(),
        };
        Step { bar }
    }
}

/// A step under way. Its bar disappears with it.
#[derive(Debug)]
pub struct Step {
    bar: ProgressBar,
}

impl Step {
    /// So much more is done.
    pub fn advance(&self, amount: u64) {
        self.bar.inc(amount);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
