//! PID 1 after the root is up: setup, supervisor, control socket, shutdown.

use std::process::ExitCode;

/// Runs PID 1 on the root it finds.
pub fn run() -> ExitCode {
    ExitCode::FAILURE
}
