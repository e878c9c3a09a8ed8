//! Disks with a partition table, and the nodes of their partitions.
//!
//! The kernel of today tells neither a partition's UUID nor, when the primary table is damaged, that there are partitions at
//! all: it does not look at the backup table. So the table is read here, and the kernel is told what it missed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_sys::blkdev;
use thiserror::Error;

use crate::gpt::{self, Copy, Entry, Table};

const SYS_BLOCK: &str = "/sys/class/block";

/// How long devtmpfs may take for the node of a partition that the kernel was told of: it is there when the call returns, but
/// for a kernel thread's turn.
const NODE_WAIT: Duration = Duration::from_secs(2);

/// A whole disk.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Its node.
    pub node: PathBuf,
    /// The kernel's name for it.
    name: String,
    /// Bytes of a sector.
    pub sector_bytes: u64,
    /// All its sectors, in bytes.
    pub size_bytes: u64,
    /// Its partition table.
    pub table: Table,
    /// Whether it is the backup's, the primary being damaged.
    pub is_backup: bool,
}

/// Why a partition can not be used.
#[derive(Debug, Error)]
pub enum PartitionError {
    /// The disk can not be opened.
    #[error("cannot open {0}")]
    Open(PathBuf, #[source] io::Error),
    /// The table says nonsense.
    #[error("partition {number} of {disk} does not lie on the disk")]
    Place {
        /// The disk.
        disk: PathBuf,
        /// The partition's number.
        number: u32,
    },
    /// The kernel refused it.
    #[error("the kernel does not take partition {number} of {disk}")]
    Add {
        /// The disk.
        disk: PathBuf,
        /// The partition's number.
        number: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No node appeared.
    #[error("partition {number} of {disk} has no node")]
    Node {
        /// The disk.
        disk: PathBuf,
        /// The partition's number.
        number: u32,
    },
}

/// The disks that have a partition table now, sorted by name. What cannot be read is left out.
#[must_use]
pub fn with_tables() -> Vec<Disk> {
    whole_disks()
        .into_iter()
        .filter_map(|name| open(&name))
        .collect()
}

/// The names of all disks that are not partitions and have a size.
pub(crate) fn whole_disks() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(SYS_BLOCK)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| !entry.path().join("partition").exists())
        .filter(|entry| number(&entry.path().join("size")).is_some_and(|size| size > 0))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// The node of what the kernel calls `name`; a `!` stands for a directory (`cciss!c0d0`).
pub(crate) fn node(name: &str) -> PathBuf {
    Path::new("/dev").join(name.replace('!', "/"))
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim_end().parse().ok()
}

fn open(name: &str) -> Option<Disk> {
    const FOREIGN: [&str; 6] = ["loop", "ram", "zram", "dm-", "sr", "fd"];
    if FOREIGN.iter().any(|kind| name.starts_with(kind)) {
        return None;
    }
    let directory = Path::new(SYS_BLOCK).join(name);
    // Counted in 512 bytes whatever the disk's sectors are (Documentation/ABI/stable/sysfs-block).
    let size_bytes = number(&directory.join("size"))?.checked_mul(512)?;
    let sector_bytes = number(&directory.join("queue/logical_block_size"))?.max(512);
    let node = node(name);
    let file = File::open(&node).ok()?;
    let (table, is_backup) = read_table(&file, size_bytes, sector_bytes)?;
    Some(Disk {
        node,
        name: name.to_owned(),
        sector_bytes,
        size_bytes,
        table,
        is_backup,
    })
}

/// The primary table, or the backup at the disk's end.
fn read_table(file: &File, size_bytes: u64, sector_bytes: u64) -> Option<(Table, bool)> {
    let read = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    };
    if let Copy::Whole(table) = gpt::read(&read, 1, sector_bytes) {
        return Some((table, false));
    }
    let last_lba = (size_bytes / sector_bytes).checked_sub(1)?;
    match gpt::read(&read, last_lba, sector_bytes) {
        Copy::Whole(table) => Some((table, true)),
        Copy::None | Copy::Damaged => None,
    }
}

impl Disk {
    /// The partition with that identifier.
    #[must_use]
    pub fn by_uuid(&self, unique: uuid::Uuid) -> Option<&Entry> {
        self.table.entries.iter().find(|e| e.unique == unique)
    }

    /// The first partition of that type.
    #[must_use]
    pub fn by_type(&self, kind: uuid::Uuid) -> Option<&Entry> {
        self.table.entries.iter().find(|e| e.kind == kind)
    }

    /// A partition's size in bytes.
    #[must_use]
    pub fn bytes_of(&self, entry: &Entry) -> u64 {
        let sectors = entry
            .last_lba
            .saturating_sub(entry.first_lba)
            .saturating_add(1);
        sectors.saturating_mul(self.sector_bytes)
    }

    /// The node of a partition, which the kernel is told of when it does not know it.
    ///
    /// # Errors
    /// The partition does not lie on the disk, or the kernel does not take it.
    pub fn partition(&self, entry: &Entry) -> Result<PathBuf, PartitionError> {
        let (disk, number) = (self.node.clone(), entry.number);
        if let Some(node) = self.known(entry) {
            return Ok(node);
        }
        let start = entry.first_lba.checked_mul(self.sector_bytes);
        let end = entry
            .last_lba
            .checked_add(1)
            .and_then(|end| end.checked_mul(self.sector_bytes));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(PartitionError::Place { disk, number });
        };
        if start >= end || end > self.size_bytes {
            return Err(PartitionError::Place { disk, number });
        }
        let file = File::open(&disk).map_err(|err| PartitionError::Open(disk.clone(), err))?;
        blkdev::add_partition(&file, number, start, end - start).map_err(|source| {
            PartitionError::Add {
                disk: disk.clone(),
                number,
                source,
            }
        })?;
        let deadline = std::time::Instant::now() + NODE_WAIT;
        loop {
            if let Some(node) = self.known(entry) {
                return Ok(node);
            }
            if std::time::Instant::now() >= deadline {
                return Err(PartitionError::Node { disk, number });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The node of a partition that the kernel knows with this number and place.
    fn known(&self, entry: &Entry) -> Option<PathBuf> {
        let start = entry.first_lba.checked_mul(self.sector_bytes)? / 512;
        let is_it = |path: &Path| {
            number(&path.join("partition")) == Some(u64::from(entry.number))
                && number(&path.join("start")) == Some(start)
        };
        let found = std::fs::read_dir(Path::new(SYS_BLOCK).join(&self.name))
            .ok()?
            .flatten()
            .find(|found| is_it(&found.path()))?;
        let node = node(found.file_name().to_str()?);
        node.exists().then_some(node)
    }
}
