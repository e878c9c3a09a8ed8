//! The supervisor: units, their processes, and what is asked of them.
//!
//! Decisions are made by two pure machines, [`orlop_unit::Jobs`] for the order between units and [`Run`] for each service;
//! this carries them out.

mod processes;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use orlop_boot::times;
use orlop_sys::kmsg::{self, Priority};
use orlop_sys::process::Start;
use orlop_unit::{
    Action as JobAction, ActiveState, Event, Graph, JobId, JobResult, Jobs, LoadState, Loader,
    Mode, Outcome, Request, Severity, SpecifierContext, UnitId, UnitName,
};

use crate::service::{Action, Input, Role, Run};
use crate::streams::{JOURNAL_UNIT, Streams};
use crate::unit_files::{DIRECTORIES, Files};
use crate::{cgroup, conditions, unsupported};

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
