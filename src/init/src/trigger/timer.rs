//! When a timer elapses: pure (systemd.timer(5)).
//!
//! It elapses exactly when it is due: `AccuracySec=` allows more delay than is ever taken.

use std::sync::Arc;
use std::time::Duration;

use orlop_unit::timer::{Since, Trigger};
use orlop_unit::{ActiveState, Kind, Timer as Directives, Unit};

/// The time on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The boot clock in nanoseconds.
    pub boot_ns: u64,
    /// The wall clock in microseconds since 1970-01-01 UTC.
    pub wall_us: u64,
}

/// What is known of the unit that the timer starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// When it was started last, on the boot clock.
    pub started_ns: Option<u64>,
    /// When it ended last, on the boot clock.
    pub ended_ns: Option<u64>,
    /// Whether it is down.
    pub is_down: bool,
}

/// Where the timer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum State {
    /// Not started.
    Dead,
    /// Waiting for its next moment.
    Waiting,
    /// Its unit runs.
    Running,
    /// It has no further moment, and stays up.
    Elapsed,
}

/// A timer's run.
#[derive(Clone, Debug)]
pub struct Timer {
    unit: Arc<Unit>,
    /// Where it is.
    pub state: State,
    /// When it was started.
    pub started: Now,
    /// When it last elapsed; for a persistent one, perhaps before the machine booted, and then on the wall clock alone.
    pub last: Option<Now>,
    /// Moments that come once and are over, by their place among the directives.
    pub spent: Vec<usize>,
    next_ns: Option<u64>,
    next_us: Option<u64>,
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Timer {
    /// A timer that is not started; `None` when the unit is none.
    #[must_use]
    pub fn new(unit: &Arc<Unit>) -> Option<Self> {
        matches!(unit.kind, Kind::Timer(_)).then(|| Self {
            unit: Arc::clone(unit),
            state: State::Dead,
            started: Now {
                boot_ns: 0,
                wall_us: 0,
            },
            last: None,
            spent: Vec::new(),
            next_ns: None,
            next_us: None,
        })
    }

    /// The unit as it was when this was made or last replaced.
    #[must_use]
    pub fn unit(&self) -> &Arc<Unit> {
        &self.unit
    }

    /// The directives.
    #[must_use]
    pub fn directives(&self) -> Option<&Directives> {
        match &self.unit.kind {
            Kind::Timer(timer) => Some(timer),
            _ => None,
        }
    }

    /// Takes the unit's files as they are now.
    pub fn replace_unit(&mut self, unit: &Arc<Unit>) {
        if matches!(unit.kind, Kind::Timer(_)) {
            self.unit = Arc::clone(unit);
            self.spent.clear();
        }
    }

    /// The state of the unit.
    #[must_use]
    pub fn active_state(&self) -> ActiveState {
        match self.state {
            State::Dead => ActiveState::Inactive,
            State::Waiting | State::Running | State::Elapsed => ActiveState::Active,
        }
    }

    /// The sub-state, in systemd's words.
    #[must_use]
    pub fn sub_state(&self) -> &'static str {
        match self.state {
            State::Dead => "dead",
            State::Waiting => "waiting",
            State::Running => "running",
            State::Elapsed => "elapsed",
        }
    }

    /// A start. `stamp_us` is when it last elapsed before, of a persistent timer.
    pub fn start(&mut self, stamp_us: Option<u64>, watched: Watched, random: u64, now: Now) {
        self.started = now;
        self.spent.clear();
        // A clock that was ahead must not keep the timer from elapsing for years.
        self.last = stamp_us.map(|stamp_us| Now {
            boot_ns: 0,
            wall_us: stamp_us.min(now.wall_us),
        });
        self.wait(true, watched, random, now);
    }

    /// A stop.
    pub fn stop(&mut self) {
        self.state = State::Dead;
        self.next_ns = None;
        self.next_us = None;
    }

    /// The unit that it starts has changed its state, or the wall clock was set.
    pub fn look_again(&mut self, watched: Watched, random: u64, now: Now) {
        match self.state {
            State::Dead => {}
            State::Running if !watched.is_down => {}
            State::Running | State::Waiting | State::Elapsed => {
                self.wait(false, watched, random, now);
            }
        }
    }

    /// Whether it elapses now; its unit is to be started then.
    pub fn elapses(&mut self, now: Now) -> bool {
        let is_due = self.state == State::Waiting
            && (self.next_ns.is_some_and(|at| at <= now.boot_ns)
                || self.next_us.is_some_and(|at| at <= now.wall_us));
        if is_due {
            self.state = State::Running;
            self.last = Some(now);
            self.next_ns = None;
            self.next_us = None;
        }
        is_due
    }

    /// When it elapses next, on the boot clock, as far as is known now.
    #[must_use]
    pub fn deadline_ns(&self, now: Now) -> Option<u64> {
        let wall = self.next_us.map(|at_us| {
            let left_us = at_us.saturating_sub(now.wall_us);
            now.boot_ns.saturating_add(left_us.saturating_mul(1000))
        });
        [self.next_ns, wall].into_iter().flatten().min()
    }

    /// When it elapses next, in microseconds since 1970-01-01 UTC, as far as is known now.
    #[must_use]
    pub fn next_wall_us(&self, now: Now) -> Option<u64> {
        let boot = self.next_ns.map(|at_ns| {
            let left_ns = at_ns.saturating_sub(now.boot_ns);
            now.wall_us.saturating_add(left_ns / 1000)
        });
        [self.next_us, boot].into_iter().flatten().min()
    }

    /// Finds the next moment.
    fn wait(&mut self, is_start: bool, watched: Watched, random: u64, now: Now) {
        let unit = Arc::clone(&self.unit);
        let Kind::Timer(directives) = &unit.kind else {
            return;
        };
        let most_us = microseconds(directives.randomized_delay);
        let random_us = random.checked_rem(most_us).unwrap_or(0);
        // With a delay of its own, a moment is looked for from that much before: else one that is near would be passed over.
        let from_us = match self.last {
            Some(last) => last.wall_us,
            None => self.started.wall_us.saturating_sub(random_us),
        };
        self.next_us = directives
            .next_calendar(from_us)
            .map(|at_us| at_us.saturating_add(random_us));
        self.next_ns = None;
        let last_ns = self.last.map_or(0, |last| last.boot_ns);
        for (index, trigger) in directives.triggers.iter().enumerate() {
            let Trigger::After(since, time) = trigger else {
                continue;
            };
            if self.spent.contains(&index) {
                continue;
            }
            let (base_ns, comes_once) = match since {
                Since::TimerStarted => (Some(self.started.boot_ns), true),
                // PID 1 begins with the boot, as far as timers can tell.
                Since::Boot | Since::Startup => (Some(0), true),
                Since::UnitStarted => (watched.started_ns.map(|at| at.max(last_ns)), false),
                Since::UnitEnded => (watched.ended_ns.map(|at| at.max(last_ns)), false),
            };
            let Some(base_ns) = base_ns else { continue };
            let at_ns = base_ns.saturating_add(nanoseconds(*time));
            let was_taken = self.last.is_some_and(|last| last.boot_ns >= at_ns);
            if comes_once && (was_taken || !is_start && at_ns <= now.boot_ns && self.last.is_some())
            {
                self.spent.push(index);
                continue;
            }
            let at_ns = at_ns.saturating_add(random_us.saturating_mul(1000));
            self.next_ns = Some(self.next_ns.map_or(at_ns, |next| next.min(at_ns)));
        }
        let has_next = self.next_ns.is_some() || self.next_us.is_some();
        // What counts from another unit's start or end may still come.
        let may_come = directives
            .triggers
            .iter()
            .any(|t| matches!(t, Trigger::After(Since::UnitStarted | Since::UnitEnded, _)));
        self.state = if has_next || may_come && is_start {
            State::Waiting
        } else if directives.remain_after_elapse || is_start {
            State::Elapsed
        } else {
            State::Dead
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_unit::{MemoryStore, SpecifierContext, UnitName};
    use proptest::prelude::*;

    const SECOND_NS: u64 = 1_000_000_000;
    /// 2026-01-01 00:00:00 UTC.
    const YEAR_US: u64 = 1_767_225_600_000_000;
    const HOUR_US: u64 = 3_600_000_000;

    fn timer(directives: &str) -> Timer {
        let store = MemoryStore::new().file("/u/x.timer", &format!("[Timer]\n{directives}"));
        let context = SpecifierContext::default();
        let loader = orlop_unit::Loader::new(&["/u"], &store, &context).reading_all();
        let loaded = loader.load(&UnitName::parse("x.timer").unwrap());
        Timer::new(&Arc::new(loaded.unit.expect(directives))).unwrap()
    }

    fn at(seconds: u64) -> Now {
        Now {
            boot_ns: seconds * SECOND_NS,
            wall_us: YEAR_US + seconds * 1_000_000,
        }
    }

    const DOWN: Watched = Watched {
        started_ns: None,
        ended_ns: None,
        is_down: true,
    };

    fn seconds_left(timer: &Timer, now: Now) -> Option<u64> {
        Some((timer.deadline_ns(now)? - now.boot_ns) / SECOND_NS)
    }

    #[test]
    fn a_calendar_comes_round() {
        let mut timer = timer("OnCalendar=*:0/15\n");
        timer.start(None, DOWN, 0, at(60));
        assert_eq!(seconds_left(&timer, at(60)), Some(14 * 60));
        assert!(!timer.elapses(at(15 * 60 - 1)));
        assert!(timer.elapses(at(15 * 60)));
        assert_eq!(timer.sub_state(), "running");
        timer.look_again(DOWN, 0, at(16 * 60));
        assert_eq!(seconds_left(&timer, at(16 * 60)), Some(14 * 60));
    }

    #[test]
    fn what_a_persistent_timer_missed_is_caught_up_once() {
        let mut timer = timer("OnCalendar=hourly\nPersistent=yes\n");
        timer.start(Some(YEAR_US - 5 * HOUR_US), DOWN, 0, at(100));
        assert!(timer.elapses(at(100)));
        timer.look_again(DOWN, 0, at(101));
        assert!(!timer.elapses(at(101)));
        assert_eq!(seconds_left(&timer, at(101)), Some(3600 - 101));
    }

    #[test]
    fn a_stamp_of_the_future_does_not_hold_it_up() {
        let mut timer = timer("OnCalendar=hourly\nPersistent=yes\n");
        timer.start(Some(YEAR_US * 2), DOWN, 0, at(100));
        assert_eq!(seconds_left(&timer, at(100)), Some(3500));
    }

    #[test]
    fn what_counts_from_the_boot_elapses_at_once_when_it_is_over() {
        let mut timer = timer("OnBootSec=10\n");
        timer.start(None, DOWN, 0, at(60));
        assert!(timer.elapses(at(60)));
        timer.look_again(DOWN, 0, at(61));
        assert_eq!(timer.sub_state(), "elapsed");
        assert_eq!(timer.deadline_ns(at(61)), None);
    }

    #[test]
    fn what_counts_from_the_unit_begins_with_its_first_start() {
        let mut timer = timer("OnActiveSec=5\nOnUnitActiveSec=30\n");
        timer.start(None, DOWN, 0, at(60));
        assert_eq!(seconds_left(&timer, at(60)), Some(5));
        assert_eq!(timer.next_wall_us(at(61)), Some(at(65).wall_us));
        assert!(timer.elapses(at(65)));
        assert_eq!(timer.last.map(|last| last.wall_us), Some(at(65).wall_us));
        let watched = Watched {
            started_ns: Some(65 * SECOND_NS),
            ended_ns: Some(66 * SECOND_NS),
            is_down: true,
        };
        timer.look_again(watched, 0, at(66));
        assert_eq!(seconds_left(&timer, at(66)), Some(29));
        assert!(timer.elapses(at(95)));
    }

    #[test]
    fn a_clock_that_is_set_moves_the_calendar_and_nothing_else() {
        let mut timer = timer("OnCalendar=daily\nOnActiveSec=30000\n");
        timer.start(None, DOWN, 0, at(0));
        assert_eq!(seconds_left(&timer, at(0)), Some(30_000));
        let later = Now {
            boot_ns: 5 * SECOND_NS,
            wall_us: YEAR_US + 23 * HOUR_US,
        };
        timer.look_again(DOWN, 0, later);
        assert_eq!(seconds_left(&timer, later), Some(3600));
        assert_eq!(timer.next_wall_us(later), Some(YEAR_US + 24 * HOUR_US));
    }

    proptest! {
        /// It never elapses early or twice for one moment, and never sleeps through one.
        #[test]
        fn each_moment_is_one_start(
            random in any::<u64>(),
            delay_s in 0_u64..600,
            steps in prop::collection::vec((1_u64..4000, any::<bool>()), 1..60),
        ) {
            let mut timer = timer(&format!("OnCalendar=hourly\nRandomizedDelaySec={delay_s}\n"));
            let mut now = at(0);
            timer.start(None, DOWN, random, now);
            let mut hours = 0;
            for (seconds, quick) in steps {
                let due = timer.deadline_ns(now);
                prop_assert!(due.is_some());
                now.boot_ns += seconds * SECOND_NS;
                now.wall_us += seconds * 1_000_000;
                let elapsed = timer.elapses(now);
                prop_assert_eq!(elapsed, due.unwrap() <= now.boot_ns);
                if elapsed {
                    let hour = (now.wall_us - YEAR_US) / HOUR_US;
                    prop_assert!(hour > hours || hours == 0 && delay_s > 0);
                    hours = hour;
                    if !quick {
                        now.boot_ns += SECOND_NS;
                        now.wall_us += 1_000_000;
                    }
                    timer.look_again(DOWN, random, now);
                }
            }
        }
    }
}
