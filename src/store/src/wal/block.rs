//! The bytes of the log: segment heads, blocks, records. `docs/store-format.md` is the reference.

use crate::bytes::{Ended, Reader};
use crate::consensus::{Entry, EntryKind, HardState};

/// Length of a segment's head.
pub(super) const SEGMENT_HEAD_BYTES: usize = 64;
/// Length of a block's head.
pub(super) const BLOCK_HEAD_BYTES: usize = 24;
/// What every block begins with.
pub(super) const BLOCK_MAGIC: &[u8; 4] = b"OBLK";
const SEGMENT_MAGIC: &[u8; 8] = b"ORLOPWAL";
const VERSION: u32 = 1;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The head of a segment is not one.
    #[error("no segment head")]
    NoSegmentHead,
    /// Written by a later version.
    #[error("segment version {0} is not known")]
    SegmentVersion(u32),
    /// A record of a type that this version does not know.
    #[error("record type {0} is not known")]
    RecordType(u8),
    /// An entry of a kind that this version does not know.
    #[error("entry kind {0} is not known")]
    EntryKind(u8),
    /// A record ends beyond its block.
    #[error("a record ends beyond its block")]
    RecordEnd,
}

impl From<Ended> for FormatError {
    fn from(Ended: Ended) -> Self {
        Self::RecordEnd
    }
}

/// The head of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHead {
    pub(super) size: u32,
    pub(super) number: u64,
    pub(super) first_block: u64,
    pub(super) cluster: u64,
    pub(super) member: u64,
    pub(super) previous_check: u32,
    pub(super) salt: u64,
}

impl SegmentHead {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEAD_BYTES] {
        let mut out = [0; SEGMENT_HEAD_BYTES];
        out[0..8].copy_from_slice(SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.size.to_le_bytes());
        out[16..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..32].copy_from_slice(&self.first_block.to_le_bytes());
        out[32..40].copy_from_slice(&self.cluster.to_le_bytes());
        out[40..48].copy_from_slice(&self.member.to_le_bytes());
        out[48..52].copy_from_slice(&self.previous_check.to_le_bytes());
        out[52..60].copy_from_slice(&self.salt.to_le_bytes());
        let check = crc32fast::hash(&out[..60]);
        out[60..64].copy_from_slice(&check.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader(
            bytes
                .get(..SEGMENT_HEAD_BYTES)
                .ok_or(FormatError::NoSegmentHead)?,
        );
        let whole = reader.0;
        let check = u32::from_le_bytes([whole[60], whole[61], whole[62], whole[63]]);
        if reader.take(8)? != SEGMENT_MAGIC || crc32fast::hash(&whole[..60]) != check {
            return Err(FormatError::NoSegmentHead);
        }
        let version = reader.u32()?;
        if version != VERSION {
            return Err(FormatError::SegmentVersion(version));
        }
        Ok(Self {
            size: reader.u32()?,
            number: reader.u64()?,
            first_block: reader.u64()?,
            cluster: reader.u64()?,
            member: reader.u64()?,
            previous_check: reader.u32()?,
            salt: reader.u64()?,
        })
    }
}

/// A block's bytes with its head, and its check. `payload` must fit a segment.
pub(super) fn encode_block(
    number: u64,
    previous_check: u32,
    salt: u64,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> u32 {
    out.clear();
    out.extend_from_slice(BLOCK_MAGIC);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&previous_check.to_le_bytes());
    let check = block_check(salt, out, payload);
    out.extend_from_slice(&check.to_le_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(8), 0);
    check
}

fn block_check(salt: u64, head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

/// A valid block found in a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block<'a> {
    pub(super) number: u64,
    pub(super) previous_check: u32,
    pub(super) check: u32,
    pub(super) payload: &'a [u8],
    /// Bytes from its first to the next block's first.
    pub(super) length: usize,
}

/// The block at the start of `bytes`, if a valid one is there.
pub(super) fn decode_block(bytes: &[u8], salt: u64) -> Option<Block<'_>> {
    let mut reader = Reader(bytes);
    if reader.take(4).ok()? != BLOCK_MAGIC {
        return None;
    }
    let length = reader.u32().ok()? as usize;
    let number = reader.u64().ok()?;
    let previous_check = reader.u32().ok()?;
    let check = reader.u32().ok()?;
    let payload = reader.take(length).ok()?;
    if block_check(salt, bytes.get(..20)?, payload) != check {
        return None;
    }
    Some(Block {
        number,
        previous_check,
        check,
        payload,
        length: (BLOCK_HEAD_BYTES + length).next_multiple_of(8),
    })
}

/// One record of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Entry(Entry),
    HardState(HardState),
    Reset { index: u64, term: u64 },
}

pub(super) fn encode_entry(entry: &Entry, out: &mut Vec<u8>) {
    out.push(1);
    out.push(entry.kind as u8);
    out.extend_from_slice(&entry.term.to_le_bytes());
    out.extend_from_slice(&entry.index.to_le_bytes());
    out.extend_from_slice(&(entry.data.len() as u32).to_le_bytes());
    out.extend_from_slice(&(entry.context.len() as u32).to_le_bytes());
    out.extend_from_slice(&entry.data);
    out.extend_from_slice(&entry.context);
}

pub(super) fn encode_hard_state(state: &HardState, out: &mut Vec<u8>) {
    out.push(2);
    out.extend_from_slice(&state.term.to_le_bytes());
    out.extend_from_slice(&state.vote.to_le_bytes());
    out.extend_from_slice(&state.commit.to_le_bytes());
}

pub(super) fn encode_reset(index: u64, term: u64, out: &mut Vec<u8>) {
    out.push(3);
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(&term.to_le_bytes());
}

/// Bytes that [`encode_entry`] adds for this entry.
pub(super) fn entry_bytes(entry: &Entry) -> usize {
    26 + entry.data.len() + entry.context.len()
}

/// The records of a block's payload.
pub(super) fn decode_records(payload: &[u8]) -> Result<Vec<Record>, FormatError> {
    let mut reader = Reader(payload);
    let mut records = Vec::new();
    while !reader.0.is_empty() {
        records.push(match reader.u8()? {
            1 => {
                let kind = match reader.u8()? {
                    0 => EntryKind::Command,
                    1 => EntryKind::Change,
                    2 => EntryKind::JointChange,
                    other => return Err(FormatError::EntryKind(other)),
                };
                let (term, index) = (reader.u64()?, reader.u64()?);
                let (data, context) = (reader.u32()? as usize, reader.u32()? as usize);
                let data = reader.take(data)?.to_vec();
                let context = reader.take(context)?.to_vec();
                Record::Entry(Entry {
                    index,
                    term,
                    kind,
                    data,
                    context,
                })
            }
            2 => Record::HardState(HardState {
                term: reader.u64()?,
                vote: reader.u64()?,
                commit: reader.u64()?,
            }),
            3 => Record::Reset {
                index: reader.u64()?,
                term: reader.u64()?,
            },
            other => return Err(FormatError::RecordType(other)),
        });
    }
    Ok(records)
}
