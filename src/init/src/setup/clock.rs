//! The clock never goes back to before the image was made or the machine was last seen, so that certificates stay valid
//! where there is no battery.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use super::Setup;

/// Its modification time is when the machine was last seen.
const SEEN: &str = "/var/lib/orlop/clock";

/// The binary was made no later than it was written.
const BINARY: &str = "/usr/bin/orlop";

/// 2026-01-01: before that there was no Orlop.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);

/// Times later than this are damage, not memory: 2100-01-01.
const LATEST: Duration = Duration::from_secs(4_102_444_800);

/// The file is written again when it is older than this, in case the machine never ends in order.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// Sets the clock to the latest time that is known to be past, when it shows an earlier one.
pub(super) fn set(setup: &mut Setup) {
    let seen = changed(&setup.path(SEEN));
    let floor = [Some(EPOCH), changed(&setup.path(BINARY)), seen]
        .into_iter()
        .flatten()
        .filter(|time| *time < LATEST)
        .max()
        .unwrap_or(EPOCH);
    let behind = floor.saturating_sub(now());
    if setup.is_machine && !behind.is_zero() {
        match clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(floor)) {
            Ok(()) => log::warn!(
                "setup: the clock was {} s behind the last time that is known",
                behind.as_secs()
            ),
            Err(error) => setup.fail(format!("cannot set the clock: {}", error.desc())),
        }
    }
    let is_stale = seen.is_none_or(|seen| now().saturating_sub(seen) > STALE);
    if is_stale && let Err(error) = save(&setup.root) {
        setup.fail(format!("cannot note the time in {SEEN}: {error}"));
    }
}

/// The time since 1970; zero for a clock before that.
fn now() -> Duration {
    since_1970(SystemTime::now())
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

fn changed(path: &Path) -> Option<Duration> {
    let metadata = fs::metadata(path).ok()?;
    metadata.modified().ok().map(since_1970)
}

/// Notes that the machine was seen now.
pub(crate) fn save(root: &Path) -> io::Result<()> {
    let path = root.join(SEEN.trim_start_matches('/'));
    File::create(path)?.set_modified(SystemTime::now())
}
