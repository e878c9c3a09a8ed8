//! PID 1 after the root is up: setup, supervisor, control socket, shutdown.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::arithmetic_side_effects
    )
)]

pub mod crash;
mod mountinfo;
pub mod mounts;
pub mod setup;
pub mod teardown;

use std::process::ExitCode;

/// Runs PID 1 on the root it finds.
pub fn run() -> ExitCode {
    ExitCode::FAILURE
}
