//! How far something long is: a bar on a terminal, lines elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use orlop_update::apply::{Phase, Progress};

/// Cells of the bar.
const CELLS: u64 = 30;

/// How often the bar is drawn at most.
const INTERVAL: Duration = Duration::from_millis(100);

/// Lines say each of these parts of a hundred.
const STEP: u64 = 20;

/// What shows the progress on standard error.
#[derive(Debug)]
pub(crate) struct Meter {
    is_terminal: bool,
    phase: Option<Phase>,
    started: Instant,
    drawn: Option<Instant>,
    said: u64,
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self {
            is_terminal: io::stderr().is_terminal(),
            phase: None,
            started: Instant::now(),
            drawn: None,
            said: 0,
        }
    }

    /// Shows `progress`, unless the last one is too fresh.
    pub(crate) fn show(&mut self, progress: Progress) {
        if self.phase != Some(progress.phase) {
            *self = Self {
                is_terminal: self.is_terminal,
                phase: Some(progress.phase),
                ..Self::new()
            };
        }
        let is_done = progress.done_bytes >= progress.total_bytes;
        let percent = match progress.total_bytes {
            0 => 100,
            total => progress.done_bytes.saturating_mul(100) / total,
        };
        let name = match progress.phase {
            Phase::Check => "checking",
            Phase::Write => "writing",
            Phase::ReadBack => "comparing",
        };
        let line = if self.is_terminal {
            if !is_done && self.drawn.is_some_and(|drawn| drawn.elapsed() < INTERVAL) {
                return;
            }
            self.drawn = Some(Instant::now());
            let bar = bar(percent);
            let rate = rate(progress.done_bytes, self.started.elapsed());
            let end = if is_done { "\n" } else { "" };
            format!(
                "\r\x1b[K{name:<9} {bar} {percent:>3} %  {:.1} of {:.1} MiB{rate}{end}",
                mib(progress.done_bytes),
                mib(progress.total_bytes)
            )
        } else {
            if percent < self.said + STEP && !(is_done && self.said < 100) {
                return;
            }
            self.said = percent / STEP * STEP;
            format!(
                "{name}: {percent} % of {:.1} MiB\n",
                mib(progress.total_bytes)
            )
        };
        // With standard error gone there is nobody to tell.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

fn bar(percent: u64) -> String {
    let full = percent.min(100) * CELLS / 100;
    let cell = |at| if at < full { '#' } else { '.' };
    format!("[{}]", (0..CELLS).map(cell).collect::<String>())
}

fn rate(bytes: u64, elapsed: Duration) -> String {
    match elapsed.as_secs_f64() {
        seconds if seconds >= 0.5 => format!("  {:.1} MiB/s", mib(bytes) / seconds),
        _ => String::new(),
    }
}

/// Bytes as MiB, to be read by people.
#[expect(clippy::cast_precision_loss, reason = "a size to be read by people")]
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
