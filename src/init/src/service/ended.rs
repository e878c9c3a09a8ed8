//! What follows from the end of a process.

use orlop_unit::{KillMode, Outcome, ProcessEnd, ServiceResult, ServiceType};

use super::{Action, ENDED_IN_RELOAD, Phase, Run, State, describe};

impl Run {
    pub(super) fn main_ended(
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
        // With Type=forking the command was the first process, and this is the one that it left behind.
        let ignore = self.service.service_type != ServiceType::Forking
            && self
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
            State::Running | State::Reloading => {
                if !clean && !ignore {
                    actions.push(Action::Log(true, text.clone()));
                    self.blame(result, text);
                } else {
                    actions.push(Action::Log(false, text));
                }
                if self.state == State::Reloading && self.job {
                    let outcome = Outcome::Failed(ENDED_IN_RELOAD.to_owned());
                    self.stay_up(outcome, now_ns, actions);
                } else if self.result == ServiceResult::Success && self.service.remain_after_exit {
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
            | State::Idle
            | State::Commands(Phase::Condition | Phase::StartPre) => {}
        }
    }

    pub(super) fn control_ended(
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
            // Type=forking: the first process has gone, and has left the main one behind.
            if (result == ServiceResult::Success || ignore) && self.main.is_some() {
                self.start_post(now_ns, actions);
            } else if result == ServiceResult::Success || ignore {
                self.state = State::Awaiting;
                actions.push(Action::FindMain);
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
}
