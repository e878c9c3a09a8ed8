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
    /// Why no machine takes a unit, as of the last decision or [`Scheduler::count`]. The spans of silent machines count to `now`.
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::machine::{Capacity, Machine};
    use crate::unit_file::UnitFile;
    use crate::{Job, Placement};

    #[test]
    fn a_scheduler_that_only_counts_knows_what_is_free() {
        let mut scheduler = Scheduler::new();
        for id in ["m1", "m2"] {
            let mut machine = Machine::new(id);
            machine.capacity = Capacity {
                cpu_milli: 1000,
                memory_bytes: 100,
                disk_bytes: 0,
            };
            scheduler.set_machine(machine);
        }
        for (name, memory) in [("a.service", 60), ("b.service", 60), ("c.service", 30)] {
            let name = UnitName::parse(name).unwrap();
            let text = format!("[Service]\nExecStart=/bin/true\n[X-Fleet]\nMemory={memory}\n");
            let file = Arc::new(UnitFile::parse(&name, &text).unwrap());
            let target = Target::Launched;
            scheduler.set_unit(Job { name, file, target });
        }
        let a = UnitName::parse("a.service").unwrap();
        scheduler.set_placement(&Placement {
            unit: a,
            machine: MachineId::new("m1"),
            fence: 1,
        });
        scheduler.count();
        let reasons = |unit: &str| {
            let why = scheduler.why(&UnitName::parse(unit).unwrap(), Duration::ZERO);
            why.machines
                .into_iter()
                .map(|(_, r)| r.map(|r| r.to_string()))
                .collect::<Vec<_>>()
        };
        let short = Some("insufficient memory: asks 60, free 40 of 100".to_owned());
        assert_eq!(reasons("b.service"), [short, None]);
        assert_eq!(reasons("c.service"), [None, None]);
        let decisions = scheduler.decide(Duration::ZERO);
        assert_eq!(decisions.len(), 2, "counting has decided nothing");
    }
}
