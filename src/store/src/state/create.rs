//! A state that begins.

use std::sync::Arc;

use redb::TableDefinition;

use super::backend::Ordered;
use super::{During as _, FIRST_ENTRY, FIRST_REVISION, FORMAT, StateError, open_database};
use crate::disk::Disk;
use crate::mvcc::table::{CURRENT, HISTORY, LEASE_KEYS, LEASES, META, REVISIONS};
use crate::proto::etcdserverpb::Member;
use crate::roster::Roster;

/// What a new member is to be.
#[derive(Debug, Clone, Default)]
pub struct Genesis {
    /// Id of the cluster.
    pub cluster: u64,
    /// Id of this member.
    pub member: u64,
    /// The first members; none when this one joins a cluster that is there.
    pub members: Vec<Member>,
}

/// A database in a new file.
pub(super) fn new_database(
    disk: &dyn Disk,
    name: &str,
    cache_bytes: usize,
) -> Result<(redb::Database, Arc<Ordered>), StateError> {
    let names = disk.list().map_err(StateError::File)?;
    if names.iter().any(|n| n == name) {
        disk.remove(name).map_err(StateError::File)?;
    }
    open_database(disk, name, cache_bytes)
}

/// Makes all tables, so that readers find them.
pub(super) fn make_tables(transaction: &redb::WriteTransaction) -> Result<(), StateError> {
    fn table<K: redb::Key + 'static, V: redb::Value + 'static>(
        t: &redb::WriteTransaction,
        table: TableDefinition<'_, K, V>,
    ) -> Result<(), StateError> {
        t.open_table(table).map(|_| ()).during("make a table")
    }
    table(transaction, CURRENT)?;
    table(transaction, HISTORY)?;
    table(transaction, REVISIONS)?;
    table(transaction, LEASES)?;
    table(transaction, LEASE_KEYS)?;
    table(transaction, META)
}

/// Makes the state of a new member.
pub(super) fn make(database: &redb::Database, genesis: &Genesis) -> Result<(), StateError> {
    let mut transaction = database.begin_write().during("begin to make the state")?;
    transaction.set_quick_repair(true);
    make_tables(&transaction)?;
    {
        let applied = if genesis.members.is_empty() {
            (0, 0)
        } else {
            FIRST_ENTRY
        };
        let mut meta = transaction.open_table(META).during("make a table")?;
        let mut put =
            |name: &str, value: &[u8]| meta.insert(name, value).map(|_| ()).during("write meta");
        put("format", &FORMAT.to_le_bytes())?;
        put("cluster_id", &genesis.cluster.to_le_bytes())?;
        put("member_id", &genesis.member.to_le_bytes())?;
        put("applied_index", &applied.0.to_le_bytes())?;
        put("applied_term", &applied.1.to_le_bytes())?;
        put("installed_index", &applied.0.to_le_bytes())?;
        put("installed_term", &applied.1.to_le_bytes())?;
        put("revision", &FIRST_REVISION.to_le_bytes())?;
        put("compact_revision", &0i64.to_le_bytes())?;
        put("compacted", &0i64.to_le_bytes())?;
        put("live_bytes", &0i64.to_le_bytes())?;
        put("roster", &Roster::new(genesis.members.clone()).encode())?;
    }
    transaction.commit().during("make the state")
}
