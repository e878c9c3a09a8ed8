//! Ours beside `systemd-analyze` of Debian's package `systemd`, on generated input.

mod calendar;
mod install;
mod span;
mod syscall;
mod verify;

use std::process::{Command, Output};

/// Runs `systemd-analyze` in UTC.
///
/// # Panics
/// It is not installed; `make deps` does that.
fn systemd_analyze(words: &[&str]) -> Output {
    Command::new("systemd-analyze")
        .args(words)
        .env("TZ", "UTC")
        .env("LC_ALL", "C.UTF-8")
        .env("SYSTEMD_LOG_LEVEL", "info")
        .env("SYSTEMD_COLORS", "0")
        .output()
        .expect("systemd-analyze (Debian package systemd)")
}
