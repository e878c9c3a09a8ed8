//! The data volume of a disk that the machine boots from: its last partition, which the first start makes all that is left of
//! the disk. The other partitions are in use meanwhile, and stay as they are.

use std::fs::OpenOptions;
use std::path::Path;

use orlop_boot::disks;
use orlop_boot::gpt::{Entry, Table};
use orlop_sys::blkdev;

use crate::apply::{
    Checked, Error, Mounted, already_mounted, check, make_filesystem, mount_volume, writable, write,
};
use crate::ext4::{SUPERBLOCK_AT, SUPERBLOCK_BYTES, Superblock};
use crate::inspect::{Disk, Medium, Tables, tables};
use crate::layout::{self, ALIGNMENT, LABEL, UNFINISHED, VAR_TYPE};
use crate::plan::{Request, Step};

/// What has to be done with a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Work {
    /// The partition as it is to be, but for its name.
    entry: Entry,
    /// Whether both tables are written: the partition grows, or a copy is damaged.
    writes_table: bool,
    /// Whether nothing was stored in it yet.
    is_new: bool,
}

/// Makes sure that the data volume of the disk `request.device`, which has other partitions too, is mounted. Grows it and
/// makes its filesystem at the first start, and mends a damaged copy of the partition table at any.
///
/// # Errors
/// There is no such partition, or a step fails.
pub fn ensure_system_volume(request: &Request) -> Result<Mounted, Error> {
    if let Some(device) = already_mounted(request) {
        return Ok(Mounted {
            why: format!("{} is already mounted", device.display()),
            device,
            target: request.target.clone(),
            is_new: false,
            checked: Checked::NotNeeded,
        });
    }
    let path = &request.device;
    let disk = Disk::open(path, OpenOptions::new().read(true))?;
    let (found, error) = tables(&disk);
    let missing = || Error::NoVolume(path.clone());
    let (Some(table), Some(work)) = (current(&found), plan(&found, &disk)) else {
        return Err(error.map_or_else(missing, Error::Inspect));
    };
    let mut why = format!(
        "{}: the data volume is partition {}",
        path.display(),
        work.entry.number
    );
    if work.writes_table {
        relay(path, table, &work.entry, Step::RepairTable)?;
        why.push_str("; the partition table was written");
    }
    let node = disks::with_tables()
        .into_iter()
        .find(|disk| disk.node == *path)
        .ok_or_else(missing)?
        .partition(&work.entry)
        .map_err(|err| Error::Partition(Box::new(err)))?;
    if work.writes_table {
        let sector = disk.sector_bytes;
        let start = work.entry.first_lba * sector;
        let size = (work.entry.last_lba + 1) * sector - start;
        blkdev::resize_partition(&writable(path)?.file, work.entry.number, start, size)
            .map_err(|e| Error::AddPartition(path.clone(), work.entry.number, e))?;
    }
    let mut checked = Checked::NotNeeded;
    if work.is_new {
        make_filesystem(&request.mke2fs, &node)?;
        let finished = Entry {
            name: LABEL.to_owned(),
            ..work.entry.clone()
        };
        relay(path, table, &finished, Step::Finish)?;
        why.push_str("; it is new");
    } else {
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        disk.read_at(
            &mut bytes,
            work.entry.first_lba * disk.sector_bytes + SUPERBLOCK_AT,
        )?;
        match Superblock::decode(&bytes).map(|superblock| superblock.suspicion) {
            Some(None) => {}
            Some(Some(suspicion)) => {
                why.push_str(&format!("; it is checked, for {suspicion}"));
                checked = check(&request.e2fsck, &node)?;
            }
            None => {
                return Err(Error::NoFilesystem(node));
            }
        }
    }
    log::info!("{why}");
    mount_volume(&node, &request.target)?;
    Ok(Mounted {
        device: node,
        target: request.target.clone(),
        is_new: work.is_new,
        checked,
        why,
    })
}

/// The copy of the table that counts.
fn current(tables: &Tables) -> Option<&Table> {
    tables.primary().or_else(|| tables.backup())
}

/// What has to be done; `None` when the disk has no such partition as its last.
fn plan(tables: &Tables, medium: &dyn Medium) -> Option<Work> {
    let table = current(tables)?;
    let sector = medium.sector_bytes();
    let sectors = medium.size_bytes() / sector;
    let entry = table.entries.iter().max_by_key(|entry| entry.last_lba)?;
    let is_ours = entry.kind == VAR_TYPE && (entry.name == LABEL || entry.name == UNFINISHED);
    if !is_ours || entry.first_lba > entry.last_lba {
        return None;
    }
    let is_new = entry.name == UNFINISHED;
    // The backup table's sectors are left over, and what is less than the alignment.
    let alignment = (ALIGNMENT / sector).max(1);
    let end = sectors.checked_sub(layout::table_sectors(sector))? / alignment * alignment;
    let last_lba = if is_new {
        end.checked_sub(1)?.max(entry.last_lba)
    } else {
        entry.last_lba
    };
    if last_lba >= sectors {
        return None;
    }
    Some(Work {
        writes_table: tables.is_damaged() || last_lba != entry.last_lba,
        entry: Entry {
            last_lba,
            ..entry.clone()
        },
        is_new,
    })
}

/// Writes both copies of the table with one entry changed.
fn relay(path: &Path, table: &Table, entry: &Entry, step: Step) -> Result<(), Error> {
    let disk = writable(path)?;
    let patches = layout::relaid(table, entry, disk.size_bytes, disk.sector_bytes)
        .map_err(|e| Error::Table(path.to_owned(), e))?;
    write(&disk, step, &patches)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::layout::Patch;
    use crate::tests::Memory;

    const MIB: u64 = 1 << 20;

    fn entry(number: u32, kind: Uuid, name: &str) -> Entry {
        let first_lba = u64::from(number) * 4 * MIB / 512;
        Entry {
            number,
            kind,
            unique: Uuid::from_u128(number.into()),
            first_lba,
            last_lba: first_lba + 4 * MIB / 512 - 1,
            attributes: 0,
            name: name.to_owned(),
        }
    }

    /// An image of 16 MiB that was copied to a disk of 64.
    fn disk() -> Memory {
        let table = Table {
            disk_guid: Uuid::from_u128(7),
            entries: vec![
                entry(1, orlop_boot::gpt::ESP_TYPE, "esp"),
                entry(2, orlop_boot::gpt::ROOT_TYPE, "root-a"),
                entry(3, VAR_TYPE, UNFINISHED),
            ],
            alternate_lba: 0,
        };
        let patches = layout::relaid(&table, &table.entries[0], 17 * MIB, 512).unwrap();
        let mut disk = Memory::of(64 * MIB, 512);
        disk.write(&patches);
        disk
    }

    fn grow(disk: &Memory) -> Vec<Patch> {
        let found = tables(disk).0;
        let work = plan(&found, disk).unwrap();
        assert!(work.writes_table && work.is_new);
        layout::relaid(current(&found).unwrap(), &work.entry, 64 * MIB, 512).unwrap()
    }

    fn finish(disk: &Memory) -> Vec<Patch> {
        let found = tables(disk).0;
        let table = current(&found).unwrap();
        let finished = Entry {
            name: LABEL.to_owned(),
            ..plan(&found, disk).unwrap().entry
        };
        layout::relaid(table, &finished, 64 * MIB, 512).unwrap()
    }

    #[test]
    fn a_cut_at_any_write_leaves_the_slots_and_a_first_start_to_be_done_again() {
        let mut whole = disk();
        for step in [grow as fn(&Memory) -> Vec<Patch>, finish] {
            for patch in step(&whole.clone()) {
                for cut in (0..patch.bytes.len()).step_by(512) {
                    let mut broken = whole.clone();
                    broken.write(&[Patch {
                        at: patch.at,
                        bytes: patch.bytes[..cut].to_vec(),
                    }]);
                    let found = tables(&broken).0;
                    let table = current(&found).expect("a whole copy");
                    assert_eq!(
                        table.entries[..2],
                        tables(&disk()).0.primary().unwrap().entries[..2]
                    );
                    assert!(plan(&found, &broken).is_some(), "{} at {cut}", patch.at);
                }
                whole.write(&[patch]);
            }
        }
        let found = tables(&whole).0;
        let work = plan(&found, &whole).unwrap();
        assert!(!work.is_new && !work.writes_table);
        assert_eq!((work.entry.last_lba + 1) * 512, 63 * MIB);
    }

    #[test]
    fn a_damaged_primary_is_mended_from_the_backup() {
        let mut disk = disk();
        for patch in grow(&disk.clone()) {
            disk.write(&[patch]);
        }
        disk.write(&finish(&disk.clone()));
        let before = tables(&disk).0.primary().unwrap().entries.clone();
        disk.write(&[Patch {
            at: 512,
            bytes: vec![0; 512],
        }]);
        let found = tables(&disk).0;
        let work = plan(&found, &disk).unwrap();
        assert!(work.writes_table && !work.is_new);
        disk.write(&layout::relaid(current(&found).unwrap(), &work.entry, 64 * MIB, 512).unwrap());
        assert_eq!(tables(&disk).0.primary().unwrap().entries, before);
    }
}
