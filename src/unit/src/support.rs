//! What the supervisor carries out of what this crate reads: the one place to change when PID 1 learns something.
//!
//! A directive that is read and has no row in `DIRECTIVES` is applied. One whose row says that it is not makes its unit fail
//! to load where it confines, and is warned about where it does not; [`crate::Loader::reading_all`] leaves both out.

use crate::name::UnitType;

/// What happens to a unit that uses a directive that is not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Without {
    /// It does not load; the text says what the directive is about.
    Refuse(&'static str),
    /// It loads with a warning; the text says what holds in the directive's place.
    Warn(&'static str),
}

/// A directive that is read, checked and typed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) directive: &'static str,
    /// PID 1 carries it out.
    pub(crate) applied: bool,
    pub(crate) without: Without,
}

const fn confines(directive: &'static str, applied: bool) -> Row {
    Row {
        directive,
        applied,
        without: Without::Refuse("it confines the processes"),
    }
}

const fn warns(directive: &'static str, applied: bool, instead: &'static str) -> Row {
    Row {
        directive,
        applied,
        without: Without::Warn(instead),
    }
}

const CREDENTIAL: Without = Without::Refuse("the service expects the credential");
const DEVICES: Without = Without::Refuse("it restricts devices or networks");
const SOCKET: Without = Without::Refuse("no such sockets are made");
const SCHEDULER: &str = "the scheduler's defaults hold";

/// Sorted by name. Turning a directive on is one word here.
#[rustfmt::skip]
static DIRECTIVES: &[Row] = &[
    confines("AmbientCapabilities", true),
    confines("BindPaths", true),
    confines("BindReadOnlyPaths", true),
    warns("CPUAffinity", true, "all processors are used"),
    warns("CPUSchedulingPolicy", true, SCHEDULER),
    warns("CPUSchedulingPriority", true, SCHEDULER),
    warns("CPUSchedulingResetOnFork", true, SCHEDULER),
    confines("CapabilityBoundingSet", true),
    Row { directive: "DeferAcceptSec", applied: false, without: SOCKET },
    Row { directive: "DeviceAllow", applied: true, without: DEVICES },
    Row { directive: "DevicePolicy", applied: true, without: DEVICES },
    confines("DynamicUser", true),
    confines("ExecPaths", true),
    warns("ExitType", false, "the service ends with its main process"),
    warns("IOSchedulingClass", true, SCHEDULER),
    warns("IOSchedulingPriority", true, SCHEDULER),
    confines("InaccessibleDirectories", true),
    confines("InaccessiblePaths", true),
    warns("JobTimeoutSec", false, "a job waits as long as it must; use TimeoutStartSec="),
    Row { directive: "ListenNetlink", applied: false, without: SOCKET },
    Row { directive: "LoadCredential", applied: true, without: CREDENTIAL },
    confines("LockPersonality", true),
    warns("LogLevelMax", true, "all lines are kept"),
    warns("LogRateLimitBurst", true, "the journal's own limit holds"),
    warns("LogRateLimitIntervalSec", true, "the journal's own limit holds"),
    confines("MemoryDenyWriteExecute", true),
    confines("MountAPIVFS", true),
    confines("MountFlags", true),
    confines("NetworkNamespacePath", true),
    confines("NoExecPaths", true),
    confines("NoNewPrivileges", true),
    warns("OnTimezoneChange", false, "the machine knows UTC alone"),
    Row { directive: "PassPacketInfo", applied: false, without: SOCKET },
    Row { directive: "PassSecurity", applied: false, without: SOCKET },
    confines("PrivateDevices", true),
    confines("PrivateIPC", true),
    confines("PrivateMounts", true),
    confines("PrivateNetwork", true),
    confines("PrivateTmp", true),
    confines("PrivateUsers", true),
    confines("ProcSubset", true),
    confines("ProtectClock", true),
    confines("ProtectControlGroups", true),
    confines("ProtectHome", true),
    confines("ProtectHostname", true),
    confines("ProtectKernelLogs", true),
    confines("ProtectKernelModules", true),
    confines("ProtectKernelTunables", true),
    confines("ProtectProc", true),
    confines("ProtectSystem", true),
    confines("ReadOnlyDirectories", true),
    confines("ReadOnlyPaths", true),
    confines("ReadWriteDirectories", true),
    confines("ReadWritePaths", true),
    confines("RestrictAddressFamilies", true),
    confines("RestrictNamespaces", true),
    confines("RestrictRealtime", true),
    confines("RestrictSUIDSGID", true),
    confines("RootDirectory", true),
    warns("RuntimeRandomizedExtraSec", false, "RuntimeMaxSec= holds exactly"),
    Row { directive: "SetCredential", applied: true, without: CREDENTIAL },
    Row { directive: "SocketProtocol", applied: false, without: SOCKET },
    confines("SystemCallArchitectures", true),
    confines("SystemCallErrorNumber", true),
    confines("SystemCallFilter", true),
    warns("TTYReset", false, "the terminal stays as it was left"),
    warns("TTYVHangup", false, "others keep the terminal"),
    confines("TemporaryFileSystem", true),
    warns("TimerSlackNSec", true, SCHEDULER),
    Row { directive: "Transparent", applied: false, without: SOCKET },
    warns("WakeSystem", false, "the machine does not sleep"),
];

/// The kinds of units that are read, and whether PID 1 runs them. The others are not even read.
const KINDS: &[(UnitType, bool)] = &[
    (UnitType::Service, true),
    (UnitType::Target, true),
    (UnitType::Timer, true),
    (UnitType::Socket, true),
    (UnitType::Mount, true),
    (UnitType::Path, true),
    (UnitType::Slice, true),
];

/// What comes of a directive, for lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Carried out.
    Applied,
    /// Its wish is met, or moot, whatever the value.
    Met,
    /// Named in a warning when it is set; the unit loads.
    Ignored,
    /// Named in an error when it is set; the unit does not load.
    Refused,
}

impl State {
    /// One word for a list.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Met => "met",
            Self::Ignored => "ignored",
            Self::Refused => "refused",
        }
    }
}

/// Every directive that is known: its section, its name, what comes of it. In a kind of unit that is not run, all are refused.
pub fn directives() -> impl Iterator<Item = (&'static str, &'static str, State)> {
    crate::directive::all()
}

/// Commands of a socket unit: its descriptors are opened by PID 1 at once.
static SOCKET_COMMAND: Row = Row {
    directive: "Exec…",
    applied: false,
    without: Without::Refuse("sockets run no commands; let the service do it"),
};

/// The row of a directive that is read; those without one have no caveat.
pub(crate) fn row(kind: UnitType, directive: &str) -> Option<&'static Row> {
    if kind == UnitType::Socket && directive.starts_with("Exec") && !directive.ends_with("Paths") {
        return Some(&SOCKET_COMMAND);
    }
    let index = DIRECTIVES
        .binary_search_by(|row| row.directive.cmp(directive))
        .ok()?;
    DIRECTIVES.get(index)
}

/// Whether units of that kind are read.
#[must_use]
pub fn is_read(kind: UnitType) -> bool {
    KINDS.iter().any(|(k, _)| *k == kind)
}

/// Whether PID 1 runs units of that kind.
#[must_use]
pub fn is_run(kind: UnitType) -> bool {
    KINDS.contains(&(kind, true))
}

/// Whether PID 1 carries a directive out, of those that are read.
#[must_use]
pub fn is_applied(directive: &str) -> bool {
    row(UnitType::Service, directive).is_none_or(|row| row.applied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_for_the_search() {
        for pair in DIRECTIVES.windows(2) {
            assert!(
                pair[0].directive < pair[1].directive,
                "{}",
                pair[1].directive
            );
        }
    }

    #[test]
    fn what_confines_has_a_row() {
        let parts: Vec<_> = crate::directive::confinement_names().collect();
        assert!(parts.len() > 40);
        for directive in parts {
            assert!(row(UnitType::Service, directive).is_some(), "{directive}");
        }
    }
}
