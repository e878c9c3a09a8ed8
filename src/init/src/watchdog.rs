//! The watchdog: fed by PID 1's loop alone, so that a machine whose PID 1 stands still is reset.

use std::path::Path;

use orlop_boot::WATCHDOG_TIMEOUT_S;
use orlop_boot::slot::WATCHDOG_VARIABLE;
use orlop_sys::kmsg::{self, Priority};
use orlop_sys::watchdog::{DEVICE, Watchdog};

/// An open watchdog and when it is to be fed again, by `CLOCK_BOOTTIME`.
#[derive(Debug)]
pub struct Feeder {
    watchdog: Watchdog,
    interval_ns: u64,
    due_ns: u64,
}

impl Feeder {
    /// Opens the watchdog, where the machine has one. It is fed four times in its own time.
    #[must_use]
    pub fn open(now_ns: u64) -> Option<Self> {
        // The boot stage's, which counts already.
        let inherited = std::env::var(WATCHDOG_VARIABLE)
            .ok()
            .and_then(|number| number.parse().ok());
        Self::take_over(inherited, now_ns)
    }

    /// Goes on feeding the watchdog that is open at that number, or opens it.
    #[must_use]
    pub fn take_over(inherited: Option<i32>, now_ns: u64) -> Option<Self> {
        let complain = |text: &str| kmsg::write(Priority::Warning, "orlop", text);
        let inherited = inherited.and_then(|number| Watchdog::inherited(number).ok());
        let path = Path::new(DEVICE);
        let opened = match inherited {
            Some(watchdog) => Ok(watchdog),
            None if !path.exists() => return None,
            None => Watchdog::open(path),
        };
        let watchdog = match opened {
            Ok(watchdog) => watchdog,
            Err(err) => {
                complain(&format!("cannot open {DEVICE}: {err}"));
                return None;
            }
        };
        let seconds = watchdog
            .set_timeout(WATCHDOG_TIMEOUT_S)
            .unwrap_or_else(|err| {
                complain(&format!("the watchdog keeps its own time: {err}"));
                WATCHDOG_TIMEOUT_S
            });
        let mut feeder = Self {
            watchdog,
            interval_ns: u64::from(seconds).saturating_mul(1_000_000_000) / 4,
            due_ns: 0,
        };
        feeder.feed_if_due(now_ns);
        Some(feeder)
    }

    /// The number of its descriptor.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.watchdog.number()
    }

    /// Feeds it when it is time.
    pub fn feed_if_due(&mut self, now_ns: u64) {
        if now_ns < self.due_ns {
            return;
        }
        if let Err(err) = self.watchdog.keep_alive() {
            let text = format!("cannot feed the watchdog: {err}");
            kmsg::write(Priority::Error, "orlop", &text);
        }
        self.due_ns = now_ns.saturating_add(self.interval_ns);
    }

    /// When it has to be fed next.
    #[must_use]
    pub fn due_ns(&self) -> u64 {
        self.due_ns
    }
}
