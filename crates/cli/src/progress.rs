//! Progress of long steps on stderr: a bar on a terminal, one line a step elsewhere, nothing when a program reads.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

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

    /// Begins a step of `total` things that takes minutes: a log hears of it every half minute, with the time left.
    pub fn long_step(self, title: &str, total: u64) -> Step {
        let mut step = self.counted_step(title, total);
        if self == Self::Log {
            let began = Instant::now();
            step.log = Some(Log {
                title: title.to_owned(),
                total,
                done: Cell::new(0),
                began,
                said: Cell::new(began),
            });
        }
        step
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
        Step { bar, log: None }
    }
}

/// A step under way. Its bar disappears with it.
#[derive(Debug)]
pub struct Step {
    bar: ProgressBar,
    log: Option<Log>,
}

/// What a log is told of a long step.
#[derive(Debug)]
struct Log {
    title: String,
    total: u64,
    done: Cell<u64>,
    began: Instant,
    said: Cell<Instant>,
}

/// Between two lines about one step in a log.
const LINES_APART: Duration = Duration::from_secs(30);

impl Step {
    /// So much more is done.
    pub fn advance(&self, amount: u64) {
        self.bar.inc(amount);
        let Some(log) = &self.log else { return };
        let (done, total) = (log.done.get() + amount, log.total);
        log.done.set(done);
        if log.said.get().elapsed() >= LINES_APART {
            log.said.set(Instant::now());
            let left = log.began.elapsed().as_secs_f64() * (total.saturating_sub(done)) as f64 / done as f64;
            note(format!("{}: {done} of {total}, about {left:.0} s left", log.title));
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
