//! The life of one service: a pure state machine.
//!
//! It is told what happened ([`Input`]) and when, and answers with what to do ([`Action`]). It follows systemd.service(5):
//! `ExecCondition=`, `ExecStartPre=`, `ExecStart=`, the wait that `Type=` asks for, `ExecStartPost=`; to stop, `ExecStop=` (only
//! after a complete start), the signal of `KillMode=`, SIGKILL after the time-out, and always `ExecStopPost=`.

use std::sync::Arc;
use std::time::Duration;

use orlop_unit::{
    ActiveState, Command, KillMode, Outcome, ProcessEnd, Service, ServiceResult, ServiceType,
    Signal, Unit,
};

/// What a process is to its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The service itself.
    Main,
    /// A helper command such as `ExecStartPre=`.
    Control,
}

/// Which list of commands is being worked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// `ExecCondition=`.
    Condition,
    /// `ExecStartPre=`.
    StartPre,
    /// `ExecStart=`.
    Start,
    /// `ExecStartPost=`.
    StartPost,
    /// `ExecReload=`.
    Reload,
    /// `ExecStop=`.
    Stop,
    /// `ExecStopPost=`.
    StopPost,
}

impl Phase {
    /// The directive that lists its commands.
    #[must_use]
    pub fn directive(self) -> &'static str {
        match self {
            Self::Condition => "ExecCondition=",
            Self::StartPre => "ExecStartPre=",
            Self::Start => "ExecStart=",
            Self::StartPost => "ExecStartPost=",
            Self::Reload => "ExecReload=",
            Self::Stop => "ExecStop=",
            Self::StopPost => "ExecStopPost=",
        }
    }
}

/// Where the service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing runs, and the last run was good.
    Dead,
    /// Nothing runs, and the last run was bad.
    Failed,
    /// Working through a list of commands.
    Commands(Phase),
    /// The main process runs; `READY=1`, the hand-over or the first process' exit is awaited.
    Awaiting,
    /// Up, with a main process.
    Running,
    /// Up without one (`RemainAfterExit=`).
    Exited,
    /// Signalled; waiting for the processes to go.
    Terminating,
    /// Sent SIGKILL; waiting for the processes to go.
    Killing,
    /// Down until `RestartSec=` is over.
    AutoRestart,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A start job begins.
    Start,
    /// A stop job begins.
    Stop,
    /// A reload job begins.
    Reload,
    /// The process of the last [`Action::Spawn`] runs its program.
    Executing,
    /// The process of the last [`Action::Spawn`] could not be started; why.
    StartFailed(Role, ServiceResult, String),
    /// A process has ended.
    Ended(Role, ProcessEnd, Option<String>),
    /// The main process was killed for lack of memory.
    OutOfMemory,
    /// `READY=1`.
    Ready,
    /// Another process is the main one now: `MAINPID=`, a PID file or a container's hand-over.
    MainProcess(i32),
    /// No process is left in the cgroup.
    Empty,
    /// The [`Run::deadline_ns`] has passed.
    Deadline,
    /// The start limit forbids a start; why.
    LimitHit(String),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run a command of the list.
    Spawn(Phase, usize, Role),
    /// Signal the main process.
    SignalMain(Signal),
    /// Signal the control process.
    SignalControl(Signal),
    /// Signal everybody in the cgroup.
    SignalAll(Signal),
    /// SIGKILL everybody in the cgroup.
    KillAll,
    /// The running job has ended, with the unit in this state.
    Report(ActiveState, Outcome),
    /// The unit went down without a job.
    WentDown,
    /// The automatic restart is due.
    Restart,
    /// Nothing runs any more: the cgroup and runtime directories can go.
    Release,
    /// Tell the operator; `true` for what went wrong.
    Log(bool, String),
}

/// A service's run.
#[derive(Debug)]
pub struct Run {
    unit: Arc<Unit>,
    service: Arc<Service>,
    state: State,
    index: usize,
    /// The main process.
    pub main: Option<i32>,
    /// The control process.
    pub control: Option<i32>,
    /// How the main process of this or the last run ended.
    pub main_end: Option<ProcessEnd>,
    /// How this or the last run ended.
    pub result: ServiceResult,
    /// Why it failed, in words.
    pub failure: Option<String>,
    /// Automatic restarts since the last start by request.
    pub restarts: u32,
    started: bool,
    stop_requested: bool,
    job: bool,
    start_next: bool,
    skipped: Option<String>,
    deadline_ns: Option<u64>,
}

fn after(now_ns: u64, time: Option<Duration>) -> Option<u64> {
    time.map(|t| now_ns.saturating_add(u64::try_from(t.as_nanos()).unwrap_or(u64::MAX)))
}

/// How a process ended, in words.
#[must_use]
pub fn describe(end: ProcessEnd) -> String {
    match end {
        ProcessEnd::Exited(code) => match orlop_unit::value::exit_code_name(code) {
            Some(name) => format!("exited with status {code}/{name}"),
            None => format!("exited with status {code}"),
        },
        ProcessEnd::Killed(signal) => format!("was killed by signal {signal}"),
        ProcessEnd::Dumped(signal) => format!("was killed by signal {signal} and left a core"),
    }
}

impl Run {
    /// A service that does not run; `None` when the unit is none.
    #[must_use]
    pub fn new(unit: &Arc<Unit>) -> Option<Self> {
        let service = Arc::new(unit.service()?.clone());
        Some(Self {
            unit: Arc::clone(unit),
            service,
            state: State::Dead,
            index: 0,
            main: None,
            control: None,
            main_end: None,
            result: ServiceResult::Success,
            failure: None,
            restarts: 0,
            started: false,
            stop_requested: false,
            job: false,
            start_next: false,
            skipped: None,
            deadline_ns: None,
        })
    }

    /// The unit as it was when this was made or last replaced.
    #[must_use]
    pub fn unit(&self) -> &Arc<Unit> {
        &self.unit
    }

    /// The service's directives.
    #[must_use]
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Takes the unit's files as they are now; counts from the next command on.
    pub fn replace_unit(&mut self, unit: &Arc<Unit>) {
        if let Some(service) = unit.service() {
            self.service = Arc::new(service.clone());
            self.unit = Arc::clone(unit);
        }
    }

    /// When to send [`Input::Deadline`], in nanoseconds of the boot clock.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.deadline_ns
    }

    /// The state that the unit graph and `systemctl` know.
    #[must_use]
    pub fn active_state(&self) -> ActiveState {
        match self.state {
            State::Dead => ActiveState::Inactive,
            State::Failed => ActiveState::Failed,
            State::Commands(Phase::Reload) => ActiveState::Reloading,
            State::Commands(Phase::Stop | Phase::StopPost)
            | State::Terminating
            | State::Killing => ActiveState::Deactivating,
            State::Commands(_) | State::Awaiting | State::AutoRestart => ActiveState::Activating,
            State::Running | State::Exited => ActiveState::Active,
        }
    }

    /// The sub-state, in systemd's words.
    #[must_use]
    pub fn sub_state(&self) -> &'static str {
        match self.state {
            State::Dead => "dead",
            State::Failed => "failed",
            State::Commands(Phase::Condition) => "condition",
            State::Commands(Phase::StartPre) => "start-pre",
            State::Commands(Phase::Start) | State::Awaiting => "start",
            State::Commands(Phase::StartPost) => "start-post",
            State::Commands(Phase::Reload) => "reload",
            State::Commands(Phase::Stop) => "stop",
            State::Commands(Phase::StopPost) => "stop-post",
            State::Running => "running",
            State::Exited => "exited",
            State::Terminating => "stop-sigterm",
            State::Killing => "stop-sigkill",
            State::AutoRestart => "auto-restart",
        }
    }

    /// Whether it waits for its processes to go, so that an empty cgroup matters.
    #[must_use]
    pub fn awaits_empty(&self) -> bool {
        matches!(self.state, State::Terminating | State::Killing)
    }

    /// The command that [`Action::Spawn`] names.
    #[must_use]
    pub fn command(&self, phase: Phase, index: usize) -> Option<&Command> {
        self.commands(phase).get(index)
    }

    fn commands(&self, phase: Phase) -> &[Command] {
        match phase {
            Phase::Condition => &self.service.exec_condition,
            Phase::StartPre => &self.service.exec_start_pre,
            Phase::Start => &self.service.exec_start,
            Phase::StartPost => &self.service.exec_start_post,
            Phase::Reload => &self.service.exec_reload,
            Phase::Stop => &self.service.exec_stop,
            Phase::StopPost => &self.service.exec_stop_post,
        }
    }

    /// Takes note of what happened; answers what to do.
    pub fn step(&mut self, input: Input, now_ns: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Start => self.start(now_ns, &mut actions),
            Input::Stop => self.stop(now_ns, &mut actions),
            Input::Reload => self.reload(now_ns, &mut actions),
            Input::Executing => self.executing(now_ns, &mut actions),
            Input::StartFailed(role, result, text) => {
                self.start_failed(role, result, text, now_ns, &mut actions)
            }
            Input::Ended(Role::Main, end, program) => {
                self.main_ended(end, program, now_ns, &mut actions)
            }
            Input::Ended(Role::Control, end, program) => {
                self.control_ended(end, program, now_ns, &mut actions)
            }
            Input::OutOfMemory => {
                self.result = ServiceResult::OomKill;
                self.failure =
                    Some("killed by the kernel because it used more memory than it may".to_owned());
            }
            Input::Ready => {
                if self.state == State::Awaiting && !self.waits_for_hand_over() {
                    self.start_post(now_ns, &mut actions);
                }
            }
            Input::MainProcess(pid) => self.main_process(pid, now_ns, &mut actions),
            Input::Empty => self.empty(now_ns, &mut actions),
            Input::Deadline => self.deadline(now_ns, &mut actions),
            Input::LimitHit(text) => {
                self.result = ServiceResult::StartLimitHit;
                self.failure = Some(text.clone());
                self.state = State::Failed;
                self.deadline_ns = None;
                actions.push(Action::Log(true, text.clone()));
                actions.push(Action::Report(ActiveState::Failed, Outcome::Failed(text)));
            }
        }
        actions
    }

    /// `docker run` of a plain unit file counts as started when its container is, like a `.container` file's.
    fn starts_container(&self) -> bool {
        self.service.service_type == ServiceType::Container
            || (matches!(
                self.service.service_type,
                ServiceType::Simple | ServiceType::Exec
            ) && self.service.exec_start.iter().any(|c| {
                c.program.rsplit('/').next() == Some("docker")
                    && c.words.first().is_some_and(|w| w == "run")
            }))
    }

    /// The container's first process has not taken the place of its starter yet.
    fn waits_for_hand_over(&self) -> bool {
        self.starts_container() && !self.started
    }

    fn start(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.job = true;
        match self.state {
            State::Running | State::Exited => {
                actions.push(Action::Report(ActiveState::Active, Outcome::Done));
                self.job = false;
            }
            State::Dead | State::Failed | State::AutoRestart => {
                self.result = ServiceResult::Success;
                self.failure = None;
                self.main_end = None;
                self.skipped = None;
                self.started = false;
                self.stop_requested = false;
                self.start_next = false;
                self.deadline_ns = after(now_ns, self.start_timeout());
                self.enter(Phase::Condition, 0, now_ns, actions);
            }
            State::Commands(
                Phase::Condition
                | Phase::StartPre
                | Phase::Start
                | Phase::StartPost
                | Phase::Reload,
            )
            | State::Awaiting => {}
            State::Commands(Phase::Stop | Phase::StopPost)
            | State::Terminating
            | State::Killing => {
                self.start_next = true;
            }
        }
    }

    fn start_timeout(&self) -> Option<Duration> {
        self.service.timeout_start
    }

    /// Goes on with command `index` of `phase`, or with what follows the list.
    fn enter(&mut self, phase: Phase, index: usize, now_ns: u64, actions: &mut Vec<Action>) {
        self.state = State::Commands(phase);
        self.index = index;
        if index < self.commands(phase).len() {
            let role = if phase == Phase::Start && self.service.service_type != ServiceType::Forking
            {
                Role::Main
            } else {
                Role::Control
            };
            actions.push(Action::Spawn(phase, index, role));
            return;
        }
        match phase {
            Phase::Condition => self.enter(Phase::StartPre, 0, now_ns, actions),
            Phase::StartPre => self.enter(Phase::Start, 0, now_ns, actions),
            Phase::Start => self.start_post(now_ns, actions),
            Phase::StartPost => self.up(now_ns, actions),
            Phase::Reload => self.reloaded(Outcome::Done, actions),
            Phase::Stop => self.terminate(now_ns, actions),
            Phase::StopPost => self.down(now_ns, actions),
        }
    }

    fn start_post(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.started = true;
        self.enter(Phase::StartPost, 0, now_ns, actions);
    }

    /// The start is complete.
    fn up(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.deadline_ns = after(now_ns, self.service.runtime_max);
        if self.main.is_some() {
            self.state = State::Running;
        } else if self.service.remain_after_exit {
            self.state = State::Exited;
            self.deadline_ns = None;
        }
        if self.job {
            self.job = false;
            actions.push(Action::Report(ActiveState::Active, Outcome::Done));
        }
        if !matches!(self.state, State::Running | State::Exited) {
            // Either a oneshot that is through, or a main process that ended during ExecStartPost=.
            self.begin_stop(now_ns, actions);
        }
    }

    fn executing(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        if self.state != State::Commands(Phase::Start) {
            return;
        }
        match self.service.service_type {
            ServiceType::Oneshot | ServiceType::Forking => {}
            ServiceType::Notify | ServiceType::NotifyReload | ServiceType::Container => {
                self.state = State::Awaiting
            }
            ServiceType::Simple | ServiceType::Exec | ServiceType::Idle => {
                if self.starts_container() {
                    self.state = State::Awaiting;
                } else {
                    self.start_post(now_ns, actions);
                }
            }
        }
    }

    fn start_failed(
        &mut self,
        role: Role,
        result: ServiceResult,
        text: String,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        match role {
            Role::Main => self.main = None,
            Role::Control => self.control = None,
        }
        let State::Commands(phase) = self.state else {
            return;
        };
        if self
            .command(phase, self.index)
            .is_some_and(|c| c.flags.ignore_failure)
        {
            actions.push(Action::Log(false, format!("{text} (ignored)")));
            self.enter(phase, self.index.saturating_add(1), now_ns, actions);
            return;
        }
        actions.push(Action::Log(true, text.clone()));
        self.command_failed(phase, result, text, now_ns, actions);
    }

    /// A command that matters failed.
    fn command_failed(
        &mut self,
        phase: Phase,
        result: ServiceResult,
        text: String,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        match phase {
            Phase::Reload => {
                self.reloaded(Outcome::Failed(text), actions);
            }
            Phase::Stop => {
                self.blame(result, text);
                self.terminate(now_ns, actions);
            }
            Phase::StopPost => {
                self.blame(result, text);
                self.down(now_ns, actions);
            }
            Phase::Condition | Phase::StartPre | Phase::Start | Phase::StartPost => {
                self.blame(result, text);
                self.terminate(now_ns, actions);
            }
        }
    }

    /// Keeps the first thing that went wrong.
    fn blame(&mut self, result: ServiceResult, text: String) {
        if self.result == ServiceResult::Success {
            self.result = result;
            self.failure = Some(text);
        }
    }

    fn main_ended(
        &mut self,
        end: ProcessEnd,
        program: Option<String>,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        self.main = None;
        self.main_end = Some(end);
        let result = self.service.judge(end, true);
        let name = program.map_or_else(
            || "the main process".to_owned(),
            |p| format!("the main process ({p})"),
        );
        let text = format!("{name} {}", describe(end));
        let clean = result == ServiceResult::Success;
        let ignore = self
            .command(Phase::Start, self.index)
            .is_some_and(|c| c.flags.ignore_failure);
        match self.state {
            State::Commands(Phase::Start) if self.service.service_type == ServiceType::Oneshot => {
                if clean || ignore {
                    self.enter(Phase::Start, self.index.saturating_add(1), now_ns, actions);
                } else {
                    actions.push(Action::Log(true, text.clone()));
                    self.command_failed(Phase::Start, result, text, now_ns, actions);
                }
            }
            State::Commands(Phase::Start) | State::Awaiting => {
                let (result, text) = if clean {
                    let awaited = if self.starts_container() {
                        "its container ran"
                    } else {
                        "it was ready"
                    };
                    (ServiceResult::Protocol, format!("{text} before {awaited}"))
                } else {
                    (result, text)
                };
                actions.push(Action::Log(true, text.clone()));
                self.blame(result, text);
                self.terminate(now_ns, actions);
            }
            State::Running => {
                if !clean && !ignore {
                    actions.push(Action::Log(true, text.clone()));
                    self.blame(result, text);
                } else {
                    actions.push(Action::Log(false, text));
                }
                if self.result == ServiceResult::Success && self.service.remain_after_exit {
                    self.state = State::Exited;
                    self.deadline_ns = None;
                } else {
                    self.begin_stop(now_ns, actions);
                }
            }
            State::Commands(Phase::StartPost | Phase::Reload) => {
                if !clean && !ignore {
                    actions.push(Action::Log(true, text.clone()));
                    self.blame(result, text);
                }
            }
            State::Commands(Phase::Stop | Phase::StopPost)
            | State::Terminating
            | State::Killing => {
                if !clean && !self.stop_requested {
                    self.blame(result, text);
                } else if matches!(end, ProcessEnd::Exited(code) if code != 0) && !clean {
                    actions.push(Action::Log(true, text));
                }
                if self.service.kill_mode == KillMode::Mixed && self.state == State::Terminating {
                    actions.push(Action::KillAll);
                }
            }
            State::Dead
            | State::Failed
            | State::Exited
            | State::AutoRestart
            | State::Commands(Phase::Condition | Phase::StartPre) => {}
        }
    }

    fn control_ended(
        &mut self,
        end: ProcessEnd,
        program: Option<String>,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        self.control = None;
        let State::Commands(phase) = self.state else {
            return;
        };
        let result = self.service.judge(end, false);
        let command = self.command(phase, self.index);
        let ignore = command.is_some_and(|c| c.flags.ignore_failure);
        let name = program
            .or_else(|| command.map(|c| c.program.clone()))
            .unwrap_or_default();
        let text = format!("{}{name} {}", phase.directive(), describe(end));
        if phase == Phase::Condition
            && let ProcessEnd::Exited(1..=254) = end
        {
            self.result = ServiceResult::ExecCondition;
            self.skipped = Some(text);
            self.terminate(now_ns, actions);
        } else if phase == Phase::Start {
            // Type=forking: the first process has gone, the main one is in the PID file.
            if result == ServiceResult::Success {
                self.start_post(now_ns, actions);
            } else {
                actions.push(Action::Log(true, text.clone()));
                self.command_failed(phase, result, text, now_ns, actions);
            }
        } else if result == ServiceResult::Success || ignore {
            self.enter(phase, self.index.saturating_add(1), now_ns, actions);
        } else {
            actions.push(Action::Log(true, text.clone()));
            self.command_failed(phase, result, text, now_ns, actions);
        }
    }

    fn main_process(&mut self, pid: i32, now_ns: u64, actions: &mut Vec<Action>) {
        self.main = Some(pid);
        if matches!(self.state, State::Awaiting | State::Commands(Phase::Start))
            && self.waits_for_hand_over()
        {
            self.started = true;
            let payload_notifies = self
                .service
                .container
                .as_ref()
                .is_some_and(|c| c.payload_notifies);
            if payload_notifies {
                self.state = State::Awaiting;
            } else {
                self.start_post(now_ns, actions);
            }
        }
    }

    fn reload(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.job = true;
        if self.state == State::Running || self.state == State::Exited {
            self.deadline_ns = after(now_ns, self.start_timeout());
            self.enter(Phase::Reload, 0, now_ns, actions);
        } else {
            self.job = false;
            let text = "it is not active, and cannot reload".to_owned();
            actions.push(Action::Report(self.active_state(), Outcome::Failed(text)));
        }
    }

    fn reloaded(&mut self, outcome: Outcome, actions: &mut Vec<Action>) {
        self.state = if self.main.is_some() {
            State::Running
        } else {
            State::Exited
        };
        self.deadline_ns = None;
        if self.job {
            self.job = false;
            actions.push(Action::Report(ActiveState::Active, outcome));
        }
    }

    fn stop(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.job = true;
        self.stop_requested = true;
        self.start_next = false;
        match self.state {
            State::Dead | State::Failed => {
                self.job = false;
                actions.push(Action::Report(self.active_state(), Outcome::Done));
            }
            State::AutoRestart => {
                self.state = State::Dead;
                self.deadline_ns = None;
                self.job = false;
                actions.push(Action::Report(ActiveState::Inactive, Outcome::Done));
            }
            State::Running | State::Exited | State::Commands(Phase::Reload) => {
                self.begin_stop(now_ns, actions)
            }
            State::Commands(Phase::Stop | Phase::StopPost)
            | State::Terminating
            | State::Killing => {}
            State::Commands(_) | State::Awaiting => self.terminate(now_ns, actions),
        }
    }

    fn begin_stop(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.deadline_ns = after(now_ns, self.service.timeout_stop);
        if self.started {
            self.enter(Phase::Stop, 0, now_ns, actions);
        } else {
            self.terminate(now_ns, actions);
        }
    }

    /// Signals what still runs, and waits for it to go.
    fn terminate(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.state = State::Terminating;
        self.deadline_ns = after(now_ns, self.service.timeout_stop);
        let signal = self.service.kill_signal;
        match self.service.kill_mode {
            KillMode::ControlGroup => actions.push(Action::SignalAll(signal)),
            KillMode::Mixed | KillMode::Process => {
                if self.main.is_some() {
                    actions.push(Action::SignalMain(signal));
                } else if self.service.kill_mode == KillMode::Mixed {
                    actions.push(Action::KillAll);
                }
                if self.control.is_some() {
                    actions.push(Action::SignalControl(signal));
                }
            }
            KillMode::None => {}
        }
    }

    /// Whether nothing that `KillMode=` covers runs any more; `empty` tells of the cgroup.
    fn is_gone(&self, empty: bool) -> bool {
        match self.service.kill_mode {
            KillMode::ControlGroup | KillMode::Mixed => empty,
            KillMode::Process | KillMode::None => {
                empty || (self.main.is_none() && self.control.is_none())
            }
        }
    }

    fn empty(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        if self.awaits_empty() && self.is_gone(true) {
            self.main = None;
            self.control = None;
            self.deadline_ns = after(now_ns, self.service.timeout_stop);
            self.enter(Phase::StopPost, 0, now_ns, actions);
        }
    }

    /// The last process has gone and the last command has run.
    fn down(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.deadline_ns = None;
        actions.push(Action::KillAll);
        actions.push(Action::Release);
        let bad = !matches!(
            self.result,
            ServiceResult::Success | ServiceResult::ExecCondition
        );
        let rest = if bad && !self.stop_requested {
            State::Failed
        } else {
            State::Dead
        };
        let restarts =
            !self.stop_requested && self.service.restarts_after(self.result, self.main_end);
        if self.start_next {
            self.state = State::Dead;
            self.start(now_ns, actions);
            return;
        }
        self.state = rest;
        let job = std::mem::take(&mut self.job);
        if restarts {
            self.restarts = self.restarts.saturating_add(1);
            self.state = State::AutoRestart;
            self.deadline_ns = after(now_ns, Some(self.service.restart_delay));
        } else {
            self.restarts = 0;
        }
        if job {
            let outcome = if self.stop_requested {
                Outcome::Done
            } else if let Some(text) = self.skipped.take() {
                Outcome::Skipped(text)
            } else {
                let text = self
                    .failure
                    .clone()
                    .unwrap_or_else(|| "it ended".to_owned());
                match self.result {
                    ServiceResult::Timeout => Outcome::TimedOut(text),
                    _ => Outcome::Failed(text),
                }
            };
            actions.push(Action::Report(self.active_state(), outcome));
        } else {
            actions.push(Action::WentDown);
        }
    }

    fn deadline(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.deadline_ns = None;
        match self.state {
            State::AutoRestart => actions.push(Action::Restart),
            State::Commands(
                Phase::Condition | Phase::StartPre | Phase::Start | Phase::StartPost,
            )
            | State::Awaiting => {
                let seconds = self.start_timeout().unwrap_or_default().as_secs();
                let awaited = match self.state {
                    State::Commands(phase) => format!("{} ran", phase.directive()),
                    _ => "READY=1 was awaited".to_owned(),
                };
                let text = format!("the start took longer than {seconds} s, while {awaited}");
                actions.push(Action::Log(true, text.clone()));
                self.blame(ServiceResult::Timeout, text);
                self.terminate(now_ns, actions);
            }
            State::Commands(Phase::Reload) => {
                actions.push(Action::SignalControl(Signal::KILL));
                self.reloaded(
                    Outcome::TimedOut("the reload took too long".to_owned()),
                    actions,
                );
            }
            State::Running => {
                let text = "it ran as long as RuntimeMaxSec= allows".to_owned();
                actions.push(Action::Log(true, text.clone()));
                self.blame(ServiceResult::Timeout, text);
                self.begin_stop(now_ns, actions);
            }
            State::Commands(Phase::Stop | Phase::StopPost)
            | State::Terminating
            | State::Killing => {
                self.stop_took_too_long(now_ns, actions);
            }
            State::Dead | State::Failed | State::Exited => {}
        }
    }

    fn stop_took_too_long(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let seconds = self.service.timeout_stop.unwrap_or_default().as_secs();
        match self.state {
            State::Commands(Phase::StopPost) | State::Killing => {
                let text =
                    format!("processes are left {seconds} s after SIGKILL; giving up on them");
                actions.push(Action::Log(true, text.clone()));
                self.blame(ServiceResult::Timeout, text);
                self.down(now_ns, actions);
            }
            State::Commands(Phase::Stop) => {
                let text = format!("ExecStop= took longer than {seconds} s");
                actions.push(Action::Log(true, text.clone()));
                self.blame(ServiceResult::Timeout, text);
                actions.push(Action::SignalControl(Signal::KILL));
                self.terminate(now_ns, actions);
            }
            _ => {
                let text = format!("it did not stop within {seconds} s, and is killed");
                actions.push(Action::Log(true, text.clone()));
                self.blame(ServiceResult::Timeout, text);
                self.state = State::Killing;
                self.deadline_ns = after(
                    now_ns,
                    self.service.timeout_stop.or(Some(Duration::from_secs(90))),
                );
                actions.push(Action::KillAll);
            }
        }
    }
}
