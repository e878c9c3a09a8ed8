//! Where a boot's time goes: `/run/orlop/boot-times`, a line `NAME START_NS END_NS` a step.
//!
//! Both times are of `CLOCK_BOOTTIME`, which starts with the kernel and which every process shares.

use std::fs::OpenOptions;
use std::io::Write as _;

use nix::time::{ClockId, clock_gettime};

/// The file to which every stage appends.
pub const PATH: &str = "/run/orlop/boot-times";

/// Nanoseconds since the kernel started.
#[must_use]
pub fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let nanoseconds = u64::try_from(time.tv_nsec()).unwrap_or(0);
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds)
    })
}

/// Appends the step `name`, a word without blanks, that ran from `start_ns` until now.
///
/// Without `/run` nothing is written: the record is for whoever asks later, no step depends on it.
pub fn record(name: &str, start_ns: u64) {
    append(&line(name, start_ns));
}

/// The line about a step that ends now, for [`append`].
#[must_use]
pub fn line(name: &str, start_ns: u64) -> String {
    format!("{name} {start_ns} {}\n", now_ns())
}

/// Appends lines, as [`record`] does with one.
pub fn append(lines: &str) {
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(PATH) {
        let _ = file.write_all(lines.as_bytes());
    }
}
