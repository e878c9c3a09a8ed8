//! The two clocks of an entry.

use nix::time::{ClockId, clock_gettime};

/// One moment, on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// µs since 1970-01-01 UTC.
    pub realtime_us: u64,
    /// µs of `CLOCK_BOOTTIME`.
    pub monotonic_us: u64,
}

impl Moment {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        Self {
            realtime_us: read_us(ClockId::CLOCK_REALTIME),
            monotonic_us: read_us(ClockId::CLOCK_BOOTTIME),
        }
    }
}

/// µs of `CLOCK_MONOTONIC`, which the kernel's log goes by: it stands still while the machine sleeps.
#[must_use]
pub fn awake_us() -> u64 {
    read_us(ClockId::CLOCK_MONOTONIC)
}

/// A clock that cannot be read, or stands before its epoch, reads as zero: an entry with a wrong time is better than none.
fn read_us(clock: ClockId) -> u64 {
    let Ok(time) = clock_gettime(clock) else {
        return 0;
    };
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let micros = u64::try_from(time.tv_nsec()).unwrap_or(0) / 1000;
    seconds.saturating_mul(1_000_000).saturating_add(micros)
}
