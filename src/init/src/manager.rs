//! The supervisor: units, their processes, and what is asked of them.
//!
//! Decisions are made by two pure machines, [`orlop_unit::Jobs`] for the order between units and [`Run`] for each service;
//! this carries them out.

mod activation;
mod processes;
mod resume;

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
    Action as JobAction, ActiveState, Event, Graph, JobId, JobResult, Jobs, LoadState, Loader,
    MachineAction, Mode, Outcome, Request, Severity, SpecifierContext, UnitId, UnitName,
};

use crate::service::{Action, Input, Role, Run};
use crate::streams::{JOURNAL_UNIT, Streams};
use crate::trigger::Trigger;
use crate::unit_files::{DIRECTORIES, Files};
use crate::{cgroup, conditions};

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
    output: Option<OwnedFd>,
    starts_ns: VecDeque<u64>,
    oom_kills: u64,
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
    memory_of: HashMap<WatchDescriptor, UnitId>,
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
            due: BTreeSet::new(),
            idle: BTreeSet::new(),
            forgettable: Vec::new(),
            machine_actions: VecDeque::new(),
            dirty: BTreeSet::new(),
            gone: Vec::new(),
            epoll: None,
            memory: None,
            memory_of: HashMap::new(),
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

    /// Makes the jobs of a request; `connection` waits for the answer.
    ///
    /// # Errors
    /// Why it cannot be done.
    pub fn request(
        &mut self,
        request: Request,
        id: UnitId,
        mode: Mode,
        connection: Option<u64>,
    ) -> Result<(), String> {
        let job = self
            .jobs
            .request(&self.graph, request, id, mode)
            .map_err(|err| err.to_string())?;
        if let Some(connection) = connection {
            self.waiting.entry(job).or_default().push(connection);
        }
        self.dirty.extend(self.jobs.iter().map(|job| job.unit));
        self.turn();
        Ok(())
    }

    /// Begins all jobs that can begin, and tells what has ended.
    fn turn(&mut self) {
        loop {
            while let Some(run) = self.jobs.next_runnable(&self.graph) {
                self.begin(run.job, run.unit, run.action);
            }
            let mut any = false;
            while let Some(event) = self.jobs.next_event() {
                any = true;
                self.tell(event);
            }
            if !any && !self.let_idle_go() {
                return;
            }
        }
    }

    fn begin(&mut self, job: JobId, id: UnitId, action: JobAction) {
        let now_ns = times::now_ns();
        let Some(entry) = self.entries.get_mut(id.index()) else {
            self.jobs.finished(
                &self.graph,
                job,
                Outcome::Failed("the unit is not loaded".to_owned()),
            );
            return;
        };
        entry.job = Some(job);
        entry.job_began_ns = now_ns;
        self.dirty.insert(id);
        let starting = action == JobAction::Start;
        if starting && let Some(outcome) = self.unmet(id) {
            self.report(id, self.graph.state(id), outcome);
            return;
        }
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        let Some(run) = entry.run.as_mut() else {
            self.begin_without_processes(id, action);
            return;
        };
        if starting && is_mounted_already(run) {
            self.feed(id, Input::Adopted);
            return;
        }
        let input = match action {
            JobAction::Start => {
                let limit = run.unit().start_limit;
                let window_ns = u64::try_from(limit.interval.as_nanos()).unwrap_or(u64::MAX);
                entry
                    .starts_ns
                    .retain(|t| now_ns.saturating_sub(*t) < window_ns);
                let count = u32::try_from(entry.starts_ns.len()).unwrap_or(u32::MAX);
                if !run.can_begin() {
                    Input::Start
                } else if window_ns > 0 && limit.burst > 0 && count >= limit.burst {
                    Input::LimitHit(format!(
                        "started {} times in {} s, which is the limit; `systemctl reset-failed` lifts it",
                        limit.burst,
                        limit.interval.as_secs()
                    ))
                } else {
                    entry.starts_ns.push_back(now_ns);
                    if run.active_state().is_down() {
                        entry.invocation = random_id();
                        entry.status = None;
                        entry.failure = None;
                    }
                    Input::Start
                }
            }
            JobAction::Stop { restarting } => Input::Stop { restarting },
            JobAction::Reload => Input::Reload,
        };
        self.feed(id, input);
    }

    /// Why a start is skipped or fails before it begins.
    fn unmet(&self, id: UnitId) -> Option<Outcome> {
        let unit = self.graph.unit(id)?;
        if let Err(condition) = unit.conditions.check(conditions::holds) {
            let negation = if condition.negate { "!" } else { "" };
            return Some(Outcome::Skipped(format!(
                "Condition{}={negation}{} is not met",
                condition.test.name(),
                condition.parameter
            )));
        }
        if let Err(condition) = unit.asserts.check(conditions::holds) {
            return Some(Outcome::Failed(format!(
                "Assert{}={} is not met",
                condition.test.name(),
                condition.parameter
            )));
        }
        None
    }

    /// Gives a service's machine its input and carries out what it answers.
    fn feed(&mut self, id: UnitId, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let Some(run) = self.run_mut(id) else { return };
            let before = run.active_state();
            let actions = run.step(input, times::now_ns());
            let after = run.active_state();
            let is_idle = run.is_idle();
            if before != after
                && let Some(entry) = self.entries.get_mut(id.index())
            {
                entry.since_ns = times::now_ns();
            }
            if is_idle {
                self.idle.insert(id);
            } else {
                self.idle.remove(&id);
            }
            self.graph.set_state(id, after);
            for action in actions {
                if let Some(next) = self.act(id, action) {
                    inputs.push_back(next);
                }
            }
            let awaits = self.run_mut(id).is_some_and(|r| r.awaits_empty());
            if inputs.is_empty() && awaits && self.is_empty(id) {
                inputs.push_back(Input::Empty);
            }
        }
        self.schedule(id);
        self.follow(id);
    }

    /// Carries out one action; answers what it led to at once.
    fn act(&mut self, id: UnitId, action: Action) -> Option<Input> {
        match action {
            Action::Spawn(phase, index, role) => {
                if let Err(failure) = self.spawn(id, phase, index, role) {
                    return Some(Input::StartFailed(role, failure.result, failure.text));
                }
            }
            Action::SignalMain(signal) => {
                self.signal_process(self.entry(id)?.run.as_ref()?.main, signal.0)
            }
            Action::SignalControl(signal) => {
                self.signal_process(self.entry(id)?.run.as_ref()?.control, signal.0)
            }
            Action::SignalAll(signal) => {
                let entry = self.entry(id)?;
                match &entry.cgroup {
                    Some((path, _)) => cgroup::signal_all(path, signal),
                    None => {
                        let run = entry.run.as_ref()?;
                        self.signal_process(run.main, signal.0);
                        self.signal_process(run.control, signal.0);
                    }
                }
            }
            Action::KillAll => {
                let entry = self.entry(id)?;
                match &entry.cgroup {
                    Some((path, _)) => cgroup::kill_all(path),
                    None => {
                        let run = entry.run.as_ref()?;
                        self.signal_process(run.main, libc::SIGKILL);
                        self.signal_process(run.control, libc::SIGKILL);
                    }
                }
            }
            Action::Report(state, outcome) => self.report(id, state, outcome),
            Action::WentDown => self.went_down(id),
            Action::Restart => {
                if let Err(err) =
                    self.jobs
                        .request(&self.graph, Request::Restart, id, Mode::Replace)
                {
                    self.log(Priority::Error, id, &format!("cannot be restarted: {err}"));
                }
            }
            Action::FindMain => return Some(Input::MainFound(self.find_main(id))),
            Action::Release { restarting } => self.release(id, restarting),
            Action::Log(is_failure, text) => {
                let priority = if is_failure {
                    Priority::Warning
                } else {
                    Priority::Info
                };
                self.log(priority, id, &text);
            }
        }
        None
    }

    fn report(&mut self, id: UnitId, state: ActiveState, outcome: Outcome) {
        let (state, outcome) = self.still_mounted(id).unwrap_or((state, outcome));
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        if let Outcome::Failed(text) | Outcome::TimedOut(text) = &outcome {
            entry.failure = Some(text.clone());
        }
        if entry.run.is_none() {
            entry.since_ns = times::now_ns();
        }
        let Some(job) = entry.job.take() else {
            self.graph.set_state(id, state);
            return;
        };
        if self.booting && state.is_up() && entry.run.is_some() {
            times::record(self.graph.name(id).as_str(), entry.job_began_ns);
        }
        self.graph.set_state(id, state);
        self.jobs.finished(&self.graph, job, outcome);
        self.follow(id);
    }

    /// A mount unit that was to stop and is still there stays up.
    fn still_mounted(&mut self, id: UnitId) -> Option<(ActiveState, Outcome)> {
        let run = self.entries.get_mut(id.index())?.run.as_mut()?;
        let orlop_unit::Kind::Mount(mount) = &run.unit().kind else {
            return None;
        };
        let place = mount.place.clone();
        if !run.active_state().is_down() || !crate::mountinfo::is_mounted(&place) {
            return None;
        }
        let text = run
            .failure
            .clone()
            .unwrap_or_else(|| format!("{place} is still mounted"));
        run.step(Input::Adopted, times::now_ns());
        Some((ActiveState::Active, Outcome::Failed(text)))
    }

    fn went_down(&mut self, id: UnitId) {
        let Some(run) = self.run_mut(id) else { return };
        let state = run.active_state();
        if let (Some(text), true) = (
            run.failure.clone(),
            run.result != orlop_unit::ServiceResult::Success,
        ) {
            let restarts = run.restarts;
            let delay = run.restart_delay();
            let result = run.result.as_str();
            if let Some(entry) = self.entries.get_mut(id.index()) {
                entry.failure = Some(text);
            }
            if state == ActiveState::Activating {
                let text = format!("failed with result {result}; restart {restarts} in {delay:?}");
                self.log(Priority::Warning, id, &text);
            } else {
                self.log(Priority::Error, id, &format!("failed with result {result}"));
            }
        }
        self.graph.set_state(id, state);
        if state.is_down() {
            self.jobs.gone_by_itself(&self.graph, id);
        }
        self.follow(id);
    }

    /// Does what follows from a change of the unit's state: `OnFailure=` and its sisters, triggers, actions of the machine.
    fn follow(&mut self, id: UnitId) {
        let now = self.graph.state(id);
        self.dirty.insert(id);
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        let before = std::mem::replace(&mut entry.told, now);
        if before == now {
            return;
        }
        let now_ns = times::now_ns();
        if before.is_down() && !now.is_down() {
            entry.started_ns = Some(now_ns);
        } else if !before.is_down() && now.is_down() {
            entry.ended_ns = Some(now_ns);
        }
        for consequence in self.jobs.consequences(&self.graph, id, before) {
            let (unit, request) = (consequence.unit, consequence.request);
            if let Err(err) = self.jobs.request(&self.graph, request, unit, Mode::Replace) {
                let text = format!(
                    "{} of {}: {err}",
                    consequence.why,
                    self.name(consequence.because)
                );
                self.log(Priority::Error, unit, &text);
            }
        }
        self.tell_triggers(id);
        if now.is_down() {
            self.ask_machine(id, before, now);
            self.connection_is_over(id);
        }
    }

    /// Notes `FailureAction=`, `SuccessAction=` and `StartLimitAction=`.
    fn ask_machine(&mut self, id: UnitId, before: ActiveState, now: ActiveState) {
        let Some(unit) = self.graph.unit(id) else {
            return;
        };
        let result = self.entry(id).and_then(|e| Some(e.run.as_ref()?.result));
        let limited = result == Some(orlop_unit::ServiceResult::StartLimitHit);
        let (action, directive) = match now {
            ActiveState::Failed if limited && unit.start_limit.action != MachineAction::None => {
                (unit.start_limit.action, "StartLimitAction=")
            }
            ActiveState::Failed => (unit.failure_action, "FailureAction="),
            ActiveState::Inactive if !before.is_down() => (unit.success_action, "SuccessAction="),
            _ => return,
        };
        if action != MachineAction::None {
            let why = format!("{directive} of {}", self.name(id));
            self.machine_actions.push_back((action, why));
        }
    }

    /// What a unit asks to be done to the machine, and why.
    pub fn take_machine_action(&mut self) -> Option<(MachineAction, String)> {
        self.machine_actions.pop_front()
    }

    /// Lets services with `Type=idle` go on when nobody else has a job that runs.
    fn let_idle_go(&mut self) -> bool {
        if self.idle.is_empty() {
            return false;
        }
        let others = |job: &orlop_unit::Job| job.running && !self.idle.contains(&job.unit);
        if self.jobs.iter().any(others) {
            return false;
        }
        let Some(id) = self.idle.pop_first() else {
            return false;
        };
        self.feed(id, Input::Turn);
        true
    }

    fn tell(&mut self, event: Event) {
        match event {
            Event::Ended {
                job,
                unit,
                kind,
                result,
                cause,
            } => {
                self.dirty.insert(unit);
                if kind == orlop_unit::JobKind::Start && result != JobResult::Done {
                    // Its state may not have changed at all, and whoever triggered it waits.
                    self.tell_triggers(unit);
                }
                let message = cause.map_or_else(String::new, |c| c.to_string());
                match result {
                    JobResult::Done => {
                        let service = self.entry(unit).is_some_and(|e| e.run.is_some());
                        let description =
                            self.graph.unit(unit).map_or("", |u| u.description.as_str());
                        let verb = match kind {
                            orlop_unit::JobKind::Start => "started",
                            orlop_unit::JobKind::Stop => "stopped",
                            orlop_unit::JobKind::Restart => "restarted",
                            orlop_unit::JobKind::Reload => "reloaded",
                        };
                        let priority = if service {
                            Priority::Info
                        } else {
                            Priority::Debug
                        };
                        self.log(priority, unit, &format!("{verb} ({description})"));
                    }
                    JobResult::Skipped => {
                        self.log(Priority::Info, unit, &format!("skipped: {message}"))
                    }
                    JobResult::Canceled => self.log(
                        Priority::Info,
                        unit,
                        &format!("{}: cancelled: {message}", kind.as_str()),
                    ),
                    JobResult::Failed | JobResult::TimedOut | JobResult::Dependency => {
                        // What the service said of itself when it happened is not said again.
                        let run = self.entry(unit).and_then(|e| e.run.as_ref());
                        let text = match run.filter(|r| r.failure.as_ref() == Some(&message)) {
                            Some(run) => format!("failed with result {}", run.result.as_str()),
                            None => format!("failed: {message}"),
                        };
                        self.log(Priority::Error, unit, &format!("{} {text}", kind.as_str()));
                    }
                }
                for connection in self.waiting.remove(&job).unwrap_or_default() {
                    self.answers.push(Answer {
                        connection,
                        result: result.as_str(),
                        message: message.clone(),
                    });
                }
            }
            Event::LeftOut { unit, cause } => {
                self.log(Priority::Warning, unit, &format!("left out: {cause}"));
            }
            Event::OrderBroken { unit } => {
                self.log(
                    Priority::Warning,
                    unit,
                    "goes first, because units wait for each other in a circle",
                );
            }
        }
    }

    /// Answers that have become due.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
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

    /// Forgets a failure and the starts that count towards the limit.
    pub fn reset_failed(&mut self, id: UnitId) {
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        self.dirty.insert(id);
        entry.starts_ns.clear();
        entry.failure = None;
        if self.graph.state(id) == ActiveState::Failed {
            if let Some(run) = &mut entry.run {
                let unit = std::sync::Arc::clone(run.unit());
                entry.run = Run::new(&unit);
            }
            if let Some(trigger) = &mut entry.trigger {
                let unit = std::sync::Arc::clone(activation::unit_of(trigger));
                entry.trigger = activation::trigger_of(&unit);
            }
            entry.told = ActiveState::Inactive;
            self.graph.set_state(id, ActiveState::Inactive);
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

    /// Stops every unit that is still up, but the journal, without regard to dependencies.
    pub fn stop_rest(&mut self) {
        let rest: Vec<UnitId> = self
            .graph
            .ids()
            .filter(|id| {
                !self.graph.state(*id).is_down() && self.graph.name(*id).as_str() != JOURNAL_UNIT
            })
            .filter(|id| self.entry(*id).is_some_and(|e| e.run.is_some()))
            .collect();
        for id in rest {
            if let Err(err) =
                self.jobs
                    .request(&self.graph, Request::Stop, id, Mode::ReplaceIrreversibly)
            {
                self.log(
                    Priority::Warning,
                    id,
                    &format!("cannot be stopped in order: {err}"),
                );
            }
        }
        self.turn();
    }
}

/// Whether it is a mount unit whose place is taken: it is up then without doing anything.
fn is_mounted_already(run: &Run) -> bool {
    match &run.unit().kind {
        orlop_unit::Kind::Mount(mount) => {
            run.can_begin() && crate::mountinfo::is_mounted(&mount.place)
        }
        _ => false,
    }
}

impl Default for Manager {
    fn default() -> Self {
        Self::new()
    }
}
