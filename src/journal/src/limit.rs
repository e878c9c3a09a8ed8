//! How much a unit may log: `LogRateLimitIntervalSec=` and `LogRateLimitBurst=` (systemd.exec(5)). Pure.

use std::collections::HashMap;

/// The interval that holds where neither unit nor configuration names one (journald.conf(5)).
pub const INTERVAL_DEFAULT_US: u64 = 30_000_000;
/// The burst that holds where neither unit nor configuration names one.
pub const BURST_DEFAULT: u32 = 10_000;
/// More units than this are not counted each for itself; the rest are not limited.
const UNITS_MAX: usize = 8192;

/// So many messages in so much time. Zero of either is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Length of the interval, µs.
    pub interval_us: u64,
    /// Messages in one interval.
    pub burst: u32,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            interval_us: INTERVAL_DEFAULT_US,
            burst: BURST_DEFAULT,
        }
    }
}

impl Limit {
    /// This limit where the unit has its own for neither value, its own where it has.
    #[must_use]
    pub fn with(self, interval_us: Option<u64>, burst: Option<u32>) -> Self {
        Self {
            interval_us: interval_us.unwrap_or(self.interval_us),
            burst: burst.unwrap_or(self.burst),
        }
    }

    fn is_off(self) -> bool {
        self.interval_us == 0 || self.burst == 0
    }
}

/// One unit's interval.
#[derive(Debug)]
struct Window {
    ends_us: u64,
    admitted: u32,
    dropped: u64,
}

/// What was dropped of a unit in an interval that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The unit.
    pub unit: String,
    /// How many messages.
    pub count: u64,
}

/// The intervals of all units that have logged lately.
#[derive(Debug, Default)]
pub struct Limits {
    windows: HashMap<String, Window>,
}

impl Limits {
    /// Whether one more message of the unit, at `now_us` of any clock that never goes back, may be kept.
    /// Call [`Limits::ended`] with the same moment before, or what was dropped before it is told late.
    pub fn admit(&mut self, unit: &str, limit: Limit, now_us: u64) -> bool {
        if limit.is_off() {
            return true;
        }
        let Some(window) = self.windows.get_mut(unit) else {
            if self.windows.len() < UNITS_MAX {
                let window = Window {
                    ends_us: now_us.saturating_add(limit.interval_us),
                    admitted: 1,
                    dropped: 0,
                };
                self.windows.insert(unit.to_owned(), window);
            }
            return true;
        };
        if window.admitted < limit.burst {
            window.admitted += 1;
            return true;
        }
        window.dropped += 1;
        false
    }

    /// Forgets the intervals that are over, and says what was dropped in them, ordered by unit.
    pub fn ended(&mut self, now_us: u64) -> Vec<Dropped> {
        self.remove(|window| window.ends_us <= now_us)
    }

    /// Forgets all intervals, before the journal's exit.
    pub fn end_all(&mut self) -> Vec<Dropped> {
        self.remove(|_| true)
    }

    fn remove(&mut self, is_over: impl Fn(&Window) -> bool) -> Vec<Dropped> {
        let mut told = Vec::new();
        self.windows.retain(|unit, window| {
            if !is_over(window) {
                return true;
            }
            if window.dropped > 0 {
                told.push(Dropped {
                    unit: unit.clone(),
                    count: window.dropped,
                });
            }
            false
        });
        told.sort_by(|a, b| a.unit.cmp(&b.unit));
        told
    }

    /// When something that was dropped is to be told.
    #[must_use]
    pub fn deadline_us(&self) -> Option<u64> {
        let lossy = self.windows.values().filter(|window| window.dropped > 0);
        lossy.map(|window| window.ends_us).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Limit = Limit {
        interval_us: 100,
        burst: 3,
    };

    #[test]
    fn what_is_above_the_burst_is_dropped_until_the_interval_ends() {
        let mut limits = Limits::default();
        let admitted: Vec<bool> = (0..5).map(|at| limits.admit("a", LIMIT, at)).collect();
        assert_eq!(admitted, [true, true, true, false, false]);
        assert!(limits.admit("b", LIMIT, 5), "each unit has its own");
        assert_eq!(limits.deadline_us(), Some(100));
        assert_eq!(limits.ended(99), []);
        let told = Dropped {
            unit: "a".to_owned(),
            count: 2,
        };
        assert_eq!(limits.ended(100), [told]);
        assert_eq!(limits.deadline_us(), None);
        assert!(limits.admit("a", LIMIT, 100));
    }

    #[test]
    fn zero_of_either_turns_it_off() {
        let mut limits = Limits::default();
        for off in [LIMIT.with(Some(0), None), LIMIT.with(None, Some(0))] {
            assert!((0..100).all(|at| limits.admit("a", off, at)));
        }
        assert_eq!(limits.end_all(), []);
        assert_eq!(LIMIT.with(Some(5), None).burst, 3);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_untold_and_no_interval_has_more_than_the_burst(
            steps in proptest::collection::vec((0..3u8, 0..60u64), 0..200),
            interval_us in 1..200u64, burst in 1..6u32,
        ) {
            let limit = Limit { interval_us, burst };
            let mut limits = Limits::default();
            let (mut now_us, mut asked, mut kept, mut told) = (0, 0u64, Vec::new(), 0u64);
            for (unit, pause_us) in steps {
                now_us += pause_us;
                told += limits.ended(now_us).iter().map(|dropped| dropped.count).sum::<u64>();
                asked += 1;
                let unit = unit.to_string();
                if limits.admit(&unit, limit, now_us) {
                    kept.push((unit, now_us));
                }
            }
            told += limits.end_all().iter().map(|dropped| dropped.count).sum::<u64>();
            prop_assert_eq!(asked, kept.len() as u64 + told);
            // Intervals begin at a message, so a stretch of one interval's length touches two at most.
            for (unit, from) in &kept {
                let near = kept.iter().filter(|(other, at)| other == unit && (*from..from + interval_us).contains(at));
                prop_assert!(near.count() <= 2 * burst as usize);
            }
        }
    }
}
