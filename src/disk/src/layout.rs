//! What Orlop writes to a disk itself, as lists of writes: the order is what makes an interrupted first start
//! recoverable, so it is data that a test can cut anywhere.

use std::io::{self, Cursor, Write};

use gptman::{GPT, GPTPartitionEntry};
use uuid::Uuid;

use orlop_boot::gpt::{Entry, Table};

/// The label of the data volume's filesystem, and the name of its finished partition.
pub const LABEL: &str = "orlop-var";

/// The partition's name while the first start is not done with it.
pub(crate) const UNFINISHED: &str = "orlop-var-new";

pub use orlop_boot::gpt::VAR_TYPE;

/// Where the partition starts, and what its size is a multiple of.
pub(crate) const ALIGNMENT: u64 = 1 << 20;

/// How much is looked at, and wiped, at each end of the disk.
pub(crate) const END: u64 = 1 << 20;

/// The smallest disk that is taken.
pub(crate) const SMALLEST: u64 = 16 << 20;

/// Where the claim lies: between the primary table and the first partition.
pub(crate) const CLAIM_AT: u64 = 512 << 10;

/// The claim's size: one sector, so that it is there or not there.
pub(crate) const CLAIM_BYTES: usize = 512;

const CLAIM_MAGIC: &[u8; 16] = b"orlop-var-claim\0";
const CLAIM_VERSION: u32 = 1;

/// Sectors of a partition table's copy: 128 entries of 128 bytes, and the header.
pub(crate) fn table_sectors(sector_bytes: u64) -> u64 {
    (128 * 128_u64).div_ceil(sector_bytes) + 1
}

/// One write. It has to be on the disk before the next one is begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Patch {
    pub(crate) at: u64,
    pub(crate) bytes: Vec<u8>,
}

/// The claim: magic, version, the disk's size in bytes, zeros, and the CRC-32 of all before it; little-endian.
pub(crate) fn claim(disk_bytes: u64) -> [u8; CLAIM_BYTES] {
    let mut sector = [0; CLAIM_BYTES];
    let (body, crc) = sector.split_at_mut(CLAIM_BYTES - 4);
    let mut at = body.iter_mut();
    let fields = CLAIM_MAGIC
        .iter()
        .copied()
        .chain(CLAIM_VERSION.to_le_bytes())
        .chain(disk_bytes.to_le_bytes());
    for (to, from) in at.by_ref().zip(fields) {
        *to = from;
    }
    crc.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    sector
}

pub(crate) fn write_claim(disk_bytes: u64) -> Vec<Patch> {
    vec![Patch {
        at: CLAIM_AT,
        bytes: claim(disk_bytes).to_vec(),
    }]
}

pub(crate) fn remove_claim() -> Vec<Patch> {
    vec![Patch {
        at: CLAIM_AT,
        bytes: vec![0; CLAIM_BYTES],
    }]
}

/// Zeros at both ends, the start last: until it is gone the disk is what it was.
pub(crate) fn wipe(disk_bytes: u64) -> Vec<Patch> {
    let length = END.min(disk_bytes);
    let zeros = |at| Patch {
        at,
        bytes: vec![0; length as usize],
    };
    vec![zeros(disk_bytes - length), zeros(0)]
}

/// A fresh table with the one partition, unfinished.
pub(crate) fn new_table(disk_bytes: u64, sector_bytes: u64) -> io::Result<Vec<Patch>> {
    let mut size = Size(disk_bytes, 0);
    let mut gpt = GPT::new_from(&mut size, sector_bytes, Uuid::new_v4().to_bytes_le())
        .map_err(io::Error::other)?;
    let alignment = ALIGNMENT / sector_bytes;
    // The end is aligned too, so that the filesystem's blocks are whole.
    let end = (gpt.header.last_usable_lba + 1) / alignment * alignment;
    gpt[1] = GPTPartitionEntry {
        partition_type_guid: VAR_TYPE.to_bytes_le(),
        unique_partition_guid: Uuid::new_v4().to_bytes_le(),
        starting_lba: alignment,
        ending_lba: end - 1,
        attribute_bits: 0,
        partition_name: UNFINISHED.into(),
    };
    patches(gpt, sector_bytes, disk_bytes)
}

/// `table` again with its partition named `name`: to finish it, or to mend a copy that is damaged.
pub(crate) fn rewrite(
    table: &Table,
    name: &str,
    disk_bytes: u64,
    sector_bytes: u64,
) -> io::Result<Vec<Patch>> {
    let named = |entry: &Entry| Entry {
        name: name.to_owned(),
        ..entry.clone()
    };
    rewritten(table, &named, disk_bytes, sector_bytes)
}

/// `table` again with `changed` in the place of the entry of its number.
pub(crate) fn relaid(
    table: &Table,
    changed: &Entry,
    disk_bytes: u64,
    sector_bytes: u64,
) -> io::Result<Vec<Patch>> {
    let change = |entry: &Entry| {
        let is_it = entry.number == changed.number;
        if is_it { changed } else { entry }.clone()
    };
    rewritten(table, &change, disk_bytes, sector_bytes)
}

fn rewritten(
    table: &Table,
    change: &dyn Fn(&Entry) -> Entry,
    disk_bytes: u64,
    sector_bytes: u64,
) -> io::Result<Vec<Patch>> {
    let mut size = Size(disk_bytes, 0);
    let mut gpt = GPT::new_from(&mut size, sector_bytes, table.disk_guid.to_bytes_le())
        .map_err(io::Error::other)?;
    for entry in table.entries.iter().map(change) {
        if !(1..=128).contains(&entry.number) {
            return Err(io::Error::other(format!(
                "partition {} is beyond 128",
                entry.number
            )));
        }
        gpt[entry.number] = GPTPartitionEntry {
            partition_type_guid: entry.kind.to_bytes_le(),
            unique_partition_guid: entry.unique.to_bytes_le(),
            starting_lba: entry.first_lba,
            ending_lba: entry.last_lba,
            attribute_bits: entry.attributes,
            partition_name: entry.name.as_str().into(),
        };
    }
    patches(gpt, sector_bytes, disk_bytes)
}

/// Both copies of a table as writes: the backup first and within a copy the header last, so that at each moment one
/// copy is whole (UEFI 2.10 §5.3.2 has the backup for this).
pub(crate) fn patches(mut gpt: GPT, sector_bytes: u64, disk_bytes: u64) -> io::Result<Vec<Patch>> {
    let sectors = table_sectors(sector_bytes);
    let head = (sectors + 1) * sector_bytes;
    let tail = disk_bytes / sector_bytes * sector_bytes - sectors * sector_bytes;
    let mut image = Ends {
        size: disk_bytes,
        at: 0,
        head: vec![0; head as usize],
        tail_at: tail,
        tail: vec![0; (disk_bytes - tail) as usize],
    };
    GPT::write_protective_mbr_into(&mut image, sector_bytes).map_err(io::Error::other)?;
    gpt.write_into(&mut image).map_err(io::Error::other)?;

    let sector = sector_bytes as usize;
    let backup_header = (sectors as usize - 1) * sector;
    let patch = |at: u64, bytes: &[u8]| Patch {
        at,
        bytes: bytes.to_vec(),
    };
    let (entries, header) = image.tail.split_at(backup_header);
    let (mbr, primary) = image.head.split_at(sector);
    let (primary_header, primary_entries) = primary.split_at(sector);
    Ok(vec![
        patch(tail, entries),
        patch(
            tail + backup_header as u64,
            header.get(..sector).unwrap_or(header),
        ),
        patch(0, mbr),
        patch(2 * sector_bytes, primary_entries),
        patch(sector_bytes, primary_header),
    ])
}

/// A disk of which only the size matters.
pub(crate) struct Size(pub(crate) u64, pub(crate) u64);

impl io::Read for Size {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
}

impl io::Seek for Size {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.1 = seek(self.0, self.1, to)?;
        Ok(self.1)
    }
}

/// A disk of which only the two ends, where a table's copies lie, can be written.
struct Ends {
    size: u64,
    at: u64,
    head: Vec<u8>,
    tail_at: u64,
    tail: Vec<u8>,
}

impl Write for Ends {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (end, start) = match self.at.checked_sub(self.tail_at) {
            Some(offset) => (&mut self.tail, offset),
            None => (&mut self.head, self.at),
        };
        let mut cursor = Cursor::new(end.as_mut_slice());
        cursor.set_position(start);
        cursor.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl io::Seek for Ends {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.at = seek(self.size, self.at, to)?;
        Ok(self.at)
    }
}

fn seek(size: u64, at: u64, to: io::SeekFrom) -> io::Result<u64> {
    let target = match to {
        io::SeekFrom::Start(offset) => Some(offset),
        io::SeekFrom::End(offset) => size.checked_add_signed(offset),
        io::SeekFrom::Current(offset) => at.checked_add_signed(offset),
    };
    target.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
