//! The log on disk: what it keeps, and how it tells a torn write from damage.

use std::sync::Arc;

use orlop_store::consensus::{Entry, HardState};
use orlop_store::wal::{Owner, Recovered, Wal, WalError};

use crate::random::Random;
use crate::simulated_disk::SimulatedDisk;

const OWNER: Owner = Owner {
    cluster: 7,
    member: 1,
};
/// Smaller than a real one, so that many can be looked at.
const SEGMENT_BYTES: usize = 64 << 10;
const FIRST: &str = "wal-0000000000000001";

fn open(disk: &SimulatedDisk) -> Result<(Wal, Recovered), WalError> {
    Wal::open(Arc::new(disk.clone()), OWNER, 5, SEGMENT_BYTES)
}

fn entry(index: u64, length: usize) -> Entry {
    Entry {
        index,
        term: 1,
        data: vec![index as u8; length],
        ..Entry::default()
    }
}

fn state(commit: u64) -> HardState {
    HardState {
        term: 1,
        vote: 1,
        commit,
    }
}

/// A log of `count` entries, one a block, and the offset at which each block begins; the last is the end.
fn written(count: u64, length: usize) -> (SimulatedDisk, Vec<usize>) {
    let disk = SimulatedDisk::default();
    let (mut wal, _) = open(&disk).expect("an empty log opens");
    let mut offsets = vec![64];
    for index in 1..=count {
        wal.append(None, &[entry(index, length)], &state(index - 1))
            .expect("the log takes it");
        // Head 24, hard state 25, entry 26 and its data, up to a multiple of 8.
        let last = offsets[offsets.len() - 1];
        offsets.push(last + (24 + 25 + 26 + length).next_multiple_of(8));
    }
    (disk, offsets)
}

/// The log of a disk with one segment of these bytes.
fn of_bytes(bytes: Vec<u8>) -> (SimulatedDisk, Result<(Wal, Recovered), WalError>) {
    let disk = SimulatedDisk::default();
    disk.put(FIRST, bytes);
    let opened = open(&disk);
    (disk, opened)
}

#[test]
fn what_was_appended_is_read_again_over_segments_and_replaced_entries() {
    let disk = SimulatedDisk::default();
    let (mut wal, empty) = open(&disk).expect("an empty log opens");
    assert_eq!(empty, Recovered::default());
    for index in 1..=30 {
        wal.append(None, &[entry(index, 6_000)], &state(0))
            .expect("the log takes it");
    }
    assert!(wal.segments() > 2);
    wal.append(
        None,
        &[entry(29, 10), entry(30, 10), entry(31, 10)],
        &state(28),
    )
    .expect("the log takes it");
    drop(wal);
    let (mut wal, found) = open(&disk).expect("the log opens");
    assert_eq!(found.hard_state, state(28));
    assert_eq!(
        found.entries.iter().map(|e| e.index).collect::<Vec<_>>(),
        (1..=31).collect::<Vec<_>>()
    );
    assert_eq!(found.entries[27], entry(28, 6_000));
    assert_eq!(found.entries[28], entry(29, 10));
    // What is given up is gone, what is not is there.
    wal.trim(20).expect("segments are given up");
    wal.append(None, &[entry(32, 10)], &state(31))
        .expect("the log takes it");
    let (_, found) = open(&disk).expect("the log opens");
    let first = found.entries[0].index;
    assert!(first > 1 && first <= 21, "it begins at {first}");
    assert_eq!(found.entries.last(), Some(&entry(32, 10)));
}

#[test]
fn a_used_segment_is_used_again_and_its_old_blocks_are_not_seen() {
    let disk = SimulatedDisk::default();
    let (mut wal, _) = open(&disk).expect("an empty log opens");
    for index in 1..=60 {
        wal.append(None, &[entry(index, 6_000)], &state(0))
            .expect("the log takes it");
        wal.trim(index - 1).expect("segments are given up");
        let (_, found) = open(&disk).expect("the log opens");
        assert_eq!(found.entries.last(), Some(&entry(index, 6_000)));
    }
    assert!(disk.names().len() <= 3, "{:?}", disk.names());
}

#[test]
fn a_torn_last_block_is_cut_and_every_block_before_it_is_kept() {
    let (disk, offsets) = written(6, 100);
    let whole = disk.bytes(FIRST);
    let (start, end) = (offsets[5], offsets[6]);
    for cut in start..end {
        let mut bytes = whole.clone();
        bytes[cut..end].fill(0);
        if bytes == whole {
            continue;
        }
        let (disk, opened) = of_bytes(bytes);
        let (mut wal, found) = opened.expect("a torn tail is no damage");
        assert_eq!(found.entries.len(), 5, "cut at {cut}");
        wal.append(None, &[entry(6, 7)], &state(5))
            .expect("the log takes it");
        let (_, again) = open(&disk).expect("the log opens");
        assert_eq!(again.entries.last(), Some(&entry(6, 7)));
    }
}

#[test]
fn damage_before_the_last_block_is_named_and_nothing_is_changed() {
    let (disk, offsets) = written(6, 100);
    let whole = disk.bytes(FIRST);
    for at in offsets[0]..offsets[5] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let block = offsets
            .iter()
            .rposition(|o| *o <= at)
            .expect("it is in a block");
        let padding =
            offsets[block + 1] - at <= (offsets[block + 1] - offsets[block]) - (24 + 25 + 26 + 100);
        let (disk, opened) = of_bytes(bytes.clone());
        match opened {
            Err(WalError::Damaged { name, offset, .. }) => {
                assert_eq!(
                    (name.as_str(), offset),
                    (FIRST, offsets[block]),
                    "flipped at {at}"
                );
            }
            // Padding carries nothing.
            Ok((_, found)) => assert!(padding && found.entries.len() == 6, "flipped at {at}"),
            Err(other) => panic!("flipped at {at}: {other}"),
        }
        assert!(
            padding || disk.bytes(FIRST) == bytes,
            "flipped at {at}: the file was changed"
        );
    }
}

#[test]
fn a_missing_or_foreign_segment_is_named() {
    let disk = SimulatedDisk::default();
    let (mut wal, _) = open(&disk).expect("an empty log opens");
    for index in 1..=30 {
        wal.append(None, &[entry(index, 6_000)], &state(0))
            .expect("the log takes it");
    }
    let segments: Vec<String> = disk
        .names()
        .into_iter()
        .filter(|n| n.starts_with("wal-0"))
        .collect();
    let without = SimulatedDisk::default();
    for name in segments.iter().filter(|n| **n != segments[1]) {
        without.put(name, disk.bytes(name));
    }
    assert!(matches!(open(&without), Err(WalError::Damaged { name, .. }) if name == segments[2]));
    let foreign = Wal::open(
        Arc::new(disk),
        Owner {
            cluster: 7,
            member: 2,
        },
        5,
        SEGMENT_BYTES,
    );
    assert!(matches!(foreign, Err(WalError::Foreign { member: 1, .. })));
}

#[test]
fn hostile_bytes_never_break_the_reader() {
    let (disk, offsets) = written(8, 300);
    let whole = disk.bytes(FIRST);
    let end = offsets[8];
    let mut random = Random(1);
    for _ in 0..400 {
        let mut bytes = whole.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(end as u64) as usize;
            match random.below(4) {
                0 => bytes[at] = random.next() as u8,
                1 => bytes[at..(at + 8).min(SEGMENT_BYTES)].fill(0xff),
                2 => {
                    let from = random.below(end as u64) as usize;
                    let length = (random.below(400) as usize).min(SEGMENT_BYTES - at.max(from));
                    bytes.copy_within(from..from + length, at);
                }
                _ => bytes.truncate(bytes.len() - random.below(3) as usize),
            }
        }
        let (_, opened) = of_bytes(bytes);
        if let Ok((_, found)) = opened {
            // What is read is a beginning of what was written.
            assert!(
                found
                    .entries
                    .iter()
                    .enumerate()
                    .all(|(i, e)| *e == entry(i as u64 + 1, 300))
            );
        }
    }
    let noise: Vec<u8> = (0..SEGMENT_BYTES).map(|_| random.next() as u8).collect();
    assert!(matches!(
        of_bytes(noise).1,
        Err(WalError::Damaged { offset: 0, .. })
    ));
    assert!(of_bytes(Vec::new()).1.is_err());
}
