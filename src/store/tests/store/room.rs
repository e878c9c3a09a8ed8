//! One member without room, with old revisions to give up, and with damage on its disk.

use std::sync::Arc;
use std::time::Duration;

use orlop_store::command::Command;
use orlop_store::disk::Directory;
use orlop_store::mvcc::{Reader, Scrub};
use orlop_store::node::{Node, NodeError, Options, Outbox, Output};
use orlop_store::proto::etcdserverpb::RangeRequest;
use orlop_store::proto::mvccpb::KeyValue;
use orlop_store::refused::Refused;
use orlop_store::state::{Database, StateError};

use crate::keyspace::genesis;
use crate::random::Random;
use crate::simulated_disk::SimulatedDisk;
use crate::simulation::{ask, has, open, put, reader, serving};

#[test]
fn a_full_disk_refuses_what_grows_serves_the_rest_and_heals() {
    for lies in [false, true] {
        let disk = SimulatedDisk::default();
        let (mut node, mut now) = serving(&disk);
        ask(&mut node, now, put(b"before", vec![1; 1000], 0)).expect("there is room");
        disk.set_full(true, lies);
        let mut refused = false;
        let mut taken = Vec::new();
        for i in 0..400 {
            now += Duration::from_millis(100);
            let key = format!("k{i}").into_bytes();
            match ask(&mut node, now, put(&key, vec![2; 40_000], 0)) {
                Ok(_) => taken.push(key),
                Err(err) => {
                    assert_eq!(err, Refused::NoSpace);
                    refused = true;
                }
            }
        }
        assert!(refused, "it took everything (lies: {lies})");
        assert!(
            has(&node, b"before") && taken.iter().all(|key| has(&node, key)),
            "reads go on"
        );
        let delete = Command::DeleteRange(orlop_store::proto::etcdserverpb::DeleteRangeRequest {
            key: b"before".to_vec(),
            ..Default::default()
        });
        ask(&mut node, now, delete).expect("a deletion is taken");
        disk.set_full(false, false);
        now += Duration::from_secs(1);
        node.step(now, []).expect("the member goes on");
        ask(&mut node, now, put(b"after", vec![3; 1000], 0)).expect("it has healed");
        let disk = disk.after_crash(&mut Random(2));
        drop(node);
        let mut node = open(&disk, 3, now).expect("the member starts");
        node.step(now, []).expect("the member goes on");
        assert!(
            has(&node, b"after")
                && !has(&node, b"before")
                && taken.iter().all(|key| has(&node, key)),
            "all of it was durable"
        );
    }
}

#[test]
fn old_revisions_are_given_up_by_age_by_number_and_over_the_quota_at_once() {
    use orlop_store::node::AutoCompaction::{Age, Count, Never};
    let second = Duration::from_secs(1);
    for (auto_compaction, quota_bytes, revision) in [
        (Never, 1 << 30, 0),
        // Of 100 revisions in 100 seconds those of the last 30 are kept, with a tenth of doubt.
        (Age(30 * second), 1 << 30, 70),
        (Count(20), 1 << 30, 80),
        (Count(20), 20_000, 95),
    ] {
        let disk = SimulatedDisk::default();
        let options = Options {
            seed: 1,
            segment_bytes: 1 << 20,
            auto_compaction,
            quota_bytes,
            ..Options::default()
        };
        let disk = Arc::new(disk);
        let mut node = Node::open(disk, options, Duration::ZERO, Outbox::none(), genesis)
            .expect("the member starts");
        let mut now = Duration::ZERO;
        node.step(now, []).expect("the member goes on");
        for i in 0..100 {
            now += second;
            while let Err(err) = ask(&mut node, now, put(b"k", vec![i; 2000], 0)) {
                assert_eq!(err, Refused::NoSpace);
                now += Duration::from_millis(100);
                node.step(now, []).expect("the member goes on");
                assert!(now < 300 * second, "there is no room again");
            }
        }
        let reached = reader(&node).compact_revision;
        assert!(
            (revision - 4..=revision + 6).contains(&reached),
            "{auto_compaction:?} {quota_bytes}: {reached}, not {revision}"
        );
    }
}

#[test]
fn a_damaged_record_is_told_and_never_served() {
    let disk = SimulatedDisk::default();
    let (mut node, now) = serving(&disk);
    let value = b"a value that is not found anywhere else".to_vec();
    ask(&mut node, now, put(b"k", value.clone(), 0)).expect("there is room");
    node.close().expect("the state can be written");
    let mut bytes = disk.bytes("state.redb");
    let places: Vec<usize> = (0..bytes.len() - value.len())
        .filter(|at| bytes[*at] == value[0] && bytes[*at..].starts_with(&value))
        .collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at + 5] ^= 1;
    }
    let damaged = SimulatedDisk::default();
    for name in disk.names() {
        let bytes = if name == "state.redb" {
            bytes.clone()
        } else {
            disk.bytes(&name)
        };
        damaged.put(&name, bytes);
    }
    // Either the database or the record's own checksum finds it.
    let Ok(node) = open(&damaged, 2, now) else {
        return;
    };
    let request = RangeRequest {
        key: b"k".to_vec(),
        ..RangeRequest::default()
    };
    assert!(reader(&node).range(&request).is_err());
}

#[test]
fn a_lost_log_and_a_lost_state_are_told_and_nothing_begins_anew() {
    let disk = SimulatedDisk::default();
    let (mut node, now) = serving(&disk);
    ask(&mut node, now, put(b"k", vec![1], 0)).expect("there is room");
    drop(node);
    let without = |part: &str| {
        let left = SimulatedDisk::default();
        for name in disk.names().iter().filter(|n| !n.starts_with(part)) {
            left.put(name, disk.bytes(name));
        }
        left
    };
    let no_log = without("wal-");
    assert!(matches!(open(&no_log, 2, now), Err(NodeError::LogMissing)));
    let no_state = without("state");
    let names = no_state.names();
    assert!(matches!(
        open(&no_state, 2, now),
        Err(NodeError::Wal(orlop_store::wal::WalError::NoState { .. }))
    ));
    assert_eq!(no_state.names(), names, "nothing was removed or made");
}

/// A member's disk with 300 keys, as it is when the power goes, and after an orderly end.
fn filled() -> ([SimulatedDisk; 2], Duration) {
    let disk = SimulatedDisk::default();
    let (mut node, now) = serving(&disk);
    for i in 0..300 {
        let key = format!("key{i}");
        ask(&mut node, now, put(key.as_bytes(), vec![b'v'; 200], 0)).expect("there is room");
    }
    let crashed = copied(&disk, |_, _| {});
    node.close().expect("the state can be written");
    ([crashed, copied(&disk, |_, _| {})], now)
}

fn copied(disk: &SimulatedDisk, mut change: impl FnMut(&str, &mut Vec<u8>)) -> SimulatedDisk {
    let copy = SimulatedDisk::default();
    for name in disk.names() {
        let mut bytes = disk.bytes(&name);
        change(&name, &mut bytes);
        copy.put(&name, bytes);
    }
    copy
}

/// How an attempt to read all keys from a damaged state ended.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// All of them were there.
    Whole,
    /// Some were not, and nothing was said.
    Silent,
    /// It was told that they are not.
    Told,
    /// A fault in the database's own code; the program leaves word of it.
    Panic,
}

fn outcome(disk: &SimulatedDisk, now: Duration) -> Outcome {
    let attempt = || {
        let mut node = open(disk, 2, now)?;
        // What the log has is applied again.
        for tick in 1..=40 {
            node.step(now + Duration::from_millis(100) * tick, [])?;
        }
        let request = RangeRequest {
            key: vec![0],
            range_end: vec![0],
            ..RangeRequest::default()
        };
        Ok(reader(&node).range(&request).map(|response| response.kvs))
    };
    let all = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(attempt)) {
        Err(_) => return Outcome::Panic,
        Ok(Err(NodeError::State(err))) if err.is_damage() => return Outcome::Told,
        Ok(Err(err)) => panic!("{err:?} is taken for damage"),
        Ok(Ok(all)) => all.expect("it was checked"),
    };
    let good = |kv: &KeyValue| kv.key.starts_with(b"key") && kv.value == [b'v'; 200];
    if all.len() == 300 && all.iter().all(good) {
        Outcome::Whole
    } else {
        Outcome::Silent
    }
}

#[test]
fn damage_anywhere_in_the_state_is_found_when_it_is_opened() {
    let (disks, now) = filled();
    let mut random = Random(7);
    let (mut told, mut panics) = (0, 0);
    for round in 0..120 {
        let damaged = copied(&disks[round % 2], |name, bytes| {
            if name != "state.redb" {
                return;
            }
            let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
            let at = used[random.below(used.len() as u64) as usize];
            match round % 6 {
                0 => bytes.truncate(at),
                1 => bytes[at / 512 * 512..][..512].fill(0),
                _ => bytes[at] ^= 1 << random.below(8),
            }
        });
        match outcome(&damaged, now) {
            Outcome::Silent => panic!("round {round}: keys are missing, and nothing was said"),
            Outcome::Told => told += 1,
            // Not all of the file is in use, and an older state is as good with the log.
            Outcome::Whole => {}
            Outcome::Panic => panics += 1,
        }
    }
    assert!(told > 20, "only {told} were found");
    assert!(panics < 12, "{panics} ended with a fault");
}

#[test]
fn a_state_that_could_not_be_opened_without_a_fault_is_taken_for_damaged() {
    let (disks, now) = filled();
    let after = |suspicion: &[u8]| {
        let disk = copied(&disks[0], |_, _| {});
        disk.put("suspect", suspicion.to_vec());
        let outcome = outcome(&disk, now);
        (outcome, disk.names().contains(&"suspect".to_owned()))
    };
    assert_eq!(after(b"o"), (Outcome::Told, true));
    // One that ran before the fault is looked at, and found whole.
    assert_eq!(after(b"r"), (Outcome::Whole, false));
    assert_eq!(after(b""), (Outcome::Whole, false));
}

/// Looks at all records, a few at a time.
fn scrubbed(database: &Database) -> Result<(), StateError> {
    let mut scrub = Scrub::default();
    let mut steps = 0;
    while scrub != Scrub::Done {
        scrub.step(&Reader::new(database)?, 7)?;
        steps += 1;
        assert!(steps < 1000, "it gets on");
    }
    assert!(steps > 20, "it takes little at a time");
    Ok(())
}

#[test]
fn keys_that_stand_for_others_are_found_by_a_look_at_all() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = || {
        let disk = Directory::open(directory.path()).expect("it can be used");
        let node: Node<usize> = Node::open(
            Arc::new(disk),
            Options::default(),
            Duration::ZERO,
            Outbox::none(),
            genesis,
        )
        .expect("the checksums are right");
        node
    };
    let mut node = open();
    let mut now = Duration::ZERO;
    while !node.step(now, []).expect("it runs").iter().any(leads) {
        now += Duration::from_millis(100);
    }
    for i in 0..60 {
        let key = format!("key{i}");
        ask(&mut node, now, put(key.as_bytes(), vec![b'v'; 20], 0)).expect("there is room");
    }
    ask(&mut node, now, put(b"key7", vec![b'w'; 20], 0)).expect("there is room");
    scrubbed(&node.database()).expect("nothing is damaged");
    node.close().expect("the state can be written");
    // As a fault in a page that was read, changed and written again would do it.
    let table = redb::TableDefinition::<&[u8], (i64, i64, i64, i64, i64)>::new("current");
    let raw = redb::Database::open(directory.path().join("state.redb")).expect("it opens");
    let write = raw.begin_write().expect("it can be written");
    {
        let mut table = write.open_table(table).expect("there is one");
        let pointer = table.remove(&b"key7"[..]).expect("it can be read");
        let pointer = pointer.expect("it is there").value();
        let put = table.insert(&b"kez7"[..], pointer);
        put.expect("it can be written");
    }
    write.commit().expect("it can be written");
    drop(raw);
    let found = scrubbed(&open().database());
    assert!(
        matches!(found, Err(StateError::Damaged { .. })),
        "{found:?}"
    );
}

fn leads(output: &Output<usize>) -> bool {
    matches!(output, Output::Status(status) if status.serves)
}
