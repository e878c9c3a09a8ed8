//! Services: input for their machines, and what these answer, carried out.

use std::collections::VecDeque;

use orlop_boot::times;
use orlop_sys::kmsg::Priority;
use orlop_unit::{ActiveState, Mode, Outcome, Request, UnitId};

use super::{Manager, activation};
use crate::cgroup;
use crate::service::{Action, Input, Run};

impl Manager {
    /// Gives a service's machine its input and carries out what it answers.
    pub(super) fn feed(&mut self, id: UnitId, input: Input) {
        if let Some(entry) = self.entries.get_mut(id.index()) {
            entry.found_empty = false;
        }
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
    pub(super) fn act(&mut self, id: UnitId, action: Action) -> Option<Input> {
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
                let populated = self.is_populated(id);
                let entry = self.entry(id)?;
                match &entry.cgroup {
                    Some((path, _)) if populated => cgroup::signal_all(path, signal),
                    Some(_) => {}
                    None => {
                        let run = entry.run.as_ref()?;
                        self.signal_process(run.main, signal.0);
                        self.signal_process(run.control, signal.0);
                    }
                }
            }
            Action::KillAll => {
                let populated = self.is_populated(id);
                let entry = self.entry(id)?;
                match &entry.cgroup {
                    Some((path, _)) if populated => cgroup::kill_all(path),
                    Some(_) => {}
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

    /// A mount unit that was to stop and is still there stays up.
    pub(super) fn still_mounted(&mut self, id: UnitId) -> Option<(ActiveState, Outcome)> {
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

    pub(super) fn went_down(&mut self, id: UnitId) {
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
}
