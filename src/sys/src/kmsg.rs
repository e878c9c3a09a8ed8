//! Lines in the kernel's log, the one log that is there before and after everything else.
//!
//! A descriptor of `/dev/kmsg` is limited to ten lines in five seconds (`kernel/printk/printk.c`, `devkmsg_write`), and each opening costs
//! the kernel 16 KiB, cleared: so one serves for as many lines as it may.

use std::fs::File;
use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};

/// Lines that one descriptor may write however quickly they come.
const LINES_OF_A_DESCRIPTOR: u32 = 10;

/// The open descriptor and how many lines it has written.
static OPEN: Mutex<Option<(File, u32)>> = Mutex::new(None);

/// Severity, as syslog numbers it (RFC 5424 §6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Priority {
    /// Action must be taken at once.
    Alert = 1,
    /// Critical conditions.
    Critical = 2,
    /// Something failed.
    Error = 3,
    /// Something is odd, work goes on.
    Warning = 4,
    /// Normal but worth an operator's look.
    Notice = 5,
    /// Informational.
    Info = 6,
    /// For debugging.
    Debug = 7,
}

/// The longest text of one record in bytes; the kernel refuses more than 1024 with the prefix.
const TEXT_MAX: usize = 960;

/// Writes `tag[pid]: text` with `priority` (facility daemon); newlines in `text` become spaces and long text is cut.
///
/// Falls back to standard error where there is no `/dev/kmsg` that may be written, as in a container.
pub fn write(priority: Priority, tag: &str, text: &str) {
    const FACILITY_DAEMON: u8 = 3;
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    let text = text.get(..end).unwrap_or_default().replace('\n', " ");
    let pid = std::process::id();
    let line = format!(
        "<{}>{tag}[{pid}]: {text}\n",
        (FACILITY_DAEMON << 3) | priority as u8
    );
    if append(line.as_bytes()).is_err() {
        // Nothing is left to report to when standard error is gone as well.
        let _ = writeln!(std::io::stderr(), "{tag}: {text}");
    }
}

fn append(line: &[u8]) -> io::Result<()> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut kmsg, lines) = match open.take() {
        Some((kmsg, lines)) if lines < LINES_OF_A_DESCRIPTOR => (kmsg, lines),
        _ => (File::options().write(true).open("/dev/kmsg")?, 0),
    };
    kmsg.write_all(line)?;
    *open = Some((kmsg, lines + 1));
    Ok(())
}

/// A [`log`]-crate backend over [`write()`].
#[derive(Debug)]
pub struct Logger {
    tag: &'static str,
}

impl Logger {
    /// Makes this process log to the kernel's log under `tag`, from level info up.
    pub fn install(tag: &'static str) {
        let logger: &'static Self = Box::leak(Box::new(Self { tag }));
        // A second call keeps the first logger, which is as good.
        if log::set_logger(logger).is_ok() {
            log::set_max_level(log::LevelFilter::Info);
        }
    }
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let priority = match record.level() {
            log::Level::Error => Priority::Error,
            log::Level::Warn => Priority::Warning,
            log::Level::Info => Priority::Info,
            log::Level::Debug | log::Level::Trace => Priority::Debug,
        };
        write(priority, self.tag, &record.args().to_string());
    }

    fn flush(&self) {}
}
