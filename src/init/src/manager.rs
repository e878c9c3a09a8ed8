//! The supervisor: units, their processes, and what is asked of them.
//!
//! Decisions are made by two pure machines, [`orlop_unit::Jobs`] for the order between units and [`Run`] for each service;
//! this carries them out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use orlop_boot::times;
use orlop_sys::kmsg::{self, Priority};
use orlop_sys::process::Start;
use orlop_unit::{
    Action as JobAction, ActiveState, Event, Graph, JobId, JobResult, Jobs, KillMode, LoadState,
    Loader, Mode, NotifyAccess, Outcome, ProcessEnd, Request, Severity, SpecifierContext, UnitId,
    UnitName,
};

use crate::service::{Action, Input, Phase, Role, Run};
use crate::spawn::{self, Surroundings};
use crate::streams::{JOURNAL_UNIT, Streams};
use crate::unit_files::{DIRECTORIES, Files};
use crate::{cgroup, conditions, notify, unsupported};

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
    output: Option<OwnedFd>,
    starts_ns: VecDeque<u64>,
    oom_kills: u64,
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
        }
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
        if let Some(id) = self.graph.find(name.as_str())
            && self.graph.load_state(id) != &LoadState::NotFound
        {
            return id;
        }
        if self.graph.find(name.as_str()).is_some() {
            self.reload();
        }
        self.specifiers = crate::unit_files::specifiers();
        let loader = Loader::new(DIRECTORIES, &Files, &self.specifiers);
        let id = self.graph.load(name, &mut |n| loader.load(n));
        self.loaded();
        id
    }

    /// Reads every unit's files again.
    pub fn reload(&mut self) {
        self.specifiers = crate::unit_files::specifiers();
        let loader = Loader::new(DIRECTORIES, &Files, &self.specifiers);
        self.graph.reload(&mut |n| loader.load(n));
        self.loaded();
        self.jobs.graph_changed(&self.graph);
    }

    /// Every unit that has a file, loaded.
    pub fn load_all(&mut self) {
        self.specifiers = crate::unit_files::specifiers();
        let loader = Loader::new(DIRECTORIES, &Files, &self.specifiers);
        let names: Vec<UnitName> = loader.names().filter(|n| !n.is_template()).collect();
        for name in names {
            self.graph.load(&name, &mut |n| loader.load(n));
        }
        self.loaded();
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
        for (id, entry) in self.graph.ids().zip(&mut self.entries) {
            let Some(unit) = self.graph.unit(id) else {
                continue;
            };
            match &mut entry.run {
                Some(run) if std::sync::Arc::ptr_eq(run.unit(), unit) => continue,
                Some(run) => run.replace_unit(unit),
                None => entry.run = Run::new(unit),
            }
            if let Some(service) = unit.service() {
                let directives = unsupported::without_effect(unit, service);
                if !directives.is_empty() {
                    let text = format!(
                        "{}: without effect here: {}",
                        unit.name.as_str(),
                        directives.join(" ")
                    );
                    log(Priority::Warning, &text);
                }
            }
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
            if !any {
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
        let starting = action == JobAction::Start;
        if starting && let Some(outcome) = self.unmet(id) {
            self.report(id, self.graph.state(id), outcome);
            return;
        }
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        let Some(run) = entry.run.as_mut() else {
            let state = match action {
                JobAction::Stop { .. } => ActiveState::Inactive,
                _ => ActiveState::Active,
            };
            self.report(id, state, Outcome::Done);
            return;
        };
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
            JobAction::Stop { .. } => Input::Stop,
            JobAction::Reload => Input::Reload,
        };
        self.feed(id, input);
    }

    /// Why a start is skipped or fails before it begins.
    fn unmet(&self, id: UnitId) -> Option<Outcome> {
        let unit = self.graph.unit(id)?;
        if let Some(text) = unsupported::refusal(unit) {
            return Some(Outcome::Failed(text.to_owned()));
        }
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
            if before != after
                && let Some(entry) = self.entries.get_mut(id.index())
            {
                entry.since_ns = times::now_ns();
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
            Action::Release => self.release(id),
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

    fn signal_process(&self, pid: Option<i32>, signal: i32) {
        let Some(pid) = pid.filter(|p| self.processes.contains_key(p)) else {
            return;
        };
        // A child's number is not given anew before it was waited for.
        if let Ok(signal) = nix::sys::signal::Signal::try_from(signal) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
        }
    }

    fn is_empty(&self, id: UnitId) -> bool {
        let Some(entry) = self.entry(id) else {
            return true;
        };
        let Some(run) = &entry.run else { return true };
        let alone = run.main.is_none() && run.control.is_none();
        match &entry.cgroup {
            Some((path, _)) => match run.service().kill_mode {
                KillMode::Process | KillMode::None => alone || !cgroup::is_populated(path),
                KillMode::ControlGroup | KillMode::Mixed => alone && !cgroup::is_populated(path),
            },
            None => alone,
        }
    }

    fn release(&mut self, id: UnitId) {
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        entry.output = None;
        if let Some((path, _)) = entry.cgroup.take() {
            cgroup::remove(&path);
        }
        if let Some(run) = &entry.run {
            spawn::remove_runtime_directories(run.service());
        }
    }

    fn spawn(
        &mut self,
        id: UnitId,
        phase: Phase,
        index: usize,
        role: Role,
    ) -> Result<(), spawn::Failure> {
        let failure = |text: String| spawn::Failure {
            result: orlop_unit::ServiceResult::Resources,
            text,
        };
        let name = self.name(id);
        let is_journal = name == JOURNAL_UNIT;
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return Err(failure("the unit is not loaded".to_owned()));
        };
        let Some(run) = entry.run.as_mut() else {
            return Err(failure("the unit is no service".to_owned()));
        };
        let unit = std::sync::Arc::clone(run.unit());
        let service = std::sync::Arc::clone(run.service());
        let Some(command) = run.command(phase, index).cloned() else {
            return Err(failure("the command is gone".to_owned()));
        };
        if entry.cgroup.is_none()
            && std::path::Path::new(cgroup::ROOT)
                .join("cgroup.procs")
                .exists()
        {
            let path = cgroup::path(&unit.name, service.slice.as_ref());
            let opened = cgroup::create(&path, &service.resources).map_err(|err| {
                failure(format!("cannot make the cgroup {}: {err}", path.display()))
            })?;
            entry.oom_kills = cgroup::oom_kills(&path);
            entry.cgroup = Some((path, opened));
        }
        if entry.output.is_none() && !is_journal {
            let program = command.program.rsplit('/').next();
            let identifier = service.syslog_identifier.as_deref().or(program);
            match self.streams.open(&name, &entry.invocation, identifier) {
                Ok(write) => entry.output = Some(write),
                Err(err) => log(
                    Priority::Warning,
                    &format!("{name}: its output is lost: {err}"),
                ),
            }
        }
        let journal_socket = if is_journal && role == Role::Main {
            let socket = self.streams.connect();
            Some(
                socket
                    .map_err(|err| failure(format!("cannot make the journal's socket: {err}")))?,
            )
        } else {
            None
        };
        let inherit: Vec<BorrowedFd<'_>> = journal_socket.iter().map(|s| s.as_fd()).collect();
        let around = Surroundings {
            invocation: &entry.invocation,
            notify_socket: (service.notify_access != NotifyAccess::None).then_some(notify::SOCKET),
            main: run.main,
            variables: variables(run, phase),
            journal: entry.output.as_ref().map(|o| o.as_fd()),
            inherit: &inherit,
            cgroup: entry.cgroup.as_ref().map(|(_, fd)| fd.as_fd()),
        };
        let spawned = spawn::start(&unit, &service, &command, &around)?;
        match role {
            Role::Main => run.main = Some(spawned.pid),
            Role::Control => run.control = Some(spawned.pid),
        }
        self.processes
            .insert(spawned.pid, Owner::Unit(id, role, command.program.clone()));
        self.starting.insert(spawned.pid, (id, role, spawned.start));
        Ok(())
    }

    /// The pipes that tell how starts went, with the children's numbers.
    pub fn starting(&self) -> impl Iterator<Item = (i32, BorrowedFd<'_>)> {
        self.starting
            .iter()
            .map(|(pid, (_, _, fd))| (*pid, fd.as_fd()))
    }

    /// A start's pipe can be read.
    pub fn start_told(&mut self, pid: i32) {
        self.hear_start(pid);
        self.turn();
    }

    fn hear_start(&mut self, pid: i32) {
        let Some((_, _, start)) = self.starting.get_mut(&pid) else {
            return;
        };
        let told = match start.result() {
            Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(err) => Err(orlop_sys::process::StartFailure {
                step: orlop_sys::process::Step::Exec,
                err,
            }),
            Ok(told) => told,
        };
        let Some((id, role, _)) = self.starting.remove(&pid) else {
            return;
        };
        match told {
            Ok(()) => {
                if role == Role::Main {
                    self.feed(id, Input::Executing);
                }
            }
            Err(failure) => {
                let program = match self.processes.remove(&pid) {
                    Some(Owner::Unit(_, _, program)) => program,
                    _ => String::new(),
                };
                let text = format!(
                    "cannot {} {program}: {} (status {}/{})",
                    failure.step.words(),
                    words(&failure.err),
                    failure.step as u8,
                    orlop_unit::value::exit_code_name(failure.step as u8).unwrap_or("?")
                );
                self.feed(
                    id,
                    Input::StartFailed(role, orlop_unit::ServiceResult::ExitCode, text),
                );
            }
        }
    }

    /// A child has ended; answers the connection that waits for it, if it was started for one.
    pub fn ended(&mut self, pid: i32, end: ProcessEnd) -> Option<Owner> {
        // How its start went comes first, where both are there at once.
        self.hear_start(pid);
        let owner = self.processes.remove(&pid);
        if let Some(Owner::Unit(id, role, program)) = &owner {
            let program = program.rsplit('/').next().map(str::to_owned);
            let current =
                self.entry(*id)
                    .and_then(|e| e.run.as_ref())
                    .is_some_and(|run| match role {
                        Role::Main => run.main == Some(pid),
                        Role::Control => run.control == Some(pid),
                    });
            if current {
                if *role == Role::Main && self.was_out_of_memory(*id, end) {
                    self.feed(*id, Input::OutOfMemory);
                }
                self.feed(*id, Input::Ended(*role, end, program));
            }
        }
        self.turn();
        owner
    }

    fn was_out_of_memory(&mut self, id: UnitId, end: ProcessEnd) -> bool {
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return false;
        };
        let Some((path, _)) = &entry.cgroup else {
            return false;
        };
        if !matches!(end, ProcessEnd::Killed(orlop_unit::Signal::KILL)) {
            return false;
        }
        let kills = cgroup::oom_kills(path);
        let more = kills > entry.oom_kills;
        entry.oom_kills = kills;
        more
    }

    /// Some child or orphan has gone: looks whether stopping units are empty now.
    pub fn check_empty(&mut self) {
        let waiting: Vec<UnitId> = self
            .graph
            .ids()
            .filter(|id| {
                let run = self.entry(*id).and_then(|e| e.run.as_ref());
                run.is_some_and(Run::awaits_empty) && self.is_empty(*id)
            })
            .collect();
        for id in waiting {
            self.feed(id, Input::Empty);
        }
        self.turn();
    }

    /// What a service said of itself.
    pub fn notified(&mut self, message: notify::Message) {
        let Some(id) = self.unit_of(message.pid) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        let Some(run) = &entry.run else { return };
        let trusted = match run.service().notify_access {
            NotifyAccess::None => false,
            NotifyAccess::Main => run.main == Some(message.pid),
            NotifyAccess::Exec => run.main == Some(message.pid) || run.control == Some(message.pid),
            NotifyAccess::All => true,
        };
        if !trusted {
            return;
        }
        if message.status.is_some() {
            entry.status = message.status;
        }
        if message.ready {
            self.feed(id, Input::Ready);
        }
        self.turn();
    }

    /// The unit that a process belongs to, by its number or its cgroup.
    #[must_use]
    pub fn unit_of(&self, pid: i32) -> Option<UnitId> {
        if let Some(Owner::Unit(id, _, _)) = self.processes.get(&pid) {
            return Some(*id);
        }
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = text.lines().find_map(|l| l.strip_prefix("0::"))?;
        path.split('/').find_map(|part| self.graph.find(part))
    }

    /// The caller, a unit's main process, is followed by another child of ours.
    ///
    /// # Errors
    /// When the caller is none, or the other process is not ours.
    pub fn hand_off(&mut self, caller: i32, successor: i32) -> Result<(), String> {
        let Some(Owner::Unit(id, Role::Main, _)) = self.processes.get(&caller) else {
            return Err("only the main process of a unit can hand over its place".to_owned());
        };
        let id = *id;
        let status =
            std::fs::read_to_string(format!("/proc/{successor}/status")).unwrap_or_default();
        let parent = status
            .lines()
            .find_map(|l| l.strip_prefix("PPid:"))
            .map(str::trim);
        if parent != Some("1") {
            return Err(format!("process {successor} is no child of PID 1"));
        }
        let program = status
            .lines()
            .find_map(|l| l.strip_prefix("Name:"))
            .map_or_else(String::new, |n| n.trim().to_owned());
        self.processes
            .insert(successor, Owner::Unit(id, Role::Main, program));
        self.feed(id, Input::MainProcess(successor));
        self.turn();
        Ok(())
    }

    fn report(&mut self, id: UnitId, state: ActiveState, outcome: Outcome) {
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
        self.follow(id, state);
    }

    fn went_down(&mut self, id: UnitId) {
        let Some(run) = self.run_mut(id) else { return };
        let state = run.active_state();
        if let (Some(text), true) = (
            run.failure.clone(),
            run.result != orlop_unit::ServiceResult::Success,
        ) {
            let restarts = run.restarts;
            let delay = run.service().restart_delay;
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
            self.follow(id, state);
        }
    }

    /// Starts what `OnFailure=` and `OnSuccess=` name.
    fn follow(&mut self, id: UnitId, state: ActiveState) {
        let edge = match state {
            ActiveState::Failed => orlop_unit::Edge::OnFailure,
            _ => return,
        };
        let followers: Vec<UnitId> = self.graph.related(id, edge).collect();
        for follower in followers {
            if let Err(err) =
                self.jobs
                    .request(&self.graph, Request::Start, follower, Mode::Replace)
            {
                self.log(
                    Priority::Error,
                    follower,
                    &format!("cannot be started: {err}"),
                );
            }
        }
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
        self.entries
            .iter()
            .filter_map(|e| e.run.as_ref()?.deadline_ns())
            .min()
    }

    /// Does what is due.
    pub fn tick(&mut self) {
        let now_ns = times::now_ns();
        let due: Vec<UnitId> = self
            .graph
            .ids()
            .filter(|id| {
                let run = self.entry(*id).and_then(|e| e.run.as_ref());
                run.and_then(Run::deadline_ns).is_some_and(|d| d <= now_ns)
            })
            .collect();
        for id in due {
            self.feed(id, Input::Deadline);
        }
        self.turn();
    }

    /// Forgets a failure and the starts that count towards the limit.
    pub fn reset_failed(&mut self, id: UnitId) {
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        entry.starts_ns.clear();
        entry.failure = None;
        if self.graph.state(id) == ActiveState::Failed {
            if let Some(run) = &mut entry.run {
                let unit = std::sync::Arc::clone(run.unit());
                entry.run = Run::new(&unit);
            }
            self.graph.set_state(id, ActiveState::Inactive);
        }
    }

    /// Sends a signal to a unit's processes.
    pub fn kill(&self, id: UnitId, signal: i32, whom: &str) {
        let Some(entry) = self.entry(id) else { return };
        let Some(run) = &entry.run else { return };
        match (whom, &entry.cgroup) {
            ("main", _) => self.signal_process(run.main, signal),
            ("control", _) => self.signal_process(run.control, signal),
            (_, Some((path, _))) => cgroup::signal_all(path, orlop_unit::Signal(signal)),
            (_, None) => {
                self.signal_process(run.main, signal);
                self.signal_process(run.control, signal);
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

impl Default for Manager {
    fn default() -> Self {
        Self::new()
    }
}

/// The kernel's error in words alone; the library adds its number.
fn words(err: &std::io::Error) -> String {
    err.raw_os_error().map_or_else(
        || err.to_string(),
        |number| nix::errno::Errno::from_raw(number).desc().to_owned(),
    )
}

/// What stop commands are told of the run's end (systemd.exec(5)).
fn variables(run: &Run, phase: Phase) -> Vec<(String, String)> {
    if !matches!(phase, Phase::Stop | Phase::StopPost) {
        return Vec::new();
    }
    let mut list = vec![("SERVICE_RESULT".to_owned(), run.result.as_str().to_owned())];
    if let Some(end) = run.main_end {
        let (code, status) = match end {
            ProcessEnd::Exited(code) => ("exited", code.to_string()),
            ProcessEnd::Killed(signal) => (
                "killed",
                signal.to_string().trim_start_matches("SIG").to_owned(),
            ),
            ProcessEnd::Dumped(signal) => (
                "dumped",
                signal.to_string().trim_start_matches("SIG").to_owned(),
            ),
        };
        list.push(("EXIT_CODE".to_owned(), code.to_owned()));
        list.push(("EXIT_STATUS".to_owned(), status));
    }
    list
}
