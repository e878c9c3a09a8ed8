//! `[Timer]`: when a unit is started (`systemd.timer(5)`).

use std::time::Duration;

use crate::calendar::Calendar;
use crate::name::UnitName;

/// From when a [`Trigger::After`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Since {
    /// `OnActiveSec=`: the timer was started.
    TimerStarted,
    /// `OnBootSec=`: the machine booted. What is over when the timer starts elapses at once.
    Boot,
    /// `OnStartupSec=`: PID 1 began. What is over when the timer starts elapses at once.
    Startup,
    /// `OnUnitActiveSec=`: the unit was last started.
    UnitStarted,
    /// `OnUnitInactiveSec=`: the unit last ended.
    UnitEnded,
}

/// One line that lets the timer elapse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// `OnCalendar=`
    Calendar(Calendar),
    /// The others: so long after something.
    After(Since, Duration),
}

/// A timer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    /// Whichever comes first, each time.
    pub triggers: Vec<Trigger>,
    /// `AccuracySec=`: how much later it may elapse, to wake the machine less often.
    pub accuracy: Duration,
    /// `RandomizedDelaySec=`: at most so much is added, at random.
    pub randomized_delay: Duration,
    /// `FixedRandomDelay=`: the same at each turn.
    pub fixed_random_delay: bool,
    /// `OnClockChange=`: elapses when the wall clock jumps.
    pub on_clock_change: bool,
    /// `OnTimezoneChange=`
    pub on_timezone_change: bool,
    /// `Persistent=`: what a calendar trigger missed while the machine was off is caught up once.
    pub persistent: bool,
    /// `WakeSystem=`
    pub wake_system: bool,
    /// `RemainAfterElapse=`: stays loaded and active when it cannot elapse again.
    pub remain_after_elapse: bool,
    /// `Unit=`, or the service of the same name.
    pub unit: UnitName,
}

impl Timer {
    /// A timer without a trigger.
    #[must_use]
    pub fn new(unit: UnitName) -> Self {
        Self {
            triggers: Vec::new(),
            accuracy: DEFAULT_ACCURACY,
            randomized_delay: Duration::ZERO,
            fixed_random_delay: false,
            on_clock_change: false,
            on_timezone_change: false,
            persistent: false,
            wake_system: false,
            remain_after_elapse: true,
            unit,
        }
    }

    /// The next moment of all calendar triggers strictly after `after_us`, µs since 1970-01-01 UTC, without delays.
    #[must_use]
    pub fn next_calendar(&self, after_us: u64) -> Option<u64> {
        let calendars = self.triggers.iter().filter_map(|trigger| match trigger {
            Trigger::Calendar(calendar) => Some(calendar),
            Trigger::After(..) => None,
        });
        calendars
            .filter_map(|calendar| calendar.next_after(after_us))
            .min()
    }
}

/// `AccuracySec=` where it is not written.
pub const DEFAULT_ACCURACY: Duration = Duration::from_secs(60);
