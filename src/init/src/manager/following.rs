//! What follows from a change of a unit's state: for other units, for the machine, for those who wait their turn.

use orlop_boot::times;
use orlop_sys::kmsg::Priority;
use orlop_unit::{ActiveState, MachineAction, Mode, UnitId};

use super::Manager;
use crate::service::Input;

impl Manager {
    /// Does what follows from a change of the unit's state: `OnFailure=` and its sisters, triggers, actions of the machine.
    pub(super) fn follow(&mut self, id: UnitId) {
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
    pub(super) fn ask_machine(&mut self, id: UnitId, before: ActiveState, now: ActiveState) {
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
    pub(super) fn let_idle_go(&mut self) -> bool {
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
}
