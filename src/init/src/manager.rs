//! The supervisor: units, their processes, and what is asked of them.
//!
//! Decisions are made by two pure machines, [`orlop_unit::Jobs`] for the order between units and [`Run`] for each service;
//! this carries them out.

mod activation;
mod events;
mod following;
mod jobs;
mod processes;
mod resume;
mod services;

pub(crate) use activation::now;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::inotify::{Inotify, WatchDescriptor};
use nix::sys::timerfd::TimerFd;
use orlop_boot::times;
use orlop_sys::kmsg::{self, Priority};
use orlop_sys::process::Start;
use orlop_unit::{
    ActiveState, Graph, JobId, Jobs, LoadState, Loader, MachineAction, Severity, SpecifierContext,
    UnitId, UnitName,
};

use crate::service::{Input, Role, Run};
use crate::streams::Streams;
use crate::trigger::Trigger;
use crate::unit_files::{DIRECTORIES, Files};

/// Who a child of PID 1 is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A unit's process, with its program's name.
    Unit(UnitId, Role, String),
    /// A program that `Run` started for this connection.
    Caller(u64),
    /// The boot's configuration.
    Setup,
}

/// An answer for those who wait for a job.
#[derive(Debug)]
pub struct Answer {
    /// The connection.
    pub connection: u64,
    /// The job's result in systemctl's words.
    pub result: &'static str,
    /// Why, when it is not simply done.
    pub message: String,
}

/// What is kept of a unit beside its [`Run`].
#[derive(Debug, Default)]
pub struct Entry {
    /// The service's machine; `None` for a target.
    pub run: Option<Run>,
    /// The job that is being carried out.
    job: Option<JobId>,
    /// When it began, in nanoseconds of the boot clock.
    job_began_ns: u64,
    /// When the state last changed, in nanoseconds of the boot clock.
    pub since_ns: u64,
    /// The invocation, 32 hexadecimal digits.
    pub invocation: String,
    /// `STATUS=` of the service.
    pub status: Option<String>,
    /// The last job's failure.
    pub failure: Option<String>,
    /// The cgroup, while there is one.
    pub cgroup: Option<(PathBuf, OwnedFd)>,
    /// What the service gave into keeping with `FDSTORE=1`, with its name.
    pub store: Vec<(String, OwnedFd)>,
    /// The connection that an instance of `Accept=yes` is for.
    connection: Option<activation::Connection>,
    /// What starts other units: a timer, a socket, a path.
    pub trigger: Option<Trigger>,
    /// The state that was told to others last.
    told: ActiveState,
    starts_ns: VecDeque<u64>,
    oom_kills: u64,
    /// The cgroup was found empty, and nothing has been started in it since; not asked again while one input is worked on.
    found_empty: bool,
    /// When it last began to come up, in nanoseconds of the boot clock.
    pub started_ns: Option<u64>,
    /// When it last went down.
    pub ended_ns: Option<u64>,
    /// When something of it is due; kept with [`Manager::schedule`].
    due_ns: Option<u64>,
}

/// All of it.
#[derive(Debug)]
pub struct Manager {
    /// The units.
    pub graph: Graph,
    /// The jobs.
    pub jobs: Jobs,
    /// The streams to the journal.
    pub streams: Streams,
    entries: Vec<Entry>,
    processes: HashMap<i32, Owner>,
    starting: BTreeMap<i32, (UnitId, Role, Start)>,
    waiting: BTreeMap<JobId, Vec<u64>>,
    answers: Vec<Answer>,
    specifiers: SpecifierContext,
    booting: bool,
    /// Lines for the boot's times that are not written yet.
    boot_times: String,
    /// What is due, and when, in nanoseconds of the boot clock.
    due: BTreeSet<(u64, UnitId)>,
    /// Services that wait for other jobs (`Type=idle`).
    idle: BTreeSet<UnitId>,
    /// Units that nobody will ask for again.
    forgettable: Vec<UnitId>,
    /// What units ask to be done to the machine, and why.
    machine_actions: VecDeque<(MachineAction, String)>,
    /// Units of which something has changed that is not written down yet.
    dirty: BTreeSet<UnitId>,
    /// Names of units that were forgotten.
    gone: Vec<String>,
    epoll: Option<Epoll>,
    memory: Option<Inotify>,
    /// The cgroups below the root, and how often the kernel has killed within for lack of memory.
    starved: HashMap<WatchDescriptor, (PathBuf, u64)>,
    clock: Option<TimerFd>,
    mounts: Option<std::fs::File>,
}

fn log(priority: Priority, text: &str) {
    kmsg::write(priority, "orlop", text);
}

/// 32 random hexadecimal digits.
fn random_id() -> String {
    // It can only fail before the pool is ready; an id of zeros is better than none.
    let bytes: [u8; 16] = orlop_sys::random::bytes().unwrap_or_default();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Manager {
    /// A supervisor without units.
    #[must_use]
    pub fn new() -> Self {
        Self {
            graph: Graph::new(),
            jobs: Jobs::new(),
            streams: Streams::default(),
            entries: Vec::new(),
            processes: HashMap::new(),
            starting: BTreeMap::new(),
            waiting: BTreeMap::new(),
            answers: Vec::new(),
            specifiers: SpecifierContext::default(),
            booting: true,
            boot_times: String::new(),
            due: BTreeSet::new(),
            idle: BTreeSet::new(),
            forgettable: Vec::new(),
            machine_actions: VecDeque::new(),
            dirty: BTreeSet::new(),
            gone: Vec::new(),
            epoll: None,
            memory: None,
            starved: HashMap::new(),
            clock: None,
            mounts: None,
        }
    }

    /// Begins to hear of connections, files, memory and clocks.
    ///
    /// # Errors
    /// When the kernel has no epoll descriptor left.
    pub fn watch(&mut self) -> std::io::Result<()> {
        self.epoll = Some(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        self.watch_machine();
        Ok(())
    }

    /// Takes a child that is no unit's into the list.
    pub fn adopt(&mut self, pid: i32, owner: Owner) {
        self.processes.insert(pid, owner);
    }

    /// The unit's record.
    #[must_use]
    pub fn entry(&self, id: UnitId) -> Option<&Entry> {
        self.entries.get(id.index())
    }

    fn run_mut(&mut self, id: UnitId) -> Option<&mut Run> {
        self.entries.get_mut(id.index())?.run.as_mut()
    }

    fn name(&self, id: UnitId) -> String {
        self.graph.name(id).as_str().to_owned()
    }

    fn log(&self, priority: Priority, id: UnitId, text: &str) {
        log(
            priority,
            &format!("{}: {text}", self.graph.name(id).as_str()),
        );
    }

    /// Finds a unit, reading its files when it is not known yet, or was not there before.
    pub fn load(&mut self, name: &UnitName) -> UnitId {
        let known = self.graph.find(name.as_str());
        if let Some(id) = known
            && self.graph.load_state(id) != &LoadState::NotFound
        {
            return id;
        }
        self.specifiers = crate::unit_files::specifiers();
        let loader = Loader::new(DIRECTORIES, &Files, &self.specifiers);
        let id = match known {
            Some(id) => {
                self.graph.load_again(id, &mut |n| loader.load(n));
                self.jobs.graph_changed(&self.graph);
                id
            }
            None => self.graph.load(name, &mut |n| loader.load(n)),
        };
        self.loaded();
        if self.graph.load_state(id) == &LoadState::NotFound {
            // A name that nobody has a file or a use for takes no room for good.
            self.forgettable.push(id);
        }
        id
    }

    /// Looks at a unit's files without taking it among the known ones, as everybody may ask for any name.
    #[must_use]
    pub fn look_at(&self, name: &UnitName) -> orlop_unit::Loaded {
        let specifiers = crate::unit_files::specifiers();
        Loader::new(DIRECTORIES, &Files, &specifiers).load(name)
    }

    /// Reads every unit's files again.
    pub fn reload(&mut self) {
        self.specifiers = crate::unit_files::specifiers();
        let loader = Loader::new(DIRECTORIES, &Files, &self.specifiers);
        self.graph.reload(&mut |n| loader.load(n));
        self.loaded();
        self.jobs.graph_changed(&self.graph);
    }

    fn loaded(&mut self) {
        for problem in self.graph.take_problems() {
            let priority = match problem.severity {
                Severity::Error => Priority::Error,
                Severity::Warning => Priority::Warning,
            };
            log(priority, &problem.to_string());
        }
        self.entries.resize_with(self.graph.len(), Entry::default);
        let mut renewed = Vec::new();
        for (id, entry) in self.graph.ids().zip(&mut self.entries) {
            let Some(unit) = self.graph.unit(id) else {
                continue;
            };
            match &mut entry.run {
                Some(run) if std::sync::Arc::ptr_eq(run.unit(), unit) => {}
                Some(run) => run.replace_unit(unit),
                None => entry.run = Run::new(unit),
            }
            match &mut entry.trigger {
                Some(trigger) if std::sync::Arc::ptr_eq(activation::unit_of(trigger), unit) => {}
                Some(trigger) => {
                    activation::replace_unit(trigger, unit);
                    renewed.push(id);
                }
                None => entry.trigger = activation::trigger_of(unit),
            }
        }
        for id in renewed {
            self.timer_looks_again(id);
        }
    }

    /// The next moment at which [`Manager::tick`] has something to do, in nanoseconds of the boot clock.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.due.first().map(|(due_ns, _)| *due_ns)
    }

    /// Does what is due.
    pub fn tick(&mut self) {
        let now_ns = times::now_ns();
        // What becomes due again at once waits for the next turn of the loop.
        let due: Vec<UnitId> = self
            .due
            .iter()
            .take_while(|(due_ns, _)| *due_ns <= now_ns)
            .map(|(_, id)| *id)
            .collect();
        for id in due {
            if self.entry(id).is_some_and(|e| e.run.is_some()) {
                self.feed(id, Input::Deadline);
            } else {
                self.timer_is_due(id);
            }
        }
        self.turn();
        self.forget();
    }

    /// Forgets units that nobody will ask for again, once nothing is to be told of them any more.
    fn forget(&mut self) {
        for id in std::mem::take(&mut self.forgettable) {
            let is_idle = self.jobs.job_of(id).is_none() && self.graph.state(id).is_down();
            if !is_idle {
                self.forgettable.push(id);
                continue;
            }
            let name = self.name(id);
            if self.graph.forget(id) {
                self.gone.push(name);
            } else {
                continue;
            }
            if let Some(entry) = self.entries.get_mut(id.index()) {
                if let Some(due_ns) = entry.due_ns {
                    self.due.remove(&(due_ns, id));
                }
                *entry = Entry::default();
            }
        }
    }

    /// From now on starts are not part of the boot's times.
    pub fn booted(&mut self) {
        self.booting = false;
    }

    /// Whether the boot's jobs are all over.
    #[must_use]
    pub fn is_booting(&self) -> bool {
        self.booting
    }
}

impl Default for Manager {
    fn default() -> Self {
        Self::new()
    }
}
