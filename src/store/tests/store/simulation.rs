//! One member on a disk whose power goes at any write: what was acknowledged is there, and the state is the model's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use orlop_store::command::Command;
use orlop_store::mvcc::Reader;
use orlop_store::node::{Input, Node, NodeError, Options, Outbox, Output, Reply};
use orlop_store::proto::etcdserverpb::{
    LeaseGrantRequest, PutRequest, RangeRequest, WatchCreateRequest, WatchResponse,
};
use orlop_store::proto::mvccpb::KeyValue;
use orlop_store::refused::Refused;
use orlop_store::watch::{Hub, StreamId};

use crate::keyspace::{compare_reads, genesis, told};
use crate::model::Model;
use crate::random::{Commands, Random};
use crate::simulated_disk::SimulatedDisk;

/// Seeds that are run; `ORLOP_SIMULATION_SEEDS` in the environment asks for another number, `ORLOP_SIMULATION_FIRST` for another first one.
const SEEDS: u64 = 40;
const LIVES: usize = 8;
const STEPS: usize = 30;

pub(crate) fn open(
    disk: &SimulatedDisk,
    seed: u64,
    now: Duration,
) -> Result<Node<usize>, NodeError> {
    Node::open(
        Arc::new(disk.clone()),
        Options {
            seed,
            // Small ones are used up and given up more often, and are quicker to fill.
            segment_bytes: 1 << 20,
            ..Options::default()
        },
        now,
        Outbox::none(),
        genesis,
    )
}

pub(crate) fn reader(node: &Node<usize>) -> Reader {
    Reader::new(&node.database()).expect("the state can be read")
}

/// A client that watches everything, and comes back after each crash from where it was.
#[derive(Default)]
struct Watcher {
    next: i64,
    seen: Vec<(i64, Vec<u8>, Option<KeyValue>)>,
    /// Sent, and not yet read by the client.
    waiting: VecDeque<WatchResponse>,
    /// Revisions that it was told it cannot have.
    lost_before: i64,
}

impl Watcher {
    fn request(&self) -> WatchCreateRequest {
        WatchCreateRequest {
            key: vec![0],
            range_end: vec![0],
            start_revision: self.next,
            ..WatchCreateRequest::default()
        }
    }

    /// Reads one response; whether the watch has to be made again.
    fn read(&mut self, model: &Model, seed: u64) -> Option<bool> {
        let response = self.waiting.pop_front()?;
        if response.canceled {
            assert!(
                response.compact_revision > self.next,
                "seed {seed}: cancelled without a reason"
            );
            self.lost_before = response.compact_revision;
            self.next = response.compact_revision;
            self.seen.clear();
            return Some(true);
        }
        for event in response.events {
            let kv = event.kv.expect("an event has a key");
            assert!(
                kv.mod_revision >= self.next,
                "seed {seed}: a change was told twice"
            );
            assert!(
                kv.mod_revision <= model.revision,
                "seed {seed}: a change that is not there was told"
            );
            self.seen.push((
                kv.mod_revision,
                kv.key.clone(),
                Some(kv).filter(|_| event.r#type == 0),
            ));
        }
        if let Some((last, ..)) = self.seen.last() {
            self.next = self.next.max(last + 1);
        }
        Some(false)
    }
}

struct World {
    seed: u64,
    random: Random,
    model: Model,
    watcher: Watcher,
    now: Duration,
    /// Commands whose outcome no one has told.
    unknown: Vec<Command>,
}

impl World {
    /// One life of the member, until its power goes or its steps are done.
    fn live(&mut self, disk: &SimulatedDisk) {
        let opened = open(disk, self.random.next(), self.now);
        let Some(mut node) = self.alive(disk, opened) else {
            return;
        };
        let stepped = node.step(self.now, []);
        let Some(outputs) = self.alive(disk, stepped) else {
            return;
        };
        assert!(
            outputs
                .iter()
                .any(|o| matches!(o, Output::Status(s) if s.serves)),
            "seed {}: it serves at once",
            self.seed
        );
        self.find_out(&node);
        let reading = reader(&node);
        let mut hub = Hub::new(node.revision(), reading.compact_revision);
        let mut stream = self.watch(&mut hub);
        for _ in 0..STEPS {
            self.now += Duration::from_millis(self.random.below(400));
            let count = self.random.below(5) as usize;
            let commands: Vec<Command> = (0..count)
                .map(|_| {
                    Commands {
                        random: &mut self.random,
                        revision: self.model.revision,
                        ttl: 1 << 30,
                    }
                    .command()
                })
                .map(at_once)
                .collect();
            self.unknown.clone_from(&commands);
            let inputs = commands
                .iter()
                .enumerate()
                .map(|(ticket, command)| Input::Propose {
                    command: Box::new(command.clone()),
                    ticket,
                });
            let inputs: Vec<_> = inputs.chain([Input::Read { ticket: usize::MAX }]).collect();
            let stepped = node.step(self.now, inputs);
            let Some(outputs) = self.alive(disk, stepped) else {
                return;
            };
            self.unknown.clear();
            self.check(&node, &mut hub, outputs, &commands);
            self.read_watch(&node, &mut hub, &mut stream, 3);
        }
        self.read_watch(&node, &mut hub, &mut stream, usize::MAX);
        let from = self.watcher.lost_before;
        let expected: Vec<_> = self
            .model
            .changes(from)
            .into_iter()
            .filter(|(revision, ..)| *revision < self.watcher.next)
            .collect();
        let mut seen = self.watcher.seen.clone();
        seen.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        assert_eq!(
            seen, expected,
            "seed {}: the watch has a gap or a repeat",
            self.seed
        );
        assert!(
            self.watcher.next > self.model.revision
                || self.model.changes(self.watcher.next).is_empty(),
            "seed {}",
            self.seed
        );
        if self.random.once_in(2) {
            let _ = node.close();
        }
    }

    /// A member fails only when its power is gone.
    fn alive<T>(&self, disk: &SimulatedDisk, result: Result<T, NodeError>) -> Option<T> {
        match result {
            Ok(done) => Some(done),
            Err(_) if disk.is_dead() => None,
            Err(err) => panic!("seed {}: {:#}", self.seed, anyhow::Error::new(err)),
        }
    }

    fn watch(&mut self, hub: &mut Hub) -> StreamId {
        let stream = hub.open();
        self.watcher.waiting.clear();
        let mut out = Vec::new();
        hub.create(stream, self.watcher.request(), &mut out);
        self.watcher
            .waiting
            .extend(out.into_iter().map(|(_, response)| response));
        stream
    }

    /// The client reads some of what waits for it.
    fn read_watch(
        &mut self,
        node: &Node<usize>,
        hub: &mut Hub,
        stream: &mut StreamId,
        most: usize,
    ) {
        let mut out = Vec::new();
        let count = if most == usize::MAX {
            most
        } else {
            self.random.below(most as u64) as usize
        };
        for _ in 0..count {
            if hub.can_catch_up(*stream) {
                hub.catch_up(*stream, &reader(node), &mut out)
                    .expect("the state can be read");
            }
            self.watcher
                .waiting
                .extend(out.drain(..).map(|(_, response)| response));
            match self.watcher.read(&self.model, self.seed) {
                Some(true) => {
                    hub.close(*stream);
                    *stream = self.watch(hub);
                }
                Some(false) => hub.drained(*stream),
                None => break,
            }
        }
    }

    /// After a crash: some of the commands whose outcome is not known have been done, in their order, and nothing else.
    fn find_out(&mut self, node: &Node<usize>) {
        let reading = reader(node);
        let from = |model: &Model| model.compact_revision.max(1);
        let mut candidate = self.model.clone();
        let mut rest = std::mem::take(&mut self.unknown).into_iter();
        loop {
            let same = reading.revision == candidate.revision
                && reading.compact_revision == candidate.compact_revision
                && told(&reading, from(&candidate)) == candidate.changes(from(&candidate))
                && reading
                    .leases()
                    .expect("the leases can be read")
                    .iter()
                    .map(|l| l.id)
                    .eq(candidate.leases.keys().copied());
            if same {
                break;
            }
            let next = rest.next();
            let next = next.unwrap_or_else(|| panic!("seed {}: an acknowledged change is lost, or one that no one asked for is there", self.seed));
            let _ = candidate.apply(&next);
        }
        self.model = candidate;
    }

    fn check(
        &mut self,
        node: &Node<usize>,
        hub: &mut Hub,
        outputs: Vec<Output<usize>>,
        commands: &[Command],
    ) {
        let mut answered = 0;
        let mut out = Vec::new();
        for output in outputs {
            match output {
                Output::Reply {
                    ticket: usize::MAX,
                    result,
                } => assert_eq!(result, Ok(Reply::Read), "seed {}", self.seed),
                Output::Reply { ticket, result } => {
                    assert_eq!(
                        ticket, answered,
                        "seed {}: answers come in order",
                        self.seed
                    );
                    answered += 1;
                    let expected = self.model.apply(&commands[ticket]);
                    assert_eq!(
                        result,
                        expected.map(Reply::Answer),
                        "seed {}: {:?}",
                        self.seed,
                        commands[ticket]
                    );
                }
                Output::Changed { revision, events } => {
                    hub.publish(
                        revision,
                        &events,
                        &|| Reader::new(&node.database()),
                        &mut out,
                    )
                    .expect("the state can be read");
                }
                Output::Compacted(revision) => hub.compacted(revision),
                _ => {}
            }
        }
        self.watcher
            .waiting
            .extend(out.into_iter().map(|(_, response)| response));
        assert_eq!(
            answered,
            commands.len(),
            "seed {}: one member answers at once",
            self.seed
        );
        compare_reads(&reader(node), &self.model, &mut self.random, 2, self.seed);
    }
}

/// Compactions that are answered when their promise is durable, so that answers come in order.
fn at_once(mut command: Command) -> Command {
    if let Command::Compact(request) = &mut command {
        request.physical = false;
    }
    command
}

#[test]
fn acknowledged_writes_survive_a_crash_at_any_write() {
    let number =
        |name: &str, default| std::env::var(name).map_or(default, |n| n.parse().expect("a number"));
    let (first, count) = (
        number("ORLOP_SIMULATION_FIRST", 0),
        number("ORLOP_SIMULATION_SEEDS", SEEDS),
    );
    let mut crashes = 0;
    for seed in first..first + count {
        let mut disk = SimulatedDisk::default();
        let mut world = World {
            seed,
            random: Random(seed),
            model: Model::default(),
            watcher: Watcher {
                next: 1,
                ..Watcher::default()
            },
            now: Duration::ZERO,
            unknown: Vec::new(),
        };
        for _ in 0..LIVES {
            let at = if world.random.once_in(3) {
                world.random.below(20)
            } else {
                world.random.below(200)
            };
            disk.crash_after(at);
            world.live(&disk);
            crashes += u64::from(disk.is_dead());
            disk = disk.after_crash(&mut world.random);
        }
        world.live(&disk);
    }
    assert!(
        crashes >= count * 3,
        "only {crashes} crashes: the simulation does not do its work"
    );
}

/// Steps a node until it serves, and returns it with the time.
pub(crate) fn serving(disk: &SimulatedDisk) -> (Node<usize>, Duration) {
    let mut node = open(disk, 1, Duration::ZERO).expect("the member starts");
    node.step(Duration::ZERO, []).expect("the member goes on");
    (node, Duration::ZERO)
}

pub(crate) fn ask(
    node: &mut Node<usize>,
    now: Duration,
    command: Command,
) -> Result<Reply, Refused> {
    let outputs = node
        .step(
            now,
            [Input::Propose {
                command: Box::new(command),
                ticket: 9,
            }],
        )
        .expect("the member goes on");
    let answer = outputs.into_iter().find_map(|o| {
        if let Output::Reply { ticket: 9, result } = o {
            Some(result)
        } else {
            None
        }
    });
    answer.expect("one member answers at once")
}

pub(crate) fn put(key: &[u8], value: Vec<u8>, lease: i64) -> Command {
    Command::Put(PutRequest {
        key: key.to_vec(),
        value,
        lease,
        ..PutRequest::default()
    })
}

pub(crate) fn has(node: &Node<usize>, key: &[u8]) -> bool {
    let request = RangeRequest {
        key: key.to_vec(),
        ..RangeRequest::default()
    };
    reader(node)
        .range(&request)
        .expect("the present can be read")
        .count
        == 1
}

#[test]
fn a_lease_ends_neither_early_nor_never_and_starts_anew_with_a_new_leader() {
    let disk = SimulatedDisk::default();
    let (mut node, mut now) = serving(&disk);
    let grant = Command::LeaseGrant(LeaseGrantRequest { id: 5, ttl: 10 });
    ask(&mut node, now, grant).expect("a lease is granted");
    ask(&mut node, now, put(b"k", Vec::new(), 5)).expect("the key is put");
    let run = |node: &mut Node<usize>, now: &mut Duration, until: u64| {
        while *now < Duration::from_secs(until) {
            *now += Duration::from_millis(100);
            node.step(*now, []).expect("the member goes on");
        }
    };
    run(&mut node, &mut now, 9);
    assert!(has(&node, b"k"), "it ended early");
    let renewed = node
        .step(now, [Input::Renew { id: 5, ticket: 1 }])
        .expect("the member goes on");
    assert!(renewed.iter().any(|o| matches!(
        o,
        Output::Reply {
            result: Ok(Reply::Renewed { ttl: Some(10), .. }),
            ..
        }
    )));
    run(&mut node, &mut now, 18);
    assert!(has(&node, b"k"), "the renewal did not count");
    // A new leader does not know of the renewal, so it gives the whole time again.
    drop(node);
    let disk = disk.after_crash(&mut Random(1));
    node = open(&disk, 2, now).expect("the member starts");
    run(&mut node, &mut now, 27);
    assert!(has(&node, b"k"), "the new leader ended it early");
    run(&mut node, &mut now, 30);
    assert!(!has(&node, b"k"), "it never ended");
    let gone = node
        .step(now, [Input::Renew { id: 5, ticket: 1 }])
        .expect("the member goes on");
    assert!(gone.iter().any(|o| matches!(
        o,
        Output::Reply {
            result: Ok(Reply::Renewed { ttl: None, .. }),
            ..
        }
    )));
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let run = || {
        let disk = SimulatedDisk::default();
        let (mut node, mut now) = serving(&disk);
        let mut random = Random(11);
        for _ in 0..200 {
            now += Duration::from_millis(random.below(200));
            let command = Commands {
                random: &mut random,
                revision: node.revision(),
                ttl: 5,
            }
            .command();
            node.step(
                now,
                [Input::Propose {
                    command: Box::new(command),
                    ticket: 0,
                }],
            )
            .expect("the member goes on");
        }
        let names = disk.names();
        (
            disk.operations(),
            names
                .iter()
                .filter(|n| n.starts_with("wal-0"))
                .map(|n| disk.bytes(n))
                .collect::<Vec<_>>(),
            names,
        )
    };
    assert!(run() == run());
}
