//! The log on disk: preallocated segments of checked blocks, one write and one sync a block.
//!
//! It owns the files `wal-*`. What it returns from [`Wal::append`] is durable.

mod block;
mod scan;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crate::consensus::{Entry, EntryKind, HardState};
use crate::disk::{Disk, DiskFile};
use block::{SEGMENT_HEAD_BYTES, SegmentHead};
use scan::Scan;

pub use block::FormatError;

/// Size of a segment, unless the options say otherwise.
pub const SEGMENT_BYTES: usize = 4 << 20;
const SPARE: &str = "wal-spare";
/// Segments are filled with zeros in pieces of this size.
const FILL_BYTES: usize = 256 << 10;

/// Why the log cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The names in the directory cannot be read.
    #[error("list the log's segments")]
    List(#[source] io::Error),
    /// A segment cannot be read.
    #[error("read {name}")]
    Read {
        /// The segment.
        name: String,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// A segment cannot be written, named or synced: what is on the disk is not known any more.
    #[error("write {name}")]
    Write {
        /// The segment.
        name: String,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// Bytes that were durable are not what was written.
    #[error("{name} is damaged at byte {offset}: {what}")]
    Damaged {
        /// The segment.
        name: String,
        /// Where.
        offset: usize,
        /// What is wrong there.
        what: String,
    },
    /// The log is of another member.
    #[error("{name} belongs to member {member:x} of cluster {cluster:x}")]
    Foreign {
        /// The segment.
        name: String,
        /// Whose it is.
        member: u64,
        /// Of which cluster.
        cluster: u64,
    },
    /// Segments hold entries, but the state that they are for is not there.
    #[error("{name} holds entries, but there is no state that they are for")]
    NoState {
        /// The segment.
        name: String,
    },
    /// There is no room for another segment.
    #[error("no room for another segment of the log")]
    Full(#[source] io::Error),
}

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The cluster.
    pub cluster: u64,
    /// The member.
    pub member: u64,
}

/// What a log held when it was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The last hard state.
    pub hard_state: HardState,
    /// A snapshot's index and term that voids what came before, if one was recorded.
    pub reset: Option<(u64, u64)>,
    /// The entries that hold, by index without gaps.
    pub entries: Vec<Entry>,
}

/// The log, open for appending.
#[derive(Debug)]
pub struct Wal {
    disk: Arc<dyn Disk>,
    owner: Owner,
    /// Full segments, oldest first: number and the highest index of an entry in it.
    full: VecDeque<(u64, u64)>,
    active: Active,
    /// Whether `wal-spare` is there and of the right size.
    spare: bool,
    /// Number of the next block.
    next_block: u64,
    /// Check of the last block.
    check: u32,
    /// Draws the salts: SplitMix64.
    salts: u64,
    /// Size of the segments to come.
    segment_bytes: usize,
    payload: Vec<u8>,
    block: Vec<u8>,
}

#[derive(Debug)]
struct Active {
    number: u64,
    salt: u64,
    file: Arc<dyn DiskFile>,
    /// Its size.
    bytes: usize,
    /// Where the next block goes.
    offset: usize,
    highest_index: u64,
}

fn segment_name(number: u64) -> String {
    format!("wal-{number:016x}")
}

fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("wal-")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
}

impl Wal {
    /// Opens the log, or makes an empty one; `seed` must be random for each process, it seeds the salts. New segments are
    /// of `segment_bytes`, which must be a multiple of 8 and hold the longest entry; old ones keep their size.
    ///
    /// # Errors
    /// See [`WalError`]. After an error nothing has been changed, apart from the creation of an empty log.
    pub fn open(
        disk: Arc<dyn Disk>,
        owner: Owner,
        seed: u64,
        segment_bytes: usize,
    ) -> Result<(Self, Recovered), WalError> {
        let names = disk.list().map_err(WalError::List)?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|n| segment_number(n)).collect();
        numbers.sort_unstable();
        let mut scan = Scan::default();
        for number in &numbers {
            scan.segment(&*disk, Some(owner), *number)?;
        }
        let mut salts = seed;
        let (active, new) = match scan.active.take() {
            Some(active) => (active, false),
            None => {
                let salt = split_mix(&mut salts);
                let head = SegmentHead {
                    size: segment_bytes as u32,
                    number: 1,
                    first_block: 1,
                    cluster: owner.cluster,
                    member: owner.member,
                    previous_check: 0,
                    salt,
                };
                make_spare(&*disk, segment_bytes)?;
                (activate(&*disk, &head)?, true)
            }
        };
        let mut wal = Self {
            spare: false,
            owner,
            full: scan.full,
            active,
            next_block: scan.next_block.max(1),
            check: scan.check,
            salts,
            segment_bytes,
            payload: Vec::new(),
            block: Vec::new(),
            disk,
        };
        if !new {
            wal.clear_rest()?;
        }
        if names.iter().any(|n| n == SPARE) && !new {
            let file = wal.disk.open(SPARE, false).map_err(|err| WalError::Read {
                name: SPARE.into(),
                err,
            })?;
            wal.spare = file.size().is_ok_and(|len| len == segment_bytes as u64);
        }
        let recovered = Recovered {
            hard_state: scan.hard_state,
            reset: scan.reset,
            entries: scan.entries,
        };
        Ok((wal, recovered))
    }

    /// Whether there is a log.
    ///
    /// # Errors
    /// [`WalError::List`].
    pub fn exists(disk: &dyn Disk) -> Result<bool, WalError> {
        let names = disk.list().map_err(WalError::List)?;
        Ok(names.iter().any(|n| segment_number(n).is_some()))
    }

    /// The changes of members in what is legible of a log, damaged or not, in their order: enough to know whom to ask.
    pub fn legible_changes(disk: &dyn Disk) -> Vec<Entry> {
        let names = disk.list().unwrap_or_default();
        let mut numbers: Vec<u64> = names.iter().filter_map(|n| segment_number(n)).collect();
        numbers.sort_unstable();
        let mut changes = Vec::new();
        for number in numbers {
            let read = || {
                let file = disk.open(&segment_name(number), false)?;
                let length = file.size()?.min(scan::MAX_SEGMENT_BYTES as u64);
                let mut bytes = vec![0; length as usize];
                file.read(0, &mut bytes)?;
                io::Result::Ok(bytes)
            };
            let entries = read().map_or_else(|_| Vec::new(), |b| scan::legible_entries(&b));
            changes.extend(entries.into_iter().filter(|e| e.kind == EntryKind::Change));
        }
        changes
    }

    /// Whose a log is, damaged or not, if that is legible.
    pub fn legible_owner(disk: &dyn Disk) -> Option<Owner> {
        let mut names = disk.list().ok()?;
        names.retain(|name| segment_number(name).is_some());
        names.sort_unstable();
        names.iter().rev().find_map(|name| {
            let mut head = [0; SEGMENT_HEAD_BYTES];
            disk.open(name, false).ok()?.read(0, &mut head).ok()?;
            let head = SegmentHead::decode(&head).ok()?;
            Some(Owner {
                cluster: head.cluster,
                member: head.member,
            })
        })
    }

    /// Removes a log that was made for a state that was then not made. One that holds anything is kept.
    ///
    /// # Errors
    /// [`WalError::NoState`] when it holds entries, or as [`Wal::open`].
    pub fn remove_unused(disk: &dyn Disk) -> Result<(), WalError> {
        let names = disk.list().map_err(WalError::List)?;
        for name in &names {
            let Some(number) = segment_number(name) else {
                continue;
            };
            let mut scan = Scan::default();
            scan.segment(disk, None, number)?;
            if !scan.entries.is_empty() || scan.hard_state != HardState::default() {
                return Err(WalError::NoState { name: name.clone() });
            }
            disk.remove(name).map_err(|err| WalError::Write {
                name: name.clone(),
                err,
            })?;
        }
        Ok(())
    }

    /// Zeros what a torn write may have left after the last block, so that nothing old can be taken for new.
    fn clear_rest(&mut self) -> Result<(), WalError> {
        let mut rest = vec![0; self.active.bytes - self.active.offset];
        let name = segment_name(self.active.number);
        self.active
            .file
            .read(self.active.offset as u64, &mut rest)
            .map_err(|err| WalError::Read {
                name: name.clone(),
                err,
            })?;
        const PIECE_BYTES: usize = 4096;
        let is_zero = |piece: &[u8]| piece == &[0; PIECE_BYTES][..piece.len()];
        let Some(last) = rest.chunks(PIECE_BYTES).rposition(|piece| !is_zero(piece)) else {
            return Ok(());
        };
        let zeros = vec![0; rest.len().min((last + 1) * PIECE_BYTES)];
        let wrote = self
            .active
            .file
            .write(self.active.offset as u64, &zeros)
            .and_then(|()| self.active.file.sync());
        wrote.map_err(|err| WalError::Write { name, err })
    }

    /// Bytes of entries that can surely be appended before another segment must be allocated.
    pub fn room_bytes(&self) -> usize {
        let rest = self.active.bytes - self.active.offset;
        if self.spare {
            rest + payload_bytes(self.segment_bytes)
        } else {
            rest
        }
    }

    /// Makes a segment ahead of its use once the present one is half full; `Ok(false)` when there is no room for it.
    ///
    /// # Errors
    /// [`WalError::Write`], when more than room is missing.
    pub fn prepare(&mut self) -> Result<bool, WalError> {
        if self.spare || self.active.offset < self.active.bytes / 2 {
            return Ok(true);
        }
        match make_spare(&*self.disk, self.segment_bytes) {
            Ok(()) => self.spare = true,
            Err(WalError::Full(_)) => return Ok(false),
            Err(err) => return Err(err),
        }
        Ok(true)
    }

    /// Writes the entries and the hard state and makes them durable. `reset` says that a snapshot voids all entries before.
    ///
    /// # Errors
    /// [`WalError::Full`]: there was no room for another segment. Any other error is final: the log must not be used again.
    pub fn append(
        &mut self,
        reset: Option<(u64, u64)>,
        entries: &[Entry],
        hard_state: &HardState,
    ) -> Result<(), WalError> {
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        if let Some((index, term)) = reset {
            block::encode_reset(index, term, &mut payload);
        }
        block::encode_hard_state(hard_state, &mut payload);
        let mut highest = 0;
        // A block that does not fit into the active segment begins the next one.
        let limit = payload_bytes(self.segment_bytes);
        for entry in entries {
            if payload.len() + block::entry_bytes(entry) > limit {
                self.write_block(&payload, highest)?;
                payload.clear();
                block::encode_hard_state(hard_state, &mut payload);
            }
            block::encode_entry(entry, &mut payload);
            highest = highest.max(entry.index);
        }
        self.write_block(&payload, highest)?;
        self.payload = payload;
        Ok(())
    }

    fn write_block(&mut self, payload: &[u8], highest_index: u64) -> Result<(), WalError> {
        let length = (block::BLOCK_HEAD_BYTES + payload.len()).next_multiple_of(8);
        if self.active.offset + length > self.active.bytes {
            self.roll()?;
        }
        let mut bytes = std::mem::take(&mut self.block);
        let check = block::encode_block(
            self.next_block,
            self.check,
            self.active.salt,
            payload,
            &mut bytes,
        );
        let wrote = self
            .active
            .file
            .write(self.active.offset as u64, &bytes)
            .and_then(|()| self.active.file.sync());
        wrote.map_err(|err| WalError::Write {
            name: segment_name(self.active.number),
            err,
        })?;
        self.active.offset += bytes.len();
        self.active.highest_index = self.active.highest_index.max(highest_index);
        self.check = check;
        self.next_block += 1;
        self.block = bytes;
        Ok(())
    }

    /// Goes on in a new segment.
    fn roll(&mut self) -> Result<(), WalError> {
        if !self.spare {
            make_spare(&*self.disk, self.segment_bytes)?;
        }
        let head = SegmentHead {
            size: self.segment_bytes as u32,
            number: self.active.number + 1,
            first_block: self.next_block,
            cluster: self.owner.cluster,
            member: self.owner.member,
            previous_check: self.check,
            salt: split_mix(&mut self.salts),
        };
        let next = activate(&*self.disk, &head)?;
        self.spare = false;
        let before = std::mem::replace(&mut self.active, next);
        self.full.push_back((before.number, before.highest_index));
        Ok(())
    }

    /// Gives up the segments whose entries all have an index of at most `index`; one of them is kept as the spare.
    ///
    /// # Errors
    /// [`WalError::Write`].
    pub fn trim(&mut self, index: u64) -> Result<(), WalError> {
        let mut changed = false;
        while let Some((number, highest)) = self.full.front().copied() {
            if highest > index {
                break;
            }
            let name = segment_name(number);
            let gone = if self.spare {
                self.disk.remove(&name)
            } else {
                self.disk.rename(&name, SPARE)
            };
            gone.map_err(|err| WalError::Write { name, err })?;
            self.spare = true;
            self.full.pop_front();
            changed = true;
        }
        if changed {
            self.disk.sync_names().map_err(|err| WalError::Write {
                name: SPARE.into(),
                err,
            })?;
        }
        Ok(())
    }

    /// How many segments hold the log.
    pub fn segments(&self) -> usize {
        self.full.len() + 1
    }
}

/// The longest payload of a block in a segment of this size.
fn payload_bytes(segment_bytes: usize) -> usize {
    segment_bytes.saturating_sub(SEGMENT_HEAD_BYTES + block::BLOCK_HEAD_BYTES + 8)
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Allocates `wal-spare`. Zeros are written, not just reserved: the file system then has nothing left to note when
/// a block is synced.
fn make_spare(disk: &dyn Disk, bytes: usize) -> Result<(), WalError> {
    let fill = || -> io::Result<()> {
        let file = disk.open(SPARE, true)?;
        let zeros = vec![0; FILL_BYTES];
        for offset in (0..bytes).step_by(FILL_BYTES) {
            file.write(offset as u64, &zeros[..FILL_BYTES.min(bytes - offset)])?;
        }
        file.set_len(bytes as u64)
    };
    fill().map_err(|err| match err.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            // Best effort: a part of a segment is of no use to us, its room may be to others.
            let _ = disk.remove(SPARE);
            WalError::Full(err)
        }
        _ => WalError::Write {
            name: SPARE.into(),
            err,
        },
    })
}

/// Turns the spare into the segment of this head.
fn activate(disk: &dyn Disk, head: &SegmentHead) -> Result<Active, WalError> {
    let name = segment_name(head.number);
    let turn = || -> io::Result<Arc<dyn DiskFile>> {
        let file = disk.open(SPARE, false)?;
        file.write(0, &head.encode())?;
        file.sync()?;
        disk.rename(SPARE, &name)?;
        disk.sync_names()?;
        Ok(file)
    };
    let file = turn().map_err(|err| WalError::Write { name, err })?;
    Ok(Active {
        number: head.number,
        salt: head.salt,
        file,
        bytes: head.size as usize,
        offset: SEGMENT_HEAD_BYTES,
        highest_index: 0,
    })
}
