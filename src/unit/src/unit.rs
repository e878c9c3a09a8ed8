//! A loaded unit: what every type has in common.

use std::sync::Arc;
use std::time::Duration;

use crate::condition::Conditions;
use crate::mount::Mount;
use crate::name::UnitName;
use crate::path::PathUnit;
use crate::service::{Resources, Service};
use crate::socket::Socket;
use crate::timer::Timer;

/// How one unit relates to another (`systemd.unit(5)`); the direction is "this unit … the named one".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Relation {
    /// Starts the other; its failure is ignored.
    Wants,
    /// Starts the other; stops with it, and does not start after it failed.
    Requires,
    /// The other must be active already.
    Requisite,
    /// As `Requires`, and stops also when the other goes away by itself.
    BindsTo,
    /// Stops and restarts with the other.
    PartOf,
    /// Starts the other, and again whenever it is down while this is up.
    Upholds,
    /// Only one of the two can be active.
    Conflicts,
    /// Starts after the other has started, stops before it.
    After,
    /// The reverse of `After`.
    Before,
    /// Started when this fails.
    OnFailure,
    /// Started when this ends well.
    OnSuccess,
    /// Reloaded when this is.
    PropagatesReloadTo,
    /// This is reloaded when the other is.
    ReloadPropagatedFrom,
    /// Stopped when this is.
    PropagatesStopTo,
    /// This is stopped when the other is.
    StopPropagatedFrom,
    /// Starts the other when its time, connection or file comes: not followed by jobs.
    Triggers,
    /// The reverse of `Triggers`.
    TriggeredBy,
}

/// One edge that a unit file (or a `.wants` directory, or a default) asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// The kind of edge.
    pub relation: Relation,
    /// The other unit.
    pub on: UnitName,
}

/// What to do to the machine when a unit ends in some way (`FailureAction=` and sisters).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MachineAction {
    /// Nothing.
    #[default]
    None,
    /// Reboot; `force` skips the orderly stop of units, `immediate` everything.
    Reboot(Urgency),
    /// Power off.
    PowerOff(Urgency),
    /// Exit, which for PID 1 of a machine means power off.
    Exit(Urgency),
}

/// How orderly a [`MachineAction`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Stop all units first.
    Orderly,
    /// `-force`: kill everything, then do it.
    Force,
    /// `-immediate`: at once.
    Immediate,
}

/// How many starts in which time are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartLimit {
    /// The window; zero turns the limit off.
    pub interval: Duration,
    /// Starts allowed in it.
    pub burst: u32,
    /// What happens when it is hit.
    pub action: MachineAction,
}

impl Default for StartLimit {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            burst: 5,
            action: MachineAction::None,
        }
    }
}

/// `[Install]`: read when a unit is enabled, and for Quadlet files at each load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Install {
    /// Units that get a `.wants` link to this.
    pub wanted_by: Vec<UnitName>,
    /// Units that get a `.requires` link to this.
    pub required_by: Vec<UnitName>,
    /// Units that uphold this.
    pub upheld_by: Vec<UnitName>,
    /// Further names.
    pub alias: Vec<UnitName>,
    /// Units enabled together with this.
    pub also: Vec<UnitName>,
    /// The instance that is enabled when a template is.
    pub default_instance: Option<String>,
}

/// What the unit is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Processes to run.
    Service(Arc<Service>),
    /// A point that others are ordered by.
    Target,
    /// Starts another unit when its time comes.
    Timer(Box<Timer>),
    /// Starts a service when somebody connects.
    Socket(Box<Socket>),
    /// A file system in its place.
    Mount(Box<Mount>),
    /// Starts another unit when a file appears or changes.
    Path(Box<PathUnit>),
    /// A node of the tree of cgroups, and its limits.
    Slice(Box<Resources>),
}

/// A unit as its files describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The real name; for an alias, not the one that was asked for.
    pub name: UnitName,
    /// Its other names.
    pub aliases: Vec<UnitName>,
    /// `Description=`, or the name.
    pub description: String,
    /// `Documentation=`.
    pub documentation: Vec<String>,
    /// The main file; `None` for a target that is built in.
    pub fragment: Option<String>,
    /// The drop-ins that were applied, in order.
    pub drop_ins: Vec<String>,
    /// Every edge, defaults included.
    pub dependencies: Vec<Dependency>,
    /// `DefaultDependencies=`: a target orders itself after its members only where both ends have it.
    pub default_dependencies: bool,
    /// Paths whose mounts this needs (`RequiresMountsFor=`).
    pub requires_mounts_for: Vec<String>,
    /// `Condition…=`: checked when the start job runs; unmet means skipped.
    pub conditions: Conditions,
    /// `Assert…=`: checked likewise; unmet means the job fails.
    pub asserts: Conditions,
    /// `[Install]`.
    pub install: Install,
    /// `StartLimit…=`.
    pub start_limit: StartLimit,
    /// `FailureAction=`.
    pub failure_action: MachineAction,
    /// `SuccessAction=`.
    pub success_action: MachineAction,
    /// `JobTimeoutSec=`; `None` waits for ever.
    pub job_timeout: Option<Duration>,
    /// `StopWhenUnneeded=`.
    pub stop_when_unneeded: bool,
    /// `RefuseManualStart=`.
    pub refuse_manual_start: bool,
    /// `RefuseManualStop=`.
    pub refuse_manual_stop: bool,
    /// `AllowIsolate=`.
    pub allow_isolate: bool,
    /// `IgnoreOnIsolate=`.
    pub ignore_on_isolate: bool,
    /// What is particular to its type.
    pub kind: Kind,
}

impl Unit {
    /// The names that this has the relation to.
    pub fn related(&self, relation: Relation) -> impl Iterator<Item = &UnitName> {
        self.dependencies
            .iter()
            .filter(move |d| d.relation == relation)
            .map(|d| &d.on)
    }

    /// The service, if it is one.
    #[must_use]
    pub fn service(&self) -> Option<&Arc<Service>> {
        match &self.kind {
            Kind::Service(service) => Some(service),
            _ => None,
        }
    }
}
