//! Timers: their clocks, their chance, and what is kept of them.

use std::hash::Hasher as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orlop_boot::times;
use orlop_sys::kmsg::Priority;
use orlop_unit::{Kind, Unit, UnitId, UnitName};

use crate::manager::{Manager, log};
use crate::spawn;
use crate::trigger::{Trigger, timer};

/// Where the last moments of persistent timers are kept, as the modification times of files.
const STAMPS: &str = "/var/lib/orlop/timers";

/// Both clocks.
pub(crate) fn now() -> timer::Now {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    timer::Now {
        boot_ns: times::now_ns(),
        wall_us: u64::try_from(wall.as_micros()).unwrap_or(u64::MAX),
    }
}

impl Manager {
    /// What a timer wants to know of its unit.
    pub(in crate::manager) fn watched(&self, id: UnitId) -> timer::Watched {
        let Some(other) = self.triggered(id) else {
            return timer::Watched::default();
        };
        let entry = self.entry(other);
        timer::Watched {
            started_ns: entry.and_then(|e| e.started_ns),
            ended_ns: entry.and_then(|e| e.ended_ns),
            is_down: self.graph.state(other).is_down(),
        }
    }

    /// A random number, or one that this machine always has for this unit.
    pub(in crate::manager) fn random_for(&self, unit: &Unit, is_fixed: bool) -> u64 {
        if !is_fixed {
            return u64::from_ne_bytes(orlop_sys::random::bytes().unwrap_or_default());
        }
        // SipHash without a key: the same for as long as the machine's id is.
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(self.specifiers.machine_id.as_bytes());
        hasher.write(unit.name.as_str().as_bytes());
        hasher.finish()
    }

    pub(in crate::manager) fn timer_looks_again(&mut self, id: UnitId) {
        let watched = self.watched(id);
        let Some(unit) = self.graph.unit(id).cloned() else {
            return;
        };
        let Kind::Timer(directives) = &unit.kind else {
            return;
        };
        let random = self.random_for(&unit, directives.fixed_random_delay);
        if let Some(Trigger::Timer(timer)) = self.trigger_mut(id) {
            timer.look_again(watched, random, now());
            let state = timer.active_state();
            self.graph.set_state(id, state);
        }
        self.schedule(id);
    }

    /// A timer may be due.
    pub(in crate::manager) fn timer_is_due(&mut self, id: UnitId) {
        let now = now();
        let Some(Trigger::Timer(timer)) = self.trigger_mut(id) else {
            return;
        };
        if timer.elapses(now) {
            let persistent = timer.directives().is_some_and(|d| d.persistent);
            let name = self.graph.name(id).clone();
            if persistent {
                write_stamp(&name, now.wall_us);
            }
            self.start_triggered(id);
        }
        self.schedule(id);
    }
}

fn stamp(unit: &UnitName) -> String {
    format!("{STAMPS}/stamp-{unit}")
}

pub(super) fn read_stamp(unit: &UnitName) -> Option<u64> {
    let modified = std::fs::metadata(stamp(unit)).ok()?.modified().ok()?;
    let time: Duration = modified.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(time.as_micros()).ok()
}

/// Keeps the moment by a child: the disk may not answer, and PID 1 must not wait for it.
pub(super) fn write_stamp(unit: &UnitName, wall_us: u64) {
    let seconds = wall_us / 1_000_000;
    let script = "mkdir -p \"$1\" && touch -d \"@$2\" \"$3\"";
    let words = [
        "/bin/sh",
        "-c",
        script,
        "sh",
        STAMPS,
        &seconds.to_string(),
        &stamp(unit),
    ];
    if let Err(err) = spawn::start_program(&words) {
        log(
            Priority::Warning,
            &format!("{unit}: its moment is not kept: {err}"),
        );
    }
}
