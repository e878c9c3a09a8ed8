//! The `log` crate's lines on standard error, which is the journal for a unit.

use std::io::{self, IsTerminal as _, Write as _};

/// `<priority>text` as sd-daemon(3) has it when standard error is a socket or pipe, plain for a person at a terminal.
struct Lines {
    plain: bool,
}

/// Makes this process log to standard error from level info up. A second call changes nothing.
pub(crate) fn install() {
    if log::set_boxed_logger(Box::new(Lines {
        plain: io::stderr().is_terminal(),
    }))
    .is_ok()
    {
        log::set_max_level(log::LevelFilter::Info);
    }
}

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let prefix = match record.level() {
            _ if self.plain => "",
            log::Level::Error => "<3>",
            log::Level::Warn => "<4>",
            log::Level::Info => "<6>",
            log::Level::Debug | log::Level::Trace => "<7>",
        };
        // One write a line; with standard error gone there is nobody to tell.
        let _ = io::stderr().write_all(format!("{prefix}{}\n", record.args()).as_bytes());
    }

    fn flush(&self) {}
}
