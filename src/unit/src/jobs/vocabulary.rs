//! The words of the job engine: what is asked, what is to be done, how it ended and why.

use std::fmt;

use crate::graph::UnitId;
use crate::name::UnitName;

/// A job's number, unique in the engine's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a user or the supervisor asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Bring it up with all that it needs.
    Start,
    /// Bring it down with all that needs it.
    Stop,
    /// Down and up again; start it when it is down.
    Restart,
    /// As `Restart`, but leave it down when it is.
    TryRestart,
    /// Have it read its configuration again.
    Reload,
}

/// How a request treats jobs that are already there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Contrary jobs are cancelled.
    #[default]
    Replace,
    /// As `Replace`, and no later request can cancel these: for a shutdown.
    ReplaceIrreversibly,
    /// Contrary jobs make the request fail.
    Fail,
    /// As `Replace`, and everything that is not needed is stopped.
    Isolate,
    /// This unit alone, in no order.
    IgnoreDependencies,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobKind {
    /// Up.
    Start,
    /// Down.
    Stop,
    /// Down, then up. Becomes `Start` when the first half is done.
    Restart,
    /// Read the configuration again.
    Reload,
}

impl JobKind {
    /// The word that messages use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Reload => "reload",
        }
    }

    /// The next step takes the unit down: such jobs go before others, and in reverse order among themselves.
    pub(super) fn goes_down(self) -> bool {
        matches!(self, Self::Stop | Self::Restart)
    }

    /// What one job does that stands for both; `None` when they contradict each other.
    pub(super) fn merged(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Stop, Self::Stop) => Some(Self::Stop),
            (Self::Stop, _) | (_, Self::Stop) => None,
            (Self::Restart, _) | (_, Self::Restart) => Some(Self::Restart),
            (Self::Start, _) | (_, Self::Start) => Some(Self::Start),
            (Self::Reload, Self::Reload) => Some(Self::Reload),
        }
    }
}

/// A step for the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The job to report with [`super::Jobs::finished`].
    pub job: JobId,
    /// The unit.
    pub unit: UnitId,
    /// What to do.
    pub action: Action,
}

/// What to do with a unit now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Bring it up.
    Start,
    /// Bring it down; `restarting` when a start follows.
    Stop {
        /// The same job starts the unit again afterwards.
        restarting: bool,
    },
    /// Have it read its configuration again.
    Reload,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The unit is where the job wanted it.
    Done,
    /// A condition was not met: not started, and no failure.
    Skipped(String),
    /// It did not work; the text says why.
    Failed(String),
    /// It took too long; the text says what was waited for.
    TimedOut(String),
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobResult {
    /// Done, or nothing was to do.
    Done,
    /// A condition was not met.
    Skipped,
    /// The unit failed.
    Failed,
    /// It took too long.
    TimedOut,
    /// Another job or the user put an end to it.
    Canceled,
    /// What the unit needs is not there.
    Dependency,
}

impl JobResult {
    /// The word that `systemctl` uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::TimedOut => "timeout",
            Self::Canceled => "canceled",
            Self::Dependency => "dependency",
        }
    }
}

/// Why a job ended as it did, or was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// What the supervisor said.
    Reported(String),
    /// A unit that this one needs did not come up.
    Dependency {
        /// The unit that did not come up.
        unit: UnitName,
        /// How its job ended; `None` when it never got one.
        result: Option<JobResult>,
    },
    /// A unit that must be up already (`Requisite=`, `BindsTo=`, or the unit itself for a reload) is not.
    NotActive(UnitName),
    /// A contrary job took its place.
    Replaced(JobKind),
    /// Somebody cancelled it.
    Canceled,
    /// There is no such unit.
    NotFound,
    /// The unit is masked.
    Masked,
    /// Its files hold an error.
    NotLoaded(String),
    /// It cannot be up together with this unit, which the same request starts.
    ConflictsWith(UnitName),
    /// Ordered in a circle; the names in order.
    Cycle(Vec<UnitName>),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported(text) => f.write_str(text),
            Self::Dependency {
                unit,
                result: Some(result),
            } => {
                write!(
                    f,
                    "it needs {unit}, whose job ended with: {}",
                    result.as_str()
                )
            }
            Self::Dependency { unit, result: None } => {
                write!(f, "it needs {unit}, which cannot be started")
            }
            Self::NotActive(unit) => write!(f, "{unit} is not active"),
            Self::Replaced(kind) => write!(f, "a {} of the unit took its place", kind.as_str()),
            Self::Canceled => f.write_str("cancelled on request"),
            Self::NotFound => f.write_str("unit not found"),
            Self::Masked => f.write_str("the unit is masked"),
            Self::NotLoaded(problem) => f.write_str(problem),
            Self::ConflictsWith(unit) => write!(f, "it conflicts with {unit}"),
            Self::Cycle(units) => {
                f.write_str("ordering cycle: ")?;
                write_cycle(f, units)
            }
        }
    }
}

pub(super) fn write_cycle(f: &mut fmt::Formatter<'_>, units: &[UnitName]) -> fmt::Result {
    for unit in units {
        write!(f, "{unit} after ")?;
    }
    match units.first() {
        Some(first) => fmt::Display::fmt(first, f),
        None => Ok(()),
    }
}

/// Something to log, and to tell those who wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A job is over.
    Ended {
        /// Its number.
        job: JobId,
        /// Its unit.
        unit: UnitId,
        /// What was asked for.
        kind: JobKind,
        /// How it ended.
        result: JobResult,
        /// Why, when not simply done.
        cause: Option<Cause>,
    },
    /// A request would have wanted a job for this unit, and goes on without.
    LeftOut {
        /// The unit.
        unit: UnitId,
        /// Why.
        cause: Cause,
    },
    /// Units changed under waiting jobs such that they waited for each other; this one went first.
    OrderBroken {
        /// The unit.
        unit: UnitId,
    },
}
