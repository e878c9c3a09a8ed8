//! From a stop job, or a service that went by itself, to one that is down; and what happens when time is over.

use std::time::Duration;

use orlop_unit::{ActiveState, FailureMode, KillMode, Outcome, ServiceResult, Signal};

use super::{Action, Phase, Run, State, after};

impl Run {
    pub(super) fn stop(&mut self, restarting: bool, now_ns: u64, actions: &mut Vec<Action>) {
        self.job = true;
        self.stop_requested = true;
        self.restarting = restarting;
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
            State::Running | State::Reloading | State::Exited => self.begin_stop(now_ns, actions),
            State::Commands(Phase::Stop | Phase::StopPost)
            | State::Terminating
            | State::Killing => {}
            // Where a command runs there is no room for those of ExecStop=, as in systemd.
            State::Commands(_) | State::Idle | State::Awaiting => self.terminate(now_ns, actions),
        }
    }

    pub(super) fn begin_stop(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.deadline_ns = after(now_ns, self.service.timeout_stop);
        if self.started {
            self.enter(Phase::Stop, 0, now_ns, actions);
        } else {
            self.terminate(now_ns, actions);
        }
    }

    /// Signals what still runs, and waits for it to go.
    pub(super) fn terminate(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let signal = if self.restarting {
            self.service.restart_kill_signal
        } else {
            self.service.kill_signal
        };
        self.signal_to_end(signal, self.service.timeout_stop, now_ns, actions);
    }

    /// Ends a start or stop that took too long in the way that `Timeout…FailureMode=` asks for.
    fn end_by(&mut self, mode: FailureMode, now_ns: u64, actions: &mut Vec<Action>) {
        match mode {
            FailureMode::Terminate => self.terminate(now_ns, actions),
            FailureMode::Abort => self.abort(now_ns, actions),
            FailureMode::Kill => self.begin_to_kill(now_ns, actions),
        }
    }

    /// Ends it with `WatchdogSignal=`, which leaves a core.
    pub(super) fn abort(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let (signal, time) = (self.service.watchdog_signal, self.service.timeout_abort);
        self.signal_to_end(signal, time, now_ns, actions);
    }

    fn signal_to_end(
        &mut self,
        signal: Signal,
        time: Option<Duration>,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        self.state = State::Terminating;
        self.deadline_ns = after(now_ns, time);
        let hang_up = self.service.send_sighup && signal != Signal::HUP;
        let signals = std::iter::once(signal).chain(hang_up.then_some(Signal::HUP));
        match self.service.kill_mode {
            KillMode::ControlGroup => actions.extend(signals.map(Action::SignalAll)),
            KillMode::Mixed | KillMode::Process => {
                if self.main.is_some() {
                    actions.extend(signals.map(Action::SignalMain));
                } else if self.service.kill_mode == KillMode::Mixed {
                    actions.push(Action::KillAll);
                }
                if self.control.is_some() {
                    actions.push(Action::SignalControl(signal));
                }
            }
            // Left to itself: what becomes of it is no matter of this service any more.
            KillMode::None => {
                self.main = None;
                self.control = None;
                self.leaderless = false;
                self.enter(Phase::StopPost, 0, now_ns, actions);
            }
        }
    }

    /// SIGKILL for those whom `KillMode=` lets us kill.
    fn kill(&self, actions: &mut Vec<Action>) {
        if !self.service.send_sigkill {
            return;
        }
        let signal = self.service.final_kill_signal;
        match self.service.kill_mode {
            KillMode::ControlGroup | KillMode::Mixed if signal == Signal::KILL => {
                actions.push(Action::KillAll)
            }
            KillMode::ControlGroup | KillMode::Mixed => actions.push(Action::SignalAll(signal)),
            KillMode::Process => {
                if self.main.is_some() {
                    actions.push(Action::SignalMain(signal));
                }
                if self.control.is_some() {
                    actions.push(Action::SignalControl(signal));
                }
            }
            KillMode::None => {}
        }
    }

    /// Sends what `FinalKillSignal=` says, and waits for the processes to go.
    pub(super) fn begin_to_kill(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        if self.service.kill_mode == KillMode::None {
            self.terminate(now_ns, actions);
            return;
        }
        if !self.service.send_sigkill {
            let text = "SendSIGKILL=no: its processes are left".to_owned();
            actions.push(Action::Log(true, text));
            self.main = None;
            self.control = None;
            self.leaderless = false;
            self.deadline_ns = after(now_ns, self.service.timeout_stop);
            self.enter(Phase::StopPost, 0, now_ns, actions);
            return;
        }
        self.state = State::Killing;
        let wait = self.service.timeout_stop.or(Some(Duration::from_secs(90)));
        self.deadline_ns = after(now_ns, wait);
        self.kill(actions);
    }

    /// Whether nothing that `KillMode=` covers runs any more; `empty` tells of the cgroup.
    pub(super) fn is_gone(&self, empty: bool) -> bool {
        match self.service.kill_mode {
            KillMode::ControlGroup | KillMode::Mixed => empty,
            KillMode::Process | KillMode::None => {
                empty || (self.main.is_none() && self.control.is_none())
            }
        }
    }

    pub(super) fn empty(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        if self.seeks_main() {
            let text = "its processes ended before the main one was known".to_owned();
            actions.push(Action::Log(true, text.clone()));
            self.blame(ServiceResult::Protocol, text);
            self.terminate(now_ns, actions);
        } else if self.leaderless && matches!(self.state, State::Running | State::Reloading) {
            self.leaderless = false;
            actions.push(Action::Log(false, "its last process has ended".to_owned()));
            if self.service.remain_after_exit {
                self.state = State::Exited;
                self.deadline_ns = None;
            } else {
                self.begin_stop(now_ns, actions);
            }
        } else if self.awaits_empty() && self.is_gone(true) {
            self.main = None;
            self.control = None;
            self.deadline_ns = after(now_ns, self.service.timeout_stop);
            self.enter(Phase::StopPost, 0, now_ns, actions);
        }
    }

    /// The last process has gone and the last command has run.
    pub(super) fn down(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.deadline_ns = None;
        self.leaderless = false;
        self.kill(actions);
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
        actions.push(Action::Release {
            restarting: restarts || self.start_next || self.restarting,
        });
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
            self.deadline_ns = after(now_ns, Some(self.restart_delay()));
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

    /// How long until the restart that is counted already.
    #[must_use]
    pub fn restart_delay(&self) -> Duration {
        self.service.delay_before_restart(self.restarts)
    }

    pub(super) fn deadline(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let is_due = |at_ns: Option<u64>| at_ns.is_some_and(|at_ns| at_ns <= now_ns);
        if !is_due(self.deadline_ns) {
            if is_due(self.retry_ns) {
                self.retry_ns = None;
                if self.is_idle() {
                    self.turn(now_ns, actions);
                } else {
                    actions.push(Action::FindMain);
                }
            } else if is_due(self.watchdog_ns) {
                self.watchdog_ns = None;
                let seconds = self.watchdog().unwrap_or_default().as_secs_f64();
                self.watchdog_bites(
                    &format!("it gave no sign of life for {seconds} s"),
                    now_ns,
                    actions,
                );
            }
            return;
        }
        self.deadline_ns = None;
        match self.state {
            State::AutoRestart => actions.push(Action::Restart),
            State::Commands(
                Phase::Condition | Phase::StartPre | Phase::Start | Phase::StartPost,
            )
            | State::Idle
            | State::Awaiting => {
                let seconds = self.start_timeout().unwrap_or_default().as_secs();
                let awaited = match self.state {
                    State::Commands(phase) => format!("{} ran", phase.directive()),
                    State::Idle => "other jobs were let go first".to_owned(),
                    _ if self.seeks_main() => "its PID file was awaited".to_owned(),
                    _ if self.waits_for_hand_over() => "its container was awaited".to_owned(),
                    _ => "READY=1 was awaited".to_owned(),
                };
                let text = format!("the start took longer than {seconds} s, while {awaited}");
                actions.push(Action::Log(true, text.clone()));
                self.blame(ServiceResult::Timeout, text);
                self.end_by(self.service.timeout_start_failure_mode, now_ns, actions);
            }
            State::Reloading => {
                let text = "the reload took too long".to_owned();
                actions.push(Action::Log(true, text.clone()));
                self.stay_up(Outcome::TimedOut(text), now_ns, actions);
            }
            State::Commands(Phase::Reload) => {
                actions.push(Action::SignalControl(Signal::KILL));
                let text = "the reload took too long".to_owned();
                self.stay_up(Outcome::TimedOut(text), now_ns, actions);
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

    pub(super) fn stop_took_too_long(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let seconds = self.service.timeout_stop.unwrap_or_default().as_secs();
        match self.state {
            State::Commands(Phase::StopPost) => {
                let text = format!("ExecStopPost= took longer than {seconds} s, and is killed");
                actions.push(Action::Log(true, text.clone()));
                self.blame(ServiceResult::Timeout, text);
                actions.push(Action::SignalControl(Signal::KILL));
                self.down(now_ns, actions);
            }
            State::Killing => {
                let text = format!(
                    "processes are left {seconds} s after {}; giving up on them",
                    self.service.final_kill_signal
                );
                actions.push(Action::Log(true, text.clone()));
                self.blame(ServiceResult::Timeout, text);
                self.main = None;
                self.control = None;
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
                let mode = self.service.timeout_stop_failure_mode;
                if mode == FailureMode::Abort && !self.has_aborted {
                    self.has_aborted = true;
                    self.abort(now_ns, actions);
                } else {
                    self.begin_to_kill(now_ns, actions);
                }
            }
        }
    }
}
