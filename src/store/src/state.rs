//! The state on disk: the keyspace, the leases and the place in the log up to which they hold, in one transaction.

use std::sync::Arc;

use redb::{ReadOnlyTable, ReadableDatabase as _};

use crate::command::{Change, Command, Origin};
use crate::consensus::{Entry, EntryKind, Mark};
use crate::disk::Disk;
use crate::mvcc::compact;
use crate::mvcc::table::{LEASES, META};
use crate::mvcc::write::{Applied, Writer};
use crate::roster::Roster;
use crate::wal::Owner;

mod backend;
mod create;
mod database;
mod error;
pub mod incoming;
pub mod outgoing;

use backend::{Backend, Ordered};
use create::{make, make_tables, new_database};
use database::Numbers;

pub use backend::Syncs;
pub use create::Genesis;
pub use database::Database;
pub(crate) use error::During;
pub use error::StateError;

/// Name of the file.
pub const STATE_FILE: &str = "state.redb";
/// A file that a program which panics leaves: the state is then looked at before it is used.
pub const SUSPECT_FILE: &str = "suspect";
/// What it holds when that was while the member was being opened: a second look would end the same way.
pub const WHILE_OPENING: u8 = b'o';
/// A state of up to so many bytes is looked at whole whenever it is opened, which takes up to a second.
const ALWAYS_CHECKED_BYTES: u64 = 256 << 20;
/// Four tables, three pages each from the root to the leaf: what a transaction of one put changes.
const COPIED_BYTES: usize = 12 * 4096;
/// So many steps take no longer than a reader may wait for what is being written.
const QUICK_STEPS: usize = 256;
/// Its name until it is complete.
const NEW_STATE_FILE: &str = "state.new";
const FORMAT: u32 = 2;
/// Index and term that the first members begin after: a later one then always begins with a snapshot.
pub const FIRST_ENTRY: (u64, u64) = (1, 1);
/// Revision of a keyspace that no one has written to, as in etcd.
pub const FIRST_REVISION: i64 = 1;

/// The state, open for writing.
#[derive(Debug)]
pub struct State {
    disk: Arc<dyn Disk>,
    database: Database,
    file: Arc<Ordered>,
    syncs: Syncs,
    cache_bytes: usize,
    /// Whose state it is.
    pub owner: Owner,
    /// Who takes part.
    pub roster: Roster,
    /// Index and term of the entry that the state was received, or made, with.
    pub installed: (u64, u64),
    /// Index and term of the last applied entry.
    pub applied: (u64, u64),
    /// The same, as it would be found after a crash.
    pub durable: (u64, u64),
    /// The same, as of the last checkpoint that has begun.
    written: (u64, u64),
    /// The line in the file behind which that checkpoint is, until it is reached.
    saving: Option<u64>,
    /// The present revision.
    pub revision: i64,
    /// Reads below it fail.
    pub compact_revision: i64,
    /// What lies below it has been removed.
    pub compacted: i64,
    /// Bytes of the records that are kept, which the quota is about.
    pub live_bytes: i64,
    /// Whether a compaction has moved `compacted` since the last checkpoint has begun.
    unsaved_compaction: bool,
    /// Whether what was applied last has begun a transaction.
    begins: bool,
}

/// An entry of the log, decoded.
enum Step {
    Command(Origin, Command),
    Change(Origin, Change),
    /// A new leader's first one.
    Nothing,
}

impl Step {
    fn decode(entry: &Entry) -> Result<Self, StateError> {
        let command_error = |err| StateError::Command {
            index: entry.index,
            err,
        };
        match entry.kind {
            EntryKind::Command if entry.data.is_empty() => Ok(Self::Nothing),
            EntryKind::Command => {
                let (origin, command) = Command::decode(&entry.data).map_err(command_error)?;
                Ok(Self::Command(origin, command))
            }
            EntryKind::Change => {
                let (origin, change) = Change::decode(&entry.context).map_err(command_error)?;
                Ok(Self::Change(origin, change))
            }
            EntryKind::JointChange => Err(StateError::Change(entry.index)),
        }
    }

    /// Whether it may change any number of keys.
    fn may_take_long(&self) -> bool {
        match self {
            Self::Command(_, command) => {
                !matches!(command, Command::Put(_) | Command::LeaseGrant(_))
            }
            Self::Change(..) | Self::Nothing => false,
        }
    }
}

impl State {
    /// Whether a state is in the directory.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn exists(disk: &dyn Disk) -> Result<bool, StateError> {
        let names = disk.list().map_err(StateError::File)?;
        Ok(names.iter().any(|n| n == STATE_FILE))
    }

    /// Makes a state. It gets its name when it is whole: a crash before that leaves nothing to be read.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn create(
        disk: &dyn Disk,
        cache_bytes: usize,
        genesis: &Genesis,
    ) -> Result<(), StateError> {
        let (made, _) = new_database(disk, NEW_STATE_FILE, cache_bytes)?;
        make(&made, genesis)?;
        drop(made);
        disk.rename(NEW_STATE_FILE, STATE_FILE)
            .and_then(|()| disk.sync_names())
            .map_err(StateError::File)
    }

    /// Opens the state. Unless it is large, or there is reason to, the checksums of all of it are looked at.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn open(disk: Arc<dyn Disk>, cache_bytes: usize) -> Result<Self, StateError> {
        let suspect = suspicion(&*disk)?;
        if suspect == Some(WHILE_OPENING) {
            return Err(StateError::Unreadable);
        }
        let (mut raw, file) = open_database(&*disk, STATE_FILE, cache_bytes)?;
        let bytes = disk.open(STATE_FILE, false).and_then(|file| file.size());
        if suspect.is_some() || bytes.map_err(StateError::File)? <= ALWAYS_CHECKED_BYTES {
            raw.check_integrity().during("check the state")?;
        }
        if suspect.is_some() {
            disk.remove(SUSPECT_FILE).map_err(StateError::File)?;
        }
        let mut state = Self {
            disk,
            database: Database::new(raw),
            file,
            syncs: Syncs::AtOnce,
            cache_bytes,
            owner: Owner {
                cluster: 0,
                member: 0,
            },
            roster: Roster::default(),
            installed: (0, 0),
            applied: (0, 0),
            durable: (0, 0),
            written: (0, 0),
            saving: None,
            revision: 0,
            compact_revision: 0,
            compacted: 0,
            live_bytes: 0,
            unsaved_compaction: false,
            begins: true,
        };
        let database = state.database.get();
        state.load(&database)?;
        Ok(state)
    }

    fn load(&mut self, database: &redb::Database) -> Result<(), StateError> {
        let read = database.begin_read().during("begin to read")?;
        let meta = read.open_table(META).during("open a table")?;
        let format = meta_bytes(&meta, "format")?;
        if format != FORMAT {
            return Err(StateError::Format(format));
        }
        let number = |name| meta_bytes(&meta, name).map(|v: [u8; 8]| u64::from_le_bytes(v));
        self.owner = Owner {
            cluster: number("cluster_id")?,
            member: number("member_id")?,
        };
        let roster = meta
            .get("roster")
            .during("read meta")?
            .ok_or(StateError::Meta("roster"))?;
        self.roster = Roster::decode(roster.value()).ok_or(StateError::Meta("roster"))?;
        self.installed = (number("installed_index")?, number("installed_term")?);
        self.applied = (number("applied_index")?, number("applied_term")?);
        self.durable = self.applied;
        self.written = self.applied;
        self.saving = None;
        self.revision = meta_i64(&meta, "revision")?;
        self.compact_revision = meta_i64(&meta, "compact_revision")?;
        self.compacted = meta_i64(&meta, "compacted")?;
        self.live_bytes = meta_i64(&meta, "live_bytes")?;
        self.unsaved_compaction = false;
        Ok(())
    }

    /// For readers.
    pub fn database(&self) -> Database {
        self.database.clone()
    }

    /// Drops all that is not durable and opens the file anew: after an error, when the applied index goes back, and when
    /// another state has taken its place.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn reopen(&mut self) -> Result<(), StateError> {
        // Reads that have begun go on in the old one.
        self.file.retire();
        let (raw, file) = open_database(&*self.disk, STATE_FILE, self.cache_bytes)?;
        file.set_syncs(self.syncs).map_err(StateError::File)?;
        self.file = file;
        let told = self.applied.0;
        self.load(&raw)?;
        let behind = Some(told).filter(|told| *told > self.applied.0);
        self.database.replace(raw, behind);
        Ok(())
    }

    /// Applies entries of the log, in order. Entries that have been applied before are passed over.
    ///
    /// # Errors
    /// See [`StateError`]; the state must then be [reopened](State::reopen).
    pub fn apply(
        &mut self,
        entries: &[Entry],
    ) -> Result<Vec<(Option<Origin>, Applied)>, StateError> {
        let new = entries.iter().filter(|e| e.index > self.applied.0);
        let steps = new.map(Step::decode).collect::<Result<Vec<_>, _>>()?;
        let Some(last) = entries.last().filter(|_| !steps.is_empty()) else {
            return Ok(Vec::new());
        };
        if steps.len() > QUICK_STEPS || steps.iter().any(Step::may_take_long) {
            self.database.commit()?;
        }
        let mut roster = None;
        let ((out, numbers), begins) = self.database.write(|transaction| {
            let mut writer = Writer::new(
                transaction,
                self.revision,
                self.compact_revision,
                self.live_bytes,
                self.roster.clone(),
            )?;
            let mut out = Vec::with_capacity(steps.len());
            for step in &steps {
                match step {
                    Step::Command(origin, command) => {
                        out.push((Some(*origin), writer.apply(command)?));
                    }
                    Step::Change(origin, change) => {
                        out.push((Some(*origin), writer.apply_change(change)));
                    }
                    Step::Nothing => {}
                }
            }
            let numbers = Numbers {
                applied: (last.index, last.term),
                revision: writer.revision,
                compact_revision: writer.compact_revision,
                live_bytes: writer.live_bytes,
                ..self.numbers()
            };
            if writer.roster != self.roster {
                let mut meta = transaction.open_table(META).during("open a table")?;
                meta.insert("roster", writer.roster.encode().as_slice())
                    .during("write meta")?;
                roster = Some(writer.roster);
            }
            Ok(((out, numbers), numbers))
        })?;
        self.begins = begins;
        self.set_numbers(&numbers);
        if let Some(roster) = roster {
            self.roster = roster;
        }
        Ok(out)
    }

    fn numbers(&self) -> Numbers {
        Numbers {
            applied: self.applied,
            revision: self.revision,
            compact_revision: self.compact_revision,
            compacted: self.compacted,
            live_bytes: self.live_bytes,
        }
    }

    fn set_numbers(&mut self, numbers: &Numbers) {
        self.applied = numbers.applied;
        self.revision = numbers.revision;
        self.compact_revision = numbers.compact_revision;
        self.compacted = numbers.compacted;
        self.live_bytes = numbers.live_bytes;
    }

    /// Whether old revisions wait to be removed.
    pub fn compacts(&self) -> bool {
        self.compacted < self.compact_revision
    }

    /// Removes some old revisions.
    ///
    /// # Errors
    /// See [`StateError`]; the state must then be [reopened](State::reopen).
    pub fn compact_some(&mut self, limit: usize) -> Result<(), StateError> {
        self.database.commit()?;
        let (numbers, _) = self.database.write(|transaction| {
            let (compacted, freed_bytes) =
                compact::step(transaction, self.compacted, self.compact_revision, limit)?;
            let numbers = Numbers {
                compacted,
                live_bytes: self.live_bytes - freed_bytes,
                ..self.numbers()
            };
            Ok((numbers, numbers))
        })?;
        self.set_numbers(&numbers);
        self.unsaved_compaction = true;
        Ok(())
    }

    /// Bytes of pages that the next checkpoint writes for what was applied last, beside what is in the log: while somebody holds on
    /// to an earlier state, each transaction copies every page that it changes.
    pub fn copied_bytes(&self) -> usize {
        if self.begins && self.database.is_held() {
            COPIED_BYTES
        } else {
            0
        }
    }

    /// From now on checkpoints become durable so; before, at once.
    ///
    /// # Errors
    /// [`StateError::File`] when no thread can be started.
    pub fn set_syncs(&mut self, syncs: Syncs) -> Result<(), StateError> {
        self.syncs = syncs;
        self.file.set_syncs(syncs).map_err(StateError::File)
    }

    /// Whether something was applied, or removed by a compaction, since the last checkpoint has begun.
    pub fn is_dirty(&self) -> bool {
        self.written != self.applied || self.unsaved_compaction
    }

    /// Commits what was applied, as the first who reads does otherwise: for a reader who must hear why it fails.
    ///
    /// # Errors
    /// See [`StateError`]; the state must then be [reopened](State::reopen).
    pub fn commit(&mut self) -> Result<(), StateError> {
        self.database.commit()
    }

    /// Begins to make all that was applied durable.
    ///
    /// # Errors
    /// See [`StateError`]; the state must then be [reopened](State::reopen).
    pub fn checkpoint(&mut self) -> Result<(), StateError> {
        self.database.commit()?;
        let database = self.database.get();
        let mut transaction = database.begin_write().during("begin a checkpoint")?;
        transaction.set_quick_repair(true);
        transaction.commit().during("commit a checkpoint")?;
        self.written = self.applied;
        self.saving = Some(self.file.drawn());
        self.unsaved_compaction = false;
        Ok(())
    }

    /// Whether a checkpoint has begun and is not known to be durable.
    pub fn is_saving(&self) -> bool {
        self.saving.is_some()
    }

    /// Looks whether the last checkpoint has become durable, and says so once.
    ///
    /// # Errors
    /// See [`StateError`]; the state must then be [reopened](State::reopen).
    pub fn saved(&mut self) -> Result<bool, StateError> {
        let Some(line) = self.saving else {
            return Ok(false);
        };
        if !self.file.has_reached(line).during("sync a checkpoint")? {
            return Ok(false);
        }
        self.saving = None;
        self.durable = self.written;
        Ok(true)
    }

    /// Waits until the last checkpoint is durable.
    ///
    /// # Errors
    /// See [`StateError`]; the state must then be [reopened](State::reopen).
    pub fn settle(&mut self) -> Result<(), StateError> {
        self.file.settle().during("sync a checkpoint")
    }

    /// Length of the file.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn file_bytes(&self) -> Result<u64, StateError> {
        self.disk
            .open(STATE_FILE, false)
            .and_then(|f| f.size())
            .map_err(StateError::File)
    }

    /// The granted time to live in seconds of all leases.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn leases(&self) -> Result<Vec<(i64, i64)>, StateError> {
        let read = self.database.begin_read()?;
        let table = read.open_table(LEASES).during("open a table")?;
        let mut out = Vec::new();
        for item in table.range::<i64>(..).during("read leases")? {
            let (id, ttl) = item.during("read leases")?;
            out.push((id.value(), ttl.value()));
        }
        Ok(out)
    }

    /// What a snapshot of the state stands for.
    pub fn mark(&self) -> Mark {
        Mark {
            index: self.applied.0,
            term: self.applied.1,
            members: self.roster.ids(),
        }
    }
}

/// The first byte of [`SUSPECT_FILE`], if there is one.
fn suspicion(disk: &dyn Disk) -> Result<Option<u8>, StateError> {
    let names = disk.list().map_err(StateError::File)?;
    if !names.iter().any(|name| name == SUSPECT_FILE) {
        return Ok(None);
    }
    let mut first = [0];
    // One that is empty says that there was a panic, too.
    let _ = disk
        .open(SUSPECT_FILE, false)
        .and_then(|file| file.read(0, &mut first));
    Ok(Some(first[0]))
}

fn open_database(
    disk: &dyn Disk,
    name: &str,
    cache_bytes: usize,
) -> Result<(redb::Database, Arc<Ordered>), StateError> {
    let file = disk.open(name, true).map_err(StateError::File)?;
    let file = Ordered::new(file);
    let database = redb::Database::builder()
        .set_cache_size(cache_bytes)
        .create_with_backend(Backend(Arc::clone(&file)))
        .during("open the state")?;
    Ok((database, file))
}

type Meta = ReadOnlyTable<&'static str, &'static [u8]>;

trait FromMeta: Sized {
    fn from_meta(bytes: &[u8]) -> Option<Self>;
}

impl FromMeta for [u8; 8] {
    fn from_meta(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok()
    }
}

impl FromMeta for u32 {
    fn from_meta(bytes: &[u8]) -> Option<Self> {
        Some(Self::from_le_bytes(bytes.try_into().ok()?))
    }
}

fn meta_bytes<T: FromMeta>(meta: &Meta, name: &'static str) -> Result<T, StateError> {
    let value = meta
        .get(name)
        .during("read meta")?
        .ok_or(StateError::Meta(name))?;
    T::from_meta(value.value()).ok_or(StateError::Meta(name))
}

pub(crate) fn meta_i64(meta: &Meta, name: &'static str) -> Result<i64, StateError> {
    meta_bytes(meta, name).map(|v: [u8; 8]| i64::from_le_bytes(v))
}
