//! The state as a stream of parts, for another member (`docs/store-peers.md`, "Snapshot").
//!
//! It is read in one transaction of the database, which stops no writer, a part at a time.

use std::collections::VecDeque;

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata};
use sha2::{Digest, Sha256};

use super::database::Hold;
use super::{Database, During, State, StateError};
use crate::bytes::put_bytes;
use crate::consensus::Mark;
use crate::mvcc::table::{LEASES, META, REVISIONS};

/// A record of `meta`.
pub(crate) const META_RECORD: u8 = 1;
/// A record of `leases`.
pub(crate) const LEASE_RECORD: u8 = 2;
/// A record of `revisions`.
pub(crate) const REVISION_RECORD: u8 = 3;
/// Names in `meta` that are a member's own.
pub(super) const OWN_META: [&str; 4] = [
    "member_id",
    "installed_index",
    "installed_term",
    "compacted",
];

/// A state on its way to another member.
pub struct Outgoing {
    /// What it stands for.
    pub mark: Mark,
    transaction: ReadTransaction,
    _hold: Hold,
    /// Records that come first and are few.
    head: VecDeque<Vec<u8>>,
    /// Where to go on in `revisions`.
    next: Option<(i64, i64)>,
    digest: Sha256,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing")
            .field("mark", &self.mark)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Outgoing {
    /// Holds on to the state as it is now.
    ///
    /// # Errors
    /// Of the database.
    pub fn new(state: &State) -> Result<Self, StateError> {
        Self::read(&state.database, state.mark())
    }

    /// Holds on to the state that readers see now, for a file.
    ///
    /// # Errors
    /// Of the database.
    pub fn of(database: &Database) -> Result<Self, StateError> {
        // What it stands for is not asked of a file.
        Self::read(database, Mark::default())
    }

    /// The bytes of all its records.
    ///
    /// # Errors
    /// Of the database.
    pub fn bytes(&self) -> Result<u64, StateError> {
        /// Kind, revision, sub and length of a record of `revisions`.
        const PLACE_BYTES: u64 = 21;
        let meta = self.transaction.open_table(META).during("open a table")?;
        let live = super::meta_i64(&meta, "live_bytes")?.unsigned_abs();
        let revisions = self
            .transaction
            .open_table(REVISIONS)
            .during("open a table")?;
        let count = revisions.len().during("count revisions")?;
        let head: usize = self.head.iter().map(Vec::len).sum();
        Ok(head as u64 + live + count * PLACE_BYTES)
    }

    fn read(database: &Database, mark: Mark) -> Result<Self, StateError> {
        let hold = database.hold();
        let transaction = database.begin_read()?;
        let mut head = VecDeque::new();
        let meta = transaction.open_table(META).during("open a table")?;
        for item in meta.iter().during("read meta")? {
            let (name, value) = item.during("read meta")?;
            if OWN_META.contains(&name.value()) {
                continue;
            }
            let mut record = vec![META_RECORD];
            put_bytes(name.value().as_bytes(), &mut record);
            put_bytes(value.value(), &mut record);
            head.push_back(record);
        }
        let leases = transaction.open_table(LEASES).during("open a table")?;
        for item in leases.iter().during("read leases")? {
            let (id, ttl) = item.during("read leases")?;
            let mut record = vec![LEASE_RECORD];
            record.extend_from_slice(&id.value().to_le_bytes());
            record.extend_from_slice(&ttl.value().to_le_bytes());
            head.push_back(record);
        }
        Ok(Self {
            mark,
            transaction,
            _hold: hold,
            head,
            next: Some((i64::MIN, i64::MIN)),
            digest: Sha256::new(),
        })
    }

    /// The next part, of about `max_bytes`, and whether it is the last one.
    ///
    /// # Errors
    /// Of the database.
    pub fn part(&mut self, max_bytes: usize) -> Result<(Vec<u8>, bool), StateError> {
        let (mut out, last) = self.records(max_bytes)?;
        self.digest.update(&out);
        if last {
            out.extend_from_slice(&std::mem::take(&mut self.digest).finalize());
        }
        Ok((out, last))
    }

    /// The next records, of about `max_bytes`, and whether they are the last ones.
    ///
    /// # Errors
    /// Of the database.
    pub fn records(&mut self, max_bytes: usize) -> Result<(Vec<u8>, bool), StateError> {
        let mut out = Vec::new();
        while out.len() < max_bytes
            && let Some(record) = self.head.pop_front()
        {
            out.extend_from_slice(&record);
        }
        if let (Some(from), true) = (self.next, out.len() < max_bytes) {
            self.next = None;
            let failed = "read revisions";
            let table = self
                .transaction
                .open_table(REVISIONS)
                .during("open a table")?;
            for item in table.range(from..).during(failed)? {
                let (place, record) = item.during(failed)?;
                let (revision, sub) = place.value();
                if out.len() >= max_bytes {
                    self.next = Some((revision, sub));
                    break;
                }
                out.push(REVISION_RECORD);
                out.extend_from_slice(&revision.to_le_bytes());
                out.extend_from_slice(&sub.to_le_bytes());
                put_bytes(record.value(), &mut out);
            }
        }
        let last = self.head.is_empty() && self.next.is_none();
        Ok((out, last))
    }
}
