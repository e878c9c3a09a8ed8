//! Reading a log: its blocks in order, and what tells a torn end from damage.

use std::collections::VecDeque;

use super::block::{self, Record, SEGMENT_HEAD_BYTES, SegmentHead};
use super::{Active, Owner, WalError, segment_name};
use crate::consensus::{Entry, HardState};
use crate::disk::Disk;

/// The smallest segment that is read.
const MIN_SEGMENT_BYTES: usize = 4 << 10;
/// The largest segment that is read.
pub(super) const MAX_SEGMENT_BYTES: usize = 64 << 20;

/// What reading the segments in order has found so far.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) hard_state: HardState,
    pub(super) reset: Option<(u64, u64)>,
    pub(super) entries: Vec<Entry>,
    pub(super) full: VecDeque<(u64, u64)>,
    pub(super) active: Option<Active>,
    /// Number of the block that should come next; 0 before the first segment.
    pub(super) next_block: u64,
    pub(super) check: u32,
}

impl Scan {
    pub(super) fn segment(
        &mut self,
        disk: &dyn Disk,
        owner: Option<Owner>,
        number: u64,
    ) -> Result<(), WalError> {
        let name = segment_name(number);
        let damaged = |offset: usize, what: &str| WalError::Damaged {
            name: name.clone(),
            offset,
            what: what.to_owned(),
        };
        let file = disk.open(&name, false).map_err(|err| WalError::Read {
            name: name.clone(),
            err,
        })?;
        let length = file.size().map_err(|err| WalError::Read {
            name: name.clone(),
            err,
        })?;
        let Some(length) = usize::try_from(length)
            .ok()
            .filter(|length| (MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(length))
        else {
            return Err(damaged(0, "the segment has the wrong size"));
        };
        let mut bytes = vec![0; length];
        file.read(0, &mut bytes).map_err(|err| WalError::Read {
            name: name.clone(),
            err,
        })?;
        let head = SegmentHead::decode(&bytes).map_err(|err| damaged(0, &err.to_string()))?;
        if owner.is_some_and(|o| (head.cluster, head.member) != (o.cluster, o.member)) {
            return Err(WalError::Foreign {
                name,
                member: head.member,
                cluster: head.cluster,
            });
        }
        if head.number != number {
            return Err(damaged(0, "the head is of another segment"));
        }
        if head.size as usize != length {
            return Err(damaged(
                length.min(head.size as usize),
                "the segment has the wrong size",
            ));
        }
        if let Some(before) = self.active.take() {
            if before.number + 1 != number {
                return Err(damaged(0, "the segment before it is missing"));
            }
            if head.first_block != self.next_block || head.previous_check != self.check {
                return Err(damaged(0, "it does not continue the segment before it"));
            }
            self.full.push_back((before.number, before.highest_index));
        } else {
            self.next_block = head.first_block;
            self.check = head.previous_check;
        }
        let (offset, highest_index) = self.blocks(&bytes, &head, &damaged)?;
        // A later segment begins where its predecessor ended, so here nothing after the end may be of use.
        if let Some(found) = find_later_block(&bytes, offset, head.salt, self.next_block) {
            let what = format!(
                "no block {} here, but block {found} after it",
                self.next_block
            );
            return Err(damaged(offset, &what));
        }
        self.active = Some(Active {
            number,
            salt: head.salt,
            file,
            bytes: length,
            offset,
            highest_index,
        });
        Ok(())
    }

    /// Takes in the blocks of a segment; returns where they end and the highest index of an entry.
    fn blocks(
        &mut self,
        bytes: &[u8],
        head: &SegmentHead,
        damaged: &dyn Fn(usize, &str) -> WalError,
    ) -> Result<(usize, u64), WalError> {
        let mut offset = SEGMENT_HEAD_BYTES;
        let mut highest = 0;
        while let Some(block) = bytes
            .get(offset..)
            .and_then(|rest| block::decode_block(rest, head.salt))
        {
            if block.number != self.next_block {
                break;
            }
            if block.previous_check != self.check {
                return Err(damaged(
                    offset,
                    "the block does not follow the one before it",
                ));
            }
            for record in block::decode_records(block.payload)
                .map_err(|err| damaged(offset, &err.to_string()))?
            {
                match record {
                    Record::HardState(state) => self.hard_state = state,
                    Record::Reset { index, term } => {
                        self.entries.clear();
                        self.reset = Some((index, term));
                    }
                    Record::Entry(entry) => {
                        highest = highest.max(entry.index);
                        self.entry(entry).map_err(|what| damaged(offset, what))?;
                    }
                }
            }
            offset += block.length;
            self.check = block.check;
            self.next_block += 1;
        }
        Ok((offset, highest))
    }

    fn entry(&mut self, entry: Entry) -> Result<(), &'static str> {
        if let Some(first) = self.entries.first().map(|e| e.index) {
            if entry.index < first {
                self.entries.clear();
            } else {
                let keep = (entry.index - first) as usize;
                if keep > self.entries.len() {
                    return Err("entries are missing before it");
                }
                self.entries.truncate(keep);
            }
        }
        self.entries.push(entry);
        Ok(())
    }
}

/// The entries of all valid blocks of a segment, whatever lies between them; nothing when its head is not legible.
pub(super) fn legible_entries(bytes: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let Ok(head) = SegmentHead::decode(bytes) else {
        return entries;
    };
    let mut at = SEGMENT_HEAD_BYTES;
    while let Some(rest) = bytes
        .get(at..)
        .filter(|rest| rest.len() >= block::BLOCK_HEAD_BYTES)
    {
        match block::decode_block(rest, head.salt) {
            Some(block) if block.length > 0 => {
                let records = block::decode_records(block.payload).unwrap_or_default();
                entries.extend(records.into_iter().filter_map(|record| match record {
                    Record::Entry(entry) => Some(entry),
                    _ => None,
                }));
                at += block.length;
            }
            _ => at += 8,
        }
    }
    entries
}

/// The number of a valid block at or after `offset` that is `expected` or later.
fn find_later_block(bytes: &[u8], offset: usize, salt: u64, expected: u64) -> Option<u64> {
    let mut at = offset.next_multiple_of(8);
    while let Some(rest) = bytes.get(at..) {
        if rest.len() < block::BLOCK_HEAD_BYTES {
            return None;
        }
        if rest.starts_with(block::BLOCK_MAGIC)
            && let Some(found) = block::decode_block(rest, salt)
            && found.number >= expected
        {
            return Some(found.number);
        }
        at += 8;
    }
    None
}
