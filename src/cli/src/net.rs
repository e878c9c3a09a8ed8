//! `orlop net`: the role that keeps the machine's links.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use orlop_net::role::{self, notify::Supervisor};

/// Writes to stderr, which is the journal for a unit: `<priority>text` as sd-daemon(3) has it when it is a pipe, plain for a person at a terminal.
struct Stderr {
    is_terminal: bool,
}

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let priority = match record.level() {
            log::Level::Error => 3,
            log::Level::Warn => 4,
            log::Level::Info => 6,
            log::Level::Debug | log::Level::Trace => 7,
        };
        let prefix = if self.is_terminal {
            String::new()
        } else {
            format!("<{priority}>")
        };
        // One write a line; with stderr gone there is nobody to tell.
        let _ = io::stderr().write_all(format!("{prefix}{}\n", record.args()).as_bytes());
    }

    fn flush(&self) {}
}

/// Where roles find the configuration and leave what others read.
const RUN: &str = "/run/orlop";

/// Runs the role until it cannot go on. `--run DIRECTORY` takes another directory than `/run/orlop`, for tests.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let directory = match args {
        [] => PathBuf::from(RUN),
        [flag, directory] if flag == "--run" => PathBuf::from(directory),
        _ => {
            eprintln!("usage: orlop net [--run DIRECTORY]");
            return ExitCode::from(2);
        }
    };
    let logger = Box::new(Stderr {
        is_terminal: io::stderr().is_terminal(),
    });
    if log::set_boxed_logger(logger).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    let Err(err) = role::run(&directory, Supervisor::from_environment());
    let mut line = err.to_string();
    let mut cause = err.source();
    while let Some(inner) = cause {
        line.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    log::error!("{line}");
    ExitCode::FAILURE
}
