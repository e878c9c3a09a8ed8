//! The state against the model: same commands, same answers, same reads at every revision.

use std::sync::Arc;

use orlop_store::command::{Command, Origin};
use orlop_store::consensus::Entry;
use orlop_store::mvcc::{ReadError, Reader};
use orlop_store::proto::etcdserverpb::{Member, PutRequest};
use orlop_store::proto::mvccpb::KeyValue;
use orlop_store::state::{Genesis, State};

use crate::model::Model;
use crate::random::{Commands, Random};
use crate::simulated_disk::SimulatedDisk;

pub(crate) fn genesis() -> Genesis {
    Genesis {
        cluster: 7,
        member: 1,
        members: vec![Member {
            id: 1,
            name: "a".into(),
            ..Member::default()
        }],
    }
}

pub(crate) fn open(disk: &SimulatedDisk) -> State {
    if !State::exists(disk).expect("the disk can be read") {
        State::create(disk, 4 << 20, &genesis()).expect("the state can be made");
    }
    State::open(Arc::new(disk.clone()), 4 << 20).expect("the state opens")
}

pub(crate) fn entry(index: u64, command: &Command) -> Entry {
    Entry {
        // A new state counts as having one entry.
        index: index + 1,
        term: 1,
        data: command.encode(Origin {
            member: 1,
            number: index,
        }),
        ..Entry::default()
    }
}

/// The changes that the state tells of from a revision on.
pub(crate) fn told(reader: &Reader, from: i64) -> Vec<(i64, Vec<u8>, Option<KeyValue>)> {
    let (mut out, mut next) = (Vec::new(), from);
    while next <= reader.revision {
        let (events, after) = reader
            .changes(next, reader.revision, 50_000)
            .expect("the state can be read");
        out.extend(events.into_iter().filter_map(|event| {
            let kv = event.kv?;
            Some((
                kv.mod_revision,
                kv.key.clone(),
                Some(kv).filter(|_| event.r#type == 0),
            ))
        }));
        next = after;
    }
    out.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    out
}

/// Asks both the same.
pub(crate) fn compare_reads(
    state: &Reader,
    model: &Model,
    random: &mut Random,
    count: usize,
    seed: u64,
) {
    for _ in 0..count {
        let request = Commands {
            random,
            revision: model.revision,
            ttl: 0,
        }
        .range_request();
        let answer = match state.range(&request) {
            Ok(answer) => Ok(answer),
            Err(ReadError::Refused(refused)) => Err(refused),
            Err(err) => panic!("seed {seed}: {err}"),
        };
        assert_eq!(answer, model.range(&request), "seed {seed}: {request:?}");
    }
}

#[test]
fn every_command_and_read_does_what_the_model_does() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let disk = SimulatedDisk::default();
        let mut state = open(&disk);
        let mut model = Model::default();
        let mut index = 0;
        for _ in 0..25 {
            let mut batch = Vec::new();
            let mut expected = Vec::new();
            for _ in 0..=random.below(6) {
                let command = Commands {
                    random: &mut random,
                    revision: model.revision,
                    ttl: 100,
                }
                .command();
                index += 1;
                batch.push(entry(index, &command));
                expected.push((command.clone(), model.apply(&command)));
            }
            let applied = state.apply(&batch).expect("the state takes it");
            for ((_, applied), (command, expected)) in applied.into_iter().zip(expected) {
                assert_eq!(applied.answer, expected, "seed {seed}: {command:?}");
            }
            if random.once_in(3) && state.compacts() {
                state
                    .compact_some(1 + random.below(6) as usize)
                    .expect("the state compacts");
            }
            if random.once_in(8) {
                state.checkpoint().expect("the state can be written");
                drop(state);
                state = open(&disk);
            }
            let reader = Reader::new(&state.database()).expect("the state can be read");
            compare_reads(&reader, &model, &mut random, 12, seed);
            let from = model.compact_revision.max(1);
            assert_eq!(told(&reader, from), model.changes(from), "seed {seed}");
            let leases: Vec<(i64, i64)> =
                model.leases.iter().map(|(id, ttl)| (*id, *ttl)).collect();
            assert_eq!(
                state.leases().expect("the leases can be read"),
                leases,
                "seed {seed}"
            );
        }
    }
}

#[test]
fn compaction_gives_everything_back_that_no_read_can_see() {
    let disk = SimulatedDisk::default();
    let mut state = open(&disk);
    let put = |value: usize| {
        Command::Put(PutRequest {
            key: b"k".to_vec(),
            value: vec![0; value],
            ..PutRequest::default()
        })
    };
    state
        .apply(&(1..=500).map(|i| entry(i, &put(1000))).collect::<Vec<_>>())
        .expect("the state takes it");
    let before = state.live_bytes;
    let compact = Command::Compact(orlop_store::proto::etcdserverpb::CompactionRequest {
        revision: state.revision,
        physical: false,
    });
    state
        .apply(&[entry(501, &compact)])
        .expect("the state takes it");
    let mut steps = 0;
    while state.compacts() {
        state.compact_some(100).expect("the state compacts");
        steps += 1;
    }
    assert!(steps > 1, "it is done in pieces");
    assert_eq!(state.live_bytes * 500, before);
}

#[test]
fn members_that_compact_at_different_times_have_the_same_hash_in_the_end() {
    let (one, two) = (SimulatedDisk::default(), SimulatedDisk::default());
    let (mut one, mut two) = (open(&one), open(&two));
    let mut random = Random(3);
    let mut model = Model::default();
    for index in 1..300 {
        let command = Commands {
            random: &mut random,
            revision: model.revision,
            ttl: 100,
        }
        .command();
        let _ = model.apply(&command);
        for state in [&mut one, &mut two] {
            state
                .apply(&[entry(index, &command)])
                .expect("the state takes it");
        }
        if one.compacts() {
            one.compact_some(2).expect("the state compacts");
        }
    }
    for state in [&mut one, &mut two] {
        while state.compacts() {
            state.compact_some(10).expect("the state compacts");
        }
    }
    let hash = |state: &State| {
        Reader::new(&state.database())
            .expect("the state can be read")
            .hash(0)
            .expect("the present can be hashed")
    };
    assert_eq!(hash(&one), hash(&two));
}
