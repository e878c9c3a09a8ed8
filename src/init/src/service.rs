//! The life of one service: a pure state machine.
//!
//! It is told what happened ([`Input`]) and when, and answers with what to do ([`Action`]). It follows systemd.service(5):
//! `ExecCondition=`, `ExecStartPre=`, `ExecStart=`, the wait that `Type=` asks for, `ExecStartPost=`; to stop, `ExecStop=` (only
//! after a complete start), the signal of `KillMode=`, SIGKILL after the time-out, and always `ExecStopPost=`.

mod ended;
mod mount;
mod notified;
pub(crate) mod saved;
#[cfg(test)]
mod simulation;
mod start;
mod stop;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use orlop_unit::{
    ActiveState, Command, Kind, Outcome, ProcessEnd, Service, ServiceResult, ServiceType, Signal,
    Unit,
};

/// What a process is to its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The service itself.
    Main,
    /// A helper command such as `ExecStartPre=`.
    Control,
}

/// Which list of commands is being worked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Nothing runs, and the last run was good.
    Dead,
    /// Nothing runs, and the last run was bad.
    Failed,
    /// Working through a list of commands.
    Commands(Phase),
    /// `Type=idle`: other jobs go first.
    Idle,
    /// The main process runs; `READY=1` or the hand-over is awaited. With `Type=forking`: the PID file is.
    Awaiting,
    /// Up, with a main process, or with processes of which none is known as the main one.
    Running,
    /// Up; a reload is over with the next `READY=1`.
    Reloading,
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
    /// A stop job begins; whether a start follows.
    Stop {
        /// The job starts the service again afterwards.
        restarting: bool,
    },
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
    /// Some process of the service was killed for lack of memory.
    OutOfMemoryWithin,
    /// `READY=1`.
    Ready,
    /// `RELOADING=1`.
    Reloading,
    /// `STOPPING=1`.
    Stopping,
    /// `WATCHDOG=1`.
    KeepAlive,
    /// `WATCHDOG=trigger`.
    WatchdogTriggered,
    /// `WATCHDOG_USEC=`.
    WatchdogInterval(Duration),
    /// `EXTEND_TIMEOUT_USEC=`.
    Extend(Duration),
    /// Another process is the main one now: `MAINPID=` or a container's hand-over.
    MainProcess(i32),
    /// What [`Action::FindMain`] found.
    MainFound(Option<i32>),
    /// `Type=idle`: no other job is left.
    Turn,
    /// What a mount unit would mount is mounted already.
    Adopted,
    /// What a mount unit mounted is not there any more.
    Gone,
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
    /// Look for the main process that the first one of `Type=forking` left behind.
    FindMain,
    /// Nothing runs any more: the cgroup can go, and what is not kept over a restart.
    Release {
        /// Another run follows by itself.
        restarting: bool,
    },
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
    restarting: bool,
    /// `TimeoutStopFailureMode=abort` was carried out.
    has_aborted: bool,
    /// Processes are there, and none is known as the main one.
    leaderless: bool,
    /// `Type=idle`: the other jobs are through.
    had_turn: bool,
    skipped: Option<String>,
    deadline_ns: Option<u64>,
    /// When `RuntimeMaxSec=` is over.
    ends_ns: Option<u64>,
    /// When the watchdog bites.
    watchdog_ns: Option<u64>,
    /// `WATCHDOG_USEC=`, which wins over the unit file.
    watchdog_interval: Option<Duration>,
    /// When the PID file is looked for again, or `Type=idle` waits no more.
    retry_ns: Option<u64>,
}

/// How long `Type=idle` waits for other jobs (systemd.service(5)).
const IDLE_WAIT: Duration = Duration::from_secs(5);
/// How often a PID file that is not there yet is looked for.
const PID_FILE_WAIT: Duration = Duration::from_millis(100);
/// Why a reload failed whose service ended by itself.
const ENDED_IN_RELOAD: &str = "it ended before the reload was over";

fn after(now_ns: u64, time: Option<Duration>) -> Option<u64> {
    time.map(|t| now_ns.saturating_add(u64::try_from(t.as_nanos()).unwrap_or(u64::MAX)))
}

/// What is run for a unit.
fn service_of(unit: &Unit) -> Option<Arc<Service>> {
    match &unit.kind {
        Kind::Service(service) => Some(Arc::clone(service)),
        Kind::Mount(directives) => Some(Arc::new(mount::service(directives))),
        _ => None,
    }
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
    /// A service that does not run; `None` when the unit is none, and no mount either, which is run like one.
    #[must_use]
    pub fn new(unit: &Arc<Unit>) -> Option<Self> {
        let service = service_of(unit)?;
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
            restarting: false,
            has_aborted: false,
            leaderless: false,
            had_turn: false,
            skipped: None,
            deadline_ns: None,
            ends_ns: None,
            watchdog_ns: None,
            watchdog_interval: None,
            retry_ns: None,
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
        if let Some(service) = service_of(unit) {
            self.service = service;
            self.unit = Arc::clone(unit);
        }
    }

    /// When to send [`Input::Deadline`], in nanoseconds of the boot clock.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        [self.deadline_ns, self.watchdog_ns, self.retry_ns]
            .into_iter()
            .flatten()
            .min()
    }

    /// The state that the unit graph and `systemctl` know.
    #[must_use]
    pub fn active_state(&self) -> ActiveState {
        match self.state {
            State::Dead => ActiveState::Inactive,
            State::Failed => ActiveState::Failed,
            State::Commands(Phase::Reload) | State::Reloading => ActiveState::Reloading,
            State::Commands(Phase::Stop | Phase::StopPost)
            | State::Terminating
            | State::Killing => ActiveState::Deactivating,
            State::Commands(_) | State::Idle | State::Awaiting | State::AutoRestart => {
                ActiveState::Activating
            }
            State::Running | State::Exited => ActiveState::Active,
        }
    }

    /// The sub-state, in systemd's words.
    #[must_use]
    pub fn sub_state(&self) -> &'static str {
        if matches!(self.unit.kind, Kind::Mount(_)) {
            return mount::sub_state(self.state);
        }
        match self.state {
            State::Dead => "dead",
            State::Failed => "failed",
            State::Commands(Phase::Condition) => "condition",
            State::Commands(Phase::StartPre) => "start-pre",
            State::Commands(Phase::Start) | State::Idle | State::Awaiting => "start",
            State::Commands(Phase::StartPost) => "start-post",
            State::Commands(Phase::Reload) => "reload",
            State::Commands(Phase::Stop) => "stop",
            State::Commands(Phase::StopPost) => "stop-post",
            State::Running => "running",
            State::Reloading => "reload-notify",
            State::Exited => "exited",
            State::Terminating => "stop-sigterm",
            State::Killing => "stop-sigkill",
            State::AutoRestart => "auto-restart",
        }
    }

    /// Whether a start job begins a new run here, rather than joining one.
    #[must_use]
    pub fn can_begin(&self) -> bool {
        matches!(self.state, State::Dead | State::Failed | State::AutoRestart)
    }

    /// Whether it waits for its processes to go, so that an empty cgroup matters.
    #[must_use]
    pub fn awaits_empty(&self) -> bool {
        match self.state {
            State::Terminating | State::Killing => true,
            State::Running | State::Reloading => self.leaderless,
            State::Awaiting => self.seeks_main(),
            _ => false,
        }
    }

    /// Whether there are processes, none of which is known as the main one.
    #[must_use]
    pub fn is_leaderless(&self) -> bool {
        self.leaderless || self.seeks_main()
    }

    /// `Type=forking`: the first process has ended, and the main one is not known yet.
    fn seeks_main(&self) -> bool {
        self.state == State::Awaiting && self.service.service_type == ServiceType::Forking
    }

    /// Whether its main process is on its way to its program.
    #[must_use]
    pub fn is_starting_main(&self) -> bool {
        self.state == State::Commands(Phase::Start) && self.main.is_some()
    }

    /// Whether `Type=idle` waits for other jobs.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    /// The interval in which the service has to give a sign of life.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog_interval.or(self.service.watchdog)
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
            Input::Stop { restarting } => self.stop(restarting, now_ns, &mut actions),
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
            Input::OutOfMemoryWithin => self.out_of_memory_within(now_ns, &mut actions),
            Input::Ready => self.ready(now_ns, &mut actions),
            Input::Reloading => self.reloading(now_ns),
            Input::Stopping => self.stopping(now_ns),
            Input::KeepAlive => self.keep_alive(now_ns),
            Input::WatchdogTriggered => {
                self.watchdog_bites("it asked for it", now_ns, &mut actions)
            }
            Input::WatchdogInterval(interval) => {
                self.watchdog_interval = Some(interval);
                self.keep_alive(now_ns);
            }
            Input::Extend(time) => {
                let extended = after(now_ns, Some(time));
                if self.deadline_ns.is_some() && self.state != State::AutoRestart {
                    self.deadline_ns = self.deadline_ns.max(extended);
                }
            }
            Input::MainProcess(pid) => self.main_process(pid, now_ns, &mut actions),
            Input::MainFound(pid) => self.main_found(pid, now_ns, &mut actions),
            Input::Turn => self.turn(now_ns, &mut actions),
            Input::Adopted => {
                self.state = State::Exited;
                self.started = true;
                self.stop_requested = false;
                self.result = ServiceResult::Success;
                self.deadline_ns = None;
                self.job = false;
                actions.push(Action::Report(ActiveState::Active, Outcome::Done));
            }
            Input::Gone if self.state == State::Exited => {
                self.state = State::Dead;
                actions.push(Action::Log(false, "somebody else unmounted it".to_owned()));
                actions.push(Action::Release { restarting: false });
                actions.push(Action::WentDown);
            }
            Input::Gone => {}
            Input::Empty => self.empty(now_ns, &mut actions),
            Input::Deadline => self.deadline(now_ns, &mut actions),
            // What runs already is not started once more.
            Input::LimitHit(_) if !self.can_begin() => self.start(now_ns, &mut actions),
            Input::LimitHit(text) => {
                self.result = ServiceResult::StartLimitHit;
                self.failure = Some(text.clone());
                self.state = State::Failed;
                self.deadline_ns = None;
                actions.push(Action::Log(true, text.clone()));
                actions.push(Action::Report(ActiveState::Failed, Outcome::Failed(text)));
            }
        }
        if !matches!(
            self.state,
            State::Running | State::Reloading | State::Commands(Phase::Reload)
        ) {
            self.watchdog_ns = None;
        }
        if !(self.is_idle() || self.seeks_main()) {
            self.retry_ns = None;
        }
        actions
    }

    /// Keeps the first thing that went wrong.
    fn blame(&mut self, result: ServiceResult, text: String) {
        if self.result == ServiceResult::Success {
            self.result = result;
            self.failure = Some(text);
        }
    }
}
