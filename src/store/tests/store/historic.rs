//! Bugs that etcd once had, each as a test named after its issue at github.com/etcd-io/etcd.

mod auth;
mod members;

use std::sync::Arc;
use std::time::Duration;

use orlop_store::command::Command;
use orlop_store::mvcc::{Answer, Reader};
use orlop_store::node::{Input, Node, Options, Outbox, Output, Reply};
use orlop_store::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use orlop_store::proto::etcdserverpb::request_op::Request;
use orlop_store::proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest, WatchCreateRequest, WatchResponse,
};
use orlop_store::refused::Refused;
use orlop_store::watch::{Hub, WINDOW};

use crate::keyspace::{entry, genesis, open};
use crate::random::Random;
use crate::simulated_disk::SimulatedDisk;

fn options(seed: u64) -> Options {
    Options {
        seed,
        segment_bytes: 128 << 10,
        checkpoint_time: Duration::from_millis(200),
        ..Options::default()
    }
}

fn start(disk: &SimulatedDisk, seed: u64) -> Option<Node<usize>> {
    let disk = Arc::new(disk.clone());
    Node::open(disk, options(seed), Duration::ZERO, Outbox::none(), genesis).ok()
}

fn put(key: &str, value: &str) -> Command {
    Command::Put(PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    })
}

fn delete(key: &str) -> Command {
    Command::DeleteRange(DeleteRangeRequest {
        key: key.into(),
        ..DeleteRangeRequest::default()
    })
}

fn compact(revision: i64) -> Command {
    Command::Compact(CompactionRequest {
        revision,
        physical: true,
    })
}

/// A put that is done only if the key has been put so many times before.
fn put_once(key: &str, before: i64) -> Command {
    let put = PutRequest {
        key: key.into(),
        value: before.to_string().into(),
        ..PutRequest::default()
    };
    Command::Txn(TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Version as i32,
            key: key.into(),
            target_union: Some(TargetUnion::Version(before)),
            ..Compare::default()
        }],
        success: vec![RequestOp {
            request: Some(Request::RequestPut(put)),
        }],
        failure: Vec::new(),
    })
}

fn propose(command: Command) -> Input<usize> {
    Input::Propose {
        command: Box::new(command),
        ticket: 0,
    }
}

/// The answer to one command; `None` when the power went first.
fn ask(node: &mut Node<usize>, now: Duration, command: Command) -> Option<Result<Reply, Refused>> {
    let mut outputs = node.step(now, [propose(command)]).ok()?;
    for _ in 0..50 {
        for output in outputs {
            if let Output::Reply { result, .. } = output {
                return Some(result);
            }
        }
        outputs = node.step(now, []).ok()?;
    }
    panic!("one member answers at once")
}

fn version(node: &Node<usize>, key: &str) -> i64 {
    let reader = Reader::new(&node.database()).expect("the state can be read");
    let request = RangeRequest {
        key: key.into(),
        ..RangeRequest::default()
    };
    let found = reader.range(&request).expect("the present can be read");
    found.kvs.first().map_or(0, |kv| kv.version)
}

#[test]
fn issue_13766_an_entry_is_never_applied_twice_whenever_the_power_goes() {
    for crash in 0..120 {
        let mut disk = SimulatedDisk::default();
        let mut acknowledged = 0;
        for (life, crash) in [Some(crash), None].into_iter().enumerate() {
            if let Some(crash) = crash {
                disk.crash_after(crash);
            }
            let Some(mut node) = start(&disk, life as u64) else {
                disk = disk.after_crash(&mut Random(crash.unwrap_or(0)));
                continue;
            };
            let mut now = Duration::ZERO;
            if node.step(now, []).is_ok() {
                let held = version(&node, "k");
                assert!(
                    held == acknowledged || held == acknowledged + 1,
                    "crash at {crash:?}: {held} puts are there, {acknowledged} were acknowledged"
                );
                acknowledged = held;
                for _ in 0..30 {
                    now += Duration::from_millis(50);
                    match ask(&mut node, now, put_once("k", acknowledged)) {
                        Some(Ok(Reply::Answer(Answer::Txn(txn)))) => {
                            assert!(txn.succeeded, "crash at {crash:?}: applied before");
                            acknowledged += 1;
                        }
                        Some(other) => panic!("{other:?}"),
                        None => break,
                    }
                }
            }
            drop(node);
            disk = disk.after_crash(&mut Random(crash.unwrap_or(0)));
        }
    }
}

#[test]
fn issue_14370_a_single_member_answers_only_what_its_disk_has_synced() {
    let mut unanswered = 0;
    for crash in 0..40 {
        let disk = SimulatedDisk::default();
        let mut node = start(&disk, 1).expect("it starts");
        node.step(Duration::ZERO, []).expect("it goes on");
        disk.crash_after(crash);
        let mut acknowledged = 0;
        while ask(&mut node, Duration::ZERO, put("k", "v")).is_some() {
            acknowledged += 1;
        }
        unanswered += 1;
        drop(node);
        // Nothing that was not synced survives.
        let disk = disk.after_crash(&mut Random(0));
        let mut node = start(&disk, 2).expect("it starts");
        node.step(Duration::ZERO, []).expect("it goes on");
        assert!(version(&node, "k") >= acknowledged, "crash at {crash}");
    }
    assert_eq!(unanswered, 40);
}

#[test]
fn issues_14685_and_17780_a_crash_in_compaction_loses_nothing_and_turns_no_revision_back() {
    for crash in 0..60 {
        let disk = SimulatedDisk::default();
        let mut node = start(&disk, 1).expect("it starts");
        node.step(Duration::ZERO, []).expect("it goes on");
        for i in 0..20 {
            ask(&mut node, Duration::ZERO, put(&format!("k{}", i % 3), "v"));
        }
        // The last revisions are deletions, which compaction removes: the revision must not go with them.
        for i in 0..3 {
            ask(&mut node, Duration::ZERO, delete(&format!("k{i}")));
        }
        let before = node.revision();
        disk.crash_after(crash);
        let mut now = Duration::ZERO;
        ask(&mut node, now, compact(before));
        for _ in 0..5 {
            now += Duration::from_millis(300);
            if node.step(now, []).is_err() {
                break;
            }
        }
        drop(node);
        let disk = disk.after_crash(&mut Random(crash));
        let mut node = start(&disk, 2).expect("it starts");
        node.step(now, []).expect("it goes on");
        assert_eq!(node.revision(), before, "crash at {crash}");
    }
}

/// A state with these commands applied, and its hub.
fn hub_of(commands: &[Command]) -> (Hub, Reader) {
    let disk = SimulatedDisk::default();
    let mut state = open(&disk);
    let entries: Vec<_> = commands
        .iter()
        .enumerate()
        .map(|(i, command)| entry(i as u64 + 1, command))
        .collect();
    state.apply(&entries).expect("the state takes it");
    while state.compacts() {
        state.compact_some(3).expect("the state compacts");
    }
    let reader = Reader::new(&state.database()).expect("the state can be read");
    (Hub::new(reader.revision, reader.compact_revision), reader)
}

fn watch_from(revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: vec![0],
        range_end: vec![0],
        start_revision: revision,
        ..WatchCreateRequest::default()
    }
}

fn revisions(responses: &[WatchResponse]) -> Vec<i64> {
    let events = responses.iter().flat_map(|r| &r.events);
    events
        .filter_map(|e| e.kv.as_ref().map(|kv| kv.mod_revision))
        .collect()
}

#[test]
fn issue_15220_progress_is_never_told_ahead_of_the_events() {
    let commands: Vec<Command> = (0..10).map(|_| put("k", "v")).collect();
    let (mut hub, reader) = hub_of(&commands);
    let stream = hub.open();
    let mut out = Vec::new();
    hub.create(stream, watch_from(2), &mut out);
    hub.ask_progress(stream, &mut out);
    hub.catch_up(stream, &reader, &mut out)
        .expect("the state can be read");
    let mut told = 1;
    let mut progress = 0;
    for (_, response) in out.iter().filter(|(_, r)| !r.created) {
        if response.events.is_empty() {
            progress = response.header.map_or(0, |h| h.revision);
            assert!(
                progress <= told,
                "progress {progress} after events up to {told}"
            );
        }
        told = revisions(std::slice::from_ref(response))
            .last()
            .copied()
            .unwrap_or(told);
    }
    assert_eq!((told, progress), (11, 11));
}

#[test]
fn issues_15271_and_17529_a_starved_stream_loses_no_event_and_never_goes_back() {
    let (mut hub, _) = hub_of(&[]);
    let disk = SimulatedDisk::default();
    let mut state = open(&disk);
    let stream = hub.open();
    let mut out = Vec::new();
    hub.create(stream, watch_from(0), &mut out);
    let mut told = Vec::new();
    let count = 3 * WINDOW as u64;
    for index in 1..=count {
        let applied = state
            .apply(&[entry(index, &put("k", "v"))])
            .expect("the state takes it");
        let reader = || Reader::new(&state.database());
        hub.publish(index as i64 + 1, &applied[0].1.events, &reader, &mut out)
            .expect("the state can be read");
    }
    // Only now does the client read.
    while told.len() < count as usize {
        for (_, response) in std::mem::take(&mut out) {
            told.extend(revisions(&[response]));
            hub.drained(stream);
        }
        if hub.can_catch_up(stream) {
            let reader = Reader::new(&state.database()).expect("the state can be read");
            hub.catch_up(stream, &reader, &mut out)
                .expect("the state can be read");
        }
        assert!(
            !out.is_empty() || told.len() == count as usize,
            "events are lost: {told:?}"
        );
    }
    assert_eq!(told, (2..2 + count as i64).collect::<Vec<_>>());
}

#[test]
fn issues_18089_and_19179_a_deletion_at_the_compacted_revision_is_told() {
    let (mut hub, reader) = hub_of(&[put("k", "v"), delete("k"), put("other", "v"), compact(3)]);
    let stream = hub.open();
    let mut out = Vec::new();
    hub.create(stream, watch_from(3), &mut out);
    hub.catch_up(stream, &reader, &mut out)
        .expect("the state can be read");
    let responses: Vec<WatchResponse> = out.into_iter().map(|(_, r)| r).collect();
    assert_eq!(revisions(&responses), [3, 4]);
    let first = responses
        .iter()
        .flat_map(|r| &r.events)
        .next()
        .expect("an event");
    assert_eq!(first.r#type, 1, "a deletion");
}

fn operation(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn read(key: &str) -> RequestOp {
    operation(Request::RequestRange(RangeRequest {
        key: key.into(),
        ..RangeRequest::default()
    }))
}

fn write(key: &str, ignore_value: bool) -> RequestOp {
    operation(Request::RequestPut(PutRequest {
        key: key.into(),
        ignore_value,
        ..PutRequest::default()
    }))
}

/// Reads and puts the same keys, in a transaction within it too; the last operation may be one that fails.
fn read_and_put(fails: bool) -> Command {
    let within = TxnRequest {
        success: vec![read("k"), read("l"), write("l", false), read("l")],
        ..TxnRequest::default()
    };
    Command::Txn(TxnRequest {
        success: vec![
            read("k"),
            write("k", false),
            read("k"),
            operation(Request::RequestTxn(within)),
            read("l"),
            match fails {
                true => write("not there", true),
                false => write("m", false),
            },
        ],
        ..TxnRequest::default()
    })
}

/// A client that watches all keys of a member, from one life of it to the next.
#[derive(Default)]
struct Watching {
    told: Vec<(i64, Vec<u8>)>,
}

impl Watching {
    /// Watches a life of the member in which it is given some commands, until its power goes. Returns how many succeeded.
    fn life(&mut self, node: &mut Node<usize>, commands: &[Command]) -> usize {
        let database = node.database();
        let reader = || Reader::new(&database);
        let mut hub = Hub::new(node.revision(), 0);
        let stream = hub.open();
        let mut out = Vec::new();
        let next = self.told.last().map_or(2, |(revision, _)| revision + 1);
        hub.create(stream, watch_from(next), &mut out);
        let (mut succeeded, mut now) = (0, Duration::ZERO);
        let inputs = commands
            .iter()
            .map(|command| vec![propose(command.clone())]);
        for inputs in std::iter::once(Vec::new()).chain(inputs) {
            now += Duration::from_millis(50);
            let Ok(outputs) = node.step(now, inputs) else {
                break;
            };
            for output in outputs {
                match output {
                    Output::Changed { revision, events } => hub
                        .publish(revision, &events, &reader, &mut out)
                        .expect("the state can be read"),
                    Output::Reply { result, .. } => succeeded += usize::from(result.is_ok()),
                    _ => {}
                }
            }
            let sight = reader().expect("the state can be read");
            hub.catch_up(stream, &sight, &mut out)
                .expect("the state can be read");
            for (_, response) in out.drain(..) {
                let kvs = response.events.into_iter().filter_map(|event| event.kv);
                self.told.extend(kvs.map(|kv| (kv.mod_revision, kv.key)));
                hub.drained(stream);
            }
        }
        succeeded
    }
}

#[test]
fn issue_17247_a_transaction_that_reads_what_it_writes_gives_each_event_once() {
    let commands: Vec<Command> = (0..12).map(|i| read_and_put(i % 3 == 0)).collect();
    for crash in 0..60 {
        let disk = SimulatedDisk::default();
        let mut node = start(&disk, 1).expect("it starts");
        let mut watching = Watching::default();
        disk.crash_after(crash);
        let succeeded = watching.life(&mut node, &commands);
        drop(node);
        // The entries since the last checkpoint are applied once more.
        let disk = disk.after_crash(&mut Random(crash));
        let mut node = start(&disk, 2).expect("it starts");
        let more = watching.life(&mut node, &commands);
        assert_eq!(more, 8, "four of them fail");
        let keys = ["k", "l", "m"].map(|key| key.as_bytes().to_vec());
        let all: Vec<_> = (2..=node.revision())
            .flat_map(|revision| keys.clone().map(|key| (revision, key)))
            .collect();
        assert!(all.len() >= 3 * (succeeded + more), "crash at {crash}");
        assert_eq!(watching.told, all, "crash at {crash}");
        let mut again = Watching::default();
        again.life(&mut node, &[]);
        assert_eq!(again.told, all, "a watch that reads the past");
    }
}

#[test]
fn issue_18667_a_compacted_read_in_a_transaction_is_refused_alike_whenever_space_is_given_back() {
    let read_old = |revision| {
        let range = RangeRequest {
            key: b"k".to_vec(),
            revision,
            ..RangeRequest::default()
        };
        let put = PutRequest {
            key: b"written".to_vec(),
            ..PutRequest::default()
        };
        Command::Txn(TxnRequest {
            success: vec![
                RequestOp {
                    request: Some(Request::RequestPut(put)),
                },
                RequestOp {
                    request: Some(Request::RequestRange(range)),
                },
            ],
            ..TxnRequest::default()
        })
    };
    let commands = [
        put("k", "1"),
        put("k", "2"),
        put("k", "3"),
        compact(4),
        read_old(3),
        read_old(4),
    ];
    let mut ends = Vec::new();
    for lazy in [false, true] {
        let disk = SimulatedDisk::default();
        let mut state = open(&disk);
        let mut answers = Vec::new();
        for (i, command) in commands.iter().enumerate() {
            let applied = state
                .apply(&[entry(i as u64 + 1, command)])
                .expect("the state takes it");
            answers.extend(applied.into_iter().map(|(_, applied)| applied.answer));
            while !lazy && state.compacts() {
                state.compact_some(1).expect("the state compacts");
            }
        }
        assert_eq!(answers[4], Err(Refused::Compacted));
        assert!(answers[5].is_ok());
        ends.push((answers, state.revision));
    }
    assert_eq!(ends[0], ends[1]);
}

#[test]
fn issue_20221_a_watch_of_a_future_revision_tells_nothing_before_it() {
    let (mut hub, _) = hub_of(&[]);
    let disk = SimulatedDisk::default();
    let mut state = open(&disk);
    let stream = hub.open();
    let mut out = Vec::new();
    hub.create(stream, watch_from(5), &mut out);
    for index in 1..=8 {
        let applied = state
            .apply(&[entry(index, &put("k", "v"))])
            .expect("the state takes it");
        let reader = || Reader::new(&state.database());
        hub.publish(index as i64 + 1, &applied[0].1.events, &reader, &mut out)
            .expect("the state can be read");
    }
    let responses: Vec<WatchResponse> = out.into_iter().map(|(_, r)| r).collect();
    assert_eq!(revisions(&responses), [5, 6, 7, 8, 9]);
}

#[test]
fn issue_20221_a_watch_of_a_future_revision_goes_on_from_no_earlier_one_after_progress() {
    // The state may come change by change, or leap as when it is received whole.
    for leaps in [false, true] {
        let (mut hub, _) = hub_of(&[]);
        let disk = SimulatedDisk::default();
        let mut state = open(&disk);
        let stream = hub.open();
        let mut out = Vec::new();
        let mut now = Duration::ZERO;
        let request = WatchCreateRequest {
            progress_notify: true,
            ..watch_from(6)
        };
        hub.create(stream, request, &mut out);
        assert!(out.remove(0).1.created);
        for index in 1..=8 {
            // Longer than the time between two notifications.
            now += Duration::from_secs(700);
            hub.tick(now, &mut out);
            hub.ask_progress(stream, &mut out);
            let applied = state
                .apply(&[entry(index, &put("k", "v"))])
                .expect("the state takes it");
            let revision = index as i64 + 1;
            let reader = Reader::new(&state.database()).expect("the state can be read");
            if leaps {
                hub.jumped(revision, 0);
                hub.catch_up(stream, &reader, &mut out)
            } else {
                let reader = || Reader::new(&state.database());
                hub.publish(revision, &applied[0].1.events, &reader, &mut out)
            }
            .expect("the state can be read");
        }
        now += Duration::from_secs(700);
        hub.tick(now, &mut out);
        let responses: Vec<WatchResponse> = out.into_iter().map(|(_, r)| r).collect();
        assert_eq!(revisions(&responses), [6, 7, 8, 9], "leaps: {leaps}");
        // A client goes on from where it was told that it is: never before what it asked for, nor before what it was told.
        let mut next = 6;
        let (mut of_watch, mut of_stream) = (0, 0);
        for response in &responses {
            if let Some(last) = revisions(std::slice::from_ref(response)).last() {
                assert!(*last >= next, "leaps: {leaps}: {last} after {next}");
                next = last + 1;
            } else {
                let told = response.header.map_or(0, |h| h.revision);
                assert!(told + 1 >= next, "leaps: {leaps}: at {told}, told {next}");
                next = told + 1;
                match response.watch_id {
                    -1 => of_stream += 1,
                    _ => of_watch += 1,
                }
            }
        }
        assert_eq!(next, 10);
        assert!(of_watch > 0 && of_stream > 0, "progress is told in the end");
    }
}
