//! What a disk holds. Total: whatever is on the disk, the answer is one of the variants of [`Found`].

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use orlop_sys::blkdev;
use thiserror::Error;

use crate::ext4::{SUPERBLOCK_AT, SUPERBLOCK_BYTES, Superblock};
use crate::layout::{self, CLAIM_AT, CLAIM_BYTES, END, LABEL, UNFINISHED, VAR_TYPE};
use crate::signature::{self, Ends};
use orlop_boot::gpt::{self, Copy, Table};

/// Why a disk could not be looked at.
#[derive(Debug, Error)]
pub enum InspectError {
    /// It can not be opened.
    #[error("cannot open {0}")]
    Open(PathBuf, #[source] io::Error),
    /// It does not tell its size.
    #[error("cannot learn the size of {0}")]
    Size(PathBuf, #[source] io::Error),
    /// It can not be read.
    #[error("cannot read {1} bytes at {2} of {0}")]
    Read(PathBuf, usize, u64, #[source] io::Error),
    /// It is neither a block device nor a file.
    #[error("{0} is not a block device")]
    NotADisk(PathBuf),
}

/// What a disk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing: its first and last MiB are zeros.
    Blank,
    /// What Orlop made.
    Orlop(State),
    /// What somebody else made.
    Foreign {
        /// What it is, to be read after "holds": `an ext4 filesystem labelled "data"`.
        what: String,
    },
}

/// How far Orlop is with its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The first start was interrupted; nothing was stored yet.
    Unfinished,
    /// The data volume.
    Complete {
        /// Its partition; `None` when the filesystem is on the whole disk.
        partition: Option<Partition>,
        /// Whether a copy of the partition table has to be written again.
        table_is_damaged: bool,
        /// Whether the claim of the first start is still there.
        claim_is_left: bool,
        /// Its filesystem.
        superblock: Superblock,
    },
    /// The partition is finished, but has no filesystem of ours any more.
    Damaged {
        /// The partition.
        partition: Partition,
        /// What was seen instead.
        what: String,
    },
}

/// A partition's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// From 1.
    pub number: u32,
    /// Offset in bytes.
    pub start_bytes: u64,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// A disk, or in tests a file or memory, that can be read at any place.
pub(crate) trait Medium {
    fn size_bytes(&self) -> u64;
    fn sector_bytes(&self) -> u64;
    /// Fills `into` from `at`.
    fn read_at(&self, into: &mut [u8], at: u64) -> Result<(), InspectError>;
}

/// An open disk.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) size_bytes: u64,
    pub(crate) sector_bytes: u64,
}

impl Disk {
    pub(crate) fn open(path: &Path, options: &std::fs::OpenOptions) -> Result<Self, InspectError> {
        let file = options
            .open(path)
            .map_err(|e| InspectError::Open(path.to_owned(), e))?;
        let size_error = |e| InspectError::Size(path.to_owned(), e);
        let metadata = file.metadata().map_err(size_error)?;
        let (size_bytes, sector_bytes) = if metadata.file_type().is_block_device() {
            let size = blkdev::size_bytes(&file).map_err(size_error)?;
            (
                size,
                u64::from(blkdev::sector_bytes(&file).map_err(size_error)?),
            )
        } else if metadata.is_file() {
            (metadata.len(), 512)
        } else {
            return Err(InspectError::NotADisk(path.to_owned()));
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            size_bytes,
            sector_bytes: sector_bytes.max(512),
        })
    }
}

impl Medium for Disk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn sector_bytes(&self) -> u64 {
        self.sector_bytes
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> Result<(), InspectError> {
        let length = into.len();
        self.file
            .read_exact_at(into, at)
            .map_err(|e| InspectError::Read(self.path.clone(), length, at, e))
    }
}

/// Says what `device` holds. Only reads.
pub fn inspect(device: &Path) -> Result<Found, InspectError> {
    examine(&Disk::open(device, File::options().read(true))?)
}

/// [`inspect`] for anything that can be read.
pub(crate) fn examine(medium: &dyn Medium) -> Result<Found, InspectError> {
    let (tables, read_error) = tables(medium);
    if let Some(error) = read_error {
        return Err(error);
    }
    // The common case first: a later start reads some twenty KiB.
    if let Some(ours) = tables.ours(medium) {
        return Ok(Found::Orlop(finished_or_not(
            medium,
            ours,
            tables.is_damaged(),
        )?));
    }
    let ends = ends(medium)?;
    if let Some(table) = tables.any() {
        return Ok(Found::Foreign {
            what: describe(table),
        });
    }
    if is_claimed(&ends, medium) {
        return Ok(Found::Orlop(State::Unfinished));
    }
    match signature::superblock(&ends) {
        Some(superblock) if superblock.label == LABEL && superblock.kind == "ext4" => {
            return Ok(Found::Orlop(State::Complete {
                partition: None,
                table_is_damaged: false,
                claim_is_left: false,
                superblock,
            }));
        }
        _ => {}
    }
    let damaged = [&tables.primary, &tables.backup, &tables.other_size].contains(&&Copy::Damaged);
    let what = signature::name(&ends)
        .filter(|_| !damaged)
        .or_else(|| damaged.then(|| "a damaged GPT partition table".to_owned()))
        .or_else(|| signature::nameless(&ends));
    Ok(what.map_or(Found::Blank, |what| Found::Foreign { what }))
}

/// The copies of the partition table.
pub(crate) struct Tables {
    primary: Copy,
    backup: Copy,
    /// A primary copy for sectors of another size than the disk's, from an image that was copied here.
    other_size: Copy,
}

/// The tables of a disk, and the first error in reading them.
pub(crate) fn tables(medium: &dyn Medium) -> (Tables, Option<InspectError>) {
    let failed = std::cell::RefCell::new(None);
    let read = |at: u64, length: usize| {
        let end = at.checked_add(length as u64)?;
        if end > medium.size_bytes() {
            return None;
        }
        let mut bytes = vec![0; length];
        match medium.read_at(&mut bytes, at) {
            Ok(()) => Some(bytes),
            Err(e) => {
                failed.borrow_mut().get_or_insert(e);
                None
            }
        }
    };
    let sector = medium.sector_bytes();
    let primary = gpt::read(&read, 1, sector);
    let last_lba = (medium.size_bytes() / sector).saturating_sub(1);
    // On a disk that was made larger the backup is where the primary says, not at the end.
    let backup_lba = match &primary {
        Copy::Whole(table) => table.alternate_lba,
        _ => last_lba,
    };
    let tables = Tables {
        backup: gpt::read(&read, backup_lba, sector),
        other_size: gpt::read(&read, 1, if sector == 512 { 4096 } else { 512 }),
        primary,
    };
    (tables, failed.into_inner())
}

impl Tables {
    /// The table of a disk that is all ours: one partition, of our type and name.
    pub(crate) fn ours(&self, medium: &dyn Medium) -> Option<&Table> {
        let is_ours = |table: &&Table| match table.entries.as_slice() {
            [entry] => {
                entry.kind == VAR_TYPE
                    && (entry.name == LABEL || entry.name == UNFINISHED)
                    && partition_of(table, medium).is_some()
            }
            _ => false,
        };
        // The primary decides; the backup counts only when there is no primary.
        match (&self.primary, &self.backup) {
            (Copy::Whole(table), _) => Some(table).filter(is_ours),
            (_, Copy::Whole(table)) => Some(table).filter(is_ours),
            _ => None,
        }
    }

    pub(crate) fn primary(&self) -> Option<&Table> {
        match &self.primary {
            Copy::Whole(table) => Some(table),
            Copy::None | Copy::Damaged => None,
        }
    }

    pub(crate) fn backup(&self) -> Option<&Table> {
        match &self.backup {
            Copy::Whole(table) => Some(table),
            Copy::None | Copy::Damaged => None,
        }
    }

    fn any(&self) -> Option<&Table> {
        [&self.primary, &self.backup, &self.other_size]
            .into_iter()
            .find_map(|copy| match copy {
                Copy::Whole(table) => Some(table),
                _ => None,
            })
    }

    pub(crate) fn is_damaged(&self) -> bool {
        match (&self.primary, &self.backup) {
            (Copy::Whole(primary), Copy::Whole(backup)) => primary.entries != backup.entries,
            _ => true,
        }
    }
}

/// The place of a table's only partition, when it lies on the disk.
pub(crate) fn partition_of(table: &Table, medium: &dyn Medium) -> Option<Partition> {
    let entry = table.entries.first()?;
    let sector = medium.sector_bytes();
    let start_bytes = entry.first_lba.checked_mul(sector)?;
    let end_bytes = entry.last_lba.checked_add(1)?.checked_mul(sector)?;
    let size_bytes = end_bytes
        .checked_sub(start_bytes)
        .filter(|size| *size > 0)?;
    (end_bytes <= medium.size_bytes() && start_bytes > CLAIM_AT).then_some(Partition {
        number: entry.number,
        start_bytes,
        size_bytes,
    })
}

fn finished_or_not(
    medium: &dyn Medium,
    table: &Table,
    table_is_damaged: bool,
) -> Result<State, InspectError> {
    let is_finished = table
        .entries
        .first()
        .is_some_and(|entry| entry.name == LABEL);
    let (true, Some(partition)) = (is_finished, partition_of(table, medium)) else {
        return Ok(State::Unfinished);
    };
    let mut bytes = vec![0; SUPERBLOCK_BYTES];
    if partition.size_bytes < SUPERBLOCK_AT + SUPERBLOCK_BYTES as u64 {
        let what = "no room for a filesystem".to_owned();
        return Ok(State::Damaged { partition, what });
    }
    medium.read_at(&mut bytes, partition.start_bytes + SUPERBLOCK_AT)?;
    Ok(match Superblock::decode(&bytes) {
        Some(superblock) => State::Complete {
            partition: Some(partition),
            table_is_damaged,
            claim_is_left: has_claim(medium)?,
            superblock,
        },
        None => State::Damaged {
            partition,
            what: "no ext4 superblock".to_owned(),
        },
    })
}

fn has_claim(medium: &dyn Medium) -> Result<bool, InspectError> {
    let mut bytes = [0; CLAIM_BYTES];
    medium.read_at(&mut bytes, CLAIM_AT)?;
    Ok(bytes == layout::claim(medium.size_bytes()))
}

/// Whether the disk has our claim and nothing else, apart from what a partition table's writing may have left.
fn is_claimed(ends: &Ends, medium: &dyn Medium) -> bool {
    let at = CLAIM_AT as usize;
    let claim = layout::claim(medium.size_bytes());
    if ends.head.get(at..at + CLAIM_BYTES) != Some(claim.as_slice()) {
        return false;
    }
    let sector = medium.sector_bytes();
    let table = (layout::table_sectors(sector) * sector) as usize;
    let is_zero = |bytes: Option<&[u8]>| bytes.is_some_and(signature::is_zero);
    // The first copy stands behind the boot record, of which only the partition table may be used.
    let unaligned = (medium.size_bytes() % sector) as usize;
    let tail_end = ends.tail.len().saturating_sub(table + unaligned);
    is_zero(ends.head.get(..446))
        && is_zero(ends.head.get(512..sector as usize))
        && is_zero(ends.head.get(table + sector as usize..at))
        && is_zero(ends.head.get(at + CLAIM_BYTES..))
        && is_zero(ends.tail.get(..tail_end))
}

fn ends(medium: &dyn Medium) -> Result<Ends, InspectError> {
    let size = medium.size_bytes();
    let length = END.min(size);
    let mut ends = Ends {
        head: vec![0; length as usize],
        tail: vec![0; length as usize],
        disk_bytes: size,
    };
    medium.read_at(&mut ends.head, 0)?;
    medium.read_at(&mut ends.tail, size - length)?;
    Ok(ends)
}

fn describe(table: &Table) -> String {
    /// Partitions that are named in a message.
    const MOST: usize = 6;
    let names: Vec<String> = table
        .entries
        .iter()
        .take(MOST)
        .map(|e| gpt::type_name(e.kind))
        .collect();
    let more = if table.entries.len() > MOST {
        ", …"
    } else {
        ""
    };
    match table.entries.len() {
        0 => "a GPT partition table without partitions".to_owned(),
        1 => format!(
            "a GPT partition table with 1 partition ({})",
            names.join(", ")
        ),
        n => format!(
            "a GPT partition table with {n} partitions ({}{more})",
            names.join(", ")
        ),
    }
}
