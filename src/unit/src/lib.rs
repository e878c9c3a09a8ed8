//! Unit files, specifiers, the dependency graph and the job engine: pure.
//!
//! * [`Loader`] finds a unit's files through a [`UnitStore`] and gives a typed [`Unit`], or [`Problem`]s with their
//!   places. A Quadlet `.container` file becomes a [`Service`].
//! * [`Graph`] holds the loaded units, their relations and their states; [`UnitId`] is an index without gaps.
//! * [`Jobs`] turns requests into steps in the right order; its module page, [`jobs`], says how a supervisor drives it.
//!
//! ```
//! use orlop_unit::{Action, ActiveState, Graph, Jobs, Loader, MemoryStore, Mode, Outcome, Request, SpecifierContext, UnitName};
//!
//! let store = MemoryStore::new().file("/etc/systemd/system/web.service", "[Service]\nExecStart=/bin/httpd\n");
//! let context = SpecifierContext::default();
//! let loader = Loader::new(&["/etc/systemd/system"], &store, &context);
//! let (mut graph, mut jobs) = (Graph::new(), Jobs::new());
//! let web = graph.load(&UnitName::parse("web.service")?, &mut |name| loader.load(name));
//! jobs.request(&graph, Request::Start, web, Mode::Replace)?;
//! while let Some(run) = jobs.next_runnable(&graph) {
//!     assert_eq!(run.action, Action::Start);
//!     graph.set_state(run.unit, ActiveState::Active);
//!     jobs.finished(&graph, run.job, Outcome::Done);
//! }
//! assert!(jobs.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// PID 1 runs this code: nothing in it may panic.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::arithmetic_side_effects
    )
)]

mod builtin;
pub mod calendar;
pub mod command;
pub mod condition;
pub mod confinement;
mod directive;
pub mod environment;
mod errno;
pub mod graph;
pub mod install;
pub mod jobs;
pub mod launch;
pub mod load;
pub mod mount;
pub mod name;
pub mod path;
pub mod problem;
mod quadlet;
pub mod schedule;
pub mod service;
pub mod socket;
mod specifier;
pub mod store;
pub mod support;
mod syntax;
pub mod syscall;
pub mod timer;
pub mod unit;
pub mod value;
mod words;

pub use calendar::{Calendar, CalendarError, Civil};
pub use command::{Command, CommandFlags, Variables};
pub use condition::{Condition, Conditions, Test};
pub use confinement::{Capabilities, Confinement};
pub use environment::parse_environment_file;
pub use graph::{ActiveState, Edge, Graph, LoadState, UnitId};
pub use install::{Change, FileState, InstallError, Installer, Plan, Preset, Presets};
pub use jobs::{
    Action, Cause, Consequence, Event, Job, JobId, JobKind, JobResult, Jobs, Mode, Outcome,
    Request, Run, TransactionError, Why,
};
pub use launch::{Launch, LaunchUser};
pub use load::{Loaded, Loader, load};
pub use mount::Mount;
pub use name::{NameError, UnitName, UnitType, escape, escape_path, unescape, unescape_path};
pub use path::{PathUnit, Watch};
pub use problem::{Position, Problem, Severity};
pub use schedule::Scheduling;
pub use service::{
    ContainerOrigin, CpuWeight, Directories, EnvironmentFile, ExitStatusSet, FailureMode, Input,
    KillMode, Logging, NotifyAccess, OomPolicy, Output, Preserve, ProcessEnd, ResourceLimit,
    Resources, Restart, Service, ServiceResult, ServiceType, WorkingDirectory,
};
pub use socket::Socket;
pub use specifier::SpecifierContext;
pub use store::{Entry, EntryKind, MemoryStore, UnitStore};
pub use timer::Timer;
pub use unit::{Dependency, Install, Kind, MachineAction, Relation, StartLimit, Unit, Urgency};
pub use value::{Limit, Signal};
