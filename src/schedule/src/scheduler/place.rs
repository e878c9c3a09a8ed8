//! The second half of a decision: where waiting units go.

use std::collections::{BTreeMap, BTreeSet};

use orlop_unit::UnitName;

use super::ranks::Ranks;
use super::{Decision, Placement, Resident, Room, Scheduler};
use crate::constraints::Strategy;
use crate::needs::Amount;
use crate::refusal::Cause;

/// What a decision has done so far.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// Placements that were there before, by unit and machine.
    pub(super) removed: BTreeMap<(usize, usize), (u64, Cause)>,
    /// New placements.
    pub(super) landed: BTreeSet<(usize, usize)>,
    queue: BTreeSet<Task>,
}

/// A unit that is to be placed, for a global one on one machine; the order is that of the rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Task {
    ordinary: bool,
    name: UnitName,
    unit: usize,
    /// For a global unit.
    machine: Option<usize>,
}

/// How good a machine is for a unit: the lowest is the best. The second number is the place of its id among all.
type Rank = (u64, u32);

impl Scheduler {
    /// Places the first unit that fits somewhere, until there is none.
    pub(super) fn place_all(&mut self, pass: &mut Pass) {
        for (order, machine) in (0_u32..).zip(self.by_id.values()) {
            if let Some(room) = self.rooms.get_mut(*machine) {
                room.order = order;
            }
        }
        for &unit in &self.waiting {
            self.enqueue(unit, None, pass);
        }
        for &unit in &self.globals {
            let Some(slot) = self.units.get(unit) else {
                continue;
            };
            for (machine, room) in self.rooms.iter().enumerate() {
                if room.freed > slot.evaluated && !slot.placed.contains_key(&machine) {
                    self.enqueue(unit, Some(machine), pass);
                }
            }
        }
        let mut ranks = match pass.queue.is_empty() {
            true => Ranks::default(),
            false => Ranks::new(&self.rooms),
        };
        while let Some(task) = pass.queue.pop_first() {
            let best = match task.machine {
                Some(machine) => self.fits(task.unit, machine).then_some(machine),
                None => self.best(task.unit, &ranks),
            };
            match best {
                Some(machine) => {
                    self.land(task.unit, machine, pass);
                    ranks.update(machine, &self.room(machine));
                }
                None if task.machine.is_none() => {
                    let change = self.change;
                    if let Some(slot) = self.units.get_mut(task.unit) {
                        slot.evaluated = change;
                    }
                }
                None => {}
            }
        }
        let change = self.change;
        for unit in &self.globals {
            if let Some(slot) = self.units.get_mut(*unit) {
                slot.evaluated = change;
            }
        }
    }

    fn enqueue(&self, unit: usize, machine: Option<usize>, pass: &mut Pass) {
        if let Some(slot) = self.units.get(unit)
            && (machine.is_some() || slot.evaluated < self.change)
        {
            pass.queue.insert(Task {
                ordinary: machine.is_none(),
                name: slot.name.clone(),
                unit,
                machine,
            });
        }
    }

    fn fits(&self, unit: usize, machine: usize) -> bool {
        let (Some(slot), Some(on)) = (self.units.get(unit), self.machines.get(machine)) else {
            return false;
        };
        on.machine.is_some() && self.obstacle(unit, slot, on, false).is_none()
    }

    /// The best machine for an ordinary unit among those that have changed since it was last evaluated.
    fn best(&self, unit: usize, ranks: &Ranks) -> Option<usize> {
        let slot = self.units.get(unit)?;
        let job = slot.job.as_ref()?;
        let constraints = &job.file.constraints;
        let family = slot.family.as_ref().and_then(|f| self.families.get(f));
        let count_on = |machine: usize| {
            family
                .and_then(|f| f.get(&machine))
                .copied()
                .unwrap_or_default()
        };
        let candidates: Option<Vec<usize>> = if let Some(required) = &constraints.machine_id {
            let short = crate::machine::MachineId::new(required);
            let short = self.by_short.get(short.short());
            Some(short.into_iter().flatten().copied().collect())
        } else if let Some(first) = constraints.machine_of.first() {
            let peer = self
                .by_name
                .get(first)
                .and_then(|peer| self.units.get(*peer));
            Some(
                peer.into_iter()
                    .flat_map(|peer| peer.placed.keys().copied())
                    .collect(),
            )
        } else {
            None
        };
        let class = slot.metadata.as_ref().and_then(|m| self.classes.get(m));
        let needs = &job.file.needs;
        let may_evict = !constraints.replaces.is_empty();
        let pack = constraints.strategy == Strategy::Pack;
        let mut best: Option<usize> = None;
        let mut best_rank: Rank = (u64::MAX, u32::MAX);
        // Whether it is the best so far.
        let mut consider = |machine: usize, room: &Room, count: u32| {
            let rank = if pack {
                (u64::from(u32::MAX - room.load), room.order)
            } else {
                (u64::from(count) << 32 | u64::from(room.load), room.order)
            };
            if rank > best_rank || room.freed <= slot.evaluated {
                return false;
            }
            let memory = match needs.memory {
                Amount::Bytes(bytes) => bytes,
                share @ Amount::Share(_) => share.of(room.memory_total),
            };
            let short =
                memory > room.memory || needs.cpu_milli > room.cpu || needs.disk_bytes > room.disk;
            if short && !may_evict {
                return false;
            }
            if class.is_some_and(|class| !class.has(machine)) || !self.fits(unit, machine) {
                return false;
            }
            best = Some(machine);
            best_rank = rank;
            true
        };
        match candidates {
            Some(list) => {
                for machine in list {
                    consider(machine, &self.room(machine), count_on(machine));
                }
            }
            None if pack => {
                let mut found = 0;
                for (load, machine) in ranks.most_loaded() {
                    if load < found {
                        break;
                    }
                    if consider(machine, &self.room(machine), 0) {
                        found = load;
                    }
                }
            }
            None => {
                // One without instances of the template is better than any with some.
                let is_found = ranks
                    .least_loaded()
                    .filter(|machine| count_on(*machine) == 0)
                    .any(|machine| consider(machine, &self.room(machine), 0));
                if !is_found {
                    for (machine, count) in family.into_iter().flatten() {
                        consider(*machine, &self.room(*machine), *count);
                    }
                }
            }
        }
        best
    }

    /// Places a unit; those that it replaces leave.
    fn land(&mut self, unit: usize, machine: usize, pass: &mut Pass) {
        let before = pass.fence_of(unit, machine);
        self.count_in(
            Resident {
                unit,
                fence: before,
            },
            machine,
        );
        let Some(slot) = self.units.get_mut(unit) else {
            return;
        };
        slot.placed.insert(machine, before);
        let (name, replaces) = (slot.name.clone(), slot.replaces());
        if let Some(family) = slot.family.clone() {
            self.count_family(&family, machine, true);
        }
        self.waiting.remove(&unit);
        if replaces {
            self.make_way(unit, machine, pass);
        }
        let dependents = self.dependents.get(&name).cloned().unwrap_or_default();
        for dependent in dependents {
            if self.waiting.contains(&dependent) {
                if let Some(slot) = self.units.get_mut(dependent) {
                    slot.evaluated = 0;
                }
                self.enqueue(dependent, None, pass);
            }
        }
    }

    /// Ends the placements that a landing ends; what has become free may do for those who wait.
    fn make_way(&mut self, unit: usize, machine: usize, pass: &mut Pass) {
        let count = |scheduler: &Self| scheduler.machines.get(machine).map(|m| m.residents.len());
        let before = count(self);
        self.evict_replaced(unit, machine, pass);
        self.evict_orphans(machine, pass);
        if count(self) == before {
            return;
        }
        self.change += 1;
        let change = self.change;
        if let Some(room) = self.rooms.get_mut(machine) {
            room.freed = change;
        }
        for &waiting in &self.waiting {
            self.enqueue(waiting, None, pass);
        }
        for &global in &self.globals {
            let there = self
                .units
                .get(global)
                .is_none_or(|slot| slot.placed.contains_key(&machine));
            if !there {
                self.enqueue(global, Some(machine), pass);
            }
        }
    }

    /// Gives the new placements their fencing numbers and tells what has come of it all.
    pub(super) fn conclude(&mut self, pass: Pass) -> Vec<Decision> {
        let names = |scheduler: &Self, (unit, machine): (usize, usize)| {
            let unit = scheduler.units.get(unit)?.name.clone();
            Some((unit, scheduler.machines.get(machine)?.id.clone()))
        };
        let mut endings: Vec<(Placement, Cause)> = pass
            .removed
            .into_iter()
            .filter_map(|(at, (fence, cause))| {
                let (unit, machine) = names(self, at)?;
                let placement = Placement {
                    unit,
                    machine,
                    fence,
                };
                Some((placement, cause))
            })
            .collect();
        endings.sort_unstable_by(|(one, _), (two, _)| one.cmp(two));
        let mut landed: Vec<_> = pass
            .landed
            .into_iter()
            .filter_map(|at| Some((names(self, at)?, at)))
            .collect();
        landed.sort_unstable();
        let mut decisions: Vec<Decision> = endings
            .into_iter()
            .map(|(placement, cause)| Decision::Remove(placement, cause))
            .collect();
        for ((unit, machine), (unit_index, machine_index)) in landed {
            self.fence += 1;
            let fence = self.fence;
            if let Some(slot) = self.units.get_mut(unit_index) {
                slot.placed.insert(machine_index, fence);
            }
            let residents = self.machines.get_mut(machine_index);
            for resident in residents.into_iter().flat_map(|slot| &mut slot.residents) {
                if resident.unit == unit_index {
                    resident.fence = fence;
                }
            }
            decisions.push(Decision::Place(Placement {
                unit,
                machine,
                fence,
            }));
        }
        decisions
    }
}

impl Pass {
    /// The fencing number with which a unit lands: its own again where it has only just left, else none yet.
    fn fence_of(&mut self, unit: usize, machine: usize) -> u64 {
        match self.removed.remove(&(unit, machine)) {
            Some((fence, _)) => fence,
            None => {
                self.landed.insert((unit, machine));
                0
            }
        }
    }
}
