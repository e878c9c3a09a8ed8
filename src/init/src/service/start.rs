//! From a start job to a service that is up, and reloads.

use std::time::Duration;

use orlop_unit::{ActiveState, Outcome, ServiceResult, ServiceType};

use super::{Action, ENDED_IN_RELOAD, IDLE_WAIT, PID_FILE_WAIT, Phase, Role, Run, State, after};

impl Run {
    /// `docker run` of a plain unit file counts as started when its container is, like a `.container` file's.
    pub(super) fn starts_container(&self) -> bool {
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
    pub(super) fn waits_for_hand_over(&self) -> bool {
        self.starts_container() && !self.started
    }

    pub(super) fn start(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.job = true;
        match self.state {
            State::Running | State::Reloading | State::Exited => {
                actions.push(Action::Report(self.active_state(), Outcome::Done));
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
                self.restarting = false;
                self.has_aborted = false;
                self.leaderless = false;
                self.had_turn = false;
                self.watchdog_interval = None;
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
            | State::Idle
            | State::Awaiting => {}
            State::Commands(Phase::Stop | Phase::StopPost)
            | State::Terminating
            | State::Killing => {
                self.start_next = true;
            }
        }
    }

    pub(super) fn start_timeout(&self) -> Option<Duration> {
        self.service.timeout_start
    }

    /// Goes on with command `index` of `phase`, or with what follows the list.
    pub(super) fn enter(
        &mut self,
        phase: Phase,
        index: usize,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        self.index = index;
        if phase == Phase::Start && self.service.service_type == ServiceType::Idle && !self.had_turn
        {
            self.state = State::Idle;
            self.retry_ns = after(now_ns, Some(IDLE_WAIT));
            return;
        }
        self.state = State::Commands(phase);
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
            Phase::Reload => self.reloaded(now_ns, actions),
            Phase::Stop => self.terminate(now_ns, actions),
            Phase::StopPost => self.down(now_ns, actions),
        }
    }

    /// `Type=idle`: nobody else is to be let go first any more.
    pub(super) fn turn(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        if self.is_idle() {
            self.had_turn = true;
            self.enter(Phase::Start, 0, now_ns, actions);
        }
    }

    pub(super) fn start_post(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.started = true;
        self.enter(Phase::StartPost, 0, now_ns, actions);
    }

    /// The start is complete.
    pub(super) fn up(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        if self.result != ServiceResult::Success {
            // The main process failed while ExecStartPost= ran.
            self.terminate(now_ns, actions);
            return;
        }
        self.ends_ns = after(now_ns, self.service.runtime_max);
        if self.main.is_some() {
            self.watchdog_ns = after(now_ns, self.watchdog());
        }
        self.stay_up(Outcome::Done, now_ns, actions);
    }

    /// `ExecReload=` is through.
    fn reloaded(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let outcome = if self.up_state().is_some() {
            Outcome::Done
        } else {
            let why = self.failure.clone();
            Outcome::Failed(why.unwrap_or_else(|| ENDED_IN_RELOAD.to_owned()))
        };
        self.stay_up(outcome, now_ns, actions);
    }

    /// What it is while nothing is under way, where there is still something that is up.
    fn up_state(&self) -> Option<State> {
        let is_good = self.result == ServiceResult::Success;
        if self.main.is_some() || (is_good && self.leaderless) {
            Some(State::Running)
        } else {
            (is_good && self.service.remain_after_exit).then_some(State::Exited)
        }
    }

    /// Goes on as a service that is up, where there is still something that is; reports the job's outcome.
    pub(super) fn stay_up(&mut self, outcome: Outcome, now_ns: u64, actions: &mut Vec<Action>) {
        let up = self.up_state();
        if let Some(state) = up {
            self.state = state;
            let ends_ns = self.ends_ns.filter(|_| state == State::Running);
            self.deadline_ns = ends_ns.map(|end| end.max(now_ns));
        }
        if self.job {
            self.job = false;
            actions.push(Action::Report(ActiveState::Active, outcome));
        }
        if up.is_none() {
            // Either a oneshot that is through, or a main process that ended during ExecStartPost= or ExecReload=.
            self.begin_stop(now_ns, actions);
        }
    }

    pub(super) fn executing(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
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

    pub(super) fn start_failed(
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
    pub(super) fn command_failed(
        &mut self,
        phase: Phase,
        result: ServiceResult,
        text: String,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        match phase {
            Phase::Reload => {
                self.stay_up(Outcome::Failed(text), now_ns, actions);
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

    /// What `Type=forking` left behind.
    pub(super) fn main_found(&mut self, pid: Option<i32>, now_ns: u64, actions: &mut Vec<Action>) {
        if !self.seeks_main() {
            return;
        }
        match pid {
            Some(pid) => {
                self.main = Some(pid);
                self.start_post(now_ns, actions);
            }
            None if self.service.pid_file.is_some() => {
                self.retry_ns = after(now_ns, Some(PID_FILE_WAIT));
            }
            // It lasts as long as any of its processes.
            None => {
                self.leaderless = true;
                self.start_post(now_ns, actions);
            }
        }
    }

    pub(super) fn main_process(&mut self, pid: i32, now_ns: u64, actions: &mut Vec<Action>) {
        self.main = Some(pid);
        self.leaderless = false;
        if self.seeks_main() {
            self.start_post(now_ns, actions);
            return;
        }
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

    pub(super) fn reload(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.job = true;
        if self.state == State::Running || self.state == State::Exited {
            self.deadline_ns = after(now_ns, self.start_timeout());
            if self.service.service_type == ServiceType::NotifyReload && self.main.is_some() {
                actions.push(Action::SignalMain(self.service.reload_signal));
                self.state = State::Reloading;
                return;
            }
            self.enter(Phase::Reload, 0, now_ns, actions);
        } else {
            self.job = false;
            let text = "it is not active, and cannot reload".to_owned();
            actions.push(Action::Report(self.active_state(), Outcome::Failed(text)));
        }
    }
}
