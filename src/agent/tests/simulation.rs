//! Whole clusters in simulated time: a store that comes and goes, machines that are cut off, die and boot, agents that
//! die, leaders that change. The cores are the real ones; what is between them is made up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use orlop_agent::engine::Engine;
use orlop_agent::hands::{self, Observed, Step};
use orlop_agent::keys::Key;
use orlop_agent::records::{Assignment, UnitState};
use orlop_agent::registry::{Change, PRESENCE_TTL, Registry};
use orlop_schedule::{MachineId, StoreClock, UnitName};
use proptest::prelude::*;

const MACHINES: usize = 4;
const UNITS: usize = 6;
/// Of simulated time.
const STEP: Duration = Duration::from_millis(500);

/// The store: keys with their leases' machines, and the log of changes that watches follow.
#[derive(Default)]
struct Store {
    up: bool,
    keys: BTreeMap<String, (String, Option<usize>)>,
    log: Vec<(String, Option<String>)>,
    /// Until when each machine's lease lives, and the leader's.
    leases: [Option<Duration>; MACHINES],
    leader: Option<(usize, Duration)>,
}

impl Store {
    fn write(&mut self, key: &str, value: Option<String>, lease: Option<usize>) {
        match &value {
            Some(value) => {
                self.keys.insert(key.to_owned(), (value.clone(), lease));
            }
            None => {
                self.keys.remove(key);
            }
        }
        self.log.push((key.to_owned(), value));
    }

    fn expire(&mut self, now: Duration) {
        for machine in 0..MACHINES {
            if self.leases[machine].is_some_and(|end| end <= now) {
                self.leases[machine] = None;
                let gone = self
                    .keys
                    .iter()
                    .filter(|(_, (_, lease))| *lease == Some(machine));
                let gone: Vec<String> = gone.map(|(key, _)| key.clone()).collect();
                gone.iter().for_each(|key| self.write(key, None, None));
            }
        }
        if self.leader.is_some_and(|(_, end)| end <= now) {
            self.leader = None;
        }
    }
}

/// What survives of a machine, and its agent when there is one.
struct Machine {
    id: MachineId,
    cut: bool,
    powered: bool,
    boot: u32,
    running: BTreeMap<UnitName, u64>,
    files: BTreeSet<String>,
    disk: Assignment,
    agent: Option<Agent>,
}

struct Agent {
    registry: Registry,
    /// How much of the store's log it has seen; nothing before it has read all.
    seen: Option<usize>,
    clock: StoreClock,
    returning: bool,
    reported: BTreeMap<String, String>,
    engine: Option<Engine>,
}

struct World {
    now: Duration,
    store: Store,
    machines: Vec<Machine>,
    starts: Vec<(Duration, UnitName, usize)>,
    /// When each machine was last in touch with the store.
    touched: [Duration; MACHINES],
    lag: usize,
}

impl World {
    fn new() -> Self {
        let machine = |n: usize| Machine {
            id: MachineId::new(&format!("m{n}")),
            cut: false,
            powered: true,
            boot: 0,
            running: BTreeMap::new(),
            files: BTreeSet::new(),
            disk: Assignment::default(),
            agent: None,
        };
        let mut world = Self {
            now: Duration::from_secs(100),
            store: Store {
                up: true,
                ..Store::default()
            },
            machines: (0..MACHINES).map(machine).collect(),
            starts: Vec::new(),
            touched: [Duration::from_secs(100); MACHINES],
            lag: 0,
        };
        for n in 0..UNITS {
            let unit = UnitName::parse(&format!("u{n}.service")).unwrap();
            let content =
                r#"{"options":[{"section":"Service","name":"ExecStart","value":"/bin/a"}]}"#;
            let key = Key::Unit(unit.clone()).to_string();
            world.store.write(&key, Some(content.into()), None);
            world.store.write(
                &Key::Target(unit).to_string(),
                Some("launched".into()),
                None,
            );
        }
        world
    }

    /// Half a second of everybody's life.
    fn step(&mut self) {
        self.now += STEP;
        if self.store.up {
            self.store.expire(self.now);
        }
        for n in 0..MACHINES {
            self.live(n);
        }
    }

    fn live(&mut self, n: usize) {
        let machine = &mut self.machines[n];
        if !machine.powered {
            return;
        }
        let boot = machine.boot.to_string();
        if machine.agent.is_none() {
            machine.disk = hands::after_boot(machine.disk.clone(), &boot);
            machine.agent = Some(Agent {
                registry: Registry::default(),
                seen: None,
                clock: StoreClock::default(),
                returning: true,
                reported: BTreeMap::new(),
                engine: None,
            });
        }
        let Some(mut agent) = machine.agent.take() else {
            return;
        };
        let reaches = self.store.up && !machine.cut;
        let elapsed = agent.clock.observe(self.now, reaches);
        agent.registry.set_clock(elapsed);
        if reaches {
            self.touched[n] = self.now;
            self.keep_leases(n, &mut agent);
            self.follow(&mut agent);
            self.lead(n, &mut agent);
            self.work(n, &mut agent);
        } else {
            agent.seen = None;
            agent.engine = None;
            agent.returning = true;
        }
        self.machines[n].agent = Some(agent);
    }

    fn keep_leases(&mut self, n: usize, agent: &mut Agent) {
        if self.store.leases[n].is_none() || agent.reported.is_empty() {
            let id = self.machines[n].id.clone();
            let machine = Key::Machine(id.clone()).to_string();
            self.store.write(&machine, Some("{}".into()), None);
            let presence = Key::Presence(id).to_string();
            self.store.write(&presence, Some("1".into()), Some(n));
            agent.reported = BTreeMap::from([(presence, "1".to_owned())]);
        }
        self.store.leases[n] = Some(self.now + PRESENCE_TTL);
    }

    fn follow(&self, agent: &mut Agent) {
        let Some(seen) = agent.seen else {
            agent.registry.clear();
            for (key, (value, _)) in &self.store.keys {
                agent.registry.apply(key, Some(value.as_bytes()));
            }
            agent.registry.complete();
            agent.seen = Some(self.store.log.len());
            agent.engine = None;
            agent.returning = true;
            return;
        };
        // A watch may lag behind.
        let until = self.store.log.len().saturating_sub(self.lag).max(seen);
        let changes: Vec<Change> = self.store.log[seen..until]
            .iter()
            .filter_map(|(key, value)| {
                agent
                    .registry
                    .apply(key, value.as_ref().map(String::as_bytes))
            })
            .collect();
        agent.seen = Some(until);
        if let Some(engine) = &mut agent.engine {
            for change in &changes {
                engine.changed(&agent.registry, change);
            }
        }
    }

    fn lead(&mut self, n: usize, agent: &mut Agent) {
        let lease = Some((n, self.now + Duration::from_secs(5)));
        match self.store.leader {
            Some((leader, _)) if leader != n => {
                agent.engine = None;
                return;
            }
            _ => self.store.leader = lease,
        }
        // It leads on what it knows to be all.
        if agent.seen != Some(self.store.log.len()) {
            return;
        }
        let registry = &agent.registry;
        let engine = agent.engine.get_or_insert_with(|| Engine::new(registry));
        for batch in engine.decide(registry) {
            for (key, value) in batch.writes {
                self.store.write(&key, value, None);
            }
        }
    }

    fn work(&mut self, n: usize, agent: &mut Agent) {
        let machine = &mut self.machines[n];
        let wanted = hands::wanted(&agent.registry, &machine.id);
        let observed = machine.running.keys().map(|unit| {
            let observed = Observed {
                active: "active".into(),
                ..Observed::default()
            };
            (unit.clone(), observed)
        });
        let plan = hands::plan(
            &wanted,
            &machine.disk,
            &machine.files,
            &observed.collect(),
            &BTreeSet::new(),
            agent.returning,
        );
        agent.returning &= plan.evicting;
        for (unit, chain) in plan.chains {
            for step in &chain.steps {
                match step {
                    Step::Stop => {
                        machine.running.remove(&unit);
                    }
                    Step::Remove { file } => {
                        machine.files.remove(file);
                    }
                    Step::Write { file, .. } => {
                        machine.files.insert(file.clone());
                    }
                    Step::Start => {
                        let fence = chain.then.as_ref().map_or(0, |then| then.fence);
                        machine.running.insert(unit.clone(), fence);
                        self.starts.push((self.now, unit.clone(), n));
                    }
                }
            }
            match chain.then {
                Some(then) => {
                    machine.disk.units.insert(unit.to_string(), then);
                }
                None => {
                    machine.disk.units.remove(unit.as_str());
                }
            }
        }
        let mut report = BTreeMap::from([(
            Key::Presence(machine.id.clone()).to_string(),
            "1".to_owned(),
        )]);
        for (name, assigned) in &machine.disk.units {
            let unit = UnitName::parse(name).unwrap();
            let active = if machine.running.contains_key(&unit) {
                "active"
            } else {
                "inactive"
            };
            let state = UnitState {
                active: active.into(),
                fence: assigned.fence,
                launched: assigned.launched,
                ..UnitState::default()
            };
            let key = Key::State(unit, machine.id.clone()).to_string();
            report.insert(key, serde_json::to_string(&state).unwrap());
        }
        for (key, value) in &report {
            if agent.reported.get(key) != Some(value) {
                self.store.write(key, Some(value.clone()), Some(n));
            }
        }
        let prefix = format!("/{}", machine.id);
        let stale: Vec<String> = self
            .store
            .keys
            .keys()
            .filter(|key| key.contains("/state/") && key.ends_with(&prefix))
            .filter(|key| !report.contains_key(*key))
            .cloned()
            .collect();
        stale
            .iter()
            .for_each(|key| self.store.write(key, None, None));
        agent.reported = report;
    }

    fn runs_on(&self, unit: &UnitName) -> Vec<usize> {
        let machines = (0..MACHINES).filter(|n| self.machines[*n].running.contains_key(unit));
        machines.collect()
    }

    fn units() -> impl Iterator<Item = UnitName> {
        (0..UNITS).map(|n| UnitName::parse(&format!("u{n}.service")).unwrap())
    }
}

#[derive(Clone, Debug)]
enum Event {
    Wait(u32),
    Cut(usize),
    Mend(usize),
    PowerOff(usize),
    PowerOn(usize),
    AgentDies(usize),
    StoreDown,
    StoreUp,
    Lag(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let machine = || 0..MACHINES;
    prop_oneof![
        6 => (1..60_u32).prop_map(Event::Wait),
        2 => machine().prop_map(Event::Cut),
        2 => machine().prop_map(Event::Mend),
        1 => machine().prop_map(Event::PowerOff),
        1 => machine().prop_map(Event::PowerOn),
        2 => machine().prop_map(Event::AgentDies),
        1 => Just(Event::StoreDown),
        1 => Just(Event::StoreUp),
        1 => (0..4_usize).prop_map(Event::Lag),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn units_run_on_through_everything_and_in_the_end_each_runs_once(
        events in prop::collection::vec(event(), 1..40)
    ) {
        let mut world = World::new();
        for event in events {
            match event {
                Event::Wait(steps) => {
                    for _ in 0..steps {
                        let before: Vec<_> = World::units().map(|u| world.runs_on(&u)).collect();
                        let starts = world.starts.len();
                        world.step();
                        check(&world, &before, starts)?;
                    }
                }
                Event::Cut(n) => world.machines[n].cut = true,
                Event::Mend(n) => world.machines[n].cut = false,
                Event::PowerOff(n) => {
                    let machine = &mut world.machines[n];
                    machine.powered = false;
                    machine.agent = None;
                    machine.running.clear();
                    machine.files.clear();
                }
                Event::PowerOn(n) if !world.machines[n].powered => {
                    world.machines[n].powered = true;
                    world.machines[n].boot += 1;
                }
                Event::PowerOn(_) => {}
                Event::AgentDies(n) => world.machines[n].agent = None,
                Event::StoreDown => world.store.up = false,
                Event::StoreUp => {
                    world.store.up = true;
                    // Whoever leads the store gives every lease its whole time again.
                    let end = world.now + PRESENCE_TTL;
                    world.store.leases.iter_mut().flatten().for_each(|lease| *lease = end);
                }
                Event::Lag(lag) => world.lag = lag,
            }
        }
        // All is mended.
        world.store.up = true;
        world.lag = 0;
        for machine in &mut world.machines {
            machine.cut = false;
            machine.powered = true;
        }
        for _ in 0..80 {
            world.step();
        }
        for unit in World::units() {
            prop_assert_eq!(world.runs_on(&unit).len(), 1, "{}", unit);
        }
        let starts = world.starts.len();
        for _ in 0..80 {
            world.step();
        }
        prop_assert_eq!(world.starts.len(), starts, "nothing moves without a cause");
    }
}

/// A unit is started elsewhere only when its machine was out of touch with a working store for `LostAfter`; nothing stops on
/// a machine that does not reach the store.
fn check(world: &World, before: &[Vec<usize>], starts: usize) -> Result<(), TestCaseError> {
    for (unit, before) in World::units().zip(before) {
        for n in before {
            let machine = &world.machines[*n];
            let reaches = world.store.up && !machine.cut;
            if !reaches && machine.powered {
                prop_assert!(
                    machine.running.contains_key(&unit),
                    "{} was stopped on m{}, which does not reach the store",
                    unit,
                    n
                );
            }
        }
    }
    for (_, unit, on) in &world.starts[starts..] {
        for other in world.runs_on(unit) {
            if other != *on {
                let silence = world.now - world.touched[other];
                prop_assert!(
                    silence + STEP >= Duration::from_secs(15),
                    "{} started on m{} while m{} ran it, silent for {:?}",
                    unit,
                    on,
                    other,
                    silence
                );
            }
        }
    }
    Ok(())
}
