//! A disk's GUID partition table as a value: read it, change it, and have the writes that make the disk agree.

use std::io;

use gptman::{GPT, GPTPartitionEntry};
use uuid::Uuid;

use crate::layout::{self, Patch, Size};
use orlop_boot::gpt::{self, Copy, Table};

/// One partition's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableEntry {
    /// From 1 to 128.
    pub number: u32,
    /// The type.
    pub kind: Uuid,
    /// The partition's own UUID.
    pub unique: Uuid,
    /// Where it starts, in bytes.
    pub start_bytes: u64,
    /// How long it is, in bytes.
    pub size_bytes: u64,
    /// The attribute bits.
    pub attributes: u64,
    /// The name, 36 UTF-16 units at most.
    pub name: String,
}

/// A partition table, and which of its copies were whole when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionTable {
    /// The disk's own UUID.
    pub disk: Uuid,
    /// The used entries.
    pub entries: Vec<TableEntry>,
    primary_is_whole: bool,
    backup_is_whole: bool,
    disk_bytes: u64,
    sector_bytes: u64,
}

/// A write. It has to be on the disk before the next one is begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableWrite {
    /// Where, in bytes from the disk's start.
    pub at: u64,
    /// What.
    pub bytes: Vec<u8>,
}

impl PartitionTable {
    /// An empty table.
    #[must_use]
    pub fn new(disk_bytes: u64, sector_bytes: u64) -> Self {
        Self {
            disk: Uuid::new_v4(),
            entries: Vec::new(),
            primary_is_whole: false,
            backup_is_whole: false,
            disk_bytes,
            sector_bytes,
        }
    }

    /// The table of a disk of which `read` gives bytes (`None` beyond its end): the primary copy, or else the backup.
    #[must_use]
    pub fn read(
        read: &dyn Fn(u64, usize) -> Option<Vec<u8>>,
        disk_bytes: u64,
        sector_bytes: u64,
    ) -> Option<Self> {
        let primary = gpt::read(read, 1, sector_bytes);
        let last_lba = (disk_bytes / sector_bytes).checked_sub(1)?;
        // On a disk that was made larger the backup is where the primary says, not at the end.
        let backup_lba = match &primary {
            Copy::Whole(table) => table.alternate_lba,
            _ => last_lba,
        };
        let backup = gpt::read(read, backup_lba, sector_bytes);
        let table = match (&primary, &backup) {
            (Copy::Whole(table), _) | (_, Copy::Whole(table)) => table,
            _ => return None,
        };
        let agrees =
            |copy: &Copy| matches!(copy, Copy::Whole(other) if other.entries == table.entries);
        Some(Self {
            disk: table.disk_guid,
            entries: entries(table, sector_bytes, disk_bytes)?,
            primary_is_whole: agrees(&primary),
            backup_is_whole: agrees(&backup) && backup_lba == last_lba,
            disk_bytes,
            sector_bytes,
        })
    }

    /// Whether both copies were whole and the same, and the backup at the disk's end.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.primary_is_whole && self.backup_is_whole
    }

    /// The entry of that name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&TableEntry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// [`Self::named`], to be changed.
    pub fn named_mut(&mut self, name: &str) -> Option<&mut TableEntry> {
        self.entries.iter_mut().find(|entry| entry.name == name)
    }

    /// The writes that put both copies on the disk. At each moment between and within them one copy is whole: the one that was
    /// not is written first, and in each copy the header last (UEFI 2.10 §5.3.2 has the backup for this).
    ///
    /// The boot record before the primary copy is written only together with a new table: an interrupted write of it would hide both copies from
    /// the kernel.
    pub fn writes(&self) -> io::Result<Vec<TableWrite>> {
        let mut size = Size(self.disk_bytes, 0);
        let mut gpt = GPT::new_from(&mut size, self.sector_bytes, self.disk.to_bytes_le())
            .map_err(io::Error::other)?;
        for entry in &self.entries {
            if !(1..=128).contains(&entry.number) {
                return Err(io::Error::other(format!(
                    "partition {} is beyond 128",
                    entry.number
                )));
            }
            let end = entry.start_bytes.saturating_add(entry.size_bytes);
            gpt[entry.number] = GPTPartitionEntry {
                partition_type_guid: entry.kind.to_bytes_le(),
                unique_partition_guid: entry.unique.to_bytes_le(),
                starting_lba: entry.start_bytes / self.sector_bytes,
                ending_lba: (end / self.sector_bytes).saturating_sub(1),
                attribute_bits: entry.attributes,
                partition_name: entry.name.as_str().into(),
            };
        }
        let patches = layout::patches(gpt, self.sector_bytes, self.disk_bytes)?;
        let is_backup = |patch: &Patch| patch.at > self.disk_bytes / 2;
        let is_record = |patch: &Patch| patch.at == 0;
        let (backup, rest): (Vec<_>, Vec<_>) = patches.into_iter().partition(is_backup);
        let (record, primary): (Vec<_>, Vec<_>) = rest.into_iter().partition(is_record);
        let is_new = !self.primary_is_whole && !self.backup_is_whole;
        let ordered = if self.primary_is_whole || is_new {
            let record = if is_new { record } else { Vec::new() };
            [backup, record, primary]
        } else {
            [primary, Vec::new(), backup]
        };
        let write = |patch: Patch| TableWrite {
            at: patch.at,
            bytes: patch.bytes,
        };
        Ok(ordered.into_iter().flatten().map(write).collect())
    }
}

/// The mark that a disk is Orlop's although nothing on it is whole yet (`docs/data-volume.md`), to be written before a table on a wiped disk.
#[must_use]
pub fn claim(disk_bytes: u64) -> TableWrite {
    TableWrite {
        at: layout::CLAIM_AT,
        bytes: layout::claim(disk_bytes).to_vec(),
    }
}

/// What removes the [`claim`] again.
#[must_use]
pub fn unclaim() -> TableWrite {
    TableWrite {
        at: layout::CLAIM_AT,
        bytes: vec![0; layout::CLAIM_BYTES],
    }
}

/// The entries, or `None` when one does not lie on the disk.
fn entries(table: &Table, sector_bytes: u64, disk_bytes: u64) -> Option<Vec<TableEntry>> {
    table
        .entries
        .iter()
        .map(|entry| {
            let start_bytes = entry.first_lba.checked_mul(sector_bytes)?;
            let end_bytes = entry.last_lba.checked_add(1)?.checked_mul(sector_bytes)?;
            if end_bytes > disk_bytes {
                return None;
            }
            Some(TableEntry {
                number: entry.number,
                kind: entry.kind,
                unique: entry.unique,
                start_bytes,
                size_bytes: end_bytes.checked_sub(start_bytes)?,
                attributes: entry.attributes,
                name: entry.name.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: u64 = 8 << 20;

    fn sample(sector_bytes: u64) -> PartitionTable {
        let mut table = PartitionTable::new(DISK, sector_bytes);
        for (number, name) in [(1, "root-a"), (2, "root-b")] {
            table.entries.push(TableEntry {
                number,
                kind: Uuid::from_u128(7),
                unique: Uuid::from_u128(u128::from(number)),
                start_bytes: u64::from(number) << 20,
                size_bytes: 1 << 20,
                attributes: 1 << 60,
                name: name.to_owned(),
            });
        }
        table
    }

    fn read(disk: &[u8], sector_bytes: u64) -> Option<PartitionTable> {
        let read = |at: u64, length: usize| {
            let at = usize::try_from(at).ok()?;
            Some(disk.get(at..at.checked_add(length)?)?.to_vec())
        };
        PartitionTable::read(&read, disk.len() as u64, sector_bytes)
    }

    fn apply(disk: &mut [u8], write: &TableWrite, length: usize) {
        let at = write.at as usize;
        disk[at..at + length].copy_from_slice(&write.bytes[..length]);
    }

    fn made(sector_bytes: u64) -> Vec<u8> {
        let mut disk = vec![0; DISK as usize];
        for write in sample(sector_bytes).writes().unwrap() {
            apply(&mut disk, &write, write.bytes.len());
        }
        disk
    }

    #[test]
    fn a_table_that_was_written_reads_the_same() {
        for sector_bytes in [512, 4096] {
            let table = read(&made(sector_bytes), sector_bytes).unwrap();
            assert!(table.is_whole());
            assert_eq!(table.entries, sample(sector_bytes).entries);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Cut anywhere, also within a write, and with either copy damaged before: the table is the old or the new one.
        #[test]
        fn a_change_that_is_cut_short_leaves_the_old_or_the_new_table(
            cut in 0_usize..8, part in 0.0_f64..1.0, damage in 0_usize..3,
        ) {
            let mut disk = made(512);
            match damage {
                1 => disk[600] ^= 1,
                2 => { let at = DISK as usize - 500; disk[at] ^= 1 }
                _ => {}
            }
            let old = read(&disk, 512).unwrap();
            prop_assert_eq!(old.is_whole(), damage == 0);
            let mut new = old.clone();
            new.named_mut("root-b").unwrap().unique = Uuid::from_u128(9);
            let writes = new.writes().unwrap();
            for write in writes.iter().take(cut) {
                apply(&mut disk, write, write.bytes.len());
            }
            if let Some(torn) = writes.get(cut) {
                apply(&mut disk, torn, (torn.bytes.len() as f64 * part) as usize);
            }
            let left = read(&disk, 512).unwrap();
            prop_assert!(left.entries == old.entries || left.entries == new.entries);
            // And what is left can be finished.
            let mut again = left.clone();
            again.entries = new.entries.clone();
            for write in again.writes().unwrap() {
                apply(&mut disk, &write, write.bytes.len());
            }
            let done = read(&disk, 512).unwrap();
            prop_assert!(done.is_whole() && done.entries == new.entries);
        }
    }
}
