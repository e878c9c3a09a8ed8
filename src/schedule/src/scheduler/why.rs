//! Why a unit is where it is, or nowhere.

use std::time::Duration;

use orlop_unit::UnitName;

use super::{Scheduler, Target};
use crate::machine::MachineId;
use crate::refusal::Refusal;

/// What keeps a unit from each machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// What is wanted of it; nothing when there is no such unit.
    pub target: Option<Target>,
    /// Whether it is a template, which is placed nowhere.
    pub template: bool,
    /// Where it is, and with which fencing number.
    pub placed: Vec<(MachineId, u64)>,
    /// Every machine with its reason, in the order of their ids; no reason where it is or would fit.
    pub machines: Vec<(MachineId, Option<Refusal>)>,
}

impl Scheduler {
    /// Why no machine takes a unit, as of the last decision. The spans of silent machines count to `now`.
    #[must_use]
    pub fn why(&self, unit: &UnitName, now: Duration) -> Why {
        let index = self.by_name.get(unit).copied();
        let slot = index.and_then(|index| self.units.get(index));
        let placed = slot.map(|slot| &slot.placed);
        let mut why = Why {
            target: slot.and_then(|slot| slot.job.as_ref()).map(|j| j.target),
            template: unit.is_template(),
            placed: Vec::new(),
            machines: Vec::new(),
        };
        for (id, &machine) in &self.by_id {
            let Some(on) = self.machines.get(machine) else {
                continue;
            };
            if let Some(fence) = placed.and_then(|placed| placed.get(&machine)) {
                why.placed.push((id.clone(), *fence));
                why.machines.push((id.clone(), None));
                continue;
            }
            let (Some(index), Some(slot), Some(there)) = (index, slot, on.machine.as_ref()) else {
                continue;
            };
            let refusal = self
                .obstacle(index, slot, on, false)
                .map(|obstacle| self.refusal(obstacle, slot, there, now));
            why.machines.push((id.clone(), refusal));
        }
        why
    }
}
