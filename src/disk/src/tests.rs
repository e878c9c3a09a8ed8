//! Disks in memory: cut anywhere, filled with anything.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::inspect::{Found, InspectError, Medium, State, examine, tables};
use crate::layout::{self, CLAIM_AT, LABEL, Patch, SMALLEST};
use crate::plan::{Refusal, Request, Step, plan};

const MIB: u64 = 1 << 20;
const SECTORS: [u64; 2] = [512, 4096];

/// A sparse disk: what is not in a page is zero.
#[derive(Clone, PartialEq)]
pub(crate) struct Memory {
    pages: BTreeMap<u64, [u8; PAGE]>,
    size: u64,
    sector: u64,
}

const PAGE: usize = 4096;

impl Memory {
    pub(crate) fn of(size: u64, sector: u64) -> Self {
        Self {
            pages: BTreeMap::new(),
            size,
            sector,
        }
    }

    fn blank(sector: u64) -> Self {
        // Not a multiple of a MiB, as few disks are.
        Self::of(SMALLEST + 12 * 4096, sector)
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        assert!(
            at + bytes.len() as u64 <= self.size,
            "a write beyond the end"
        );
        let (mut at, mut rest) = (at, bytes);
        while !rest.is_empty() {
            let offset = at as usize % PAGE;
            let (now, later) = rest.split_at(rest.len().min(PAGE - offset));
            let page = at / PAGE as u64;
            if self.pages.contains_key(&page) || now != &[0; PAGE][..now.len()] {
                let page = self.pages.entry(page).or_insert([0; PAGE]);
                page[offset..offset + now.len()].copy_from_slice(now);
            }
            at += now.len() as u64;
            rest = later;
        }
    }

    /// Whether the first and the last MiB are zeros.
    fn has_blank_ends(&self) -> bool {
        let mut both = vec![0; (MIB.min(self.size) * 2) as usize];
        let (head, tail) = both.split_at_mut(MIB.min(self.size) as usize);
        self.read_at(head, 0).expect("inside");
        self.read_at(tail, self.size - tail.len() as u64)
            .expect("inside");
        both.iter().all(|b| *b == 0)
    }

    pub(crate) fn write(&mut self, patches: &[Patch]) {
        for patch in patches {
            self.put(patch.at, &patch.bytes);
        }
    }

    fn found(&self) -> Found {
        examine(self).expect("memory can be read")
    }

    /// What a step writes. A filesystem is as much as is looked at of one.
    fn patches(&self, step: Step) -> Vec<Patch> {
        let renamed = || {
            let tables = tables(self).0;
            let table = tables.ours(self).expect("a table of ours");
            layout::rewrite(table, LABEL, self.size(), self.sector).expect("a table")
        };
        match step {
            Step::Wipe => layout::wipe(self.size()),
            Step::Claim => layout::write_claim(self.size()),
            Step::Unclaim => layout::remove_claim(),
            Step::WriteTable => layout::new_table(self.size(), self.sector).expect("a table"),
            Step::MakeFilesystem => vec![Patch {
                at: MIB + 1024,
                bytes: superblock(LABEL),
            }],
            Step::Finish | Step::RepairTable => renamed(),
            Step::ReadTable | Step::Check | Step::Mount => Vec::new(),
        }
    }

    fn start(&mut self, wipe: bool) -> Result<(), Refusal> {
        let request = Request {
            wipe,
            ..Request::new("/dev/x")
        };
        for step in plan(&self.found(), self.size(), &request)?.steps {
            self.write(&self.patches(step));
        }
        Ok(())
    }
}

impl Medium for Memory {
    fn size_bytes(&self) -> u64 {
        self.size()
    }

    fn sector_bytes(&self) -> u64 {
        self.sector
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> Result<(), InspectError> {
        assert!(at + into.len() as u64 <= self.size, "a read beyond the end");
        let mut rest = into;
        let mut at = at;
        while !rest.is_empty() {
            let offset = at as usize % PAGE;
            let length = rest.len().min(PAGE - offset);
            let (now, later) = rest.split_at_mut(length);
            match self.pages.get(&(at / PAGE as u64)) {
                Some(page) => now.copy_from_slice(&page[offset..offset + length]),
                None => now.fill(0),
            }
            rest = later;
            at += length as u64;
        }
        Ok(())
    }
}

fn superblock(label: &str) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    bytes[0x38..0x3c].copy_from_slice(&[0x53, 0xef, 1, 0]);
    bytes[0x60] = 0x40;
    bytes[0x78..0x78 + label.len()].copy_from_slice(label.as_bytes());
    bytes
}

fn is_complete(found: &Found) -> bool {
    matches!(found, Found::Orlop(State::Complete { .. }))
}

fn foreign(disk: &Memory) -> String {
    match disk.found() {
        Found::Foreign { what } => what,
        other => panic!("{other:?}"),
    }
}

/// Runs the first start with the power cut after each `cut` bytes of it, sector by sector.
fn cut_start(blank: &Memory, wipe: bool) {
    let request = Request {
        wipe,
        ..Request::new("/dev/x")
    };
    let steps = plan(&blank.found(), blank.size(), &request)
        .expect("a plan")
        .steps;
    let mut disk = blank.clone();
    for step in &steps {
        let patches = disk.patches(*step);
        for patch in &patches {
            let sector = disk.sector as usize;
            let claims = step == &Step::Claim;
            // The claim is written at once; of anything else any number of sectors may have arrived.
            let cuts = if claims {
                vec![]
            } else {
                (0..patch.bytes.len()).step_by(sector).collect()
            };
            let few: Vec<usize> = cuts
                .iter()
                .copied()
                .filter(|cut| *cut < 3 * sector || cut % (128 * sector) == 0)
                .collect();
            for cut in few {
                let mut broken = disk.clone();
                broken.put(patch.at, &patch.bytes[..cut]);
                after_a_cut(broken, *step, wipe);
                // A disk may also write the end of a request before its beginning.
                let mut broken = disk.clone();
                broken.put(patch.at + cut as u64, &patch.bytes[cut..]);
                after_a_cut(broken, *step, wipe);
            }
            disk.put(patch.at, &patch.bytes);
            after_a_cut(disk.clone(), *step, wipe);
        }
    }
    assert!(is_complete(&disk.found()));
}

fn after_a_cut(mut disk: Memory, step: Step, wipe: bool) {
    let found = disk.found();
    let had_filesystem = matches!(step, Step::Finish | Step::Unclaim | Step::Mount);
    assert!(
        had_filesystem || !is_complete(&found),
        "taken for complete in {step:?}: {found:?}"
    );
    disk.start(wipe)
        .unwrap_or_else(|refusal| panic!("refused after a cut in {step:?}: {refusal}"));
    let found = disk.found();
    let Found::Orlop(State::Complete {
        table_is_damaged,
        claim_is_left,
        ..
    }) = found
    else {
        panic!("not finished after a cut in {step:?}: {found:?}");
    };
    assert!(!table_is_damaged && !claim_is_left);
}

#[test]
fn a_power_cut_at_any_moment_of_the_first_start_is_finished_by_the_next() {
    for sector in SECTORS {
        cut_start(&Memory::blank(sector), false);
    }
}

#[test]
fn a_power_cut_while_a_foreign_disk_is_wiped_is_finished_by_the_next_start() {
    let mut disk = Memory::blank(512);
    disk.put(1024, &superblock("data"));
    disk.put(disk.size() - 4096, &[7; 4096]);
    cut_start(&disk, true);
}

#[test]
fn wipe_never_touches_a_volume_that_is_ours() {
    let mut disk = Memory::blank(512);
    disk.start(false).expect("it is made");
    disk.put(2 * MIB, b"precious");
    let before = disk.clone();
    disk.start(true).expect("it is there");
    assert!(disk == before);
}

#[test]
fn a_foreign_disk_is_named_in_the_refusal() {
    type Made = fn(&mut Memory);
    let cases: [(&str, Made); 9] = [
        ("an ext4 filesystem labelled \"data\"", |d| {
            d.put(1024, &superblock("data"))
        }),
        ("a LUKS encrypted volume", |d| {
            d.put(0, b"LUKS\xba\xbe\0\x02")
        }),
        ("an LVM physical volume", |d| d.put(512, b"LABELONE")),
        ("swap space", |d| d.put(4086, b"SWAPSPACE2")),
        ("an iso9660 filesystem", |d| d.put(32769, b"CD001")),
        ("an MBR partition table with 1 partition (Linux)", |d| {
            d.put(450, &[0x83]);
            d.put(510, &[0x55, 0xaa]);
        }),
        ("data of an unknown kind in its first 1 MiB", |d| {
            d.put(MIB - 1, &[1])
        }),
        ("data of an unknown kind in its last 1 MiB", |d| {
            d.put(d.size() - 1, &[1])
        }),
        ("a damaged GPT partition table", |d| d.put(512, b"EFI PART")),
    ];
    for (what, make) in cases {
        let mut disk = Memory::blank(512);
        make(&mut disk);
        assert_eq!(foreign(&disk), what);
        let refusal = disk.start(false).expect_err(what).to_string();
        assert!(
            refusal.contains(what) && refusal.contains("wipe: true"),
            "{refusal}"
        );
    }
}

#[test]
fn a_claim_on_a_disk_that_holds_anything_else_is_none() {
    for at in [0, 446 - 1, 40 * 512, CLAIM_AT + 512, MIB - 1] {
        let mut disk = Memory::blank(512);
        disk.write(&layout::write_claim(disk.size()));
        assert_eq!(disk.found(), Found::Orlop(State::Unfinished));
        disk.put(at, &[1]);
        foreign(&disk);
    }
    // A claim that was copied from a disk of another size.
    let mut disk = Memory::blank(512);
    disk.write(&layout::write_claim(disk.size() + 512));
    foreign(&disk);
}

#[test]
fn a_table_with_a_further_partition_is_not_ours() {
    let mut disk = Memory::blank(512);
    disk.start(false).expect("it is made");
    let tables = tables(&disk).0;
    let mut table = tables.ours(&disk).expect("ours").clone();
    let mut second = table.entries[0].clone();
    second.number = 2;
    second.unique = uuid::Uuid::from_u128(2);
    table.entries[0].last_lba = 4095;
    second.first_lba = 4096;
    table.entries.push(second);
    let patches = layout::rewrite(&table, LABEL, disk.size(), 512).expect("a table");
    disk.write(&patches);
    assert_eq!(
        foreign(&disk),
        "a GPT partition table with 2 partitions (Linux variable data, Linux variable data)"
    );
}

#[test]
fn a_disk_that_was_made_larger_is_still_ours() {
    let mut disk = Memory::blank(512);
    disk.start(false).expect("it is made");
    disk.size += 4 << 20;
    let Found::Orlop(State::Complete {
        table_is_damaged, ..
    }) = disk.found()
    else {
        panic!("{:?}", disk.found());
    };
    assert!(!table_is_damaged, "the backup is where the primary says");
}

#[test]
fn a_disk_that_is_too_small_is_refused() {
    for size in [0, 1, 511, 512, 4096, 1 << 20, SMALLEST - 1] {
        let mut disk = Memory::of(size, 512);
        assert_eq!(disk.found(), Found::Blank);
        assert!(matches!(disk.start(true), Err(Refusal::TooSmall { .. })));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_disk_is_looked_at_without_harm(
        size in 0_usize..3 << 20,
        pokes in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..32)), 0..12),
        sector in prop::sample::select(&SECTORS[..]),
    ) {
        let mut disk = Memory::of(size as u64, sector);
        for (at, bytes) in pokes.iter().filter(|_| size > 0) {
            let at = at.index(size);
            let length = bytes.len().min(size - at);
            disk.put(at as u64, &bytes[..length]);
        }
        let found = disk.found();
        let is_blank = disk.has_blank_ends();
        prop_assert_eq!(found == Found::Blank, is_blank);
        prop_assert!(!matches!(found, Found::Orlop(_)), "chance does not make our claim");
    }

    #[test]
    fn a_volume_with_any_bytes_of_its_ends_changed_is_never_blank_or_begun_anew(
        pokes in prop::collection::vec((0_u64..20_000, any::<bool>(), any::<u8>()), 1..6),
        sector in prop::sample::select(&SECTORS[..]),
    ) {
        let mut disk = Memory::blank(sector);
        disk.start(false).expect("it is made");
        for (at, from_end, byte) in pokes {
            let at = if from_end { disk.size() - 1 - at } else { at };
            disk.put(at, &[byte]);
        }
        let found = disk.found();
        prop_assert!(found != Found::Blank && found != Found::Orlop(State::Unfinished), "{:?}", found);
    }

    #[test]
    fn a_table_whose_header_is_anything_with_a_right_sum_is_looked_at_without_harm(
        fields in prop::collection::vec(any::<u8>(), 76),
        small in any::<bool>(),
    ) {
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        header[20..92].copy_from_slice(&fields[..72]);
        header[24..32].copy_from_slice(&1_u64.to_le_bytes());
        if small {
            // Within reach, so that the entries are read.
            header[72..80].copy_from_slice(&u64::from(fields[72]).to_le_bytes());
            header[80..84].copy_from_slice(&u32::from(fields[73]).to_le_bytes());
            header[84..88].copy_from_slice(&(128 + u32::from(fields[74])).to_le_bytes());
        }
        let sum = crc32fast::hash(&header[..92]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        let mut disk = Memory::blank(512);
        disk.put(512, &header);
        foreign(&disk);
    }
}
