//! The time by which machines are declared lost.

use std::time::Duration;

/// Counts the time in which the store had a leader: silence counts only where something could have been heard.
///
/// It is told what was seen and when; a stretch between two sightings counts when both saw a leader and it was no longer
/// than [`StoreClock::LONGEST_STEP`] (one who was stopped for a while has seen nothing in between).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreClock {
    elapsed: Duration,
    last: Option<Duration>,
}

impl StoreClock {
    /// The longest stretch between two sightings that counts.
    pub const LONGEST_STEP: Duration = Duration::from_secs(3);

    /// Notes whether the store had a leader at `now`, a monotonic time of the caller's; gives the time counted so far.
    pub fn observe(&mut self, now: Duration, has_leader: bool) -> Duration {
        if let Some(step) = self.last.and_then(|last| now.checked_sub(last))
            && has_leader
            && step <= Self::LONGEST_STEP
        {
            self.elapsed += step;
        }
        self.last = has_leader.then_some(now);
        self.elapsed
    }

    /// The time counted so far.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.elapsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_stands_still_without_a_leader_and_over_gaps() {
        let second = Duration::from_secs;
        let mut clock = StoreClock::default();
        clock.observe(second(100), true);
        assert_eq!(clock.observe(second(101), true), second(1));
        assert_eq!(clock.observe(second(102), false), second(1));
        assert_eq!(
            clock.observe(second(103), true),
            second(1),
            "nothing was heard before this"
        );
        assert_eq!(clock.observe(second(105), true), second(3));
        assert_eq!(
            clock.observe(second(500), true),
            second(3),
            "who slept has seen nothing"
        );
        assert_eq!(
            clock.observe(second(400), true),
            second(3),
            "a clock that goes back counts nothing"
        );
        assert_eq!(clock.observe(second(401), true), second(4));
    }
}
