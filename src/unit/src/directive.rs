//! The directives: one table a section, sorted by name, each row with its effect.

use std::sync::Arc;

use crate::mount::Mount;
use crate::name::{UnitName, UnitType};
use crate::path::PathUnit;
use crate::problem::{Position, Problems, Severity};
use crate::quadlet::ContainerDraft;
use crate::service::{KillMode, NotifyAccess, Service, ServiceType};
use crate::socket::Socket;
use crate::support::{self, Without};
use crate::syntax::Assignment;
use crate::timer::Timer;
use crate::unit::{Install, MachineAction, StartLimit};
use crate::value::{Signal, Span};
use crate::{Conditions, Dependency};

mod common;
mod confinement;
pub(crate) mod exec;
mod mount;
mod reading;
mod service;
mod socket;
mod timer;

pub(crate) use reading::Reading;

/// What an assignment to a directive does.
#[derive(Clone, Copy)]
pub(crate) enum Effect {
    /// Changes the draft.
    Set(fn(&mut Draft, &Assignment<'_>, &mut Reading<'_>)),
    /// Known, not supported, and a unit that asks for it must not run without it; the text says what it is about.
    Refused(&'static str),
    /// Known, not supported, and harmless to leave out; the text says what happens in its place.
    Ignored(&'static str),
    /// Known, and the wish is met (or moot) whatever the value.
    Silent,
}

/// A row of a table.
pub(crate) struct Directive {
    pub(crate) name: &'static str,
    pub(crate) effect: Effect,
}

pub(crate) const fn set(
    name: &'static str,
    f: fn(&mut Draft, &Assignment<'_>, &mut Reading<'_>),
) -> Directive {
    Directive {
        name,
        effect: Effect::Set(f),
    }
}

pub(crate) const fn refused(name: &'static str, about: &'static str) -> Directive {
    Directive {
        name,
        effect: Effect::Refused(about),
    }
}

pub(crate) const fn ignored(name: &'static str, instead: &'static str) -> Directive {
    Directive {
        name,
        effect: Effect::Ignored(instead),
    }
}

pub(crate) const fn silent(name: &'static str) -> Directive {
    Directive {
        name,
        effect: Effect::Silent,
    }
}

/// Finds a row by binary search.
fn find(table: &'static [Directive], name: &str) -> Option<&'static Directive> {
    let index = table.binary_search_by(|row| row.name.cmp(name)).ok()?;
    table.get(index)
}

/// A unit while its files are read: later assignments change earlier ones.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) description: String,
    pub(crate) documentation: Vec<String>,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) no_default_dependencies: bool,
    pub(crate) requires_mounts_for: Vec<String>,
    pub(crate) conditions: Conditions,
    pub(crate) asserts: Conditions,
    pub(crate) install: Install,
    pub(crate) start_limit: StartLimit,
    pub(crate) failure_action: MachineAction,
    pub(crate) success_action: MachineAction,
    pub(crate) job_timeout: Option<Span>,
    pub(crate) stop_when_unneeded: bool,
    pub(crate) refuse_manual_start: bool,
    pub(crate) refuse_manual_stop: bool,
    pub(crate) allow_isolate: bool,
    pub(crate) ignore_on_isolate: bool,
    pub(crate) service: Service,
    pub(crate) mount: Mount,
    timer: Option<Timer>,
    socket: Option<Socket>,
    path: Option<PathUnit>,
    /// `Unit=` or `Service=` of what starts other units.
    pub(crate) triggered: Option<UnitName>,
    /// What was written, where the default depends on other directives.
    pub(crate) written: Written,
    pub(crate) container: Option<ContainerDraft>,
    /// What is set and has no effect here, until a later line takes it back.
    pending: Vec<Pending>,
}

/// A directive that has no effect, and where it was set last.
#[derive(Debug)]
struct Pending {
    name: &'static str,
    without: Without,
    /// It is read and typed all the same.
    typed: bool,
    path: Arc<str>,
    at: Position,
}

#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) service_type: Option<ServiceType>,
    pub(crate) timeout_start: Option<Span>,
    pub(crate) timeout_stop: Option<Span>,
    pub(crate) kill_mode: Option<KillMode>,
    pub(crate) kill_signal: Option<Signal>,
    pub(crate) restart_kill_signal: Option<Signal>,
    pub(crate) notify_access: Option<NotifyAccess>,
    pub(crate) delegate: Option<bool>,
    pub(crate) watchdog: Option<Span>,
    pub(crate) runtime_max: Option<Span>,
    pub(crate) guess_main_pid: Option<bool>,
    pub(crate) restart_max_delay: Option<Span>,
    pub(crate) timeout_abort: Option<Span>,
    pub(crate) trigger_limit_burst: Option<u32>,
    pub(crate) bus_name: bool,
    pub(crate) permissions_start_only: bool,
}

/// The words of a value that knows no quotes, with their byte offsets.
pub(crate) fn plain_words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut end = 0usize;
    text.split_whitespace().map(move |word| {
        let from = text
            .get(end..)
            .and_then(|rest| rest.find(word))
            .unwrap_or(0)
            .saturating_add(end);
        end = from.saturating_add(word.len());
        (from, word)
    })
}

/// Applies every assignment of one file.
pub(crate) fn apply(draft: &mut Draft, assignments: &[Assignment<'_>], reading: &mut Reading<'_>) {
    let kind = reading.expander.name.kind();
    let mut unknown_section = "";
    for a in assignments {
        let section = a.section;
        if section.starts_with("X-") || a.key.starts_with("X-") {
            continue;
        }
        if section == "Unit" && common::condition(draft, a, reading) {
            continue;
        }
        if let Some(container) = &mut draft.container {
            match section {
                "Container" => {
                    container.apply(a, reading);
                    continue;
                }
                "Quadlet" => {
                    container.apply_quadlet(a, reading);
                    continue;
                }
                _ => {}
            }
        }
        let tables = tables(section, kind);
        if tables.is_empty() {
            if unknown_section != section {
                unknown_section = section;
                let what = format!(
                    "section [{section}] does not belong in a {} unit, ignored",
                    kind.suffix()
                );
                reading.report(a.key_at, Severity::Warning, what);
            }
            continue;
        }
        let runs_programs = matches!(section, "Service" | "Socket" | "Mount");
        if runs_programs && service::limit(draft, a, reading) {
            continue;
        }
        let Some(row) = tables.iter().find_map(|table| find(table, &a.key)) else {
            let what = format!("unknown key {} in section [{section}], ignored", a.key);
            reading.report(a.key_at, Severity::Warning, what);
            continue;
        };
        match row.effect {
            Effect::Set(f) => {
                f(draft, a, reading);
                if let Some(caveat) = support::row(kind, row.name).filter(|row| !row.applied) {
                    draft.note(row.name, caveat.without, true, a, reading);
                }
            }
            Effect::Refused(about) => {
                draft.note(row.name, Without::Refuse(about), false, a, reading);
            }
            Effect::Ignored(instead) => {
                draft.note(row.name, Without::Warn(instead), false, a, reading);
            }
            Effect::Silent => {}
        }
    }
}

/// Tables that are searched one after the other.
type Tables = &'static [&'static [Directive]];

static TIMER_TABLES: Tables = &[timer::TIMER];
static PATH_TABLES: Tables = &[timer::PATH];
static SLICE_TABLES: Tables = &[service::CGROUP];
static SOCKET_TABLES: Tables = &[
    socket::SOCKET,
    service::EXECUTION,
    confinement::CONFINEMENT,
    service::KILL,
    service::CGROUP,
];
static MOUNT_TABLES: Tables = &[
    mount::MOUNT,
    service::EXECUTION,
    confinement::CONFINEMENT,
    service::KILL,
    service::CGROUP,
];
static UNIT_TABLES: Tables = &[common::UNIT];
static INSTALL_TABLES: Tables = &[common::INSTALL];
static SERVICE_TABLES: Tables = &[
    service::SERVICE,
    service::EXECUTION,
    confinement::CONFINEMENT,
    service::KILL,
    service::CGROUP,
];

/// Every directive of every section: section, name, and what comes of it. `Limit…=`, `Condition…=` and `Assert…=` are read beside the tables.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str, support::State)> {
    let sections = [
        ("Unit", UNIT_TABLES, UnitType::Service),
        ("Install", INSTALL_TABLES, UnitType::Service),
        ("Service", SERVICE_TABLES, UnitType::Service),
        ("Timer", TIMER_TABLES, UnitType::Timer),
        ("Socket", SOCKET_TABLES, UnitType::Socket),
        ("Mount", MOUNT_TABLES, UnitType::Mount),
        ("Path", PATH_TABLES, UnitType::Path),
        ("Slice", SLICE_TABLES, UnitType::Slice),
    ];
    sections.into_iter().flat_map(|(section, tables, kind)| {
        let rows = tables.iter().flat_map(|table| table.iter());
        rows.map(move |row| (section, row.name, state(row, kind)))
    })
}

/// What comes of a directive in a unit of that kind.
fn state(row: &Directive, kind: UnitType) -> support::State {
    let without = match row.effect {
        _ if !support::is_run(kind) => return support::State::Refused,
        Effect::Silent => return support::State::Met,
        Effect::Refused(about) => Without::Refuse(about),
        Effect::Ignored(instead) => Without::Warn(instead),
        Effect::Set(_) => match support::row(kind, row.name).filter(|row| !row.applied) {
            Some(row) => row.without,
            None => return support::State::Applied,
        },
    };
    match without {
        Without::Refuse(_) => support::State::Refused,
        Without::Warn(_) => support::State::Ignored,
    }
}

/// The tables of a section; none where the section does not belong in the unit.
fn tables(section: &str, kind: UnitType) -> Tables {
    match (section, kind) {
        ("Unit", _) => UNIT_TABLES,
        ("Install", _) => INSTALL_TABLES,
        ("Service", UnitType::Service) => SERVICE_TABLES,
        ("Timer", UnitType::Timer) => TIMER_TABLES,
        ("Path", UnitType::Path) => PATH_TABLES,
        ("Slice", UnitType::Slice) => SLICE_TABLES,
        ("Socket", UnitType::Socket) => SOCKET_TABLES,
        ("Mount", UnitType::Mount) => MOUNT_TABLES,
        _ => &[],
    }
}

impl Draft {
    /// What the unit starts is filled in when everything is read.
    pub(crate) fn timer(&mut self) -> &mut Timer {
        self.timer
            .get_or_insert_with(|| Timer::new(UnitName::unknown()))
    }

    pub(crate) fn socket(&mut self) -> &mut Socket {
        self.socket
            .get_or_insert_with(|| Socket::new(UnitName::unknown()))
    }

    pub(crate) fn path(&mut self) -> &mut PathUnit {
        self.path
            .get_or_insert_with(|| PathUnit::new(UnitName::unknown()))
    }

    /// Keeps in mind that a directive has no effect, or, when it was switched off again, no longer.
    fn note(
        &mut self,
        name: &'static str,
        without: Without,
        typed: bool,
        a: &Assignment<'_>,
        reading: &Reading<'_>,
    ) {
        self.pending.retain(|pending| pending.name != name);
        if !is_off(&a.key, &a.value.text) {
            self.pending.push(Pending {
                name,
                without,
                typed,
                path: reading.path.clone(),
                at: a.key_at,
            });
        }
    }

    /// Reports what is set and has no effect; without `supervised`, only what is not even read.
    pub(crate) fn report_pending(&mut self, problems: &mut Problems, supervised: bool) {
        for pending in std::mem::take(&mut self.pending) {
            if pending.typed && !supervised {
                continue;
            }
            let (severity, what) = judgement(pending.name, pending.without);
            problems.push(&pending.path, pending.at, severity, what);
        }
    }
}

fn judgement(name: &str, without: Without) -> (Severity, String) {
    match without {
        Without::Refuse(about) => (
            Severity::Error,
            format!("{name}= is not supported ({about}), so the unit is not loaded"),
        ),
        Without::Warn(instead) => (
            Severity::Warning,
            format!("{name}= is not supported: {instead}"),
        ),
    }
}

/// Whether the value switches the directive off, or is its default.
fn is_off(key: &str, text: &str) -> bool {
    match key {
        // Empty takes every capability away, `~` none.
        "CapabilityBoundingSet" => text == "~",
        "DevicePolicy" => matches!(text, "" | "auto"),
        "ExitType" => matches!(text, "" | "main"),
        "ProcSubset" => matches!(text, "" | "all"),
        "ProtectProc" => matches!(text, "" | "default"),
        "ReloadSignal" => matches!(text, "" | "SIGHUP" | "HUP" | "1"),
        // Zero is a value of these like any other.
        "CPUAffinity"
        | "IOSchedulingClass"
        | "IOSchedulingPriority"
        | "LogLevelMax"
        | "LogRateLimitBurst"
        | "LogRateLimitIntervalSec" => text.is_empty(),
        _ => text.is_empty() || crate::value::parse_bool(text) == Some(false),
    }
}

/// Reports a key of a `.container` file that is known and has no effect here.
pub(crate) fn unsupported(effect: Effect, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let without = match effect {
        Effect::Refused(about) => Without::Refuse(about),
        Effect::Ignored(instead) => Without::Warn(instead),
        Effect::Set(_) | Effect::Silent => return,
    };
    if !is_off(&a.key, &a.value.text) {
        let (severity, what) = judgement(&a.key, without);
        reading.report(a.key_at, severity, what);
    }
}

/// The names of the directives that confine.
#[cfg(test)]
pub(crate) fn confinement_names() -> impl Iterator<Item = &'static str> {
    confinement::CONFINEMENT.iter().map(|row| row.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sorted_for_the_search() {
        let kinds = [
            ("Unit", UnitType::Service),
            ("Install", UnitType::Service),
            ("Service", UnitType::Service),
            ("Timer", UnitType::Timer),
            ("Path", UnitType::Path),
            ("Slice", UnitType::Slice),
            ("Socket", UnitType::Socket),
            ("Mount", UnitType::Mount),
        ];
        for table in kinds
            .iter()
            .flat_map(|(section, kind)| tables(section, *kind))
        {
            for pair in table.windows(2) {
                assert!(
                    pair[0].name < pair[1].name,
                    "{} {}",
                    pair[0].name,
                    pair[1].name
                );
            }
        }
    }

    #[test]
    fn word_offsets_point_at_the_words() {
        let text = "a  ab a";
        assert_eq!(
            plain_words(text).collect::<Vec<_>>(),
            [(0, "a"), (3, "ab"), (6, "a")]
        );
    }
}
