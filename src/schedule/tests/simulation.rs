//! A large cluster whose machines fail and return, and whose units come and go.
//!
//! `ORLOP_SCHEDULE_FULL=1` runs it with 1,000 machines and 20,000 units; otherwise it is a twentieth of that.

mod cluster;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use cluster::Random;
use orlop_schedule::{
    Cause, Decision, Job, Machine, MachineId, Placement, Presence, Scheduler, UnitName,
};

struct World {
    scheduler: Scheduler,
    machines: BTreeMap<u64, Machine>,
    units: HashMap<UnitName, Job>,
    placed: BTreeMap<UnitName, (MachineId, u64)>,
    fence: u64,
    now: Duration,
}

impl World {
    fn set_machine(&mut self, number: u64, machine: Machine) {
        self.scheduler.set_machine(machine.clone());
        self.machines.insert(number, machine);
    }

    fn set_unit(&mut self, job: Job) {
        self.scheduler.set_unit(job.clone());
        self.units.insert(job.name.clone(), job);
    }

    /// Decides, and checks that whatever moves has a cause and that every number is higher than all before.
    fn decide(&mut self) -> usize {
        let decisions = self.scheduler.decide(self.now);
        let before = self.fence;
        let mut ended: BTreeMap<UnitName, (MachineId, Cause)> = BTreeMap::new();
        for decision in &decisions {
            match decision {
                Decision::Remove(p, cause) => {
                    let was = self.placed.remove(&p.unit);
                    assert_eq!(was, Some((p.machine.clone(), p.fence)), "{}", p.unit);
                    ended.insert(p.unit.clone(), (p.machine.clone(), cause.clone()));
                }
                Decision::Place(p) => {
                    assert!(p.fence > before);
                    self.fence = self.fence.max(p.fence);
                    let known = self
                        .placed
                        .insert(p.unit.clone(), (p.machine.clone(), p.fence));
                    assert_eq!(known, None, "{} was placed twice", p.unit);
                }
            }
        }
        for (unit, (on, cause)) in &ended {
            let machine = self.machines.values().find(|m| m.id == *on);
            let just = match cause {
                Cause::Destroyed => !self.units.contains_key(unit),
                Cause::MachineLost { span } => {
                    *span >= Duration::from_secs(15)
                        && machine.is_some_and(|m| m.presence != Presence::Here)
                }
                // A peer has gone.
                Cause::Refused(_) => self.units[unit]
                    .file
                    .constraints
                    .machine_of
                    .iter()
                    .any(|peer| ended.contains_key(peer)),
                _ => false,
            };
            assert!(just, "{unit} left {on} because {cause}");
        }
        decisions.len()
    }

    /// No constraint is broken anywhere.
    fn check(&self) {
        let by_id: HashMap<&MachineId, &Machine> =
            self.machines.values().map(|m| (&m.id, m)).collect();
        let mut residents: HashMap<&MachineId, Vec<&Job>> = HashMap::new();
        for (unit, (machine, _)) in &self.placed {
            residents
                .entry(machine)
                .or_default()
                .push(&self.units[unit]);
        }
        for (id, jobs) in residents {
            let machine = by_id[id];
            let total = machine.capacity.memory_bytes;
            let memory: u64 = jobs.iter().map(|j| j.file.needs.memory.of(total)).sum();
            let cpu: u64 = jobs.iter().map(|j| j.file.needs.cpu_milli).sum();
            assert!(memory <= total && cpu <= machine.capacity.cpu_milli);
            let mut ports = BTreeSet::new();
            let names: BTreeSet<&str> = jobs.iter().map(|j| j.name.as_str()).collect();
            for job in &jobs {
                let constraints = &job.file.constraints;
                assert!(job.file.needs.ports.iter().all(|port| ports.insert(*port)));
                assert!(
                    constraints
                        .metadata
                        .iter()
                        .all(|(key, values)| values.contains(&machine.metadata[key]))
                );
                let peers = constraints.machine_of.iter();
                assert!(peers.map(UnitName::as_str).all(|p| names.contains(p)));
                for pattern in &constraints.conflicts {
                    let others = names.iter().filter(|n| **n != job.name.as_str());
                    assert!(others.into_iter().all(|other| !pattern.matches(other)));
                }
            }
        }
    }

    /// A scheduler made anew from the same facts has nothing to add.
    fn check_against_a_whole_pass(&self) {
        let mut whole = Scheduler::new();
        self.machines
            .values()
            .for_each(|m| whole.set_machine(m.clone()));
        self.units.values().for_each(|j| whole.set_unit(j.clone()));
        for (unit, (machine, fence)) in &self.placed {
            whole.set_placement(&Placement {
                unit: unit.clone(),
                machine: machine.clone(),
                fence: *fence,
            });
        }
        assert_eq!(whole.decide(self.now), Vec::new());
        let waiting = |s: &Scheduler| s.waiting().cloned().collect::<BTreeSet<_>>();
        assert_eq!(waiting(&whole), waiting(&self.scheduler));
    }
}

#[test]
fn a_cluster_whose_machines_fail_and_return_breaks_no_constraint_and_moves_nothing_without_a_cause()
{
    let full = std::env::var_os("ORLOP_SCHEDULE_FULL").is_some();
    let (machines, units, steps) = if full {
        (1000, 20_000, 400)
    } else {
        (50, 1000, 150)
    };
    let mut random = Random::new(5);
    let mut world = World {
        scheduler: Scheduler::new(),
        machines: BTreeMap::new(),
        units: HashMap::new(),
        placed: BTreeMap::new(),
        fence: 0,
        now: Duration::ZERO,
    };
    for number in 0..machines {
        world.set_machine(number, cluster::machine(number));
    }
    for number in 0..units {
        world.set_unit(cluster::unit(number));
    }
    world.decide();
    world.check();
    assert!(
        world.placed.len() as u64 > units * 9 / 10,
        "{} of {units} placed",
        world.placed.len()
    );
    let mut moved = 0;
    for step in 0..steps {
        world.now += Duration::from_secs(random.below(8));
        match random.below(4) {
            0 => {
                for _ in 0..=random.below(machines / 20) {
                    let number = random.below(machines);
                    if world.machines[&number].presence == Presence::Here {
                        world.set_machine(number, cluster::silent(number, world.now));
                    }
                }
            }
            1 => {
                let silent: Vec<u64> = world
                    .machines
                    .iter()
                    .filter(|(_, m)| m.presence != Presence::Here)
                    .map(|(number, _)| *number)
                    .collect();
                for number in silent {
                    world.set_machine(number, cluster::machine(number));
                }
            }
            2 => {
                let number = random.below(units);
                let name = cluster::unit(number).name;
                world.scheduler.remove_unit(&name);
                world.units.remove(&name);
            }
            _ => world.set_unit(cluster::unit(random.below(units))),
        }
        moved += world.decide();
        world.check();
        if step % 25 == 0 {
            world.check_against_a_whole_pass();
        }
    }
    assert!(moved > 0);
    for unit in world.scheduler.waiting() {
        let why = world.scheduler.why(unit, world.now);
        assert_eq!(why.machines.len(), world.machines.len());
        let unexplained = why.machines.iter().find(|(_, refusal)| refusal.is_none());
        assert_eq!(unexplained, None, "{unit} waits though it fits");
    }
}
