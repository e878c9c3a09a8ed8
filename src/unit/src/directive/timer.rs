//! `[Timer]` and `[Path]` (`systemd.timer(5)`, `systemd.path(5)`).

use std::time::Duration;

use super::service::mode;
use super::{Directive, Draft, Reading, set};
use crate::calendar::Calendar;
use crate::name::UnitType;
use crate::path::{PathUnit, Watch};
use crate::problem::Severity;
use crate::syntax::Assignment;
use crate::timer::{DEFAULT_ACCURACY, Since, Trigger};
use crate::value::{Span, parse_span};

/// `On…Sec=`: several add up, an empty one takes away all triggers of every kind.
fn after(since: Since, draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        draft.timer().triggers.clear();
        return;
    }
    let Some(text) = reading.text(a, Severity::Warning) else {
        return;
    };
    match parse_span(&text) {
        Some(Span::Finite(span)) => draft.timer().triggers.push(Trigger::After(since, span)),
        _ => reading.ignore(a, 0, &format!("{text:?} is not a time span")),
    }
}

fn calendar(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        draft.timer().triggers.clear();
        return;
    }
    let Some(text) = reading.text(a, Severity::Warning) else {
        return;
    };
    match Calendar::parse(&text) {
        Ok(calendar) => draft.timer().triggers.push(Trigger::Calendar(calendar)),
        Err(error) => {
            // With a specifier in it the text's offsets are not the file's.
            let offset = if text == a.value.text {
                error.offset()
            } else {
                0
            };
            reading.ignore(a, offset, &error.to_string());
        }
    }
}

/// `Unit=`: what is started; the unit's own kind cannot start itself.
fn triggered(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        draft.triggered = None;
        return;
    }
    let Some(name) = reading.unit_name(a, &a.value.text, 0) else {
        return;
    };
    let own = reading.expander.name.kind();
    if name.kind() == own && own != UnitType::Path {
        reading.ignore(a, 0, &format!("a {} cannot start another", own.suffix()));
    } else {
        draft.triggered = Some(name);
    }
}

pub(super) static TIMER: &[Directive] = &[
    set("AccuracySec", |d, a, r| {
        r.duration(a, &mut d.timer().accuracy, DEFAULT_ACCURACY);
    }),
    set("FixedRandomDelay", |d, a, r| {
        r.bool(a, &mut d.timer().fixed_random_delay, false)
    }),
    set("OnActiveSec", |d, a, r| after(Since::TimerStarted, d, a, r)),
    set("OnBootSec", |d, a, r| after(Since::Boot, d, a, r)),
    set("OnCalendar", calendar),
    set("OnClockChange", |d, a, r| {
        r.bool(a, &mut d.timer().on_clock_change, false)
    }),
    set("OnStartupSec", |d, a, r| after(Since::Startup, d, a, r)),
    set("OnTimezoneChange", |d, a, r| {
        r.bool(a, &mut d.timer().on_timezone_change, false)
    }),
    set("OnUnitActiveSec", |d, a, r| {
        after(Since::UnitStarted, d, a, r)
    }),
    set("OnUnitInactiveSec", |d, a, r| {
        after(Since::UnitEnded, d, a, r)
    }),
    set("Persistent", |d, a, r| {
        r.bool(a, &mut d.timer().persistent, false)
    }),
    set("RandomizedDelaySec", |d, a, r| {
        r.duration(a, &mut d.timer().randomized_delay, Duration::ZERO);
    }),
    set("RemainAfterElapse", |d, a, r| {
        r.bool(a, &mut d.timer().remain_after_elapse, true)
    }),
    set("Unit", triggered),
    set("WakeSystem", |d, a, r| {
        r.bool(a, &mut d.timer().wake_system, false)
    }),
];

/// What is watched for; an empty line takes away all of every kind.
fn watch(kind: Watch, draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        draft.path().watches.clear();
        return;
    }
    let Some(text) = reading.text(a, Severity::Warning) else {
        return;
    };
    match super::confinement::plain_path(&text) {
        Some(path) => draft.path().watches.push((kind, path)),
        None => reading.ignore(a, 0, &format!("{text:?} is not a plain absolute path")),
    }
}

pub(super) static PATH: &[Directive] = &[
    set("DirectoryMode", |d, a, r| {
        mode(&mut d.path().directory_mode, 0o755, a, r)
    }),
    set("DirectoryNotEmpty", |d, a, r| {
        watch(Watch::DirectoryNotEmpty, d, a, r)
    }),
    set("MakeDirectory", |d, a, r| {
        r.bool(a, &mut d.path().make_directory, false)
    }),
    set("PathChanged", |d, a, r| watch(Watch::Changed, d, a, r)),
    set("PathExists", |d, a, r| watch(Watch::Exists, d, a, r)),
    set("PathExistsGlob", |d, a, r| {
        watch(Watch::ExistsGlob, d, a, r)
    }),
    set("PathModified", |d, a, r| watch(Watch::Modified, d, a, r)),
    set("TriggerLimitBurst", |d, a, r| {
        let default = PathUnit::new(r.expander.name.clone()).trigger_limit_burst;
        let slot = &mut d.path().trigger_limit_burst;
        r.value(a, slot, default, "a number", |t| t.parse().ok());
    }),
    set("TriggerLimitIntervalSec", |d, a, r| {
        let slot = &mut d.path().trigger_limit_interval;
        r.duration(a, slot, Duration::from_secs(2));
    }),
    set("Unit", triggered),
];
