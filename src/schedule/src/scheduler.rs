//! The state of the scheduler, and what may be told to it and asked of it.

mod admit;
mod obstacle;
mod place;
mod ranks;
mod slab;
mod why;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use orlop_unit::UnitName;

use crate::constraints::LostAfter;
use crate::machine::{Machine, MachineId, Presence};
use crate::needs::Port;
use crate::refusal::Cause;
use crate::unit_file::UnitFile;
use slab::Slab;

pub use why::Why;

/// What is wanted of a unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Its text is known.
    #[default]
    Inactive,
    /// It has a machine, which knows its text.
    Loaded,
    /// It was started there.
    Launched,
}

impl Target {
    /// fleet's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Loaded => "loaded",
            Self::Launched => "launched",
        }
    }

    /// The state of that word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Inactive, Self::Loaded, Self::Launched]
            .into_iter()
            .find(|t| t.as_str() == word)
    }
}

/// A unit and what is wanted of it.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name.
    pub name: UnitName,
    /// Its content.
    pub file: Arc<UnitFile>,
    /// What is wanted.
    pub target: Target,
}

impl Job {
    /// Whether it is to have a machine.
    fn wanted(&self) -> bool {
        self.target != Target::Inactive && !self.name.is_template()
    }
}

/// A unit on a machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Placement {
    /// The unit.
    pub unit: UnitName,
    /// The machine.
    pub machine: MachineId,
    /// The fencing number: higher than that of any earlier placement in the cluster.
    pub fence: u64,
}

/// One thing to do to the placements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A placement ends.
    Remove(Placement, Cause),
    /// A placement begins.
    Place(Placement),
}

/// The cluster, as far as placement goes.
#[derive(Debug, Default)]
pub struct Scheduler {
    machines: Slab<MachineSlot>,
    /// By the machine's number; apart because every evaluation of a unit reads them all.
    rooms: Vec<Room>,
    by_id: BTreeMap<MachineId, usize>,
    by_short: HashMap<String, BTreeSet<usize>>,
    units: Slab<UnitSlot>,
    by_name: HashMap<UnitName, usize>,
    /// Units that are to be on every machine.
    globals: BTreeSet<usize>,
    /// Units with `Replaces`.
    replacers: BTreeSet<usize>,
    /// Who names a unit in `MachineOf`.
    dependents: HashMap<UnitName, BTreeSet<usize>>,
    /// Units that are to have one machine and have none.
    waiting: BTreeSet<usize>,
    /// Ordinary units that may have more than one machine.
    doubled: BTreeSet<usize>,
    /// Instances of a template on each machine.
    families: HashMap<Arc<str>, BTreeMap<usize, u32>>,
    /// Which machines have the metadata that some units ask for.
    classes: HashMap<Metadata, Class>,
    /// Machines on which something has changed since the last decision.
    dirty: BTreeSet<usize>,
    /// Slots that may be free to be used again.
    stale: BTreeSet<usize>,
    silent: BTreeSet<usize>,
    /// Counts the changes that may make room.
    change: u64,
    /// The highest fencing number that was given.
    fence: u64,
}

type Metadata = Arc<BTreeMap<String, Vec<String>>>;

/// Machines with certain metadata.
#[derive(Debug, Default)]
struct Class {
    /// By the machine's index.
    fits: Vec<bool>,
    units: usize,
}

#[derive(Debug)]
struct UnitSlot {
    name: UnitName,
    job: Option<Job>,
    /// Machines and fencing numbers.
    placed: BTreeMap<usize, u64>,
    /// The change up to which every machine was found unfit.
    evaluated: u64,
    family: Option<Arc<str>>,
    metadata: Option<Metadata>,
}

impl UnitSlot {
    fn wanted(&self) -> bool {
        self.job.as_ref().is_some_and(Job::wanted)
    }

    fn is_global(&self) -> bool {
        self.job.as_ref().is_some_and(|j| j.file.constraints.global)
    }

    fn replaces(&self) -> bool {
        self.job
            .as_ref()
            .is_some_and(|j| !j.file.constraints.replaces.is_empty())
    }

    fn lost_after(&self) -> Option<Duration> {
        match self.job.as_ref()?.file.constraints.lost_after {
            LostAfter::Span(span) => Some(span),
            LostAfter::Never => None,
        }
    }
}

/// What every evaluation reads of a machine.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    /// The last change that may have made room, 0 when it takes nothing new.
    freed: u64,
    memory: u64,
    memory_total: u64,
    cpu: u64,
    disk: u64,
    load: u32,
    /// The place of the machine's id among all.
    order: u32,
}

#[derive(Debug)]
struct MachineSlot {
    /// Its own number.
    index: usize,
    id: MachineId,
    machine: Option<Machine>,
    residents: Vec<Resident>,
    ports: Vec<(Port, Option<usize>)>,
    /// Residents that have `Conflicts` or `Replaces`.
    with_conflicts: Vec<usize>,
    with_replaces: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resident {
    unit: usize,
    /// 0 until the decision is complete.
    fence: u64,
}

impl Scheduler {
    /// An empty cluster.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Fencing numbers that are given from now on are higher than `fence`.
    pub fn set_last_fence(&mut self, fence: u64) {
        self.fence = self.fence.max(fence);
    }

    /// The highest fencing number so far.
    #[must_use]
    pub fn last_fence(&self) -> u64 {
        self.fence
    }

    /// Adds a machine, or replaces what is known of it.
    pub fn set_machine(&mut self, machine: Machine) {
        let index = self.machine_slot(&machine.id);
        let Some(slot) = self.machines.get_mut(index) else {
            return;
        };
        if slot.machine.as_ref() == Some(&machine) {
            return;
        }
        let silent = machine.presence != Presence::Here;
        for (metadata, class) in &mut self.classes {
            class.set(index, has_metadata(&machine, metadata));
        }
        slot.machine = Some(machine);
        if silent {
            self.silent.insert(index);
        } else {
            self.silent.remove(&index);
        }
        self.dirty.insert(index);
    }

    /// Forgets a machine; what is placed there will be placed elsewhere.
    pub fn remove_machine(&mut self, id: &MachineId) {
        let Some(&index) = self.by_id.get(id) else {
            return;
        };
        if let Some(slot) = self.machines.get_mut(index) {
            slot.machine = None;
        }
        for class in self.classes.values_mut() {
            class.set(index, false);
        }
        self.silent.remove(&index);
        self.dirty.insert(index);
    }

    /// Adds a unit, or replaces its content or what is wanted of it.
    pub fn set_unit(&mut self, job: Job) {
        let index = self.unit_slot(&job.name);
        let Some(slot) = self.units.get(index) else {
            return;
        };
        if slot.job.as_ref().is_some_and(|old| {
            old.target == job.target && (Arc::ptr_eq(&old.file, &job.file) || old.file == job.file)
        }) {
            return;
        }
        self.exchange(index, Some(job));
    }

    /// Forgets a unit; its placements end.
    pub fn remove_unit(&mut self, name: &UnitName) {
        if let Some(&index) = self.by_name.get(name) {
            self.exchange(index, None);
            self.stale.insert(index);
        }
    }

    /// Tells of a placement that exists.
    pub fn set_placement(&mut self, placement: &Placement) {
        let unit = self.unit_slot(&placement.unit);
        let machine = self.machine_slot(&placement.machine);
        self.set_last_fence(placement.fence);
        let (Some(unit_slot), Some(machine_slot)) =
            (self.units.get_mut(unit), self.machines.get_mut(machine))
        else {
            return;
        };
        let known = unit_slot.placed.insert(machine, placement.fence).is_some();
        let family = unit_slot.family.clone();
        machine_slot.residents.retain(|r| r.unit != unit);
        machine_slot.residents.push(Resident {
            unit,
            fence: placement.fence,
        });
        if unit_slot.placed.len() > 1 {
            self.doubled.insert(unit);
        }
        if let Some(family) = family.filter(|_| !known) {
            self.count_family(&family, machine, true);
        }
        self.waiting.remove(&unit);
        self.dirty.insert(machine);
        self.stale.insert(unit);
    }

    /// All placements, in no order.
    pub fn placements(&self) -> impl Iterator<Item = Placement> {
        self.machines.iter().flat_map(|(_, slot)| {
            slot.residents.iter().filter_map(|resident| {
                Some(Placement {
                    unit: self.units.get(resident.unit)?.name.clone(),
                    machine: slot.id.clone(),
                    fence: resident.fence,
                })
            })
        })
    }

    /// The fencing number with which a unit is placed on a machine.
    #[must_use]
    pub fn fence_of(&self, unit: &UnitName, machine: &MachineId) -> Option<u64> {
        let unit = self.units.get(*self.by_name.get(unit)?)?;
        unit.placed.get(self.by_id.get(machine)?).copied()
    }

    /// Units that are to have a machine and have none, in no order.
    pub fn waiting(&self) -> impl Iterator<Item = &UnitName> {
        self.waiting
            .iter()
            .filter_map(|unit| self.units.get(*unit).map(|slot| &slot.name))
    }

    /// When, by the store's clock, a placement ends if its machine stays silent.
    #[must_use]
    pub fn next_loss(&self) -> Option<Duration> {
        self.silent.iter().filter_map(|&m| self.loss_at(m)).min()
    }

    /// When the first of a silent machine's placements ends.
    fn loss_at(&self, machine: usize) -> Option<Duration> {
        let slot = self.machines.get(machine)?;
        let Presence::SilentSince(since) = slot.machine.as_ref()?.presence else {
            return None;
        };
        slot.residents
            .iter()
            .filter_map(|r| self.units.get(r.unit)?.lost_after())
            .min()
            .map(|span| since.saturating_add(span))
    }

    /// What the state calls for at `now`, a time of the store's clock. The decisions are taken to be carried out: endings come
    /// first, each kind is in the order of the units' names.
    pub fn decide(&mut self, now: Duration) -> Vec<Decision> {
        let mut pass = place::Pass::default();
        let lost: Vec<usize> = self
            .silent
            .iter()
            .copied()
            .filter(|&m| self.loss_at(m).is_some_and(|at| at <= now))
            .collect();
        self.dirty.extend(lost);
        if self.dirty.is_empty() && self.doubled.is_empty() && self.is_settled() {
            return Vec::new();
        }
        self.admit_all(now, &mut pass);
        self.place_all(&mut pass);
        let decisions = self.conclude(pass);
        self.sweep();
        decisions
    }

    fn room(&self, machine: usize) -> Room {
        self.rooms.get(machine).copied().unwrap_or_default()
    }

    /// Whether no unit waits that has not been looked at.
    fn is_settled(&self) -> bool {
        let seen = |unit: &usize| {
            self.units
                .get(*unit)
                .is_none_or(|slot| slot.evaluated >= self.change.max(1))
        };
        self.waiting.iter().all(seen) && self.globals.iter().all(seen)
    }

    fn machine_slot(&mut self, id: &MachineId) -> usize {
        if let Some(&index) = self.by_id.get(id) {
            return index;
        }
        let index = self.machines.insert(MachineSlot {
            index: 0,
            id: id.clone(),
            machine: None,
            residents: Vec::new(),
            ports: Vec::new(),
            with_conflicts: Vec::new(),
            with_replaces: Vec::new(),
        });
        if let Some(slot) = self.machines.get_mut(index) {
            slot.index = index;
        }
        self.rooms.resize(self.machines.bound(), Room::default());
        self.by_id.insert(id.clone(), index);
        self.by_short
            .entry(id.short().to_owned())
            .or_default()
            .insert(index);
        index
    }

    fn unit_slot(&mut self, name: &UnitName) -> usize {
        if let Some(&index) = self.by_name.get(name) {
            return index;
        }
        let family = name.template().map(|template| Arc::from(template.as_str()));
        let index = self.units.insert(UnitSlot {
            name: name.clone(),
            job: None,
            placed: BTreeMap::new(),
            evaluated: 0,
            family,
            metadata: None,
        });
        self.by_name.insert(name.clone(), index);
        index
    }

    /// Puts a new job in the place of the old one, and keeps the indexes true.
    fn exchange(&mut self, index: usize, job: Option<Job>) {
        let Some(slot) = self.units.get_mut(index) else {
            return;
        };
        let replaced = slot.replaces();
        let old = std::mem::replace(&mut slot.job, job);
        slot.evaluated = 0;
        let peers = |job: &Option<Job>| {
            job.as_ref()
                .map(|j| j.file.constraints.machine_of.clone())
                .unwrap_or_default()
        };
        for peer in peers(&old) {
            if let Some(set) = self.dependents.get_mut(&peer) {
                set.remove(&index);
                if set.is_empty() {
                    self.dependents.remove(&peer);
                }
            }
        }
        for peer in peers(&slot.job) {
            self.dependents.entry(peer).or_default().insert(index);
        }
        let (replaces, global, wanted) = (slot.replaces(), slot.is_global(), slot.wanted());
        let placed: Vec<usize> = slot.placed.keys().copied().collect();
        self.dirty.extend(&placed);
        set_member(&mut self.replacers, index, replaces);
        set_member(&mut self.globals, index, global && wanted);
        set_member(
            &mut self.waiting,
            index,
            wanted && !global && placed.is_empty(),
        );
        set_member(&mut self.doubled, index, placed.len() > 1 && !global);
        if replaces || replaced {
            // Who replaces whom depends on circles that lead through any of them.
            self.dirty.extend(self.by_id.values());
            for (_, unit) in self.units.iter_mut() {
                unit.evaluated = 0;
            }
        }
        self.classify(index);
    }

    /// Puts a unit into the class of its metadata.
    fn classify(&mut self, index: usize) {
        let Some(slot) = self.units.get_mut(index) else {
            return;
        };
        let wanted = slot
            .job
            .as_ref()
            .map(|job| &job.file.constraints.metadata)
            .filter(|metadata| !metadata.is_empty());
        if slot.metadata.as_deref() == wanted {
            return;
        }
        let new = wanted.map(|metadata| Arc::new(metadata.clone()));
        let old = std::mem::replace(&mut slot.metadata, new.clone());
        if let Some(old) = old
            && let Some(class) = self.classes.get_mut(&old)
        {
            class.units -= 1;
            if class.units == 0 {
                self.classes.remove(&old);
            }
        }
        let Some(new) = new else {
            return;
        };
        let machines = &self.machines;
        let class = self.classes.entry(Arc::clone(&new)).or_insert_with(|| {
            let mut class = Class::default();
            for (index, slot) in machines.iter() {
                let fits = slot.machine.as_ref().is_some_and(|m| has_metadata(m, &new));
                class.set(index, fits);
            }
            class
        });
        class.units += 1;
    }

    /// Frees the slots of what is gone.
    fn sweep(&mut self) {
        for index in std::mem::take(&mut self.stale) {
            let Some(slot) = self.units.get(index) else {
                continue;
            };
            if slot.job.is_none() && slot.placed.is_empty() {
                self.by_name.remove(&slot.name);
                self.units.remove(index);
            }
        }
        for index in std::mem::take(&mut self.dirty) {
            let Some(slot) = self.machines.get(index) else {
                continue;
            };
            if slot.machine.is_none() && slot.residents.is_empty() {
                self.by_id.remove(&slot.id);
                let short = slot.id.short();
                if let Some(set) = self.by_short.get_mut(short) {
                    set.remove(&index);
                    if set.is_empty() {
                        self.by_short.remove(short);
                    }
                }
                self.machines.remove(index);
                if let Some(room) = self.rooms.get_mut(index) {
                    *room = Room::default();
                }
            }
        }
    }
}

impl Class {
    fn set(&mut self, machine: usize, fits: bool) {
        if self.fits.len() <= machine {
            self.fits.resize(machine + 1, false);
        }
        if let Some(entry) = self.fits.get_mut(machine) {
            *entry = fits;
        }
    }

    fn has(&self, machine: usize) -> bool {
        self.fits.get(machine).copied().unwrap_or(false)
    }
}

fn set_member(set: &mut BTreeSet<usize>, index: usize, member: bool) {
    if member {
        set.insert(index);
    } else {
        set.remove(&index);
    }
}

/// Whether a machine has, for every key, one of the values.
fn has_metadata(machine: &Machine, wanted: &BTreeMap<String, Vec<String>>) -> bool {
    wanted.iter().all(|(key, values)| {
        machine
            .metadata
            .get(key)
            .is_some_and(|value| values.contains(value))
    })
}
