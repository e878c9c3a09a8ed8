//! Writing a payload to the slot that does not run.
//!
//! The order is what makes it safe to cut the power anywhere:
//!
//! 1. Everything that can be refused is refused before a byte is written.
//! 2. Entries that boot the slot about to be overwritten are removed.
//! 3. The kernel image is written under its final name, but with its first sector left zero: no loader takes it for an image.
//! 4. Root and hash tree are written, read back and compared.
//! 5. The slot's partitions get the UUIDs that the root hash gives them.
//! 6. The kernel image's first sector is written. This one sector is what makes the new version bootable.
//!
//! A rename in place of 6 would be two writes on FAT: cut between them, two names share one chain of clusters, and removing one of them
//! destroys the other.

use std::io::{self, Read};

use orlop_boot::entries::Entry;
use orlop_disk::PartitionTable;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::hex::Hash;
use crate::manifest::{Manifest, Which};
use crate::payload::{Payload, PayloadError};
use crate::slots::{Options, Plan, Refusal, Running, Slot, plan};
use crate::storage::{Disk, Esp, read_files};

/// What is written last. A disk writes it whole or not at all.
const SECTOR_BYTES: usize = 512;

/// How much is read back at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// Why a version was not put into its slot.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// Nothing was written.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The payload is damaged, or its source broke off.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The disk has no partition table.
    #[error("the disk has no partition table that can be read")]
    NoTable,
    /// The EFI system partition can not be read.
    #[error("cannot look at the EFI system partition")]
    LookAtEsp(#[source] io::Error),
    /// A part can not be written.
    #[error("cannot write {0}")]
    Write(Which, #[source] io::Error),
    /// A part can not be read back.
    #[error("cannot read {0} back")]
    ReadBack(Which, #[source] io::Error),
    /// The medium does not hold what was written to it.
    #[error("the disk does not give back what was written: {0} is damaged after writing")]
    BadMedium(Which),
    /// An old entry can not be removed.
    #[error("cannot remove the entry {0}")]
    Remove(String, #[source] io::Error),
    /// The partition table can not be written.
    #[error("cannot write the partition table")]
    Table(#[source] io::Error),
    /// The payload has fewer parts than it says.
    #[error("the payload has no {0}")]
    Missing(Which),
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes that are done.
    pub done_bytes: u64,
    /// Bytes that there are.
    pub total_bytes: u64,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The payload is read and checked.
    Check,
    /// Parts are written.
    Write,
    /// What was written is read back.
    ReadBack,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The slot, `a` or `b`.
    pub slot: &'static str,
    /// The new entry.
    pub entry: Entry,
}

/// Reads a whole payload and verifies it, so that a damaged file changes nothing.
pub fn check<R: Read>(
    mut payload: Payload<R>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), PayloadError> {
    let total_bytes = payload.manifest().bytes();
    let mut done_bytes = 0;
    let mut count = |bytes: &[u8]| -> Result<(), PayloadError> {
        done_bytes += bytes.len() as u64;
        progress(Progress {
            phase: Phase::Check,
            done_bytes,
            total_bytes,
        });
        Ok(())
    };
    while payload.next_part(&mut count)?.is_some() {}
    Ok(())
}

/// The plan for `manifest` on this disk, which only reads.
pub fn prepare(
    manifest: &Manifest,
    disk: &dyn Disk,
    esp: &dyn Esp,
    running: &Running,
    options: Options,
) -> Result<(Plan, PartitionTable), ApplyError> {
    let table = read_table(disk).ok_or(ApplyError::NoTable)?;
    let files = read_files(esp).map_err(ApplyError::LookAtEsp)?;
    let free_bytes = esp.free_bytes().map_err(ApplyError::LookAtEsp)?;
    Ok((
        plan(manifest, &table, &files, free_bytes, running, options)?,
        table,
    ))
}

/// The partition table of `disk`.
#[must_use]
pub fn read_table(disk: &dyn Disk) -> Option<PartitionTable> {
    let read = |at: u64, length: usize| {
        let end = at.checked_add(length as u64)?;
        let mut into = vec![0; length];
        (end <= disk.size_bytes())
            .then(|| disk.read_at(&mut into, at).ok())
            .flatten()?;
        Some(into)
    };
    PartitionTable::read(&read, disk.size_bytes(), disk.sector_bytes())
}

/// Puts the payload's version into the slot that does not run, to be started next.
pub fn apply<R: Read>(
    mut payload: Payload<R>,
    disk: &mut dyn Disk,
    esp: &mut dyn Esp,
    running: &Running,
    options: Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Applied, ApplyError> {
    let manifest = payload.manifest().clone();
    let (plan, mut table) = prepare(&manifest, disk, esp, running, options)?;
    let name = plan.entry.file_name();
    for stale in &plan.stale {
        esp.remove(stale)
            .and_then(|()| esp.sync())
            .map_err(|e| ApplyError::Remove(stale.clone(), e))?;
    }
    let written = write(&mut payload, &plan, disk, esp, &name, progress).and_then(|head| {
        finish(
            &manifest, &plan, disk, esp, &mut table, &name, &head, progress,
        )
    });
    match written {
        Ok(()) => Ok(Applied {
            slot: plan.slot.name,
            entry: plan.entry,
        }),
        Err(error) => {
            // Without its first sector the file boots nothing; it only takes room.
            let _ = esp.remove(&name).and_then(|()| esp.sync());
            Err(error)
        }
    }
}

/// Writes all parts, the kernel image's first sector left zero, and gives that sector.
fn write<R: Read>(
    payload: &mut Payload<R>,
    plan: &Plan,
    disk: &mut dyn Disk,
    esp: &mut dyn Esp,
    name: &str,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<u8>, ApplyError> {
    let total_bytes = payload.manifest().bytes();
    let mut done_bytes = 0;
    let mut head = Vec::new();
    let parts: Vec<Which> = payload.manifest().parts().map(|(which, _)| which).collect();
    for which in parts {
        let mut at = 0;
        let place = plan.slot.place(which);
        let mut sink = |bytes: &[u8]| {
            let written = match place {
                None if which == Which::Loader => Ok(()),
                Some(place) => disk.write_at(bytes, place.start_bytes + at),
                None if at == 0 => {
                    let (first, rest) = bytes.split_at(SECTOR_BYTES.min(bytes.len()));
                    head = first.to_vec();
                    esp.write_at(name, &[vec![0; first.len()].as_slice(), rest].concat(), 0)
                }
                None => esp.write_at(name, bytes, at),
            };
            written.map_err(|e| ApplyError::Write(which, e))?;
            at += bytes.len() as u64;
            done_bytes += bytes.len() as u64;
            progress(Progress {
                phase: Phase::Write,
                done_bytes,
                total_bytes,
            });
            Ok(())
        };
        if payload.next_part::<ApplyError>(&mut sink)?.is_none() {
            return Err(ApplyError::Missing(which));
        }
        let synced = if which == Which::Uki {
            esp.sync()
        } else {
            disk.sync()
        };
        synced.map_err(|e| ApplyError::Write(which, e))?;
    }
    Ok(head)
}

/// Reads all parts back, and makes the version bootable.
#[expect(
    clippy::too_many_arguments,
    reason = "the one caller's own values, in two steps for their length alone"
)]
fn finish(
    manifest: &Manifest,
    plan: &Plan,
    disk: &mut dyn Disk,
    esp: &mut dyn Esp,
    table: &mut PartitionTable,
    name: &str,
    head: &[u8],
    progress: &mut dyn FnMut(Progress),
) -> Result<(), ApplyError> {
    let written = || {
        manifest
            .parts()
            .filter(|(which, _)| *which != Which::Loader)
    };
    let total_bytes = written().map(|(_, part)| part.bytes).sum();
    let mut done_bytes = 0;
    for (which, part) in written() {
        let mut hash = Sha256::new();
        let mut at = 0;
        while at < part.bytes {
            let length = CHUNK_BYTES.min(part.bytes - at);
            let mut chunk = vec![0; length as usize];
            let read = match plan.slot.place(which) {
                Some(place) => disk.read_at(&mut chunk, place.start_bytes + at),
                None => esp.read_at(name, &mut chunk, at),
            };
            read.map_err(|e| ApplyError::ReadBack(which, e))?;
            if which == Which::Uki && at == 0 {
                for (to, from) in chunk.iter_mut().zip(head) {
                    *to = *from;
                }
            }
            hash.update(&chunk);
            at += length;
            done_bytes += length;
            progress(Progress {
                phase: Phase::ReadBack,
                done_bytes,
                total_bytes,
            });
        }
        if Hash(hash.finalize().into()) != part.sha256 {
            return Err(ApplyError::BadMedium(which));
        }
    }
    write_uuids(disk, table, plan.slot.name, &manifest.root_hash)?;
    esp.write_at(name, head, 0)
        .and_then(|()| esp.sync())
        .map_err(|e| ApplyError::Write(Which::Uki, e))
}

/// Gives the partitions of `slot` the UUIDs by which the root hash is found.
fn write_uuids(
    disk: &mut dyn Disk,
    table: &mut PartitionTable,
    slot: &str,
    hash: &Hash,
) -> Result<(), ApplyError> {
    let uuids = [
        (Slot::root_name(slot), hash.root_uuid()),
        (Slot::verity_name(slot), hash.verity_uuid()),
    ];
    let mut is_changed = !table.is_whole();
    for (name, uuid) in uuids {
        if let Some(entry) = table.named_mut(&name).filter(|entry| entry.unique != uuid) {
            entry.unique = uuid;
            is_changed = true;
        }
    }
    if !is_changed {
        return Ok(());
    }
    write_table(disk, table).map_err(ApplyError::Table)
}

/// Writes both copies of a table, each write on the disk before the next.
pub(crate) fn write_table(disk: &mut dyn Disk, table: &PartitionTable) -> io::Result<()> {
    for write in table.writes()? {
        disk.write_at(&write.bytes, write.at)?;
        disk.sync()?;
    }
    Ok(())
}
