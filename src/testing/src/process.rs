//! Servers that are processes of a test.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// A process that is killed when its owner is dropped. What it says on standard error is kept, and told when the test
/// that owns it fails.
#[derive(Debug)]
pub struct Process {
    /// The process itself.
    pub child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command that says what it has to say in the file `log`, which is appended to.
    ///
    /// # Errors
    ///
    /// If the file cannot be made, or the program cannot be started.
    pub fn spawn(command: &mut Command, log: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command.stdout(Stdio::null()).stderr(file).spawn()?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// Kills it, and waits for its end.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let state = match self.ended() {
                Some(status) => format!("has ended: {status}"),
                None => "runs".to_owned(),
            };
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            println!(
                "{}: process {} {state}; it said:\n{said}",
                self.log.display(),
                self.child.id()
            );
        }
        self.kill();
    }
}

/// What a process of a test has to say goes to standard error.
struct ToStderr;

impl log::Log for ToStderr {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("orlop")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("{} {}", record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Sends the log of this process, from `INFO` on, to standard error.
pub fn log_to_stderr() {
    // Whoever installed one before knows better.
    if log::set_logger(&ToStderr).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}
