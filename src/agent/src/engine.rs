//! The leader's part: decisions of the scheduler, as writes to the store.

use std::time::Duration;

use orlop_schedule::{Decision, MachineId, Scheduler, UnitName};

use crate::keys::{FENCE, Key};
use crate::registry::{Change, Registry};

/// Decisions in one transaction; etcd takes 128 operations.
const BATCH: usize = 100;
/// How long a machine without units may be silent until it is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);

/// One transaction: carried out only when the leader still leads and the highest fencing number is `fence_before`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The number that must be there; 0 stands for none.
    pub fence_before: u64,
    /// What to write, or to delete.
    pub writes: Vec<(String, Option<String>)>,
    /// What it does, for the log.
    pub words: Vec<String>,
}

/// The scheduler of the node that leads.
#[derive(Debug)]
pub struct Engine {
    scheduler: Scheduler,
}

impl Engine {
    /// Begins with what is known.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            scheduler: registry.scheduler(),
        }
    }

    /// Takes in a change, which `registry` has already. The registry must not lag behind what this engine had written; what
    /// it then says of placements is the truth.
    pub fn changed(&mut self, registry: &Registry, change: &Change) {
        match change {
            Change::Unit(unit) => match registry.job(unit) {
                Some(job) => self.scheduler.set_unit(job),
                None => self.scheduler.remove_unit(unit),
            },
            Change::Machine(id) => match registry.machine(id) {
                Some(machine) => self.scheduler.set_machine(machine),
                None => self.scheduler.remove_machine(id),
            },
            Change::Placement(unit, id) => {
                if self.scheduler.fence_of(unit, id) != placed(registry, unit, id) {
                    // Somebody else wrote it.
                    *self = Self::new(registry);
                }
            }
            Change::Fence => self.scheduler.set_last_fence(registry.fence),
            Change::State(..) | Change::Leader => {}
        }
    }

    /// What to write now. The engine takes it for done: if it is not, the engine must be made anew.
    pub fn decide(&mut self, registry: &Registry) -> Vec<Batch> {
        let decisions = self.scheduler.decide(registry.now());
        let mut fence = registry.fence;
        let mut batches: Vec<Batch> = decisions
            .chunks(BATCH)
            .map(|chunk| {
                let mut batch = Batch {
                    fence_before: fence,
                    writes: Vec::new(),
                    words: Vec::new(),
                };
                for decision in chunk {
                    batch.add(decision);
                    if let Decision::Place(placement) = decision {
                        fence = fence.max(placement.fence);
                    }
                }
                if fence != batch.fence_before {
                    batch
                        .writes
                        .push((FENCE.to_owned(), Some(fence.to_string())));
                }
                batch
            })
            .collect();
        let forgotten: Vec<&MachineId> = registry
            .machines
            .keys()
            .filter(|id| self.is_forgotten(registry, id))
            .take(BATCH / 2)
            .collect();
        if !forgotten.is_empty() {
            let keys =
                |id: &&MachineId| [Key::Machine((*id).clone()), Key::Metadata((*id).clone())];
            let keys = forgotten.iter().flat_map(keys);
            batches.push(Batch {
                fence_before: fence,
                writes: keys.map(|key| (key.to_string(), None)).collect(),
                words: forgotten
                    .iter()
                    .map(|id| format!("forget machine {id}, not seen for a day"))
                    .collect(),
            });
        }
        batches
    }

    fn is_forgotten(&self, registry: &Registry, id: &MachineId) -> bool {
        let keeps_units = || {
            let mut placements = registry.placements.values();
            placements.any(|machines| machines.contains_key(id))
        };
        registry
            .silence(id)
            .is_some_and(|span| span >= FORGET_AFTER)
            && !keeps_units()
    }
}

fn placed(registry: &Registry, unit: &UnitName, id: &MachineId) -> Option<u64> {
    registry.placements.get(unit)?.get(id).copied()
}

impl Batch {
    fn add(&mut self, decision: &Decision) {
        match decision {
            Decision::Remove(p, cause) => {
                let key = Key::Placement(p.unit.clone(), p.machine.clone());
                self.writes.push((key.to_string(), None));
                let machine = p.machine.short();
                self.words
                    .push(format!("take {} from {machine}: {cause}", p.unit));
            }
            Decision::Place(p) => {
                let key = Key::Placement(p.unit.clone(), p.machine.clone());
                self.writes
                    .push((key.to_string(), Some(p.fence.to_string())));
                let machine = p.machine.short();
                self.words
                    .push(format!("place {} on {machine}, number {}", p.unit, p.fence));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(units: usize) -> Registry {
        let mut registry = Registry::default();
        for id in ["m1", "m2"] {
            let id = MachineId::new(id);
            registry.apply(&Key::Machine(id.clone()).to_string(), Some(b"{}"));
            registry.apply(&Key::Presence(id).to_string(), Some(b"1"));
        }
        for n in 0..units {
            let unit = UnitName::parse(&format!("u{n}.service")).unwrap();
            let content =
                br#"{"options":[{"section":"Service","name":"ExecStart","value":"/bin/a"}]}"#;
            registry.apply(&Key::Unit(unit.clone()).to_string(), Some(content));
            registry.apply(&Key::Target(unit).to_string(), Some(b"launched"));
        }
        registry
    }

    fn write(registry: &mut Registry, batches: &[Batch]) -> Vec<Change> {
        let mut changes = Vec::new();
        for batch in batches {
            assert_eq!(registry.fence, batch.fence_before);
            for (key, value) in &batch.writes {
                changes.extend(registry.apply(key, value.as_ref().map(String::as_bytes)));
            }
        }
        changes
    }

    #[test]
    fn batches_fit_into_transactions_and_each_raises_the_number_it_read() {
        let mut registry = registry(250);
        let mut engine = Engine::new(&registry);
        let batches = engine.decide(&registry);
        assert_eq!(batches.len(), 3);
        assert!(batches.iter().all(|b| b.writes.len() < 128));
        let changes = write(&mut registry, &batches);
        assert_eq!(registry.fence, 250);
        for change in &changes {
            engine.changed(&registry, change);
        }
        assert_eq!(engine.decide(&registry), Vec::new());
        assert_eq!(
            Engine::new(&registry).decide(&registry),
            Vec::new(),
            "a new leader moves nothing"
        );
    }

    #[test]
    fn a_lost_machines_units_move_and_a_foreign_write_is_the_truth() {
        let mut registry = registry(4);
        let mut engine = Engine::new(&registry);
        let batches = engine.decide(&registry);
        write(&mut registry, &batches);
        let id = MachineId::new("m1");
        let change = registry
            .apply(&Key::Presence(id).to_string(), None)
            .unwrap();
        engine.changed(&registry, &change);
        assert_eq!(engine.decide(&registry), Vec::new(), "silence is not death");
        registry.set_clock(Duration::from_secs(4));
        assert_eq!(engine.decide(&registry), Vec::new());
        registry.set_clock(Duration::from_secs(5));
        let batches = engine.decide(&registry);
        assert_eq!(
            batches[0].writes.len(),
            5,
            "two go, two come, and the number"
        );
        // Lost on the way: what the store says counts.
        let change =
            Change::Placement(UnitName::parse("u0.service").unwrap(), MachineId::new("m1"));
        engine.changed(&registry, &change);
        assert_eq!(engine.decide(&registry), batches);
    }
}
