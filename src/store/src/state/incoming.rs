//! A state that comes from another member, on its way to the disk.
//!
//! It is written to a file of its own, which takes the state's name when it is whole and durable.

use std::sync::Arc;

use redb::{Durability, ReadableTable};
use sha2::{Digest, Sha256};

use super::outgoing::{LEASE_RECORD, META_RECORD, OWN_META, REVISION_RECORD};
use super::{
    During, FIRST_ENTRY, Genesis, STATE_FILE, State, StateError, make_tables, new_database,
};
use crate::bytes::{Ended, Reader};
use crate::consensus::Mark;
use crate::disk::Disk;
use crate::mvcc::table::{CURRENT, HISTORY, LEASE_KEYS, LEASES, META, REVISIONS, Record};
use crate::roster::Roster;
use crate::wal::Owner;

/// Name of the file until the state is whole.
const INCOMING_FILE: &str = "state.incoming";
/// Length of the SHA-256 at the end of the last part.
const DIGEST_BYTES: usize = 32;

/// A state that is being received.
#[derive(Debug)]
pub struct Incoming {
    disk: Arc<dyn Disk>,
    database: redb::Database,
    owner: Owner,
    digest: Sha256,
    complete: bool,
}

impl Incoming {
    /// Begins an empty state.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn new(disk: Arc<dyn Disk>, cache_bytes: usize, owner: Owner) -> Result<Self, StateError> {
        let (database, _) = new_database(&*disk, INCOMING_FILE, cache_bytes)?;
        let transaction = database.begin_write().during("begin to make a state")?;
        make_tables(&transaction)?;
        transaction.commit().during("make a state")?;
        Ok(Self {
            disk,
            database,
            owner,
            digest: Sha256::new(),
            complete: false,
        })
    }

    /// Takes in a part.
    ///
    /// # Errors
    /// [`StateError::Snapshot`] when it is not one, or of the database.
    pub fn take(&mut self, part: &[u8], last: bool) -> Result<(), StateError> {
        let records = if last {
            let (records, digest) = part
                .split_last_chunk::<DIGEST_BYTES>()
                .ok_or(StateError::Snapshot("it has no checksum"))?;
            self.digest.update(records);
            if self.digest.clone().finalize().as_slice() != digest {
                return Err(StateError::Snapshot("its checksum is another"));
            }
            records
        } else {
            self.digest.update(part);
            part
        };
        self.put(records)?;
        self.complete = last;
        Ok(())
    }

    /// Takes in whole records.
    ///
    /// # Errors
    /// [`StateError::Snapshot`] when they are none, or of the database.
    pub fn put(&self, records: &[u8]) -> Result<(), StateError> {
        let mut transaction = self.database.begin_write().during("begin to write")?;
        transaction
            .set_durability(Durability::None)
            .map_err(|_| StateError::Meta("durability"))?;
        self.records(&transaction, Reader(records))?;
        transaction.commit().during("commit")
    }

    /// Makes it the first state of a new cluster, durable and with the state's name.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn found(
        self,
        genesis: &Genesis,
        bump_revision: i64,
        mark_compacted: bool,
    ) -> Result<(), StateError> {
        let mut transaction = self.database.begin_write().during("begin to write")?;
        transaction.set_quick_repair(true);
        {
            let mut meta = transaction.open_table(META).during("open a table")?;
            let number = |name: &'static str| -> Result<i64, StateError> {
                let value = meta.get(name).during("read meta")?;
                let value = value.ok_or(StateError::Meta(name))?;
                let bytes = value.value().try_into();
                Ok(i64::from_le_bytes(
                    bytes.map_err(|_| StateError::Meta(name))?,
                ))
            };
            let revision = number("revision")?
                .checked_add(bump_revision)
                .ok_or(StateError::Snapshot("its revision cannot be raised so far"))?;
            let compact_revision = match mark_compacted {
                true => revision,
                false => number("compact_revision")?,
            };
            let roster = Roster::new(genesis.members.clone()).encode();
            let mut put = |name: &str, value: &[u8]| {
                let put = meta.insert(name, value).map(|_| ());
                put.during("write meta")
            };
            put("cluster_id", &genesis.cluster.to_le_bytes())?;
            put("member_id", &genesis.member.to_le_bytes())?;
            for (index, term) in [
                ("applied_index", "applied_term"),
                ("installed_index", "installed_term"),
            ] {
                put(index, &FIRST_ENTRY.0.to_le_bytes())?;
                put(term, &FIRST_ENTRY.1.to_le_bytes())?;
            }
            put("revision", &revision.to_le_bytes())?;
            put("compact_revision", &compact_revision.to_le_bytes())?;
            put("compacted", &0i64.to_le_bytes())?;
            put("roster", &roster)?;
        }
        transaction.commit().during("commit a restored state")?;
        self.take_name()
    }

    /// It is durable: gives it the state's name.
    fn take_name(self) -> Result<(), StateError> {
        drop(self.database);
        self.disk
            .rename(INCOMING_FILE, STATE_FILE)
            .and_then(|()| self.disk.sync_names())
            .map_err(StateError::File)
    }

    fn records(
        &self,
        transaction: &redb::WriteTransaction,
        mut reader: Reader<'_>,
    ) -> Result<(), StateError> {
        let open = "open a table";
        let write = "write a received record";
        let ended = |Ended: Ended| StateError::Snapshot("a record ends early");
        let mut meta = transaction.open_table(META).during(open)?;
        let mut leases = transaction.open_table(LEASES).during(open)?;
        let mut lease_keys = transaction.open_table(LEASE_KEYS).during(open)?;
        let mut revisions = transaction.open_table(REVISIONS).during(open)?;
        let mut current = transaction.open_table(CURRENT).during(open)?;
        let mut history = transaction.open_table(HISTORY).during(open)?;
        while !reader.0.is_empty() {
            match reader.u8().map_err(ended)? {
                META_RECORD => {
                    let name = std::str::from_utf8(reader.bytes().map_err(ended)?)
                        .map_err(|_| StateError::Snapshot("a name is not UTF-8"))?;
                    let value = reader.bytes().map_err(ended)?;
                    if !OWN_META.contains(&name) {
                        meta.insert(name, value).during(write)?;
                    }
                }
                LEASE_RECORD => {
                    let (id, ttl) = (reader.i64().map_err(ended)?, reader.i64().map_err(ended)?);
                    leases.insert(id, ttl).during(write)?;
                }
                REVISION_RECORD => {
                    let revision = reader.i64().map_err(ended)?;
                    let sub = reader.i64().map_err(ended)?;
                    let bytes = reader.bytes().map_err(ended)?;
                    let record = Record::decode(bytes, revision)?;
                    revisions.insert((revision, sub), bytes).during(write)?;
                    history
                        .insert((record.key, revision, sub), ())
                        .during(write)?;
                    // Revisions come in order, so the last one of a key is its present.
                    let before = current.get(record.key).during(write)?.map(|p| p.value().4);
                    if let Some(lease) = before.filter(|lease| *lease != 0) {
                        lease_keys.remove((lease, record.key)).during(write)?;
                    }
                    if record.action.deletes() {
                        current.remove(record.key).during(write)?;
                        continue;
                    }
                    let pointer = (
                        revision,
                        sub,
                        record.create_revision,
                        record.version,
                        record.lease,
                    );
                    current.insert(record.key, pointer).during(write)?;
                    if record.lease != 0 {
                        lease_keys
                            .insert((record.lease, record.key), ())
                            .during(write)?;
                    }
                }
                _ => return Err(StateError::Snapshot("a record of an unknown kind")),
            }
        }
        Ok(())
    }

    /// Makes it durable and gives it the state's name. [`State::reopen`] then shows it.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn install(self, mark: &Mark) -> Result<(), StateError> {
        if !self.complete {
            return Err(StateError::Snapshot("its last part has not come"));
        }
        let mut transaction = self.database.begin_write().during("begin to write")?;
        transaction.set_quick_repair(true);
        {
            let mut meta = transaction.open_table(META).during("open a table")?;
            let number = |name: &'static str| -> Result<u64, StateError> {
                let value = meta.get(name).during("read meta")?;
                let value = value.ok_or(StateError::Meta(name))?;
                let bytes = value.value().try_into();
                Ok(u64::from_le_bytes(
                    bytes.map_err(|_| StateError::Meta(name))?,
                ))
            };
            let holds = (number("applied_index")?, number("applied_term")?);
            if holds != (mark.index, mark.term) || number("cluster_id")? != self.owner.cluster {
                return Err(StateError::Snapshot("it is another one than was announced"));
            }
            let roster = meta.get("roster").during("read meta")?;
            if roster.is_none_or(|r| Roster::decode(r.value()).is_none()) {
                return Err(StateError::Meta("roster"));
            }
            let mut put = |name: &str, value: u64| {
                meta.insert(name, value.to_le_bytes().as_slice())
                    .map(|_| ())
            };
            put("member_id", self.owner.member).during("write meta")?;
            put("installed_index", mark.index).during("write meta")?;
            put("installed_term", mark.term).during("write meta")?;
            // The sender may not have removed all that it had compacted: we go over it once more.
            put("compacted", 0).during("write meta")?;
        }
        transaction.commit().during("commit a received state")?;
        self.take_name()
    }

    /// Gives it up.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn discard(self) -> Result<(), StateError> {
        drop(self.database);
        self.disk.remove(INCOMING_FILE).map_err(StateError::File)
    }
}

impl State {
    /// Whether a state that was not received whole lies about, and its removal.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn clear_incoming(disk: &dyn Disk) -> Result<(), StateError> {
        let names = disk.list().map_err(StateError::File)?;
        if names.iter().any(|n| n == INCOMING_FILE) {
            disk.remove(INCOMING_FILE).map_err(StateError::File)?;
        }
        Ok(())
    }
}
