//! The last guard of a version on trial: that somebody decides about it at all.
//!
//! `orlop health` decides, in a unit. Where that unit never came to run, however its dependencies hang, the machine would feed its
//! watchdog for ever and never go back.

use std::path::Path;
use std::time::Duration;

use orlop_boot::slot::Booted;

/// There as soon as `orlop health` runs.
pub const DECIDING: &str = "/run/orlop/deciding";

/// How long after the deadline of the configuration the guard acts.
const GRACE: Duration = Duration::from_secs(60);

/// The deadline where the configuration has none.
const DEADLINE: Duration = Duration::from_secs(300);

/// A start that has to be decided about.
#[derive(Debug)]
pub struct Trial {
    deadline_ns: Option<u64>,
}

impl Trial {
    /// Looks whether this start is one; the configuration has to be compiled.
    #[must_use]
    pub fn begin() -> Self {
        let is_on_trial = Booted::read().is_some_and(|booted| booted.is_on_trial());
        Self {
            deadline_ns: is_on_trial.then(deadline_ns),
        }
    }

    /// When to look again; nothing: never.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.deadline_ns
    }

    /// Whether the time is over and nobody decides. True once.
    pub fn is_lost(&mut self, now_ns: u64) -> bool {
        if self
            .deadline_ns
            .is_none_or(|deadline_ns| now_ns < deadline_ns)
        {
            return false;
        }
        self.deadline_ns = None;
        !Path::new(DECIDING).exists()
    }
}

fn deadline_ns() -> u64 {
    let configured = std::fs::read("/run/orlop/machine.json")
        .ok()
        .and_then(|text| serde_json::from_slice::<orlop_config::Machine>(&text).ok())
        .and_then(|machine| machine.update.boot_deadline)
        .map(|seconds| Duration::from_secs(seconds.value.into()));
    let deadline = configured.unwrap_or(DEADLINE).saturating_add(GRACE);
    u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX)
}
