//! When leases end, by the leader's clock. The leases themselves are in the state; only their deadlines are here.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::mvcc::write::LeaseChange;

/// The shortest time to live: one and a half election time-outs of one second, in whole seconds, as in etcd.
pub const MIN_TTL_SECONDS: i64 = 2;
/// The longest time to live, as in etcd.
pub const MAX_TTL_SECONDS: i64 = 9_000_000_000;

#[derive(Debug, Clone, Copy)]
struct Deadline {
    ttl: i64,
    at: Duration,
    /// Its end has been proposed: it can no longer be renewed.
    ending: bool,
}

/// The deadlines. Times are since an arbitrary point of a clock that never goes back.
#[derive(Debug, Default)]
pub struct Leases {
    deadlines: HashMap<i64, Deadline>,
    queue: BTreeSet<(Duration, i64)>,
}

impl Leases {
    /// Starts all clocks anew: what a new leader does, since it does not know what the last one granted.
    pub fn restart(
        &mut self,
        leases: impl IntoIterator<Item = (i64, i64)>,
        now: Duration,
        grace: Duration,
    ) {
        self.deadlines.clear();
        self.queue.clear();
        for (id, ttl) in leases {
            self.insert(id, ttl, now + grace);
        }
    }

    fn insert(&mut self, id: i64, ttl: i64, from: Duration) {
        let at = from.saturating_add(Duration::from_secs(ttl.unsigned_abs()));
        if let Some(old) = self.deadlines.insert(
            id,
            Deadline {
                ttl,
                at,
                ending: false,
            },
        ) {
            self.queue.remove(&(old.at, id));
        }
        self.queue.insert((at, id));
    }

    /// Follows a change of the state.
    pub fn follow(&mut self, change: LeaseChange, now: Duration) {
        match change {
            LeaseChange::Granted { id, ttl } => self.insert(id, ttl, now),
            LeaseChange::Revoked { id } => {
                if let Some(old) = self.deadlines.remove(&id) {
                    self.queue.remove(&(old.at, id));
                }
            }
        }
    }

    /// Starts a lease's clock anew; its time to live in seconds, or `None` when there is no such lease any more.
    pub fn renew(&mut self, id: i64, now: Duration) -> Option<i64> {
        let deadline = *self
            .deadlines
            .get(&id)
            .filter(|d| !d.ending && d.at > now)?;
        self.insert(id, deadline.ttl, now);
        Some(deadline.ttl)
    }

    /// Whole seconds left, and the seconds granted.
    pub fn time_to_live(&self, id: i64, now: Duration) -> Option<(i64, i64)> {
        let deadline = self.deadlines.get(&id)?;
        let left = deadline.at.saturating_sub(now).as_secs();
        Some((i64::try_from(left).unwrap_or(i64::MAX), deadline.ttl))
    }

    /// The leases that have run out and whose end has not been proposed, at most `limit`; they count as proposed from now on.
    pub fn expired(&mut self, now: Duration, limit: usize) -> Vec<i64> {
        let mut out = Vec::new();
        while out.len() < limit {
            let Some((at, id)) = self.queue.first().copied().filter(|(at, _)| *at <= now) else {
                break;
            };
            self.queue.remove(&(at, id));
            if let Some(deadline) = self.deadlines.get_mut(&id) {
                deadline.ending = true;
                out.push(id);
            }
        }
        out
    }

    /// A proposed end came to nothing: it will be proposed again.
    pub fn retry(&mut self, id: i64) {
        if let Some(deadline) = self.deadlines.get_mut(&id).filter(|d| d.ending) {
            deadline.ending = false;
            self.queue.insert((deadline.at, id));
        }
    }

    /// When the next lease runs out.
    pub fn next(&self) -> Option<Duration> {
        self.queue.first().map(|(at, _)| *at)
    }
}
