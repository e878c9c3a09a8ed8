//! The store and the reader on real directories: rotation, restarts, crashes, a full disk, following.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use orlop_journal::clock::Moment;
use orlop_journal::entry::{Entry, Id, Transport};
use orlop_journal::filter::Filter;
use orlop_journal::follow::Follower;
use orlop_journal::format::HEADER_BYTES;
use orlop_journal::reader::{Damage, DamageKind, Direction, Item, Journal, Record};
use orlop_journal::segments;
use orlop_journal::store::{Error, Options, Store};
use proptest::prelude::*;
use tempfile::TempDir;

const BOOT: Id = Id([1; 16]);
const NEXT_BOOT: Id = Id([2; 16]);

fn store(directory: &Path, boot: Id, budget_bytes: u64) -> Store {
    Store::new(Options {
        directory: directory.to_owned(),
        budget_bytes: Some(budget_bytes),
        machine: Id([9; 16]),
        boot,
    })
}

fn at(us: u64) -> Moment {
    Moment {
        realtime_us: 1_700_000_000_000_000 + us,
        monotonic_us: us,
    }
}

fn line(text: &str) -> Entry {
    let mut entry = Entry::new(6, Transport::Stdout, text.as_bytes().to_vec());
    entry.unit = Some("web.service".to_owned());
    entry
}

fn line_at(text: &str, us: u64) -> Entry {
    let mut entry = line(text);
    entry.realtime_us = at(us).realtime_us;
    entry.monotonic_us = us;
    entry
}

/// Writes the lines in one go, as one process would.
fn write(directory: &Path, boot: Id, lines: &[&str]) {
    let mut store = store(directory, boot, 1 << 20);
    for text in lines {
        store.push(line(text), at(0));
    }
    store.flush(at(0));
    assert!(store.take_failure().is_none());
}

fn read_all(directory: &Path, direction: Direction) -> (Vec<Record>, Vec<Damage>) {
    let journal = Journal::open(directory).unwrap();
    let (mut records, mut damage) = (Vec::new(), Vec::new());
    for item in journal.entries(&Filter::default(), direction) {
        match item.unwrap() {
            Item::Entry(record) => records.push(record),
            Item::Damage(found) => damage.push(found),
        }
    }
    (records, damage)
}

fn texts(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| String::from_utf8_lossy(&record.entry.message).into_owned();
    records.iter().map(text).collect()
}

fn newest(directory: &Path) -> PathBuf {
    segments::list(directory).unwrap().pop().unwrap().path
}

#[test]
fn a_restarted_writer_goes_on_in_the_same_segment() {
    let directory = TempDir::new().unwrap();
    write(directory.path(), BOOT, &["a", "b"]);
    write(directory.path(), BOOT, &["c"]);
    let (records, damage) = read_all(directory.path(), Direction::Forward);
    assert_eq!(texts(&records), ["a", "b", "c"]);
    assert_eq!(damage, []);
    assert_eq!(
        records.iter().map(|r| r.entry.sequence).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    assert_eq!(segments::list(directory.path()).unwrap().len(), 1);
}

#[test]
fn each_boot_has_segments_of_its_own() {
    let directory = TempDir::new().unwrap();
    write(directory.path(), BOOT, &["a"]);
    write(directory.path(), NEXT_BOOT, &["b", "c"]);
    let journal = Journal::open(directory.path()).unwrap();
    assert_eq!(journal.boot_ids(), [BOOT, NEXT_BOOT]);
    let filter = Filter {
        boot: Some(NEXT_BOOT),
        ..Filter::default()
    };
    assert_eq!(journal.entries(&filter, Direction::Forward).count(), 2);
    let (records, _) = read_all(directory.path(), Direction::Reverse);
    assert_eq!(texts(&records), ["c", "b", "a"]);
    let boots = journal.boots().unwrap();
    assert_eq!(
        boots.iter().map(|boot| boot.id).collect::<Vec<_>>(),
        [BOOT, NEXT_BOOT]
    );
}

#[test]
fn the_last_entries_come_in_order_and_from_all_segments() {
    let directory = TempDir::new().unwrap();
    write(directory.path(), BOOT, &["a", "b"]);
    write(directory.path(), NEXT_BOOT, &["c", "d"]);
    let journal = Journal::open(directory.path()).unwrap();
    let last = |count| {
        let items = journal.last(&Filter::default(), count).unwrap();
        items
            .into_iter()
            .filter_map(|item| match item {
                Item::Entry(record) => Some(record),
                Item::Damage(_) => None,
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(texts(&last(3)), ["b", "c", "d"]);
    assert_eq!(texts(&last(0)), [""; 0]);
    assert_eq!(texts(&last(99)), ["a", "b", "c", "d"]);
}

#[test]
fn the_oldest_segments_make_room_and_the_budget_holds() {
    let directory = TempDir::new().unwrap();
    let budget = 512 << 10;
    let mut store = store(directory.path(), BOOT, budget);
    let text = "x".repeat(1000);
    for number in 0..4000 {
        store.push(line(&format!("{number} {text}")), at(number));
        if number % 10 == 0 {
            store.flush(at(number));
            let files = segments::list(directory.path()).unwrap();
            assert!(files.iter().map(|file| file.bytes).sum::<u64>() <= budget);
        }
    }
    store.flush(at(4000));
    let (records, damage) = read_all(directory.path(), Direction::Forward);
    assert_eq!(damage, []);
    let numbers: Vec<u64> = records.iter().map(|record| record.entry.sequence).collect();
    assert_eq!(*numbers.last().unwrap(), 4000);
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    assert!(
        numbers.len() as u64 * 1000 > budget / 2,
        "only {} are left",
        numbers.len()
    );
}

#[test]
fn a_second_writer_is_refused() {
    let directory = TempDir::new().unwrap();
    let mut first = store(directory.path(), BOOT, 1 << 20);
    first.open().unwrap();
    let mut second = store(directory.path(), BOOT, 1 << 20);
    assert!(matches!(second.open(), Err(Error::Locked(_))));
    drop(first);
    second.open().unwrap();
}

#[test]
fn a_segment_that_was_never_finished_is_put_away() {
    let directory = TempDir::new().unwrap();
    write(directory.path(), BOOT, &["a"]);
    fs::write(directory.path().join(segments::file_name(2)), b"ORLOP").unwrap();
    write(directory.path(), BOOT, &["b"]);
    let (records, damage) = read_all(directory.path(), Direction::Forward);
    assert_eq!(
        (texts(&records), damage),
        (vec!["a".to_owned(), "b".to_owned()], vec![])
    );
}

#[test]
fn an_unreadable_segment_is_reported_left_alone_and_does_not_stop_the_log() {
    let directory = TempDir::new().unwrap();
    write(directory.path(), BOOT, &["a"]);
    let old = newest(directory.path());
    let mut bytes = fs::read(&old).unwrap();
    bytes[8] = 2;
    fs::write(&old, &bytes).unwrap();
    write(directory.path(), BOOT, &["b"]);
    let (records, damage) = read_all(directory.path(), Direction::Forward);
    assert_eq!(texts(&records), ["b"]);
    assert!(records[0].entry.sequence > 1);
    assert_eq!(damage.len(), 1);
    let told = damage[0].to_string();
    assert!(told.contains("version 2"), "{told}");
    assert!(told.contains(old.to_str().unwrap()), "{told}");
    assert_eq!(fs::read(&old).unwrap(), bytes);
}

#[test]
fn damage_inside_a_segment_ends_its_growth_but_not_the_log() {
    let directory = TempDir::new().unwrap();
    write(directory.path(), BOOT, &["a", "b", "c"]);
    let path = newest(directory.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[HEADER_BYTES + 50] ^= 1;
    fs::write(&path, &bytes).unwrap();
    write(directory.path(), BOOT, &["d"]);
    for direction in [Direction::Forward, Direction::Reverse] {
        let (mut records, damage) = read_all(directory.path(), direction);
        records.sort_by_key(|record| record.entry.sequence);
        assert_eq!(texts(&records), ["b", "c", "d"]);
        assert_eq!(damage.len(), 1);
        assert!(matches!(
            damage[0].kind,
            DamageKind::Records { offset: 96, .. }
        ));
    }
}

#[test]
fn the_kernels_numbers_are_found_again_behind_other_segments() {
    let directory = TempDir::new().unwrap();
    let mut first = store(directory.path(), BOOT, 1 << 20);
    let mut kernel = Entry::new(6, Transport::Kernel, b"booted".to_vec());
    kernel.kernel_sequence = Some(41);
    first.push(kernel, at(0));
    let text = "x".repeat(40_000);
    for _ in 0..20 {
        first.push(line(&text), at(1));
    }
    first.flush(at(1));
    drop(first);
    assert!(segments::list(directory.path()).unwrap().len() > 2);
    let mut same_boot = store(directory.path(), BOOT, 1 << 20);
    same_boot.open().unwrap();
    assert_eq!(same_boot.kernel_sequence(), Some(41));
    drop(same_boot);
    let mut other_boot = store(directory.path(), NEXT_BOOT, 1 << 20);
    other_boot.open().unwrap();
    assert_eq!(other_boot.kernel_sequence(), None);
}

#[test]
fn journals_of_two_machines_are_merged_by_time() {
    let directory = TempDir::new().unwrap();
    let other = TempDir::new().unwrap();
    for (path, times) in [(directory.path(), [1, 4, 5]), (other.path(), [2, 3, 6])] {
        let mut store = store(path, BOOT, 1 << 20);
        for time in times {
            store.push(line_at(&time.to_string(), time), at(time));
        }
        store.flush(at(9));
    }
    fs::copy(
        newest(other.path()),
        directory.path().join(segments::file_name(100)),
    )
    .unwrap();
    let (records, _) = read_all(directory.path(), Direction::Forward);
    assert_eq!(texts(&records), ["1", "2", "3", "4", "5", "6"]);
    let (records, _) = read_all(directory.path(), Direction::Reverse);
    assert_eq!(texts(&records), ["6", "5", "4", "3", "2", "1"]);
}

#[test]
fn unsynced_entries_have_a_deadline_and_urgent_ones_are_synced_at_once() {
    let directory = TempDir::new().unwrap();
    let mut store = store(directory.path(), BOOT, 1 << 20);
    assert_eq!(store.deadline_us(), None);
    store.push(line("a"), at(10));
    store.flush(at(10));
    assert_eq!(store.deadline_us(), Some(1_000_010));
    store.push(line("b"), at(900_000));
    store.flush(at(900_000));
    store.tick(at(900_000));
    assert_eq!(
        store.deadline_us(),
        Some(1_000_010),
        "the first one's second counts"
    );
    store.tick(at(1_000_010));
    assert_eq!(store.deadline_us(), None);
    let mut urgent = line("c");
    urgent.priority = 2;
    store.push(urgent, at(2_000_000));
    store.flush(at(2_000_000));
    assert_eq!(store.deadline_us(), None);
}

#[test]
fn entries_wait_in_memory_for_the_directory_and_are_moved_over() {
    let parent = TempDir::new().unwrap();
    let blocked = parent.path().join("lib");
    fs::write(&blocked, b"a file in the way").unwrap();
    let path = blocked.join("journal");
    let mut store = store(&path, BOOT, 1 << 20);
    for number in 0..5 {
        store.push(line_at(&number.to_string(), number), at(number));
    }
    store.flush(at(5));
    assert!(store.is_failing());
    let failure = store.take_failure().unwrap().to_string();
    assert!(failure.contains("lib/journal"), "{failure}");
    fs::remove_file(&blocked).unwrap();
    store.push(line_at("too early to try again", 6), at(6));
    assert!(!path.exists());
    let due = store.deadline_us().unwrap();
    store.tick(at(due));
    assert!(!store.is_failing());
    store.push(line_at("there", due), at(due));
    store.flush(at(due));
    let (records, _) = read_all(&path, Direction::Forward);
    assert_eq!(
        texts(&records),
        ["0", "1", "2", "3", "4", "too early to try again", "there"]
    );
    assert_eq!(records[3].entry.monotonic_us, 3, "with its own time");
}

#[test]
fn memory_holds_the_oldest_and_the_rest_is_counted() {
    let parent = TempDir::new().unwrap();
    let blocked = parent.path().join("lib");
    fs::write(&blocked, b"a file in the way").unwrap();
    let path = blocked.join("journal");
    let mut store = store(&path, BOOT, 4 << 20);
    let long = "x".repeat(1000);
    for number in 0..5000 {
        store.push(line(&format!("{number} {long}")), at(0));
    }
    let dropped = store.dropped();
    assert!((1..5000).contains(&dropped), "{dropped}");
    fs::remove_file(&blocked).unwrap();
    let due = store.deadline_us().unwrap();
    store.push(line("there"), at(due));
    store.flush(at(due));
    let (records, _) = read_all(&path, Direction::Forward);
    let kept = 5000 - usize::try_from(dropped).unwrap();
    assert_eq!(records.len(), kept + 2);
    let first: Vec<String> = (0..kept).map(|number| format!("{number} {long}")).collect();
    assert_eq!(texts(&records)[..kept], first);
    let told = &records[kept].entry;
    assert_eq!(told.dropped, Some(dropped));
    assert_eq!(told.unit.as_deref(), Some("orlop-journal.service"));
    assert_eq!(texts(&records)[kept + 1], "there");
}

/// A small filesystem in memory, gone when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` when this host does not let us mount.
    fn new(size: &std::ffi::CStr) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", directory.path(), "tmpfs", flags, Some(size)) {
            Ok(()) => Some(Self(directory)),
            Err(rustix::io::Errno::PERM) => None,
            Err(err) => panic!("mount a tmpfs: {err}"),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_drops_and_counts_and_the_log_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::new(c"size=400k") else {
        eprintln!("not run: it needs the right to mount");
        return;
    };
    let filler = disk.0.path().join("filler");
    fs::write(&filler, vec![1; 200 << 10]).unwrap();
    let path = disk.0.path().join("journal");
    let mut store = store(&path, BOOT, 1 << 20);
    let text = "y".repeat(2500);
    let mut pushed = 0;
    let mut now = 0;
    // Several rounds of fullness, with messages of different lengths, some of which still fit.
    while now < 2_000_000 {
        now += 10_000;
        for length in [2500, 3, 100] {
            store.push(line(&text[..length]), at(now));
            pushed += 1;
        }
        store.flush(at(now));
        store.tick(at(now));
    }
    assert!(store.is_failing());
    assert!(store.dropped() > 0);
    let failure = store.take_failure().unwrap();
    let source = std::error::Error::source(&failure).unwrap().to_string();
    assert!(source.contains("No space left"), "{failure}: {source}");
    fs::remove_file(&filler).unwrap();
    let due = store.deadline_us().unwrap().max(now + 250_000);
    store.tick(at(due));
    assert!(!store.is_failing());
    assert_eq!(store.dropped(), 0);
    store.push(line("at last"), at(due));
    store.flush(at(due));
    let (records, damage) = read_all(&path, Direction::Forward);
    assert_eq!(damage, []);
    assert_eq!(texts(&records).last().unwrap(), "at last");
    let dropped: u64 = records
        .iter()
        .filter_map(|record| record.entry.dropped)
        .sum();
    let kept = records
        .iter()
        .filter(|record| record.entry.dropped.is_none())
        .count() as u64;
    assert!(dropped > 0);
    assert_eq!(
        kept + dropped,
        pushed + 1,
        "every message is there or counted"
    );
}

#[test]
fn a_follower_sees_every_entry_once_across_segments() {
    const COUNT: u64 = 3000;
    let directory = TempDir::new().unwrap();
    let path = directory.path().to_owned();
    write(&path, BOOT, &["old", "new"]);
    let mut follower = Follower::new(&path, Filter::default()).unwrap();
    follower.start_after(1);
    let writer = std::thread::spawn({
        let path = path.clone();
        move || {
            let mut store = store(&path, BOOT, 16 << 20);
            let text = "z".repeat(2000);
            for number in 0..COUNT {
                store.push(line(&format!("{number} {text}")), at(number));
                if number % 7 == 0 {
                    store.flush(at(number));
                }
            }
            store.flush(at(COUNT));
        }
    });
    let mut next = || match follower.next(None).unwrap() {
        Some(Item::Entry(record)) => record,
        other => panic!("{other:?}"),
    };
    assert_eq!(texts(&[next()]), ["new"]);
    for number in 0..COUNT {
        let record = next();
        assert_eq!(record.entry.sequence, number + 3);
    }
    writer.join().unwrap();
    assert!(segments::list(&path).unwrap().len() > 2);
    assert_eq!(follower.try_next().unwrap(), None);
}

#[test]
fn a_follower_waits_for_a_record_that_is_half_written() {
    let directory = TempDir::new().unwrap();
    write(directory.path(), BOOT, &["a", "b"]);
    let path = newest(directory.path());
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
    let mut follower = Follower::new(directory.path(), Filter::default()).unwrap();
    assert!(matches!(follower.try_next().unwrap(), Some(Item::Entry(_))));
    assert_eq!(follower.try_next().unwrap(), None);
    assert_eq!(follower.try_next().unwrap(), None);
    fs::write(&path, &bytes).unwrap();
    let Some(Item::Entry(record)) = follower.next(None).unwrap() else {
        panic!("no entry")
    };
    assert_eq!(record.entry.message, b"b");
}

#[test]
fn a_follower_ends_when_nobody_reads_its_output() {
    let directory = TempDir::new().unwrap();
    let mut follower = Follower::new(directory.path(), Filter::default()).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(
        follower
            .next(Some(std::os::fd::AsFd::as_fd(&writer)))
            .unwrap(),
        None
    );
}

type Files = std::collections::BTreeMap<String, Vec<u8>>;

fn files_of(directory: &Path) -> Files {
    let files = segments::list(directory).unwrap();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    files
        .iter()
        .map(|file| (name(&file.path), fs::read(&file.path).unwrap()))
        .collect()
}

/// Leaves on `disk` what a power cut may leave: all of `durable`, and of each block written since what `kept` says.
fn cut_power(durable: &Files, written: &Files, kept: &[u8], disk: &Path) {
    const BLOCK_BYTES: usize = 512;
    let mut kept = kept.iter().cycle();
    for (name, bytes) in written {
        let safe = durable.get(name).map_or(0, Vec::len);
        if safe == 0 && kept.next() == Some(&0) {
            // Not even its name has reached the disk.
            continue;
        }
        let mut left = bytes[..safe].to_vec();
        for block in bytes[safe..].chunks(BLOCK_BYTES) {
            match kept.next() {
                Some(0) => break,
                Some(1) => left.extend(std::iter::repeat_n(0, block.len())),
                _ => left.extend_from_slice(block),
            }
        }
        fs::write(disk.join(name), left).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A power cut leaves the synced part and anything behind it: nothing, zeros, or parts of what was written.
    #[test]
    fn after_a_power_cut_all_that_was_synced_is_there_and_the_log_goes_on(
        before in 1..20usize,
        cut in any::<proptest::sample::Index>(),
        junk in proptest::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..200),
        same_boot in any::<bool>(),
    ) {
        let directory = TempDir::new().unwrap();
        let lines: Vec<String> = (0..before).map(|number| format!("line {number}")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        write(directory.path(), BOOT, &lines);
        let path = newest(directory.path());
        let mut bytes = fs::read(&path).unwrap();
        let (whole, _) = read_all(directory.path(), Direction::Forward);
        let at = HEADER_BYTES + cut.index(bytes.len() - HEADER_BYTES + 1);
        bytes.truncate(at);
        bytes.extend_from_slice(&junk);
        fs::write(&path, &bytes).unwrap();
        let (survived, _) = read_all(directory.path(), Direction::Forward);
        prop_assert_eq!(&survived[..], &whole[..survived.len()]);
        let boot = if same_boot { BOOT } else { NEXT_BOOT };
        write(directory.path(), boot, &["after"]);
        let (records, damage) = read_all(directory.path(), Direction::Forward);
        prop_assert_eq!(damage, vec![]);
        prop_assert_eq!(records.len(), survived.len() + 1);
        prop_assert_eq!(&records[..survived.len()], &survived[..]);
        prop_assert_eq!(&records[survived.len()].entry.message, b"after");
        let numbers: HashSet<u64> = records.iter().map(|record| record.entry.sequence).collect();
        prop_assert_eq!(numbers.len(), records.len());
    }

    /// The power goes after every single write. Of what was not synced by then, the disk has kept any part of any
    /// file: whole blocks, zeros in their place, or nothing. What was synced is there, what is there was written, in
    /// its order, and no more than a second of it is missing.
    #[test]
    fn a_power_cut_after_any_write_costs_at_most_the_last_second(
        pauses_us in proptest::collection::vec(prop_oneof![Just(0u64), 1..1_500_000u64], 4..24),
        lengths in proptest::collection::vec(prop_oneof![0..200usize, 3_000..9_000usize], 24),
        kept in proptest::collection::vec(0..4u8, 64),
        urgent in any::<proptest::sample::Index>(),
    ) {
        let work = TempDir::new().unwrap();
        let mut store = store(work.path(), BOOT, 512 << 10);
        let urgent = urgent.index(pauses_us.len());
        let (mut now_us, mut pushed) = (0, Vec::new());
        let mut durable = std::collections::BTreeMap::new();
        let mut durable_count = 0;
        for (number, pause_us) in pauses_us.iter().enumerate() {
            // The writer sleeps no longer than the store wants it to.
            let wakes_us = now_us + pause_us;
            while let Some(due_us) = store.deadline_us().filter(|due_us| *due_us <= wakes_us) {
                store.tick(at(due_us));
                if store.deadline_us().is_none() {
                    durable = files_of(work.path());
                    durable_count = pushed.len();
                }
            }
            now_us = wakes_us;
            let mut entry = line_at(&format!("{number} {}", "x".repeat(lengths[number])), now_us);
            if number == urgent {
                entry.priority = 1;
            }
            store.push(entry.clone(), at(now_us));
            store.flush(at(now_us));
            pushed.push(entry);
            if store.deadline_us().is_none() {
                durable = files_of(work.path());
                durable_count = pushed.len();
            }
            prop_assert!(number != urgent || durable_count == pushed.len());
            prop_assert!(store.take_failure().is_none());

            let disk = TempDir::new().unwrap();
            cut_power(&durable, &files_of(work.path()), &kept, disk.path());
            write(disk.path(), NEXT_BOOT, &["after"]);
            let (records, _) = read_all(disk.path(), Direction::Forward);
            let texts = texts(&records);
            let (last, survived) = texts.split_last().unwrap();
            prop_assert_eq!(last, "after");
            let numbers: Vec<usize> = survived.iter().map(|text| text.split(' ').next().unwrap().parse().unwrap()).collect();
            prop_assert!(numbers.is_sorted(), "{:?}", numbers);
            let expected: Vec<usize> = (0..durable_count).collect();
            prop_assert_eq!(&numbers[..durable_count], &expected[..]);
            for (number, text) in numbers.iter().zip(survived) {
                prop_assert_eq!(text.as_bytes(), &pushed[*number].message[..]);
            }
            if let Some(first_lost) = (0..pushed.len()).find(|number| !numbers.contains(number)) {
                prop_assert!(now_us - pushed[first_lost].monotonic_us <= 1_000_000);
            }
        }
    }

    /// Any history of restarts, boots and damage leaves a directory that can be read, in order, without a number twice.
    #[test]
    fn no_history_confuses_the_numbers(steps in proptest::collection::vec((0..5u8, any::<proptest::sample::Index>()), 1..12)) {
        let directory = TempDir::new().unwrap();
        let mut boot = BOOT;
        for (number, (step, index)) in steps.into_iter().enumerate() {
            let file = segments::list(directory.path()).unwrap().pop();
            match (step, file) {
                (0, _) => boot.0[0] += 1,
                (1, Some(file)) if file.bytes > 0 => {
                    let mut bytes = fs::read(&file.path).unwrap();
                    let at = index.index(bytes.len());
                    bytes[at] ^= 0x10;
                    fs::write(&file.path, bytes).unwrap();
                }
                (2, Some(file)) => {
                    let bytes = fs::read(&file.path).unwrap();
                    fs::write(&file.path, &bytes[..index.index(bytes.len() + 1)]).unwrap();
                }
                _ => {}
            }
            write(directory.path(), boot, &[&number.to_string(), "x"]);
        }
        let (records, _) = read_all(directory.path(), Direction::Forward);
        prop_assert!(records.len() >= 2);
        let mut by_journal: std::collections::HashMap<Id, Vec<u64>> = std::collections::HashMap::new();
        for record in &records {
            by_journal.entry(record.journal).or_default().push(record.entry.sequence);
        }
        for numbers in by_journal.values() {
            prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", numbers);
        }
    }
}
