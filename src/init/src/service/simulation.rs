//! A machine in which nothing is real, for any order of what can happen to a service.
//!
//! It carries out the actions as the supervisor does, on processes that end, linger or resist as the test chooses, and checks
//! after each step what must always hold.

use std::collections::VecDeque;
use std::fmt::Write as _;

use orlop_unit::{KillMode, MemoryStore, Restart, SpecifierContext, UnitName};
use proptest::prelude::*;

use super::*;

/// A unit made of directives, as it would be read from its file.
fn unit(directives: &str) -> Arc<Unit> {
    let store = MemoryStore::new().file(
        "/u/x.service",
        &format!("[Unit]\nDefaultDependencies=no\n[Service]\n{directives}"),
    );
    let name = UnitName::parse("x.service").unwrap();
    let loaded = orlop_unit::load(&name, &["/u"], &store, &SpecifierContext::default());
    let problems = loaded.problems;
    Arc::new(
        loaded
            .unit
            .unwrap_or_else(|| panic!("{directives}: {problems:?}")),
    )
}

/// Any service of the types that the supervisor carries through to the end by itself.
fn any_unit() -> impl Strategy<Value = String> {
    let restart = prop::sample::select(vec![
        "no",
        "always",
        "on-success",
        "on-failure",
        "on-abnormal",
        "on-abort",
        "on-watchdog",
    ]);
    let lists = prop::sample::subsequence(
        vec![
            "ExecCondition=/bin/condition",
            "ExecStartPre=/bin/pre",
            "ExecStartPre=-/bin/pre",
            "ExecStartPost=/bin/post",
            "ExecStartPost=-/bin/post",
            "ExecReload=/bin/reload",
            "ExecStop=/bin/stop",
            "ExecStop=-/bin/stop",
            "ExecStopPost=/bin/stop-post",
            "RemainAfterExit=yes",
            "RuntimeMaxSec=20",
            "TimeoutStartSec=infinity",
            "TimeoutStartSec=5",
            "TimeoutStopSec=infinity",
            "TimeoutStopSec=0.5",
            "RestartSec=0",
            "RestartSec=3",
            "RestartPreventExitStatus=3 SIGKILL",
            "RestartForceExitStatus=4 SIGHUP",
            "SuccessExitStatus=5",
            "KillMode=mixed",
            "KillMode=process",
            "KillMode=none",
            "SendSIGKILL=no",
            "SendSIGHUP=yes",
            "FinalKillSignal=SIGQUIT",
            "WatchdogSec=4",
            "TimeoutStartFailureMode=abort",
            "TimeoutStartFailureMode=kill",
            "TimeoutStopFailureMode=abort",
            "TimeoutStopFailureMode=kill",
            "OOMPolicy=continue",
            "OOMPolicy=kill",
            "RestartSteps=3\nRestartMaxDelaySec=10",
        ],
        0..12,
    );
    let kind = prop::sample::select(vec![
        "Type=simple\nExecStart=/bin/main",
        "Type=exec\nExecStart=-/bin/main",
        "Type=notify\nExecStart=/bin/main",
        "Type=notify-reload\nExecStart=/bin/main",
        "Type=idle\nExecStart=/bin/main",
        "Type=forking\nExecStart=/bin/main",
        "Type=forking\nExecStart=-/bin/main\nPIDFile=/run/main.pid",
        "Type=simple\nExecStart=/usr/bin/docker run thing",
        "Type=oneshot\nExecStart=/bin/one\nExecStart=-/bin/two\nExecStart=/bin/three",
    ]);
    (kind, restart, lists).prop_map(|(kind, restart, lists)| {
        let refused = kind.contains("oneshot") && matches!(restart, "always" | "on-success");
        let restart = if refused { "on-failure" } else { restart };
        let mut text = format!("{kind}\nRestart={restart}\n");
        for line in lists {
            writeln!(text, "{line}").unwrap();
        }
        text
    })
}

fn any_end() -> impl Strategy<Value = ProcessEnd> {
    prop_oneof![
        4 => Just(ProcessEnd::Exited(0)),
        3 => (1_u8..6).prop_map(ProcessEnd::Exited),
        1 => Just(ProcessEnd::Exited(255)),
        4 => prop::sample::select(vec![1, 9, 11, 15]).prop_map(|n| ProcessEnd::Killed(Signal(n))),
        1 => Just(ProcessEnd::Dumped(Signal(6))),
    ]
}

/// Something that happens.
#[derive(Clone, Debug)]
enum Happening {
    Start,
    Stop,
    Reload,
    LimitHit,
    MainEnds(ProcessEnd),
    ControlEnds(ProcessEnd),
    OutOfMemory,
    OutOfMemoryWithin,
    Ready,
    Reloading,
    Stopping,
    KeepAlive,
    WatchdogTriggered,
    Extend(u64),
    Turn,
    HandOver,
    /// A process of the unit forks, and stays behind.
    Straggler,
    StragglersEnd,
    /// PID 1 is executed anew, and goes on with what the old one wrote down.
    Reexecuted,
    /// Time passes, up to the next deadline at most.
    Milliseconds(u64),
    /// Time passes until the next deadline.
    Deadline,
}

fn any_happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        3 => Just(Start),
        2 => Just(Stop),
        1 => Just(Reload),
        1 => Just(LimitHit),
        5 => any_end().prop_map(MainEnds),
        5 => any_end().prop_map(ControlEnds),
        1 => Just(OutOfMemory),
        1 => Just(OutOfMemoryWithin),
        2 => Just(Ready),
        1 => Just(Reloading),
        1 => Just(Stopping),
        1 => Just(KeepAlive),
        1 => Just(WatchdogTriggered),
        1 => (0_u64..9).prop_map(Extend),
        1 => Just(Turn),
        2 => Just(HandOver),
        1 => Just(Straggler),
        1 => Just(StragglersEnd),
        1 => Just(Reexecuted),
        2 => (0_u64..3000).prop_map(Milliseconds),
        4 => Just(Deadline),
    ]
}

#[derive(Clone, Copy, Debug)]
struct Process {
    pid: i32,
    role: Role,
    /// SIGKILL is on its way: it ends before anything else happens.
    is_doomed: bool,
}

/// What the job that runs wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Start,
    Stop,
    Reload,
}

#[derive(Debug)]
struct World {
    run: Run,
    now_ns: u64,
    processes: Vec<Process>,
    stragglers: bool,
    last_pid: i32,
    job: Option<Job>,
    restart_is_due: bool,
    /// Of each process that is to be started: whether that fails; of each signal: whether it is heeded. Yes, when there is no more.
    fortunes: VecDeque<bool>,
    log: Vec<String>,
}

impl World {
    fn new(directives: &str, fortunes: Vec<bool>) -> Self {
        Self {
            run: Run::new(&unit(directives)).unwrap(),
            now_ns: 1_000_000_000,
            processes: Vec::new(),
            stragglers: false,
            last_pid: 100,
            job: None,
            restart_is_due: false,
            fortunes: fortunes.into(),
            log: Vec::new(),
        }
    }

    fn fortune(&mut self) -> bool {
        self.fortunes.pop_front().unwrap_or(true)
    }

    fn is_alive(&self, pid: Option<i32>) -> bool {
        self.processes.iter().any(|p| Some(p.pid) == pid)
    }

    /// What cannot be killed for good may outlive its service.
    fn may_leave_processes(&self) -> bool {
        let service = self.run.service();
        service.kill_mode == KillMode::None
            || !service.send_sigkill
            || service.final_kill_signal != Signal::KILL
    }

    /// As the supervisor finds it out from the kernel, by `KillMode=`.
    fn is_empty(&self) -> bool {
        let alone = self.run.main.is_none() && self.run.control.is_none();
        let populated = self.stragglers || !self.processes.is_empty();
        if self.run.is_leaderless() {
            return !populated;
        }
        match self.run.service().kill_mode {
            KillMode::Process | KillMode::None => alone || !populated,
            KillMode::ControlGroup | KillMode::Mixed => alone && !populated,
        }
    }

    /// Gives the machine one input, and what follows from it at once.
    fn feed(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        let mut turns = 0;
        while let Some(input) = inputs.pop_front() {
            turns += 1;
            assert!(turns < 100, "it never comes to rest: {:#?}", self.log);
            let before = self.run.deadline_ns();
            let text = format!("{:?} + {input:?}", self.run.state);
            let actions = self.run.step(input, self.now_ns);
            self.log
                .push(format!("{text} -> {:?} {actions:?}", self.run.state));
            let after = self.run.deadline_ns();
            assert!(
                after == before || after.is_none_or(|d| d >= self.now_ns),
                "a deadline in the past: {:#?}",
                self.log
            );
            for action in actions {
                inputs.extend(self.act(action));
            }
            if inputs.is_empty() && self.run.awaits_empty() && self.is_empty() {
                inputs.push_back(Input::Empty);
            }
        }
        self.bury();
        self.check();
    }

    /// Those that were killed for good are gone before anything else happens.
    fn bury(&mut self) {
        if let Some(doomed) = self.processes.iter().find(|p| p.is_doomed).copied() {
            self.end(doomed.pid, ProcessEnd::Killed(Signal::KILL));
        }
    }

    fn act(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::Spawn(phase, index, role) => {
                assert!(self.run.command(phase, index).is_some());
                let rivals: Vec<&Process> = self
                    .processes
                    .iter()
                    .filter(|p| p.role == role && !p.is_doomed)
                    .collect();
                // KillMode=none lets its processes go on, whatever comes.
                let is_left = self.may_leave_processes();
                assert!(
                    rivals.is_empty() || is_left,
                    "two {role:?} processes at once: {:#?}",
                    self.log
                );
                if !self.fortune() {
                    let text = "cannot execute".to_owned();
                    return Some(Input::StartFailed(role, ServiceResult::ExitCode, text));
                }
                self.last_pid += 1;
                let pid = self.last_pid;
                self.processes.push(Process {
                    pid,
                    role,
                    is_doomed: false,
                });
                match role {
                    Role::Main => self.run.main = Some(pid),
                    Role::Control => self.run.control = Some(pid),
                }
                return (role == Role::Main).then_some(Input::Executing);
            }
            Action::SignalMain(signal) => self.signal(self.run.main, signal),
            Action::SignalControl(signal) => self.signal(self.run.control, signal),
            Action::SignalAll(signal) => {
                for pid in self.processes.iter().map(|p| p.pid).collect::<Vec<_>>() {
                    self.signal(Some(pid), signal);
                }
                if self.fortune() {
                    self.stragglers = false;
                }
            }
            Action::KillAll => {
                assert!(
                    !matches!(
                        self.run.service().kill_mode,
                        KillMode::None | KillMode::Process
                    ),
                    "KillMode= forbids this: {:#?}",
                    self.log
                );
                for process in &mut self.processes {
                    process.is_doomed = true;
                }
                self.stragglers = false;
            }
            Action::Report(state, outcome) => {
                let job = self.job.take();
                assert!(job.is_some(), "nobody asked: {:#?}", self.log);
                let is_done = outcome == Outcome::Done;
                if job == Some(Job::Start) && is_done {
                    assert!(
                        self.run.result == ServiceResult::Success,
                        "started, and failed: {:#?}",
                        self.log
                    );
                }
                if job == Some(Job::Reload) && is_done {
                    assert!(
                        matches!(self.run.state, State::Running | State::Exited),
                        "reloaded, and it has ended: {:#?}",
                        self.log
                    );
                }
                if job == Some(Job::Stop) {
                    assert!(state.is_down(), "stopped, and {state:?}: {:#?}", self.log);
                }
            }
            Action::WentDown => assert_eq!(self.job, None, "a job is forgotten: {:#?}", self.log),
            Action::Restart => self.restart_is_due = true,
            Action::FindMain => {
                if !self.stragglers || !self.fortune() {
                    return Some(Input::MainFound(None));
                }
                // What stayed behind is a daemon.
                self.stragglers = false;
                self.last_pid += 1;
                let pid = self.last_pid;
                self.processes.push(Process {
                    pid,
                    role: Role::Main,
                    is_doomed: false,
                });
                return Some(Input::MainFound(Some(pid)));
            }
            Action::Release { .. } | Action::Log(..) => {}
        }
        None
    }

    /// A process that heeds a signal ends of it at once, as far as its service can see.
    fn signal(&mut self, pid: Option<i32>, signal: Signal) {
        let heeds = signal == Signal::KILL || self.fortune();
        if let Some(process) = self.processes.iter_mut().find(|p| Some(p.pid) == pid) {
            process.is_doomed |= heeds;
        }
    }

    fn end(&mut self, pid: i32, end: ProcessEnd) {
        let Some(at) = self.processes.iter().position(|p| p.pid == pid) else {
            return;
        };
        let process = self.processes.remove(at);
        let current = match process.role {
            Role::Main => self.run.main,
            Role::Control => self.run.control,
        };
        if current == Some(pid) {
            self.feed(Input::Ended(process.role, end, None));
        } else if self.run.awaits_empty() && self.is_empty() {
            self.feed(Input::Empty);
        } else {
            self.bury();
        }
    }

    /// What holds whenever the machine waits: there is something that it waits for, or it is at rest.
    fn check(&self) {
        let log = &self.log;
        let main = self.is_alive(self.run.main);
        let control = self.is_alive(self.run.control);
        let timer = self.run.deadline_ns().is_some();
        let is_fine = match self.run.state {
            State::Dead | State::Failed => !timer && !main && !control && self.job.is_none(),
            State::Running | State::Reloading => {
                main || self.run.is_leaderless() && !self.is_empty()
            }
            State::Idle => timer,
            State::Awaiting if self.run.is_leaderless() => timer || !self.is_empty(),
            State::Exited => self.run.service().remain_after_exit && !timer,
            State::Awaiting => main,
            State::Commands(Phase::Start) => main || control,
            State::Commands(_) => control,
            State::Terminating | State::Killing => {
                timer || !self.is_empty() && (self.stragglers || !self.processes.is_empty())
            }
            State::AutoRestart => timer || self.restart_is_due,
        };
        assert!(is_fine, "{:?} waits for nothing: {log:#?}", self.run.state);
        if matches!(self.run.state, State::Running | State::Exited) {
            assert_eq!(self.job, None, "{log:#?}");
        }
    }

    /// The job engine starts a job when the one before has ended, or in its place.
    fn job(&mut self, job: Job) {
        let input = match job {
            Job::Start => Input::Start,
            Job::Stop => Input::Stop { restarting: false },
            Job::Reload => Input::Reload,
        };
        self.job = Some(job);
        if job == Job::Stop {
            self.restart_is_due = false;
        }
        self.feed(input);
    }

    fn happen(&mut self, happening: &Happening) {
        match happening {
            Happening::Start => self.job(Job::Start),
            Happening::Stop => self.job(Job::Stop),
            // The job engine does not reload what is not up.
            Happening::Reload if self.run.active_state() == ActiveState::Active => {
                self.job(Job::Reload)
            }
            Happening::LimitHit => {
                self.job = Some(Job::Start);
                self.feed(Input::LimitHit("too often".to_owned()));
            }
            Happening::MainEnds(end) => {
                if let Some(pid) = self.run.main {
                    self.end(pid, *end);
                }
            }
            Happening::ControlEnds(end) => {
                if let Some(pid) = self.run.control {
                    self.end(pid, *end);
                }
            }
            Happening::OutOfMemory => {
                if let Some(pid) = self.run.main.filter(|_| self.is_alive(self.run.main)) {
                    self.feed(Input::OutOfMemory);
                    self.end(pid, ProcessEnd::Killed(Signal::KILL));
                }
            }
            Happening::OutOfMemoryWithin => self.feed(Input::OutOfMemoryWithin),
            Happening::Ready => self.feed(Input::Ready),
            Happening::Reloading => self.feed(Input::Reloading),
            Happening::Stopping => self.feed(Input::Stopping),
            Happening::KeepAlive => self.feed(Input::KeepAlive),
            Happening::WatchdogTriggered => self.feed(Input::WatchdogTriggered),
            Happening::Extend(seconds) => {
                self.feed(Input::Extend(Duration::from_secs(*seconds)));
            }
            Happening::Turn => self.feed(Input::Turn),
            Happening::HandOver => self.hand_over(),
            Happening::Straggler => self.stragglers |= !self.processes.is_empty(),
            Happening::StragglersEnd => {
                self.stragglers = false;
                if self.run.awaits_empty() && self.is_empty() {
                    self.feed(Input::Empty);
                }
            }
            Happening::Milliseconds(milliseconds) => {
                let then = self.now_ns + milliseconds * 1_000_000;
                match self.run.deadline_ns() {
                    Some(deadline) if deadline <= then => self.pass_deadline(),
                    _ => self.now_ns = then,
                }
            }
            Happening::Deadline => self.pass_deadline(),
            Happening::Reexecuted => {
                let text = serde_json::to_string(&self.run.save()).unwrap();
                let unit = Arc::clone(self.run.unit());
                let deadline = self.run.deadline_ns();
                self.run = Run::new(&unit).unwrap();
                self.run.resume(serde_json::from_str(&text).unwrap());
                assert_eq!(self.run.deadline_ns(), deadline);
                assert_eq!(serde_json::to_string(&self.run.save()).unwrap(), text);
                if let Some(job) = self.job {
                    self.job(job);
                }
            }
            Happening::Reload => {}
        }
        if std::mem::take(&mut self.restart_is_due) {
            // The restart job is a stop and a start.
            self.job(Job::Stop);
            self.job(Job::Start);
        }
    }

    fn pass_deadline(&mut self) {
        if let Some(deadline) = self.run.deadline_ns() {
            self.now_ns = self.now_ns.max(deadline);
            self.feed(Input::Deadline);
        }
    }

    /// The starter of a container says that its first process is the main one from now on, and ends.
    fn hand_over(&mut self) {
        let is_starter = self.run.starts_container() && self.is_alive(self.run.main);
        if !is_starter || self.run.state != State::Awaiting {
            return;
        }
        let starter = self.run.main;
        self.last_pid += 1;
        self.processes
            .retain(|process| Some(process.pid) != starter);
        self.processes.push(Process {
            pid: self.last_pid,
            role: Role::Main,
            is_doomed: false,
        });
        self.feed(Input::MainProcess(self.last_pid));
    }

    /// Everybody does as told from here on, and what has no time-out ends at last.
    fn settle(&mut self) {
        self.fortunes.clear();
        for _ in 0..200 {
            if matches!(self.run.state, State::Dead | State::Failed) {
                return;
            }
            if self.run.deadline_ns().is_some() {
                self.happen(&Happening::Deadline);
            } else if let Some(process) = self.processes.first() {
                let pid = process.pid;
                self.end(pid, ProcessEnd::Exited(0));
            } else {
                self.happen(&Happening::StragglersEnd);
            }
        }
        panic!("it does not end: {:#?}", self.log);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_stop_is_the_end_whatever_happened_before(
        directives in any_unit(),
        fortunes in prop::collection::vec(prop::bool::weighted(0.8), 0..40),
        happenings in prop::collection::vec(any_happening(), 0..40),
    ) {
        let mut world = World::new(&directives, fortunes);
        for happening in &happenings {
            world.happen(happening);
        }
        world.job(Job::Stop);
        world.settle();
        prop_assert_eq!(world.job, None);
        prop_assert!(world.run.deadline_ns().is_none());
        let forgiving =
            world.may_leave_processes() || world.run.service().kill_mode == KillMode::Process;
        prop_assert!(forgiving || world.processes.is_empty() && !world.stragglers);
    }

    #[test]
    fn every_start_is_answered(
        directives in any_unit(),
        fortunes in prop::collection::vec(prop::bool::weighted(0.8), 0..20),
        happenings in prop::collection::vec(any_happening(), 0..20),
        ends in prop::collection::vec(any_end(), 0..40),
    ) {
        let mut world = World::new(&directives, fortunes);
        for happening in &happenings {
            world.happen(happening);
        }
        world.job(Job::Start);
        let mut ends = ends.into_iter().chain(std::iter::repeat(ProcessEnd::Exited(1)));
        let mut left = 300;
        while world.job.is_some() {
            left -= 1;
            prop_assert!(left > 0, "it is never answered: {:#?}", world.log);
            let end = ends.next().unwrap_or(ProcessEnd::Exited(1));
            match (world.run.control, world.run.main) {
                (Some(_), _) => world.happen(&Happening::ControlEnds(end)),
                (None, Some(_)) => world.happen(&Happening::MainEnds(end)),
                (None, None) if world.run.is_idle() => world.happen(&Happening::Turn),
                (None, None) => {
                    // One of a run before may be there still.
                    if let Some(process) = world.processes.first().copied() {
                        world.end(process.pid, end);
                    }
                    world.happen(&Happening::StragglersEnd);
                }
            }
        }
    }

    /// systemd.service(5), the table of `Restart=`, for a main process that ends by itself.
    #[test]
    fn a_run_is_followed_by_another_as_the_manual_says(
        restart in prop::sample::select(vec![
            Restart::No, Restart::Always, Restart::OnSuccess, Restart::OnFailure,
            Restart::OnAbnormal, Restart::OnAbort, Restart::OnWatchdog,
        ]),
        end in any_end(),
        delay_ms in 0_u64..5000,
    ) {
        let word = match restart {
            Restart::No => "no",
            Restart::Always => "always",
            Restart::OnSuccess => "on-success",
            Restart::OnFailure => "on-failure",
            Restart::OnAbnormal => "on-abnormal",
            Restart::OnAbort => "on-abort",
            Restart::OnWatchdog => "on-watchdog",
        };
        let mut world = World::new(
            &format!("ExecStart=/bin/main\nRestart={word}\nRestartSec={delay_ms}ms\n"),
            Vec::new(),
        );
        world.job(Job::Start);
        prop_assert_eq!(world.run.state, State::Running);
        let ended_ns = world.now_ns;
        world.happen(&Happening::MainEnds(end));

        let is_clean = matches!(
            end,
            ProcessEnd::Exited(0) | ProcessEnd::Killed(Signal(1 | 2 | 13 | 15))
        );
        let is_code = matches!(end, ProcessEnd::Exited(_));
        let expected = match restart {
            Restart::No | Restart::OnWatchdog => false,
            Restart::Always => true,
            Restart::OnSuccess => is_clean,
            Restart::OnFailure => !is_clean,
            Restart::OnAbnormal | Restart::OnAbort => !is_clean && !is_code,
        };
        if !expected {
            let rest = if is_clean { State::Dead } else { State::Failed };
            prop_assert_eq!(world.run.state, rest);
            return Ok(());
        }
        prop_assert_eq!(world.run.state, State::AutoRestart);
        prop_assert_eq!(world.run.deadline_ns(), Some(ended_ns + delay_ms * 1_000_000));
        world.happen(&Happening::Deadline);
        prop_assert_eq!(world.run.state, State::Running);
        prop_assert_eq!(world.run.restarts, 1);
    }
}

#[test]
fn what_ended_during_its_reload_is_not_told_to_run() {
    for job in [Job::Start, Job::Reload] {
        for end in [ProcessEnd::Exited(0), ProcessEnd::Exited(1)] {
            let text = "ExecStart=/bin/main\nExecReload=/bin/reload\n";
            let mut world = World::new(text, Vec::new());
            world.job(Job::Start);
            world.job(Job::Reload);
            world.happen(&Happening::MainEnds(end));
            if job == Job::Start {
                world.job(job);
            }
            let reloaded = Input::Ended(Role::Control, ProcessEnd::Exited(0), None);
            let actions = world.run.step(reloaded, world.now_ns);
            let told = actions.iter().find_map(|action| match action {
                Action::Report(_, outcome) => Some(outcome),
                _ => None,
            });
            assert!(
                matches!(told, Some(Outcome::Failed(_))),
                "{job:?}, {end:?}: {actions:?}"
            );
        }
    }
}

/// Debian's `postgresql@.service` has a `-` before its `ExecStart=`, which is for the first process alone.
#[test]
fn what_a_forking_service_leaves_behind_is_not_excused_by_its_first_process() {
    let mut world = World::new("Type=forking\nExecStart=-/bin/main", Vec::new());
    world.job(Job::Start);
    world.stragglers = true;
    world.happen(&Happening::ControlEnds(ProcessEnd::Exited(0)));
    assert_eq!(world.run.state, State::Running);
    world.happen(&Happening::MainEnds(ProcessEnd::Killed(Signal::KILL)));
    world.happen(&Happening::StragglersEnd);
    assert_eq!(world.run.state, State::Failed);
    assert_eq!(world.run.result.as_str(), "signal");
}
