//! Progress of long steps on stderr: a bar on a terminal, a line per step in a log, nothing when quiet.

use std::cell::{Cell, RefCell};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use q35_hub::Event;

use crate::output::note;

/// The way in which progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watcher {
    /// Bars on a terminal.
    Terminal,
    /// Lines in a log.
    Log,
    /// Nothing.
    Quiet,
}

impl Watcher {
    /// Bars if stderr is a terminal, lines if it is not, nothing if `quiet`.
    pub fn detect(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Terminal,
            (false, false) => Self::Log,
        }
    }

    /// Begins a step of `total_bytes`.
    pub fn bytes_step(self, title: &str, total_bytes: u64) -> Step {
        self.step(title, total_bytes, "{msg:<28} {bar:30} {bytes:>10} of {total_bytes} {elapsed:>4}")
    }

    /// Begins a step of `total` items.
    pub fn counted_step(self, title: &str, total: u64) -> Step {
        self.step(title, total, "{msg:<28} {bar:30} {pos:>6} of {len} {elapsed:>4}, {eta} left")
    }

    /// Begins a step of `total` items that takes minutes: a log gets a line with the remaining time every 30 seconds.
    pub fn long_step(self, title: &str, total: u64) -> Step {
        let mut step = self.counted_step(title, total);
        if self == Self::Log {
            let began = Instant::now();
            step.log = Some(LogProgress {
                title: title.to_owned(),
                total,
                done: Cell::new(0),
                began,
                last_line: Cell::new(began),
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
                // An invalid template is a bug of this file; the default bar is good enough then.
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

/// A step in progress. Dropping it removes the bar.
#[derive(Debug)]
pub struct Step {
    bar: ProgressBar,
    log: Option<LogProgress>,
}

/// Progress of a long step, for the lines of a log.
#[derive(Debug)]
struct LogProgress {
    title: String,
    total: u64,
    done: Cell<u64>,
    began: Instant,
    last_line: Cell<Instant>,
}

/// Time between two lines of a log about one step.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

impl Step {
    /// Adds `amount` to the progress.
    pub fn advance(&self, amount: u64) {
        self.bar.inc(amount);
        let Some(log) = &self.log else { return };
        let (done, total) = (log.done.get() + amount, log.total);
        log.done.set(done);
        if log.last_line.get().elapsed() >= LOG_INTERVAL {
            log.last_line.set(Instant::now());
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

/// Progress of downloads from the hub: one step per file.
#[derive(Debug)]
pub struct DownloadProgress {
    watcher: Watcher,
    step: RefCell<Option<Step>>,
}

impl DownloadProgress {
    /// No download yet.
    pub fn new(watcher: Watcher) -> Self {
        Self { watcher, step: RefCell::new(None) }
    }

    /// Shows an event of the hub client.
    pub fn show(&self, event: Event<'_>) {
        match event {
            Event::Started { file, size_bytes, resumed_at_bytes } => {
                let step = self.watcher.bytes_step(file, size_bytes.unwrap_or(0));
                step.advance(resumed_at_bytes);
                self.step.replace(Some(step));
            }
            Event::Progress { bytes, .. } => {
                if let Some(step) = &*self.step.borrow() {
                    step.advance(bytes);
                }
            }
            Event::Finished { .. } => drop(self.step.take()),
            Event::Cached { commit, status } => {
                let cause = match status {
                    Some(status) => format!("the hub answered {status}"),
                    None => "the hub cannot be reached".to_owned(),
                };
                note(format!("{cause}; using commit {commit} from the cache"));
            }
            _ => {}
        }
    }
}
