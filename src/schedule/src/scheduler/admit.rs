//! The first half of a decision: which placements stay.

use std::time::Duration;

use super::obstacle::Obstacle;
use super::place::Pass;
use super::{MachineSlot, Resident, Room, Scheduler};
use crate::machine::Presence;
use crate::needs::Port;
use crate::refusal::Cause;

/// What a unit weighs in a machine's load beside what it asks for, in 1/10000 of the machine.
const UNIT_LOAD: u64 = 100;

impl Scheduler {
    /// Looks at every machine on which something has changed.
    pub(super) fn admit_all(&mut self, now: Duration, pass: &mut Pass) {
        for unit in std::mem::take(&mut self.doubled) {
            self.settle_doubled(unit, pass);
        }
        if !self.dirty.is_empty() || self.change == 0 {
            self.change += 1;
        }
        for machine in self.dirty.clone() {
            self.admit(machine, now, pass);
        }
    }

    /// Of several placements of an ordinary unit the newest stays.
    fn settle_doubled(&mut self, unit: usize, pass: &mut Pass) {
        let Some(slot) = self
            .units
            .get(unit)
            .filter(|s| s.job.is_some() && !s.is_global())
        else {
            return;
        };
        let id = |machine: usize| self.machines.get(machine).map(|m| m.id.clone());
        let mut placed: Vec<_> = slot
            .placed
            .iter()
            .map(|(&machine, &fence)| (fence, id(machine), machine))
            .collect();
        placed.sort_unstable();
        placed.pop();
        for (_, _, machine) in placed {
            self.dirty.insert(machine);
            self.evict(unit, machine, Cause::Doubled, pass);
        }
    }

    /// Counts a machine's residents anew, oldest first, and ends the placements of those that it cannot keep.
    fn admit(&mut self, machine: usize, now: Duration, pass: &mut Pass) {
        let change = self.change;
        let Some(slot) = self.machines.get_mut(machine) else {
            return;
        };
        slot.clear();
        let room = slot.whole_room(change);
        if let Some(entry) = self.rooms.get_mut(machine) {
            *entry = Room {
                order: entry.order,
                ..room
            };
        }
        let mut residents = std::mem::take(&mut slot.residents);
        residents.sort_unstable_by_key(|r| (r.fence, r.unit));
        let mut gone = Vec::new();
        for resident in residents {
            match self.end_of(resident.unit, machine, now) {
                None => self.count_in(resident, machine),
                Some(cause) => gone.push((resident, cause)),
            }
        }
        for (resident, cause) in gone {
            self.ended(resident, machine, cause, pass);
        }
        let replacers: Vec<usize> = self
            .machines
            .get(machine)
            .map(|slot| slot.with_replaces.clone())
            .unwrap_or_default();
        for by in replacers {
            self.evict_replaced(by, machine, pass);
        }
        self.evict_orphans(machine, pass);
    }

    /// Counts what is placed and decides nothing, so that [`Scheduler::why`] of a scheduler that has not decided yet knows what
    /// is free.
    pub fn count(&mut self) {
        let change = self.change;
        for machine in self.dirty.clone() {
            let Some(slot) = self.machines.get_mut(machine) else {
                continue;
            };
            slot.clear();
            let room = slot.whole_room(change);
            let mut residents = std::mem::take(&mut slot.residents);
            if let Some(entry) = self.rooms.get_mut(machine) {
                *entry = Room {
                    order: entry.order,
                    ..room
                };
            }
            residents.sort_unstable_by_key(|r| (r.fence, r.unit));
            for resident in residents {
                let has_job = self
                    .units
                    .get(resident.unit)
                    .is_some_and(|u| u.job.is_some());
                if has_job {
                    self.count_in(resident, machine);
                } else if let Some(slot) = self.machines.get_mut(machine) {
                    slot.residents.push(resident);
                }
            }
        }
    }

    /// Why a placement may not stay, given those that were already counted.
    fn end_of(&self, unit: usize, machine: usize, now: Duration) -> Option<Cause> {
        let (slot, on) = (self.units.get(unit)?, self.machines.get(machine)?);
        if slot.job.is_none() {
            return Some(Cause::Destroyed);
        }
        if !slot.wanted() {
            return Some(Cause::NotWanted);
        }
        let Some(there) = on.machine.as_ref() else {
            return Some(Cause::MachineGone);
        };
        if let Presence::SilentSince(since) = there.presence {
            let span = now.saturating_sub(since);
            if slot.lost_after().is_some_and(|limit| span >= limit) {
                return Some(Cause::MachineLost { span });
            }
        }
        let obstacle = self.obstacle(unit, slot, on, true)?;
        Some(Cause::Refused(self.refusal(obstacle, slot, there, now)))
    }

    /// Ends the placements of residents that `by`, which has landed, replaces.
    pub(super) fn evict_replaced(&mut self, by: usize, machine: usize, pass: &mut Pass) {
        let Some(on) = self.machines.get(machine) else {
            return;
        };
        if !on.residents.iter().any(|r| r.unit == by) {
            return;
        }
        let victims: Vec<usize> = on
            .residents
            .iter()
            .map(|r| r.unit)
            .filter(|&other| self.is_replaced_by(other, by))
            .collect();
        let Some(name) = self.units.get(by).map(|slot| slot.name.clone()) else {
            return;
        };
        for victim in victims {
            self.evict(victim, machine, Cause::Replaced(name.clone()), pass);
        }
    }

    /// Ends the placements of residents whose peer is not there.
    pub(super) fn evict_orphans(&mut self, machine: usize, pass: &mut Pass) {
        loop {
            let Some(on) = self.machines.get(machine) else {
                return;
            };
            let orphan = on.residents.iter().find_map(|resident| {
                let slot = self.units.get(resident.unit)?;
                let peer = self.missing_peer(&slot.job.as_ref()?.file.constraints, on, &[])?;
                let there = on.machine.as_ref()?;
                let obstacle = Obstacle::Peer(peer);
                let refusal = self.refusal(obstacle, slot, there, Duration::ZERO);
                Some((resident.unit, Cause::Refused(refusal)))
            });
            match orphan {
                Some((unit, cause)) => self.evict(unit, machine, cause, pass),
                None => return,
            }
        }
    }

    /// Ends a placement that is counted.
    pub(super) fn evict(&mut self, unit: usize, machine: usize, cause: Cause, pass: &mut Pass) {
        let Some(slot) = self.machines.get_mut(machine) else {
            return;
        };
        let Some(at) = slot.residents.iter().position(|r| r.unit == unit) else {
            return;
        };
        let resident = slot.residents.remove(at);
        slot.ports.retain(|(_, by)| *by != Some(unit));
        slot.with_conflicts.retain(|other| *other != unit);
        slot.with_replaces.retain(|other| *other != unit);
        self.account(unit, machine, false);
        self.ended(resident, machine, cause, pass);
    }

    /// Notes the end of a placement that is not counted any more.
    fn ended(&mut self, resident: Resident, machine: usize, cause: Cause, pass: &mut Pass) {
        let Resident { unit, fence } = resident;
        let Some(slot) = self.units.get_mut(unit) else {
            return;
        };
        slot.placed.remove(&machine);
        slot.evaluated = 0;
        if slot.wanted() && !slot.is_global() && slot.placed.is_empty() {
            self.waiting.insert(unit);
        }
        self.stale.insert(unit);
        if let Some(family) = slot.family.clone() {
            self.count_family(&family, machine, false);
        }
        if fence == 0 {
            pass.landed.remove(&(unit, machine));
        } else {
            pass.removed.insert((unit, machine), (fence, cause));
        }
    }

    /// Counts a unit among a machine's residents.
    pub(super) fn count_in(&mut self, resident: Resident, machine: usize) {
        let unit = resident.unit;
        let Some(job) = self.units.get(unit).and_then(|slot| slot.job.as_ref()) else {
            return;
        };
        let Some(slot) = self.machines.get_mut(machine) else {
            return;
        };
        slot.residents.push(resident);
        let file = &job.file;
        let ports = file.needs.ports.iter();
        slot.ports
            .extend(ports.map(|port: &Port| (*port, Some(unit))));
        if !file.constraints.conflicts.is_empty() {
            slot.with_conflicts.push(unit);
        }
        if !file.constraints.replaces.is_empty() {
            slot.with_replaces.push(unit);
        }
        self.account(unit, machine, true);
    }

    /// Subtracts what a unit takes from a machine's room, or adds it again.
    fn account(&mut self, unit: usize, machine: usize, takes: bool) {
        let (Some(unit), Some(slot), Some(room)) = (
            self.units.get(unit),
            self.machines.get(machine),
            self.rooms.get_mut(machine),
        ) else {
            return;
        };
        let Some(needs) = unit.job.as_ref().map(|job| &job.file.needs) else {
            return;
        };
        let memory = needs.memory.of(room.memory_total);
        let apply = |free: &mut u64, amount: u64| {
            *free = if takes {
                free.saturating_sub(amount)
            } else {
                free.saturating_add(amount)
            };
        };
        apply(&mut room.memory, memory);
        apply(&mut room.cpu, needs.cpu_milli);
        apply(&mut room.disk, needs.disk_bytes);
        room.load = slot.load(*room);
    }

    /// Counts an instance of a template in or out.
    pub(super) fn count_family(
        &mut self,
        family: &std::sync::Arc<str>,
        machine: usize,
        more: bool,
    ) {
        let counts = self
            .families
            .entry(std::sync::Arc::clone(family))
            .or_default();
        let count = counts.entry(machine).or_default();
        *count = if more {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
        if *count == 0 {
            counts.remove(&machine);
            if counts.is_empty() {
                self.families.remove(family);
            }
        }
    }
}

impl MachineSlot {
    /// Counts nobody.
    fn clear(&mut self) {
        self.ports.clear();
        self.with_conflicts.clear();
        self.with_replaces.clear();
    }

    /// What the machine has, all of it free.
    fn whole_room(&self, change: u64) -> Room {
        let Some(machine) = &self.machine else {
            return Room::default();
        };
        let open = machine.presence == Presence::Here && !machine.cordoned;
        Room {
            freed: if open { change } else { 0 },
            memory: machine.capacity.memory_bytes,
            memory_total: machine.capacity.memory_bytes,
            cpu: machine.capacity.cpu_milli,
            disk: machine.capacity.disk_bytes,
            ..Room::default()
        }
    }

    /// The load: the larger of the shares of CPU and memory that are taken, and a hundredth for each unit.
    fn load(&self, room: Room) -> u32 {
        let Some(machine) = &self.machine else {
            return 0;
        };
        let share = |free: u64, total: u64| {
            let taken = u128::from(total.saturating_sub(free)) * 10_000;
            u64::try_from(taken.checked_div(u128::from(total)).unwrap_or_default())
                .unwrap_or(u64::MAX)
        };
        let memory = share(room.memory, machine.capacity.memory_bytes);
        let cpu = share(room.cpu, machine.capacity.cpu_milli);
        let count = u64::try_from(self.residents.len()).unwrap_or(u64::MAX);
        let load = memory
            .max(cpu)
            .saturating_add(count.saturating_mul(UNIT_LOAD));
        u32::try_from(load).unwrap_or(u32::MAX)
    }
}
