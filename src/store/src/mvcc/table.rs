//! The tables and their records.

use redb::TableDefinition;

use crate::proto::mvccpb::KeyValue;
use crate::state::StateError;
use crate::v2::Action;

/// Mod revision, sub, create revision, version, lease of a live key.
pub(crate) type Pointer = (i64, i64, i64, i64, i64);

pub(crate) const META: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("meta");
pub(crate) const CURRENT: TableDefinition<'static, &'static [u8], Pointer> =
    TableDefinition::new("current");
pub(crate) const HISTORY: TableDefinition<'static, (&'static [u8], i64, i64), ()> =
    TableDefinition::new("history");
pub(crate) const REVISIONS: TableDefinition<'static, (i64, i64), &'static [u8]> =
    TableDefinition::new("revisions");
pub(crate) const LEASES: TableDefinition<'static, i64, i64> = TableDefinition::new("leases");
pub(crate) const LEASE_KEYS: TableDefinition<'static, (i64, &'static [u8]), ()> =
    TableDefinition::new("lease_keys");

const HEAD_BYTES: usize = 33;

/// One write or deletion, as `revisions` holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) action: Action,
    pub(crate) create_revision: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

impl<'a> Record<'a> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.key.len() + self.value.len());
        out.extend_from_slice(&[0; 4]);
        out.push(self.action as u8);
        out.extend_from_slice(&(self.key.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.create_revision.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.lease.to_le_bytes());
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
        let check = crc32fast::hash(&out[4..]);
        out[..4].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// The record at `revision`, which the error names when the bytes are not what was written.
    pub(crate) fn decode(bytes: &'a [u8], revision: i64) -> Result<Self, StateError> {
        let damaged = || StateError::Damaged { revision };
        let (head, rest) = bytes
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or_else(damaged)?;
        let check = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        if crc32fast::hash(&bytes[4..]) != check {
            return Err(damaged());
        }
        let number = |at: usize| i64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        let key_bytes = u32::from_le_bytes([head[5], head[6], head[7], head[8]]) as usize;
        let (key, value) = rest.split_at_checked(key_bytes).ok_or_else(damaged)?;
        Ok(Self {
            action: Action::decode(head[4]).ok_or_else(damaged)?,
            create_revision: number(9),
            version: number(17),
            lease: number(25),
            key,
            value,
        })
    }

    pub(crate) fn to_key_value(self, revision: i64) -> KeyValue {
        KeyValue {
            key: self.key.to_vec(),
            create_revision: self.create_revision,
            mod_revision: revision,
            version: self.version,
            value: self.value.to_vec(),
            lease: self.lease,
        }
    }
}
