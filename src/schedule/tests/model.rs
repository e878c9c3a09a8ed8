//! The scheduler against a model that follows the rules in the plainest way, on clusters small enough for it; and the
//! incremental form against a scheduler made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use orlop_schedule::{
    Capacity, Cause, Decision, Job, LostAfter, Machine, MachineId, Placement, Port, Presence,
    Refusal, Scheduler, Strategy, Target, UnitFile, UnitName,
};
use proptest::prelude::*;

const NAMES: &[&str] = &[
    "a@1.service",
    "a@2.service",
    "a@3.service",
    "b.service",
    "c.service",
    "d.service",
    "e.service",
    "g.service",
];
const MACHINES: &[&str] = &["m1", "m2", "m3", "m4"];

#[derive(Clone, Debug, Default)]
struct World {
    machines: BTreeMap<MachineId, Machine>,
    units: BTreeMap<UnitName, Job>,
    placed: BTreeMap<(UnitName, MachineId), u64>,
    fence: u64,
    now: Duration,
}

/// What comes of a decision.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Outcome {
    placed: BTreeMap<(UnitName, MachineId), u64>,
    waiting: BTreeSet<UnitName>,
}

impl World {
    fn wanted(&self, unit: &UnitName) -> bool {
        self.units
            .get(unit)
            .is_some_and(|job| job.target != Target::Inactive && !unit.is_template())
    }

    fn replaces(&self, by: &UnitName, unit: &UnitName) -> bool {
        let names = |by: &UnitName, unit: &UnitName| {
            by != unit
                && self.units.get(by).is_some_and(|job| {
                    let replaces = &job.file.constraints.replaces;
                    replaces.iter().any(|p| p.matches(unit.as_str()))
                })
        };
        let mut reached = BTreeSet::from([unit.clone()]);
        loop {
            let next: BTreeSet<UnitName> = self
                .units
                .keys()
                .filter(|to| reached.iter().any(|from| names(from, to)))
                .cloned()
                .collect();
            let before = reached.len();
            reached.extend(next);
            if reached.len() == before {
                break;
            }
        }
        names(by, unit) && !reached.iter().any(|from| names(from, by))
    }

    /// Whether the residents of a machine may be there together, peers apart.
    fn is_sound(&self, machine: &Machine, residents: &[UnitName], replaces: bool) -> bool {
        let jobs: Vec<&Job> = residents.iter().map(|name| &self.units[name]).collect();
        let total = machine.capacity.memory_bytes;
        let memory: u64 = jobs.iter().map(|j| j.file.needs.memory.of(total)).sum();
        let cpu: u64 = jobs.iter().map(|j| j.file.needs.cpu_milli).sum();
        let mut ports: Vec<Port> = machine.ports.iter().copied().collect();
        for port in jobs.iter().flat_map(|j| &j.file.needs.ports) {
            if ports.iter().any(|p| p.clashes(port)) {
                return false;
            }
            ports.push(*port);
        }
        let alone = jobs.iter().all(|job| {
            let constraints = &job.file.constraints;
            let id = constraints.machine_id.as_ref();
            let metadata = constraints.metadata.iter().all(|(key, values)| {
                let value = machine.metadata.get(key);
                value.is_some_and(|value| values.contains(value))
            });
            id.is_none_or(|id| *id == *machine.id.as_str()) && metadata
        });
        let together = jobs.iter().all(|one| {
            jobs.iter().all(|two| {
                let mut conflicts = one.file.constraints.conflicts.iter();
                let conflict = conflicts.any(|p| p.matches(two.name.as_str()));
                let replaced = replaces && self.replaces(&one.name, &two.name);
                one.name == two.name || !(conflict || replaced)
            })
        });
        memory <= total && cpu <= machine.capacity.cpu_milli && alone && together
    }

    fn residents(placed: &BTreeMap<(UnitName, MachineId), u64>, on: &MachineId) -> Vec<UnitName> {
        let mut list: Vec<_> = placed.iter().filter(|((_, m), _)| m == on).collect();
        list.sort_by_key(|(_, fence)| **fence);
        list.into_iter()
            .map(|((unit, _), _)| unit.clone())
            .collect()
    }

    fn orphans(&self, residents: &[UnitName]) -> Option<UnitName> {
        residents
            .iter()
            .find(|name| {
                let peers = &self.units[*name].file.constraints.machine_of;
                peers.iter().any(|peer| !residents.contains(peer))
            })
            .cloned()
    }

    /// Those who stay when `unit` lands among `residents`, or `None` when it cannot.
    fn landing(
        &self,
        machine: &Machine,
        residents: &[UnitName],
        unit: &UnitName,
    ) -> Option<Vec<UnitName>> {
        if machine.presence != Presence::Here || machine.cordoned {
            return None;
        }
        let mut rest: Vec<UnitName> = residents
            .iter()
            .filter(|r| !self.replaces(unit, r))
            .cloned()
            .collect();
        while let Some(orphan) = self.orphans(&rest) {
            rest.retain(|r| *r != orphan);
        }
        if rest.iter().any(|r| self.replaces(r, unit)) {
            return None;
        }
        rest.push(unit.clone());
        let peers = &self.units[unit].file.constraints.machine_of;
        let met = peers.iter().all(|peer| rest.contains(peer));
        (met && self.is_sound(machine, &rest, true)).then_some(rest)
    }

    fn load(&self, machine: &Machine, residents: &[UnitName]) -> u64 {
        let jobs = || residents.iter().map(|name| &self.units[name]);
        let total = machine.capacity.memory_bytes;
        let memory: u64 = jobs().map(|j| j.file.needs.memory.of(total)).sum();
        let cpu: u64 = jobs().map(|j| j.file.needs.cpu_milli).sum();
        let share = |used: u64, total: u64| (used * 10_000).checked_div(total).unwrap_or(0);
        share(memory, total).max(share(cpu, machine.capacity.cpu_milli))
            + 100 * residents.len() as u64
    }

    /// The rules of the crate's front page, word for word.
    fn model(&self) -> Outcome {
        let mut placed: BTreeMap<(UnitName, MachineId), u64> = BTreeMap::new();
        // 1. What stays.
        for (id, machine) in &self.machines {
            let mut stays: Vec<UnitName> = Vec::new();
            for unit in Self::residents(&self.placed, id) {
                let Some(job) = self.units.get(&unit).filter(|_| self.wanted(&unit)) else {
                    continue;
                };
                let fence = self.placed[&(unit.clone(), id.clone())];
                let newest = self.placed.iter().filter(|((u, _), _)| *u == unit);
                let newest = newest.map(|(_, fence)| *fence).max();
                if !job.file.constraints.global && newest != Some(fence) {
                    continue;
                }
                if let (Presence::SilentSince(since), LostAfter::Span(span)) =
                    (machine.presence, job.file.constraints.lost_after)
                    && self.now - since >= span
                {
                    continue;
                }
                // A unit is judged beside those that it does not push away.
                let mut with: Vec<_> = stays
                    .iter()
                    .filter(|r| !self.replaces(&unit, r))
                    .cloned()
                    .collect();
                while let Some(orphan) = self.orphans_of_pushed(&stays, &with) {
                    with.retain(|r| *r != orphan);
                }
                with.push(unit.clone());
                if self.is_sound(machine, &with, false) {
                    stays.push(unit);
                }
            }
            for by in stays.clone() {
                if stays.contains(&by) {
                    stays.retain(|r| !self.replaces(&by, r));
                }
            }
            while let Some(orphan) = self.orphans(&stays) {
                stays.retain(|r| *r != orphan);
            }
            for unit in stays {
                let key = (unit, id.clone());
                placed.insert(key.clone(), self.placed[&key]);
            }
        }
        // 2. As long as some unit fits, the first one.
        'again: loop {
            let global = |unit: &UnitName| self.units[unit].file.constraints.global;
            let mut order: Vec<&UnitName> = self.units.keys().filter(|u| self.wanted(u)).collect();
            order.sort_by_key(|unit| !global(unit));
            for unit in order {
                if !global(unit) && placed.keys().any(|(u, _)| u == unit) {
                    continue;
                }
                let file = &self.units[unit].file;
                let mut best: Option<((usize, u64, MachineId), Vec<UnitName>)> = None;
                for (id, machine) in &self.machines {
                    let residents = Self::residents(&placed, id);
                    if residents.contains(unit) {
                        continue;
                    }
                    let Some(rest) = self.landing(machine, &residents, unit) else {
                        continue;
                    };
                    let family = unit.template();
                    let same = residents
                        .iter()
                        .filter(|r| family.is_some() && r.template() == family)
                        .count();
                    let load = self.load(machine, &residents);
                    let rank = match file.constraints.strategy {
                        Strategy::Spread => (same, load, id.clone()),
                        Strategy::Pack => (0, u64::MAX - load, id.clone()),
                    };
                    if best.as_ref().is_none_or(|(other, _)| rank < *other) {
                        best = Some((rank, rest));
                    }
                }
                if let Some(((_, _, id), rest)) = best {
                    for gone in Self::residents(&placed, &id) {
                        if !rest.contains(&gone) {
                            placed.remove(&(gone, id.clone()));
                        }
                    }
                    let key = (unit.clone(), id);
                    placed.insert(
                        key.clone(),
                        self.placed.get(&key).copied().unwrap_or(u64::MAX),
                    );
                    continue 'again;
                }
            }
            break;
        }
        // New placements are numbered in the order of their names.
        let mut fence = self.fence;
        for number in placed.values_mut().filter(|fence| **fence == u64::MAX) {
            fence += 1;
            *number = fence;
        }
        let waiting = self.units.keys().filter(|unit| {
            self.wanted(unit)
                && !self.units[*unit].file.constraints.global
                && !placed.keys().any(|(u, _)| u == *unit)
        });
        Outcome {
            waiting: waiting.cloned().collect(),
            placed,
        }
    }

    /// Of those who would stay, one whose peer was there before and would not be any more.
    fn orphans_of_pushed(&self, before: &[UnitName], rest: &[UnitName]) -> Option<UnitName> {
        rest.iter()
            .find(|name| {
                let peers = &self.units[*name].file.constraints.machine_of;
                peers
                    .iter()
                    .any(|peer| before.contains(peer) && !rest.contains(peer))
            })
            .cloned()
    }

    fn scheduler(&self) -> Scheduler {
        let mut scheduler = Scheduler::new();
        for machine in self.machines.values() {
            scheduler.set_machine(machine.clone());
        }
        for ((unit, machine), fence) in &self.placed {
            scheduler.set_placement(&Placement {
                unit: unit.clone(),
                machine: machine.clone(),
                fence: *fence,
            });
        }
        for job in self.units.values() {
            scheduler.set_unit(job.clone());
        }
        scheduler.set_last_fence(self.fence);
        scheduler
    }

    fn job(&self, name: &str, sections: &str, target: Target) -> Job {
        let name = UnitName::parse(name).unwrap();
        let text = format!("[Service]\nExecStart=/bin/true\n[X-Fleet]\n{sections}\n");
        let file = UnitFile::parse(&name, &text).unwrap_or_else(|_| {
            // What was drawn cannot go together: the plain unit.
            UnitFile::parse(&name, "[Service]\nExecStart=/bin/true\n").unwrap()
        });
        Job {
            name,
            file: Arc::new(file),
            target,
        }
    }
}

fn outcome(scheduler: &Scheduler) -> Outcome {
    let placed = scheduler.placements();
    Outcome {
        placed: placed.map(|p| ((p.unit, p.machine), p.fence)).collect(),
        waiting: scheduler.waiting().cloned().collect(),
    }
}

/// One thing that happens in a cluster.
#[derive(Clone, Debug)]
enum Event {
    Machine(Machine),
    MachineGone(usize),
    Unit(usize, String, Target),
    UnitGone(usize),
    Time(u64),
}

fn machine() -> impl Strategy_<Value = Machine> {
    (
        0..MACHINES.len(),
        0..5_u64,
        0..3_u64,
        0..2_u8,
        0..6_u8,
        prop::bool::weighted(0.15),
        prop::option::weighted(0.25, 0..1_u64),
    )
        .prop_map(|(index, memory, cpu, zone, port, cordoned, silent)| {
            let mut machine = Machine::new(MACHINES[index]);
            machine.capacity = Capacity {
                memory_bytes: memory * 100,
                cpu_milli: cpu * 1000,
                disk_bytes: 0,
            };
            machine.metadata.insert("zone".into(), zone.to_string());
            if port == 0 {
                machine.ports.insert("80".parse().unwrap());
            }
            machine.cordoned = cordoned;
            if silent.is_some() {
                machine.presence = Presence::SilentSince(Duration::ZERO);
            }
            machine
        })
}

use proptest::strategy::Strategy as Strategy_;

fn sections() -> impl Strategy_<Value = String> {
    let line = prop::sample::select(vec![
        "Memory=60",
        "Memory=150",
        "Memory=20%",
        "Cpus=0.7",
        "Ports=80",
        "Ports=81",
        "MachineID=m1",
        "MachineOf=b.service",
        "MachineOf=c.service",
        "MachineOf=g.service",
        "MachineMetadata=zone=1",
        "Conflicts=a@*",
        "Conflicts=b.service",
        "Conflicts=*",
        "Replaces=b.service",
        "Replaces=c.service",
        "Replaces=d.service",
        "Replaces=a@*",
        "Global=true",
        "Strategy=pack",
        "LostAfter=5",
        "LostAfter=infinity",
    ]);
    prop::collection::vec(line, 0..4).prop_map(|lines| lines.join("\n"))
}

fn event() -> impl Strategy_<Value = Event> {
    let target = prop::sample::select(vec![
        Target::Launched,
        Target::Launched,
        Target::Loaded,
        Target::Inactive,
    ]);
    prop_oneof![
        4 => machine().prop_map(Event::Machine),
        1 => (0..MACHINES.len()).prop_map(Event::MachineGone),
        8 => (0..NAMES.len(), sections(), target).prop_map(|(u, s, t)| Event::Unit(u, s, t)),
        2 => (0..NAMES.len()).prop_map(Event::UnitGone),
        2 => (0..10_u64).prop_map(Event::Time),
    ]
}

fn apply(world: &mut World, scheduler: &mut Scheduler, event: Event) {
    match event {
        Event::Machine(mut machine) => {
            if let Presence::SilentSince(since) = &mut machine.presence {
                *since = world.now;
            }
            scheduler.set_machine(machine.clone());
            world.machines.insert(machine.id.clone(), machine);
        }
        Event::MachineGone(index) => {
            let id = MachineId::new(MACHINES[index]);
            scheduler.remove_machine(&id);
            world.machines.remove(&id);
        }
        Event::Unit(index, sections, target) => {
            let job = world.job(NAMES[index], &sections, target);
            scheduler.set_unit(job.clone());
            world.units.insert(job.name.clone(), job);
        }
        Event::UnitGone(index) => {
            let name = UnitName::parse(NAMES[index]).unwrap();
            scheduler.remove_unit(&name);
            world.units.remove(&name);
        }
        Event::Time(seconds) => world.now += Duration::from_secs(seconds),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn decisions_are_the_models_and_the_incremental_form_gives_the_same(
        steps in prop::collection::vec(prop::collection::vec(event(), 1..5), 1..12)
    ) {
        let mut world = World::default();
        let mut scheduler = Scheduler::new();
        for events in steps {
            for event in events {
                apply(&mut world, &mut scheduler, event);
            }
            let expected = world.model();
            let mut whole = world.scheduler();
            let decided_anew = whole.decide(world.now);
            prop_assert_eq!(&outcome(&whole), &expected, "a scheduler made anew and the model");
            let decided = scheduler.decide(world.now);
            prop_assert_eq!(&outcome(&scheduler), &expected, "the incremental form and the model");
            prop_assert_eq!(without_peers_places(&decided), without_peers_places(&decided_anew));
            check_decisions(&world, &expected, &decided)?;
            prop_assert_eq!(scheduler.decide(world.now), Vec::new(), "nothing has changed, nothing moves");
            check_why(&world, &scheduler, &expected)?;
            world.placed = expected.placed;
            world.fence = world.fence.max(world.placed.values().copied().max().unwrap_or(0));
        }
    }
}

/// Where a refusal saw a peer that goes in the same pass depends on which of the two was looked at first.
fn without_peers_places(decisions: &[Decision]) -> Vec<Decision> {
    let mut decisions = decisions.to_vec();
    for decision in &mut decisions {
        if let Decision::Remove(_, Cause::Refused(Refusal::Peer { on, .. })) = decision {
            *on = None;
        }
    }
    decisions
}

/// The decisions lead from the old placements to the new ones, and no placement that could stay has ended.
fn check_decisions(
    world: &World,
    expected: &Outcome,
    decisions: &[Decision],
) -> Result<(), TestCaseError> {
    let mut placed = world.placed.clone();
    for decision in decisions {
        match decision {
            Decision::Remove(p, cause) => {
                let fence = placed.remove(&(p.unit.clone(), p.machine.clone()));
                prop_assert_eq!(fence, Some(p.fence), "{}", cause);
                let replaced_or_refused = matches!(
                    cause,
                    Cause::Replaced(_) | Cause::Refused(_) | Cause::Doubled
                );
                let caused = !world.wanted(&p.unit)
                    || world
                        .machines
                        .get(&p.machine)
                        .is_none_or(|m| m.presence != Presence::Here)
                    || replaced_or_refused;
                prop_assert!(caused, "{} moved without a cause: {}", p.unit, cause);
            }
            Decision::Place(p) => {
                prop_assert!(p.fence > world.fence);
                let known = placed.insert((p.unit.clone(), p.machine.clone()), p.fence);
                prop_assert_eq!(known, None);
            }
        }
    }
    prop_assert_eq!(&placed, &expected.placed);
    Ok(())
}

/// A waiting unit has a reason for every machine, and a machine with a reason would really not do.
fn check_why(
    world: &World,
    scheduler: &Scheduler,
    expected: &Outcome,
) -> Result<(), TestCaseError> {
    for unit in world.units.keys() {
        let why = scheduler.why(unit, world.now);
        prop_assert_eq!(why.machines.len(), world.machines.len());
        for (id, refusal) in &why.machines {
            let residents = World::residents(&expected.placed, id);
            if residents.contains(unit) {
                prop_assert_eq!(refusal, &None);
                continue;
            }
            let fits = world
                .landing(&world.machines[id], &residents, unit)
                .is_some();
            prop_assert_eq!(refusal.is_none(), fits, "{} on {}: {:?}", unit, id, refusal);
            if expected.waiting.contains(unit) {
                prop_assert!(refusal.is_some());
            }
        }
    }
    Ok(())
}
