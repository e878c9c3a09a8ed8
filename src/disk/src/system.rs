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
