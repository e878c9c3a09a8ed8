//! Members, a network and clients in one loop, all drawn from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use orlop_store::node::{Input, Output};
use orlop_store::peer::{Body, PeerMessage};
use orlop_store::proto::etcdserverpb::Member;

use super::clients::{CLIENTS, Held, Request, TTL};
use super::history::History;
use super::machine::{Machine, Role, Started, member};
use super::watching::Watching;
use crate::random::Random;

/// A fault that is planted, and that the checks must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Members answer before their disk has synced.
    AnswersBeforeSync,
    /// Members vote for a candidate without looking at the term of its log.
    SkipsTermCheck,
}

/// How hard the world is.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    pub(crate) members: u64,
    /// One message in so many is lost; 0 is none.
    pub(crate) loss: u64,
    pub(crate) duplicates: u64,
    pub(crate) delay_ms: u64,
    pub(crate) partitions: bool,
    pub(crate) crashes: bool,
    pub(crate) pauses: bool,
    pub(crate) clock_jumps: bool,
    pub(crate) churn: bool,
    /// Disks lose what was durable, of one member at a time.
    pub(crate) damage: bool,
    /// How long there are faults and clients.
    pub(crate) storm: Duration,
    pub(crate) fault: Fault,
}

impl Weather {
    pub(crate) fn drawn(random: &mut Random) -> Self {
        Self {
            members: 1 + random.below(5),
            loss: [0, 100, 20, 5][random.below(4) as usize],
            duplicates: [0, 50, 5][random.below(3) as usize],
            delay_ms: [1, 10, 80][random.below(3) as usize],
            partitions: random.once_in(2),
            crashes: !random.once_in(4),
            pauses: random.once_in(2),
            clock_jumps: random.once_in(4),
            churn: random.once_in(2),
            damage: random.once_in(2),
            storm: Duration::from_secs(12),
            fault: Fault::None,
        }
    }
}

#[derive(Debug)]
pub(super) enum Event {
    Deliver(Box<PeerMessage>),
    /// What a member gave out when it was done with a step; the second number is its process.
    Outputs(u64, u64, Vec<Output<usize>>),
    /// A member learns that its connection with another has broken.
    Lost(u64, u64),
    Start(u64),
    Client(usize),
    /// A client waits for this answer no longer; the outcome is not known.
    GiveUp(usize),
    Trouble,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) weather: Weather,
    pub(crate) now: Duration,
    pub(crate) machines: BTreeMap<u64, Machine>,
    pub(super) processes: BTreeMap<u64, u64>,
    pub(super) events: BTreeMap<(Duration, u64), Event>,
    pub(super) count: u64,
    pub(crate) history: History,
    pub(super) requests: BTreeMap<usize, Request>,
    pub(super) next_request: usize,
    pub(super) values: u64,
    pub(super) leases: BTreeMap<i64, Held>,
    pub(super) cut: BTreeSet<(u64, u64)>,
    pub(super) calm: bool,
    pub(super) watching: Watching,
    pub(super) trace: DefaultHasher,
    pub(crate) elections: u64,
    pub(crate) jumps: u64,
    pub(crate) crashes: u64,
    pub(super) next_member: u64,
    /// A member whose data is lost, and the one that takes its place once that is known.
    pub(super) lost: Option<(u64, Option<u64>)>,
    pub(crate) damages: u64,
}

impl World {
    pub(crate) fn new(seed: u64, weather: Weather) -> Self {
        let mut random = Random(seed);
        let members: Vec<Member> = (1..=weather.members).map(member).collect();
        let mut world = Self {
            now: Duration::ZERO,
            machines: BTreeMap::new(),
            processes: BTreeMap::new(),
            events: BTreeMap::new(),
            count: 0,
            history: History::default(),
            requests: BTreeMap::new(),
            next_request: 0,
            values: 0,
            leases: BTreeMap::new(),
            cut: BTreeSet::new(),
            calm: false,
            watching: Watching::new(3),
            trace: DefaultHasher::new(),
            elections: 0,
            jumps: 0,
            crashes: 0,
            next_member: weather.members + 1,
            lost: None,
            damages: 0,
            random: Random(random.next()),
            weather,
        };
        for member in &members {
            let ahead = Duration::from_millis(random.below(100_000));
            let machine = Machine::new(member.id, Role::Founder(members.clone()), ahead);
            if world.weather.fault == Fault::AnswersBeforeSync {
                machine.disk.forget_syncs();
            }
            world.machines.insert(member.id, machine);
            world.later(
                Duration::from_millis(random.below(50)),
                Event::Start(member.id),
            );
        }
        for client in 0..=CLIENTS {
            world.later(Duration::from_millis(500), Event::Client(client));
        }
        world.later(Duration::from_millis(800), Event::Trouble);
        world
    }

    pub(super) fn later(&mut self, after: Duration, event: Event) {
        self.count += 1;
        self.events.insert((self.now + after, self.count), event);
    }

    pub(super) fn note(&mut self, what: impl Hash) {
        self.now.hash(&mut self.trace);
        what.hash(&mut self.trace);
    }

    /// A number that stands for all that happened.
    pub(crate) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    /// Faults and clients, then a calm in which all must come right; then the checks.
    pub(crate) fn run(&mut self) {
        self.until(self.weather.storm);
        self.settle();
        self.until(self.now + Duration::from_secs(15));
        self.check();
    }

    fn settle(&mut self) {
        self.calm = true;
        self.cut.clear();
        let mut down = Vec::new();
        for machine in self.machines.values_mut() {
            machine.disk.stay_alive();
            if machine.node.is_none() && !machine.gone {
                down.push(machine.id);
            }
        }
        for id in down {
            self.later(Duration::ZERO, Event::Start(id));
        }
        if self.lost.is_some() {
            self.later(Duration::ZERO, Event::Client(CLIENTS));
        }
    }

    fn until(&mut self, end: Duration) {
        loop {
            let wakes = self
                .machines
                .values()
                .filter_map(|m| Some((m.wakes()?, m.id)))
                .min();
            let event = self.events.first_key_value().map(|(place, _)| *place);
            let (at, woken) = match (event, wakes) {
                (Some((at, _)), Some((wake, _))) if at <= wake => (at, None),
                (_, Some((wake, id))) => (wake, Some(id)),
                (Some((at, _)), None) => (at, None),
                (None, None) => return,
            };
            if at > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(at);
            match woken {
                Some(id) => self.step(id, Vec::new()),
                None => {
                    if let Some((_, event)) = self.events.pop_first() {
                        self.happen(event);
                    }
                }
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver(message) => self.deliver(*message),
            Event::Outputs(id, process, outputs) => {
                if self.processes.get(&id) == Some(&process) {
                    self.take(id, outputs);
                }
            }
            Event::Lost(id, other) => match self.busy(id) {
                Some(after) => self.later(after, Event::Lost(id, other)),
                None => self.step(id, vec![Input::Lost(other)]),
            },
            Event::Start(id) => self.start(id),
            Event::Client(client) => self.client(client),
            Event::GiveUp(ticket) => {
                if let Some(request) = self.requests.get_mut(&ticket) {
                    request.given_up = true;
                    let client = request.client;
                    self.client(client);
                }
            }
            Event::Trouble => self.trouble(),
        }
    }

    fn start(&mut self, id: u64) {
        let crash = (self.weather.crashes && !self.calm && self.random.once_in(3))
            .then(|| self.random.below(400));
        let now = self.now;
        let Some(machine) = self.machines.get_mut(&id) else {
            return;
        };
        if machine.node.is_some() || machine.gone {
            return;
        }
        if let Some(after) = crash {
            machine.disk.crash_after(after);
        }
        *self.processes.entry(id).or_default() += 1;
        let started = machine.start(now, &mut self.random);
        machine.damaged = false;
        machine.gone |= started == Started::Damaged;
        self.note((id, "start", started));
        match started {
            Started::Runs => self.step(id, Vec::new()),
            Started::PowerWent => self.fall(id),
            Started::Damaged => {
                self.damages += 1;
                self.lost = Some((id, None));
            }
        }
    }

    /// Whether the others can do without a member for good, and nothing of the kind is under way.
    fn can_lose(&self, id: u64) -> bool {
        let running = self.machines.values().filter(|m| m.node.is_some());
        let latest = running.max_by_key(|m| m.term);
        let voters = latest.and_then(|m| m.node.as_ref());
        let voters = voters.map(|node| node.roster().ids().voters);
        let there = |voter: &u64| {
            self.machines
                .get(voter)
                .is_some_and(|m| !m.gone && !m.damaged)
        };
        self.weather.damage
            && !self.calm
            && self.lost.is_none()
            && voters.is_some_and(|voters| {
                voters.len() >= 3 && voters.contains(&id) && voters.iter().all(there)
            })
    }

    /// Its power has gone; it comes back later.
    fn fall(&mut self, id: u64) {
        self.crashes += 1;
        *self.processes.entry(id).or_default() += 1;
        let damaged = self.can_lose(id) && self.random.once_in(2);
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.lose_power(&mut self.random);
            if damaged {
                machine.damage(&mut self.random);
            }
        }
        let away = Duration::from_millis(self.random.below(if self.calm { 10 } else { 3000 }));
        self.note((id, "fall"));
        self.later(away, Event::Start(id));
        for other in self.machines.keys().copied().collect::<Vec<_>>() {
            if other != id && self.random.once_in(2) {
                self.later(Duration::from_millis(1), Event::Lost(other, id));
            }
        }
    }

    pub(super) fn step(&mut self, id: u64, inputs: Vec<Input<usize>>) {
        let now = self.now;
        let Some(machine) = self.machines.get_mut(&id).filter(|m| m.node.is_some()) else {
            return;
        };
        let outputs = machine.step(now, inputs);
        for output in outputs.iter().flatten() {
            if let Output::Changed { revision, events } = output {
                self.history.applied(*revision, events, now);
            }
        }
        if let Some(reader) = machine.reader() {
            // What was applied before a crash, or came with a whole state, was not told.
            self.history.fill(&reader, now);
        }
        let sent = machine.take_sent();
        let slow = if self.calm || !self.weather.pauses || !self.random.once_in(400) {
            Duration::from_micros(100)
        } else {
            Duration::from_millis(self.random.below(2500))
        };
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.busy_until = now + slow;
        }
        for message in sent {
            self.send(message);
        }
        match outputs {
            None => self.fall(id),
            Some(outputs) if outputs.is_empty() => {}
            Some(outputs) => {
                let process = self.processes.get(&id).copied().unwrap_or_default();
                self.later(slow, Event::Outputs(id, process, outputs));
            }
        }
    }

    fn send(&mut self, message: PeerMessage) {
        let bytes = message.encode();
        self.note(&bytes);
        let message = PeerMessage::decode(&bytes).expect("what is sent can be read");
        let lost = self.weather.loss > 0 && self.random.once_in(self.weather.loss);
        if !self.calm && lost || self.cut.contains(&(message.from, message.to)) {
            return;
        }
        let twice = self.weather.duplicates > 0
            && !self.calm
            && self.random.once_in(self.weather.duplicates);
        for _ in 0..=usize::from(twice) {
            let mut delay = self.random.below(self.weather.delay_ms * 1000 + 1);
            if twice && self.random.once_in(4) {
                delay += self.random.below(2_000_000);
            }
            self.later(
                Duration::from_micros(delay),
                Event::Deliver(Box::new(message.clone())),
            );
        }
    }

    /// How long a member still does nothing.
    fn busy(&self, id: u64) -> Option<Duration> {
        let until = self.machines.get(&id)?.busy_until;
        (until > self.now).then(|| until - self.now)
    }

    fn deliver(&mut self, mut message: PeerMessage) {
        let Some(machine) = self.machines.get(&message.to) else {
            return;
        };
        debug_assert_eq!(machine.id, message.to);
        if let Some(after) = self.busy(message.to) {
            self.later(after, Event::Deliver(Box::new(message)));
            return;
        }
        if self.weather.fault == Fault::SkipsTermCheck
            && let Body::Consensus(inner) = message.body
        {
            message.body = Body::Consensus(inner.with_latest_log());
        }
        let to = message.to;
        self.step(to, vec![Input::Receive(Box::new(message))]);
    }

    fn take(&mut self, id: u64, outputs: Vec<Output<usize>>) {
        for output in outputs {
            match output {
                Output::Reply { ticket, result } => self.answered(id, ticket, result),
                Output::Changed { revision, events } => {
                    let reader = || self.machines.get(&id).and_then(Machine::reader);
                    self.watching.changed(id, revision, &events, &reader);
                }
                Output::Compacted(revision) => self.watching.compacted(id, revision),
                Output::Jumped {
                    revision,
                    compact_revision,
                } => {
                    self.jumps += 1;
                    self.watching.jumped(id, revision, compact_revision);
                }
                Output::Status(status) => {
                    if let Some(machine) = self.machines.get_mut(&id) {
                        self.elections += u64::from(status.standing.leads && !machine.leads);
                        machine.leads = status.standing.leads;
                        machine.term = status.standing.term;
                    }
                }
                Output::Removed => {
                    if let Some(machine) = self.machines.get_mut(&id) {
                        machine.gone = true;
                        machine.node = None;
                    }
                }
                Output::Roster(roster) => roster.members.iter().for_each(|m| self.set_up(m.id)),
            }
        }
        self.watch(id);
    }

    /// A machine for a member that was added.
    fn set_up(&mut self, id: u64) {
        if self.machines.contains_key(&id) {
            return;
        }
        let ahead = Duration::from_millis(self.random.below(100_000));
        let machine = Machine::new(id, Role::Joiner, ahead);
        if self.weather.fault == Fault::AnswersBeforeSync {
            machine.disk.forget_syncs();
        }
        self.machines.insert(id, machine);
        self.later(Duration::from_millis(100), Event::Start(id));
    }

    /// The watchers at a member read what there is for them.
    fn watch(&mut self, id: u64) {
        let Some(reader) = self.machines.get(&id).and_then(Machine::reader) else {
            return;
        };
        let process = self.processes.get(&id).copied().unwrap_or_default();
        self.watching
            .read(id, process, &reader, &mut self.random, &self.history);
    }

    fn trouble(&mut self) {
        if self.calm {
            return;
        }
        let pause = Duration::from_millis(200 + self.random.below(1500));
        self.later(pause, Event::Trouble);
        let ids: Vec<u64> = self.machines.keys().copied().collect();
        let pick = |random: &mut Random| ids[random.below(ids.len() as u64) as usize];
        let id = pick(&mut self.random);
        match self.random.below(8) {
            0 | 1 if self.weather.partitions => {
                self.cut.clear();
                let leader = self.machines.values().find(|m| m.leads).map(|m| m.id);
                let leader = leader.filter(|_| self.random.once_in(2));
                let inside: BTreeSet<u64> = ids
                    .iter()
                    .copied()
                    .filter(|id| match leader {
                        Some(leader) => *id == leader,
                        None => self.random.once_in(2),
                    })
                    .collect();
                let one_way = self.random.once_in(2);
                for a in &ids {
                    for b in &ids {
                        let out = inside.contains(a) && !inside.contains(b);
                        let back = !one_way && inside.contains(b) && !inside.contains(a);
                        if out || back {
                            self.cut.insert((*a, *b));
                        }
                    }
                }
            }
            2 | 3 => self.cut.clear(),
            4 if self.weather.crashes => {
                let after = self.random.below(60);
                if let Some(machine) = self.machines.get(&id).filter(|m| m.node.is_some()) {
                    machine.disk.crash_after(after);
                }
            }
            5 if self.weather.crashes && self.random.once_in(3) => {
                for id in &ids {
                    if self.machines.get(id).is_some_and(|m| m.node.is_some()) {
                        self.fall(*id);
                    }
                }
            }
            6 if self.weather.pauses => {
                let stopped = Duration::from_millis(self.random.below(4000));
                let until = self.now + stopped;
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.busy_until = machine.busy_until.max(until);
                }
            }
            7 if self.weather.clock_jumps => {
                let jump = Duration::from_millis(self.random.below(20_000));
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.ahead += jump;
                }
            }
            _ => {}
        }
    }

    fn check(&mut self) {
        self.history.check();
        self.check_leases();
        let leader = self.machines.values().find(|m| m.leads && m.node.is_some());
        let leader = leader.expect("there is a leader once all is calm");
        let roster = leader.node.as_ref().expect("it runs").roster().clone();
        let last = self.history.changes.last_key_value().map_or(1, |(r, _)| *r);
        let mut hashes = Vec::new();
        for member in &roster.members {
            let machine = &self.machines[&member.id];
            let node = machine.node.as_ref();
            let node = node.unwrap_or_else(|| panic!("member {} does not run", member.id));
            assert_eq!(
                *node.roster(),
                roster,
                "member {} has another roster",
                member.id
            );
            assert_eq!(node.revision(), last, "member {} lags behind", member.id);
            let reader = machine.reader().expect("it runs");
            hashes.push(reader.hash(0).expect("the present can be hashed"));
        }
        assert!(
            hashes.windows(2).all(|w| w[0] == w[1]),
            "members differ: {hashes:?}"
        );
        assert!(
            roster.members.iter().all(|m| !m.is_learner) || roster.members.len() > 5,
            "a learner that has caught up was not promoted: {roster:?}"
        );
        let ids: Vec<u64> = roster.members.iter().map(|m| m.id).collect();
        for id in ids.iter().cycle().take(ids.len() * 20) {
            self.watch(*id);
        }
        self.watching.check(&self.history, &ids);
    }

    fn check_leases(&self) {
        for (lease, held) in &self.leases {
            let mut ended = None;
            let mut there = false;
            for (revision, changes) in &self.history.changes {
                for (_, value) in changes.iter().filter(|(key, _)| *key == held.key) {
                    there = value.is_some();
                    ended = self.history.first_seen.get(revision).filter(|_| !there);
                }
            }
            assert!(!there, "lease {lease} never ended");
            let ttl = Duration::from_secs(TTL as u64);
            if let Some(ended) = ended.filter(|_| !self.weather.clock_jumps) {
                assert!(
                    *ended + Duration::from_millis(1) >= held.renewed + ttl,
                    "lease {lease} ended at {ended:?}, but was renewed at {:?}",
                    held.renewed
                );
            }
        }
    }
}
