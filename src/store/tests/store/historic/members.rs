//! Those of several members: what a stopped one serves, and what becomes of one that takes the whole state of another.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use orlop_store::command::Command;
use orlop_store::node::{Input, Node, Options, Outbox, Output, Reply};
use orlop_store::peer::{Body, PeerMessage};
use orlop_store::refused::Refused;
use orlop_store::state::Genesis;
use orlop_store::state::outgoing::Outgoing;

use super::{compact, options, propose, put, version};
use crate::cluster::member;
use crate::model::Model;
use crate::random::{Commands, Random};
use crate::simulated_disk::SimulatedDisk;

/// Three members whose messages arrive at once, except those to members that are stopped.
struct Three {
    options: Options,
    disks: Vec<SimulatedDisk>,
    /// `None` when its power is gone.
    nodes: Vec<Option<Node<usize>>>,
    sent: Arc<Mutex<VecDeque<PeerMessage>>>,
    replies: Vec<Vec<Result<Reply, Refused>>>,
    leads: Vec<bool>,
    now: Duration,
    stopped: BTreeSet<usize>,
    /// What came for members while they were stopped.
    held: Vec<PeerMessage>,
    /// A member that takes so many parts of a state is stopped.
    stops_after: Option<u32>,
    /// The states that came to a member: from whom, and up to which entry.
    states: BTreeSet<(u64, u64)>,
    /// How often a member's state was replaced.
    jumps: usize,
    starts: u64,
}

impl Three {
    fn new(options: Options) -> Self {
        let mut three = Self {
            options,
            disks: (0..3).map(|_| SimulatedDisk::default()).collect(),
            nodes: vec![None, None, None],
            sent: Arc::default(),
            replies: vec![Vec::new(); 3],
            leads: vec![false; 3],
            now: Duration::ZERO,
            stopped: BTreeSet::new(),
            held: Vec::new(),
            stops_after: None,
            states: BTreeSet::new(),
            jumps: 0,
            starts: 0,
        };
        (0..3).for_each(|place| three.start(place));
        three
    }

    /// Those that keep next to no entries for one that lags, and send their state in small parts.
    fn forgetful(part_bytes: usize) -> Self {
        Self::new(Options {
            keep_entries: 2,
            part_bytes,
            segment_bytes: 1 << 20,
            ..options(0)
        })
    }

    fn start(&mut self, place: usize) {
        let sent = Arc::clone(&self.sent);
        let outbox = Outbox::new(move |message| {
            sent.lock()
                .expect("no one panics with it")
                .push_back(message);
        });
        let id = place as u64 + 1;
        let genesis = || Genesis {
            cluster: 7,
            member: id,
            members: (1..=3).map(member).collect(),
        };
        self.starts += 1;
        let options = Options {
            seed: self.starts,
            ..self.options.clone()
        };
        let disk = Arc::new(self.disks[place].clone());
        let node = Node::open(disk, options, self.now, outbox, genesis);
        self.nodes[place] = Some(node.expect("it starts"));
    }

    fn node(&self, place: usize) -> &Node<usize> {
        self.nodes[place].as_ref().expect("it runs")
    }

    fn step(&mut self, place: usize, inputs: Vec<Input<usize>>) {
        let Some(node) = &mut self.nodes[place] else {
            return;
        };
        let outputs = match node.step(self.now, inputs) {
            Ok(outputs) => outputs,
            Err(_) if self.disks[place].is_dead() => {
                self.nodes[place] = None;
                return;
            }
            Err(err) => panic!("{:#}", anyhow::Error::new(err)),
        };
        for output in outputs {
            match output {
                Output::Reply { result, .. } => self.replies[place].push(result),
                Output::Status(status) => {
                    self.leads[place] = status.serves && status.standing.leads;
                }
                Output::Jumped { .. } => self.jumps += 1,
                _ => {}
            }
        }
    }

    fn exchange(&mut self) {
        while let Some(message) = self.next_message() {
            let (from, to) = (message.from as usize - 1, message.to as usize - 1);
            match &message.body {
                Body::PartsTaken { parts, .. } if self.stops_after == Some(*parts) => {
                    self.stops_after = None;
                    self.stopped.insert(from);
                }
                Body::Part { index, .. } if !self.stopped.contains(&to) => {
                    self.states.insert((message.from, *index));
                }
                _ => {}
            }
            if self.stopped.contains(&to) {
                self.held.push(message);
            } else {
                self.step(to, vec![Input::Receive(Box::new(message))]);
            }
        }
    }

    fn next_message(&mut self) -> Option<PeerMessage> {
        self.sent.lock().expect("no one panics with it").pop_front()
    }

    /// Lets time pass.
    fn pass(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.now += Duration::from_millis(100);
            for place in 0..3 {
                if !self.stopped.contains(&place) {
                    self.step(place, Vec::new());
                    self.exchange();
                }
            }
        }
    }

    /// Lets time pass until something is so.
    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..300 {
            if is_so(self) {
                return;
            }
            self.pass(1);
        }
        panic!("{what}: never")
    }

    fn leader(&self) -> Option<usize> {
        (0..3).find(|place| self.leads[*place] && !self.stopped.contains(place))
    }

    fn until_led(&mut self) -> usize {
        self.until("one leads", |three| three.leader().is_some());
        self.leader().expect("one leads")
    }

    /// The answer to a command that is given to a member.
    fn ask(&mut self, place: usize, command: Command) -> Result<Reply, Refused> {
        self.replies[place].clear();
        self.step(place, vec![propose(command)]);
        self.exchange();
        self.until("an answer", |three| !three.replies[place].is_empty());
        self.replies[place].remove(0)
    }

    /// Puts some keys, so often that their entries are forgotten.
    fn put_much(&mut self, value: &str) {
        let leader = self.until_led();
        for i in 0..12 {
            let done = self.ask(leader, put(&format!("k{i}"), value));
            assert!(done.is_ok(), "{done:?}");
        }
        self.pass(10);
    }

    /// Stops a member, and lets the others do so much meanwhile that it needs the whole state afterwards.
    fn leave_behind(&mut self, place: usize, value: &str) {
        // Until its own state is durable.
        self.pass(10);
        self.stopped.insert(place);
        self.put_much(value);
        self.held.clear();
    }

    /// Everything that a member knows and others are sent.
    fn state(&self, place: usize) -> Vec<u8> {
        let state = Outgoing::of(&self.node(place).database());
        let records = state.and_then(|mut state| state.records(usize::MAX));
        records.expect("the state can be read").0
    }

    fn until_equal(&mut self) {
        self.until("all are equal", |three| {
            let [one, two, three] = [0, 1, 2].map(|place| three.state(place));
            one == two && two == three
        });
    }
}

#[test]
fn issue_20418_a_leader_that_was_stopped_serves_no_stale_read() {
    let mut three = Three::new(options(0));
    let old = three.until_led();
    three
        .ask(old, put("k", "old"))
        .expect("the write is acknowledged");
    three.stopped.insert(old);
    let new = three.until_led();
    assert_ne!(new, old);
    three
        .ask(new, put("k", "new"))
        .expect("the new leader takes writes");
    // The old leader goes on, believes that it leads, and is asked before it hears anything.
    three.stopped.clear();
    three.replies[old].clear();
    three.step(old, vec![Input::Read { ticket: 0 }]);
    assert!(
        three.replies[old].is_empty(),
        "it answers without having asked the others"
    );
    three.until("an answer", |three| !three.replies[old].is_empty());
    assert_eq!(three.replies[old], [Ok(Reply::Read)]);
    assert_eq!(
        version(three.node(old), "k"),
        2,
        "the read sees the later write"
    );
}

#[test]
fn issue_14571_a_member_that_took_its_state_from_another_decides_as_the_others_do() {
    let mut three = Three::forgetful(20_000);
    let leader = three.until_led();
    let behind = (leader + 1) % 3;
    let mut random = Random(14571);
    let mut model = Model::default();
    let mut ask = |three: &mut Three, place: usize| {
        let command = Commands {
            random: &mut random,
            revision: model.revision,
            ttl: 10_000,
        }
        .command();
        let expected = model.apply(&command).map(Reply::Answer);
        assert!(
            three.ask(place, command) == expected,
            "the answer at revision {} is another",
            model.revision
        );
    };
    for round in 1..=3 {
        three.pass(10);
        three.stopped.insert(behind);
        for _ in 0..40 {
            ask(&mut three, leader);
        }
        three.pass(10);
        three.held.clear();
        three.stopped.clear();
        three.until("it has the state", |three| three.jumps == round);
        // What is decided from the state alone: compares, leases, what is compacted. Each answers what it decided itself.
        for i in 0..60 {
            ask(&mut three, (behind + i) % 3);
        }
        three.until_equal();
    }
}

/// A member is sent a state, is stopped when it has `taken` so many parts of it, and is sent a second, newer one, by another
/// leader if there is to be one. What was left of the first one arrives when it has taken `late` parts of the second.
fn send_two_states(taken: u32, late: u32, by_another: bool) {
    let context = format!("{taken} parts of the first, {late} of the second, {by_another}");
    let mut three = Three::forgetful(200);
    let leader = three.until_led();
    let behind = (leader + 1) % 3;
    three.put_much("before");
    three.leave_behind(behind, "first");
    three.stops_after = Some(taken);
    three.stopped.clear();
    three.until("parts are taken", |three| three.stopped.contains(&behind));
    // So that the second one has next to nothing in common with the first.
    let revision = three.node(leader).revision();
    let compacted = three.ask(leader, compact(revision));
    assert!(compacted.is_ok(), "{context}: {compacted:?}");
    three.put_much("second");
    let is_part = |message: &PeerMessage| matches!(message.body, Body::Part { .. });
    if by_another {
        three.stopped = BTreeSet::from([leader]);
    } else {
        // Until the leader gives it up.
        three.pass(60);
    }
    let mut rest: Vec<_> = std::mem::take(&mut three.held);
    rest.retain(is_part);
    assert!(!rest.is_empty(), "{context}");
    three.stopped.remove(&behind);
    if late > 0 {
        three.stops_after = Some(late);
        three.until("parts are taken", |three| three.stopped.contains(&behind));
        assert_eq!(three.states.len(), 2, "{context}");
    }
    three.stopped.clear();
    let mut sent = three.sent.lock().expect("no one panics with it");
    rest.extend(std::mem::take(&mut three.held));
    sent.extend(rest);
    drop(sent);
    three.until_equal();
    assert!(three.jumps > 0, "{context}");
    assert_eq!(version(three.node(behind), "k3"), 3, "{context}");
}

#[test]
fn issues_18055_and_20133_a_second_state_may_come_before_the_first_one_is_done() {
    for by_another in [false, true] {
        for taken in 1..=6 {
            for late in 0..=6 {
                send_two_states(taken, late, by_another);
            }
        }
    }
}

#[test]
fn issues_20271_and_22340_power_that_goes_while_a_state_comes_leaves_the_old_one_or_the_new() {
    let mut three = Three::forgetful(500);
    let behind = (three.until_led() + 1) % 3;
    let mut random = Random(20271);
    let (mut old_ones, mut new_ones) = (0, 0);
    for crash in 0.. {
        three.leave_behind(behind, &crash.to_string());
        let old = three.node(behind).revision();
        let new = three.node(three.leader().expect("one leads")).revision();
        let jumps = three.jumps;
        three.disks[behind].crash_after(crash);
        three.stopped.clear();
        three.until("it has the state, or no power", |three| {
            three.nodes[behind].is_none() || three.node(behind).revision() == new
        });
        if three.nodes[behind].is_some() {
            three.disks[behind].stay_alive();
            assert_eq!(three.jumps, jumps + 1, "it took the whole state");
            break;
        }
        three.disks[behind] = three.disks[behind].after_crash(&mut random);
        three.start(behind);
        three.step(behind, Vec::new());
        match three.node(behind).revision() {
            revision if revision == old => old_ones += 1,
            revision if revision == new => new_ones += 1,
            other => panic!("crash at {crash}: {other}, neither {old} nor {new}"),
        }
        three.until_equal();
    }
    println!("{old_ones} times the old state, {new_ones} times the new one");
    assert!(old_ones > 0 && new_ones > 0);
}
