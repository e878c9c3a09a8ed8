//! What keeps one unit from one machine.

use std::time::Duration;

use super::{MachineSlot, Scheduler, UnitSlot};
use crate::constraints::Constraints;
use crate::glob::Pattern;
use crate::machine::{Machine, Presence};
use crate::needs::Port;
use crate::refusal::{Quantity, Refusal};

/// A [`Refusal`] that owns nothing: most are only counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Obstacle<'a> {
    Silent(Duration),
    Cordoned,
    MachineId(&'a str),
    Metadata,
    OwnUnit,
    Peer(&'a str),
    Conflict {
        with: usize,
        rule: &'a Pattern,
        theirs: bool,
    },
    Replaced(usize),
    Insufficient {
        what: Quantity,
        asked: u64,
        free: u64,
        total: u64,
    },
    Port(Port, Option<usize>),
}

impl Scheduler {
    /// The first reason for which a machine does not take a unit that is not there, or may not keep one that is.
    ///
    /// The unit's own use must not be counted in the machine's.
    pub(super) fn obstacle<'a>(
        &'a self,
        unit: usize,
        slot: &'a UnitSlot,
        on: &'a MachineSlot,
        stays: bool,
    ) -> Option<Obstacle<'a>> {
        let machine = on.machine.as_ref()?;
        let job = slot.job.as_ref()?;
        let constraints = &job.file.constraints;
        if !stays && let Some(closed) = closed(machine) {
            return Some(closed);
        }
        if let Some(fixed) = self.fixed_obstacle(slot, constraints, on.index, machine) {
            return Some(fixed);
        }
        // Who would leave makes room and is no hindrance.
        let leaving = if constraints.replaces.is_empty() {
            Vec::new()
        } else {
            self.leaving(unit, on)
        };
        if !stays && let Some(peer) = self.missing_peer(constraints, on, &leaving) {
            return Some(Obstacle::Peer(peer));
        }
        self.conflict(unit, slot, constraints, on, &leaving)
            .or_else(|| {
                if stays {
                    None
                } else {
                    self.replacement(unit, on, &leaving)
                }
            })
            .or_else(|| self.shortage(slot, machine, on, &leaving))
    }

    fn fixed_obstacle<'a>(
        &'a self,
        slot: &'a UnitSlot,
        constraints: &'a Constraints,
        index: usize,
        machine: &Machine,
    ) -> Option<Obstacle<'a>> {
        if let Some(required) = &constraints.machine_id
            && !machine.id.is_named(required)
        {
            return Some(Obstacle::MachineId(required));
        }
        if let Some(metadata) = &slot.metadata {
            let class = self.classes.get(metadata);
            if !class.is_some_and(|class| class.has(index)) {
                return Some(Obstacle::Metadata);
            }
        }
        machine
            .units
            .contains(&slot.name)
            .then_some(Obstacle::OwnUnit)
    }

    /// The first unit of `MachineOf` that is not there or would leave.
    pub(super) fn missing_peer<'a>(
        &self,
        constraints: &'a Constraints,
        on: &MachineSlot,
        leaving: &[usize],
    ) -> Option<&'a str> {
        let there = |name: &orlop_unit::UnitName| {
            self.by_name.get(name).is_some_and(|peer| {
                !leaving.contains(peer) && on.residents.iter().any(|r| r.unit == *peer)
            })
        };
        constraints
            .machine_of
            .iter()
            .find(|peer| !there(peer))
            .map(orlop_unit::UnitName::as_str)
    }

    /// A resident with which the unit may not be together.
    fn conflict<'a>(
        &'a self,
        unit: usize,
        slot: &UnitSlot,
        constraints: &'a Constraints,
        on: &'a MachineSlot,
        leaving: &[usize],
    ) -> Option<Obstacle<'a>> {
        let name = slot.name.as_str();
        if !constraints.conflicts.is_empty() {
            for resident in on.residents.iter().map(|r| r.unit) {
                let Some(other) = self.units.get(resident) else {
                    continue;
                };
                if resident == unit || leaving.contains(&resident) {
                    continue;
                }
                let mut rules = constraints.conflicts.iter();
                if let Some(rule) = rules.find(|p| p.matches(other.name.as_str())) {
                    return Some(Obstacle::Conflict {
                        with: resident,
                        rule,
                        theirs: false,
                    });
                }
            }
        }
        for resident in on.with_conflicts.iter().copied() {
            if resident == unit || leaving.contains(&resident) {
                continue;
            }
            let job = self.units.get(resident).and_then(|s| s.job.as_ref());
            let mut rules = job
                .into_iter()
                .flat_map(|job| &job.file.constraints.conflicts);
            if let Some(rule) = rules.find(|p| p.matches(name)) {
                return Some(Obstacle::Conflict {
                    with: resident,
                    rule,
                    theirs: true,
                });
            }
        }
        None
    }

    /// A resident that replaces the unit.
    fn replacement<'a>(
        &self,
        unit: usize,
        on: &MachineSlot,
        leaving: &[usize],
    ) -> Option<Obstacle<'a>> {
        let mut residents = on.with_replaces.iter().copied();
        residents
            .find(|by| !leaving.contains(by) && self.is_replaced_by(unit, *by))
            .map(Obstacle::Replaced)
    }

    /// What runs short.
    fn shortage<'a>(
        &self,
        slot: &UnitSlot,
        machine: &Machine,
        on: &MachineSlot,
        leaving: &[usize],
    ) -> Option<Obstacle<'a>> {
        let needs = &slot.job.as_ref()?.file.needs;
        let room = self.room(on.index);
        let (mut memory, mut cpu, mut disk) = (room.memory, room.cpu, room.disk);
        for job in leaving
            .iter()
            .filter_map(|l| self.units.get(*l)?.job.as_ref())
        {
            memory += job.file.needs.memory.of(machine.capacity.memory_bytes);
            cpu += job.file.needs.cpu_milli;
            disk += job.file.needs.disk_bytes;
        }
        let capacity = machine.capacity;
        for (what, asked, free, total) in [
            (
                Quantity::Memory,
                needs.memory.of(capacity.memory_bytes),
                memory,
                capacity.memory_bytes,
            ),
            (Quantity::Cpu, needs.cpu_milli, cpu, capacity.cpu_milli),
            (Quantity::Disk, needs.disk_bytes, disk, capacity.disk_bytes),
        ] {
            if asked > free {
                return Some(Obstacle::Insufficient {
                    what,
                    asked,
                    free,
                    total,
                });
            }
        }
        for port in &needs.ports {
            if let Some(own) = machine.ports.iter().find(|own| own.clashes(port)) {
                return Some(Obstacle::Port(*own, None));
            }
            let taken = on.ports.iter().find(|(other, by)| {
                other.clashes(port) && by.is_none_or(|by| !leaving.contains(&by))
            });
            if let Some((port, by)) = taken {
                return Some(Obstacle::Port(*port, *by));
            }
        }
        None
    }

    /// Residents that leave when a unit lands: those that it replaces, and those that need one of them.
    pub(super) fn leaving(&self, unit: usize, on: &MachineSlot) -> Vec<usize> {
        let residents = || on.residents.iter().map(|r| r.unit);
        let mut leaving: Vec<usize> = residents()
            .filter(|&other| self.is_replaced_by(other, unit))
            .collect();
        let mut next = 0;
        while let Some(name) = leaving
            .get(next)
            .and_then(|gone| self.units.get(*gone))
            .map(|slot| &slot.name)
        {
            let dependents = self.dependents.get(name).into_iter().flatten().copied();
            for dependent in dependents {
                if residents().any(|r| r == dependent) && !leaving.contains(&dependent) {
                    leaving.push(dependent);
                }
            }
            next += 1;
        }
        leaving
    }

    /// Whether `by` replaces `unit`, and not also the other way round through however many others.
    pub(super) fn is_replaced_by(&self, unit: usize, by: usize) -> bool {
        let names = |by: usize, unit: usize| {
            let job = self.units.get(by).and_then(|slot| slot.job.as_ref());
            let name = self.units.get(unit).map(|slot| slot.name.as_str());
            by != unit
                && job.zip(name).is_some_and(|(job, name)| {
                    let mut rules = job.file.constraints.replaces.iter();
                    rules.any(|p| p.matches(name))
                })
        };
        if !names(by, unit) {
            return false;
        }
        if !self.replacers.contains(&unit) {
            return true;
        }
        let mut seen = vec![unit];
        let mut next = 0;
        while let Some(&from) = seen.get(next) {
            if names(from, by) {
                return false;
            }
            for &to in &self.replacers {
                if names(from, to) && !seen.contains(&to) {
                    seen.push(to);
                }
            }
            next += 1;
        }
        true
    }

    /// The obstacle in full.
    pub(super) fn refusal(
        &self,
        obstacle: Obstacle<'_>,
        slot: &UnitSlot,
        machine: &Machine,
        now: Duration,
    ) -> Refusal {
        let name = |unit: usize| {
            let other = self.units.get(unit);
            other.map_or(&slot.name, |other| &other.name).clone()
        };
        match obstacle {
            Obstacle::Silent(since) => Refusal::Silent {
                span: now.saturating_sub(since),
            },
            Obstacle::Cordoned => Refusal::Cordoned,
            Obstacle::MachineId(required) => Refusal::MachineId {
                required: required.to_owned(),
            },
            Obstacle::Metadata => metadata_refusal(slot, machine),
            Obstacle::OwnUnit => Refusal::OwnUnit,
            Obstacle::Peer(peer) => {
                let peer_slot = self
                    .by_name
                    .get(peer)
                    .and_then(|index| self.units.get(*index));
                let on = peer_slot
                    .and_then(|peer| peer.placed.keys().next())
                    .and_then(|machine| self.machines.get(*machine))
                    .map(|machine| machine.id.clone());
                let constraints = slot.job.as_ref().map(|job| &job.file.constraints);
                let mut peers = constraints.into_iter().flat_map(|c| &c.machine_of);
                Refusal::Peer {
                    peer: peers
                        .find(|name| name.as_str() == peer)
                        .unwrap_or(&slot.name)
                        .clone(),
                    on,
                }
            }
            Obstacle::Conflict { with, rule, theirs } => Refusal::Conflict {
                with: name(with),
                rule: rule.as_str().to_owned(),
                theirs,
            },
            Obstacle::Replaced(by) => Refusal::Replaced { by: name(by) },
            Obstacle::Insufficient {
                what,
                asked,
                free,
                total,
            } => Refusal::Insufficient {
                what,
                asked,
                free,
                total,
            },
            Obstacle::Port(port, by) => Refusal::Port {
                port,
                by: by.map(name),
            },
        }
    }
}

fn closed<'a>(machine: &Machine) -> Option<Obstacle<'a>> {
    match machine.presence {
        Presence::SilentSince(since) => Some(Obstacle::Silent(since)),
        Presence::Here => machine.cordoned.then_some(Obstacle::Cordoned),
    }
}

fn metadata_refusal(slot: &UnitSlot, machine: &Machine) -> Refusal {
    let wanted = slot.metadata.as_deref();
    let missing = wanted.into_iter().flatten().find(|(key, values)| {
        machine
            .metadata
            .get(*key)
            .is_none_or(|value| !values.contains(value))
    });
    let (key, required) = missing
        .map(|(k, v)| (k.clone(), v.clone()))
        .unwrap_or_default();
    let has = machine.metadata.get(&key).cloned();
    Refusal::Metadata { key, required, has }
}
