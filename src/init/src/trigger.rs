//! Units that start others: timers, sockets and paths. What they decide is pure; what they hold open is not.

pub mod listen;
pub mod path;
pub mod socket;
pub mod timer;

use std::os::fd::OwnedFd;

use nix::sys::inotify::{Inotify, WatchDescriptor};
use orlop_unit::ActiveState;

/// A unit's trigger, with what it holds open while it is up.
#[derive(Debug)]
pub enum Trigger {
    /// A timer.
    Timer(Box<timer::Timer>),
    /// A socket unit, and its descriptors in the order of its `Listen…=` lines.
    Socket(socket::Socket, Vec<OwnedFd>),
    /// A path unit, and what tells of changes.
    Path(path::Path, Option<Watcher>),
}

/// What tells of changes of paths.
#[derive(Debug)]
pub struct Watcher {
    /// All watches.
    pub inotify: Inotify,
    /// Those of paths that are watched for changes, not only for being there.
    pub own: Vec<WatchDescriptor>,
}

impl Trigger {
    /// The state of its unit.
    #[must_use]
    pub fn active_state(&self) -> ActiveState {
        match self {
            Self::Timer(timer) => timer.active_state(),
            Self::Socket(socket, _) => socket.active_state(),
            Self::Path(path, _) => path.active_state(),
        }
    }

    /// The sub-state, in systemd's words.
    #[must_use]
    pub fn sub_state(&self) -> &'static str {
        match self {
            Self::Timer(timer) => timer.sub_state(),
            Self::Socket(socket, _) => socket.sub_state(),
            Self::Path(path, _) => path.sub_state(),
        }
    }
}

/// So many in so much time, and no more (`TriggerLimit…=`).
#[derive(Clone, Debug, Default)]
pub struct Rate {
    times_ns: std::collections::VecDeque<u64>,
}

impl Rate {
    /// Counts one more; `false` when it is one too many. No burst or no interval is no limit.
    pub fn takes(&mut self, now_ns: u64, interval: std::time::Duration, burst: u32) -> bool {
        let window_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        if window_ns == 0 || burst == 0 {
            return true;
        }
        self.times_ns
            .retain(|at_ns| now_ns.saturating_sub(*at_ns) < window_ns);
        if self.times_ns.len() >= usize::try_from(burst).unwrap_or(usize::MAX) {
            return false;
        }
        self.times_ns.push_back(now_ns);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_rate_takes_so_many_in_its_window() {
        let mut rate = Rate::default();
        let second = Duration::from_secs(1);
        assert!((0..3).all(|at| rate.takes(at, second, 3)));
        assert!(!rate.takes(999_999_999, second, 3));
        assert!(rate.takes(1_000_000_000, second, 3));
        assert!((0..99).all(|at| rate.takes(at, Duration::ZERO, 3)));
    }
}
