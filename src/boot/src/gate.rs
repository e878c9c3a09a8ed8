//! When a start is good: the condition has held for a time, before a deadline. Pure; times are of one clock, in nanoseconds.

use std::time::Duration;

/// What follows from the state of things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Look again later.
    Wait,
    /// The start is good.
    Bless,
    /// It is not, and will not be: why.
    GiveUp(String),
}

/// The gate.
#[derive(Debug, Clone)]
pub struct Gate {
    hold_ns: u64,
    deadline_ns: u64,
    /// Since when the condition holds.
    since_ns: Option<u64>,
}

impl Gate {
    /// A gate that opens when the condition has held for `hold`, and gives up when it does not hold at `deadline`, counted from
    /// the clock's zero.
    #[must_use]
    pub fn new(hold: Duration, deadline: Duration) -> Self {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self {
            hold_ns: ns(hold),
            deadline_ns: ns(deadline),
            since_ns: None,
        }
    }

    /// Takes what was seen at `now_ns`: that the condition holds, or what is against it.
    ///
    /// One that began to hold in time may hold to its end after the deadline.
    pub fn step(&mut self, now_ns: u64, seen: Result<(), String>) -> Decision {
        match seen {
            Ok(()) => {
                let since_ns = *self.since_ns.get_or_insert(now_ns);
                if now_ns.saturating_sub(since_ns) >= self.hold_ns {
                    Decision::Bless
                } else {
                    Decision::Wait
                }
            }
            Err(why) => {
                self.since_ns = None;
                if now_ns >= self.deadline_ns {
                    Decision::GiveUp(why)
                } else {
                    Decision::Wait
                }
            }
        }
    }

    /// Since when the condition holds.
    #[must_use]
    pub fn since_ns(&self) -> Option<u64> {
        self.since_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    fn gate() -> Gate {
        Gate::new(Duration::from_secs(30), Duration::from_secs(300))
    }

    #[test]
    fn the_condition_has_to_hold_without_a_break() {
        let mut gate = gate();
        assert_eq!(gate.step(10 * S, Ok(())), Decision::Wait);
        assert_eq!(
            gate.step(39 * S, Err("sshd.service failed".into())),
            Decision::Wait
        );
        assert_eq!(gate.step(41 * S, Ok(())), Decision::Wait);
        assert_eq!(gate.step(70 * S, Ok(())), Decision::Wait);
        assert_eq!(gate.step(71 * S, Ok(())), Decision::Bless);
    }

    #[test]
    fn the_deadline_says_what_was_missing() {
        let mut gate = gate();
        assert_eq!(gate.step(299 * S, Ok(())), Decision::Wait);
        assert_eq!(gate.step(301 * S, Ok(())), Decision::Wait);
        let why = "network-online.target is not active".to_owned();
        assert_eq!(gate.step(302 * S, Err(why.clone())), Decision::GiveUp(why));
    }

    proptest! {
        #[test]
        fn it_blesses_only_what_held_long_enough(steps in proptest::collection::vec((1..40_u64, any::<bool>()), 1..60)) {
            let (mut gate, mut now, mut since) = (gate(), 0, None);
            for (seconds, holds) in steps {
                now += seconds * S;
                let seen = if holds { Ok(()) } else { Err(String::new()) };
                since = holds.then(|| since.unwrap_or(now));
                let decision = gate.step(now, seen);
                prop_assert_eq!(decision == Decision::Bless, since.is_some_and(|s| now - s >= 30 * S));
                prop_assert_eq!(matches!(decision, Decision::GiveUp(_)), !holds && now >= 300 * S);
            }
        }
    }
}
