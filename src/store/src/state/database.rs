//! The database of the state, for readers in any thread.
//!
//! What is applied stays in one open transaction until somebody looks, or a checkpoint begins: a commit costs as much as several
//! puts, and copies every page that the next transaction changes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use redb::{Durability, ReadTransaction, WriteTransaction};

use super::{During as _, StateError};
use crate::mvcc::table::META;

/// The database, for readers in any thread. It can be replaced under them, when it is opened anew after an error.
#[derive(Clone)]
pub struct Database {
    open: Arc<RwLock<Arc<redb::Database>>>,
    unseen: Arc<Unseen>,
    /// How many hold on to the state of some moment.
    holds: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database")
            .field("holds", &self.holds)
            .finish_non_exhaustive()
    }
}

/// The numbers that stand for a state, as `meta` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    /// Index and term of the last applied entry.
    pub(super) applied: (u64, u64),
    pub(super) revision: i64,
    pub(super) compact_revision: i64,
    pub(super) compacted: i64,
    pub(super) live_bytes: i64,
}

/// What is written and not committed.
#[derive(Default)]
struct Unseen {
    /// Whether a reader has to look at `writing`. Set when a write has ended, never while one is at work for the first time:
    /// nobody was told of that.
    any: AtomicBool,
    writing: Mutex<Writing>,
}

#[derive(Default)]
struct Writing {
    transaction: Option<(WriteTransaction, Numbers)>,
    /// Up to which entry the log has to be applied again before readers may look: they, or others, have seen it.
    behind: Option<u64>,
    /// Why a reader could not commit; for whoever writes next.
    failed: Option<StateError>,
}

impl Unseen {
    fn lock(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells readers whether they have to look.
    fn tell(&self, writing: &Writing) {
        let any = writing.transaction.is_some() || writing.behind.is_some();
        self.any.store(any, Ordering::Release);
    }
}

impl Writing {
    /// Fails as a reader's commit did.
    fn check(&mut self) -> Result<(), StateError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    fn commit(&mut self) -> Result<(), StateError> {
        let Some((transaction, numbers)) = self.transaction.take() else {
            return Ok(());
        };
        let committed = commit(transaction, &numbers);
        if committed.is_err() {
            self.lose(&numbers);
        }
        committed
    }

    /// These numbers were told, and what they stand for is gone.
    fn lose(&mut self, numbers: &Numbers) {
        self.behind = self.behind.max(Some(numbers.applied.0));
    }
}

fn commit(transaction: WriteTransaction, numbers: &Numbers) -> Result<(), StateError> {
    {
        let mut meta = transaction.open_table(META).during("open a table")?;
        let mut put = |name: &str, value: [u8; 8]| {
            meta.insert(name, value.as_slice())
                .map(|_| ())
                .during("write meta")
        };
        put("applied_index", numbers.applied.0.to_le_bytes())?;
        put("applied_term", numbers.applied.1.to_le_bytes())?;
        put("revision", numbers.revision.to_le_bytes())?;
        put("compact_revision", numbers.compact_revision.to_le_bytes())?;
        put("compacted", numbers.compacted.to_le_bytes())?;
        put("live_bytes", numbers.live_bytes.to_le_bytes())?;
    }
    transaction.commit().during("commit")
}

/// As long as it lives, pages of the state of some moment cannot be used again: each transaction takes new ones.
#[derive(Debug)]
pub(super) struct Hold(Arc<AtomicUsize>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Database {
    pub(super) fn new(raw: redb::Database) -> Self {
        Self {
            open: Arc::new(RwLock::new(Arc::new(raw))),
            unseen: Arc::default(),
            holds: Arc::default(),
        }
    }

    pub(super) fn get(&self) -> Arc<redb::Database> {
        Arc::clone(&self.open.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces it, and drops what is not committed. Readers are refused until the log is applied up to `told`.
    pub(super) fn replace(&self, raw: redb::Database, told: Option<u64>) {
        let mut writing = self.unseen.lock();
        *writing = Writing {
            behind: told,
            ..Writing::default()
        };
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(raw);
        self.unseen.tell(&writing);
    }

    /// Writes, in the open transaction if there is one, and says whether it has begun one. After an error all that was not
    /// committed is gone, and the database must be [replaced](Self::replace).
    pub(super) fn write<T>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(T, Numbers), StateError>,
    ) -> Result<(T, bool), StateError> {
        let mut writing = self.unseen.lock();
        writing.check()?;
        let (transaction, before) = match writing.transaction.take() {
            Some((transaction, before)) => (transaction, Some(before)),
            None => (self.begin_write()?, None),
        };
        let written = match change(&transaction) {
            Ok((value, numbers)) => {
                writing.transaction = Some((transaction, numbers));
                if writing.behind.is_some_and(|told| told <= numbers.applied.0) {
                    writing.behind = None;
                }
                Ok((value, before.is_none()))
            }
            Err(err) => {
                if let Some(before) = before {
                    writing.lose(&before);
                }
                Err(err)
            }
        };
        self.unseen.tell(&writing);
        written
    }

    fn begin_write(&self) -> Result<WriteTransaction, StateError> {
        let mut transaction = self.get().begin_write().during("begin to write")?;
        transaction
            .set_durability(Durability::None)
            .map_err(|_| StateError::Meta("durability"))?;
        Ok(transaction)
    }

    /// Commits what is written, so that readers need not wait for a checkpoint, or for a write that takes its time: until that has
    /// ended they see what was before.
    pub(super) fn commit(&self) -> Result<(), StateError> {
        let mut writing = self.unseen.lock();
        writing.check()?;
        let committed = writing.commit();
        self.unseen.tell(&writing);
        committed
    }

    pub(super) fn hold(&self) -> Hold {
        self.holds.fetch_add(1, Ordering::Relaxed);
        Hold(Arc::clone(&self.holds))
    }

    /// Whether somebody holds on to an earlier state.
    pub(super) fn is_held(&self) -> bool {
        self.holds.load(Ordering::Relaxed) > 0
    }

    /// A sight of all that was written before.
    pub(crate) fn begin_read(&self) -> Result<ReadTransaction, StateError> {
        use redb::ReadableDatabase;
        if !self.unseen.any.load(Ordering::Acquire) {
            return self.get().begin_read().during("begin to read");
        }
        let mut writing = self.unseen.lock();
        if let Err(err) = writing.commit() {
            writing.failed = Some(err);
        }
        self.unseen.tell(&writing);
        match writing.behind {
            Some(told) => Err(StateError::Behind(told)),
            None => self.get().begin_read().during("begin to read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;
    use redb::{Builder, ReadableDatabase as _};

    use super::*;

    fn raw() -> redb::Database {
        let made = Builder::new().create_with_backend(InMemoryBackend::new());
        made.expect("memory is a database")
    }

    fn at(index: u64) -> Numbers {
        Numbers {
            applied: (index, 1),
            revision: index as i64,
            compact_revision: 0,
            compacted: 0,
            live_bytes: 0,
        }
    }

    fn write(database: &Database, index: u64) {
        let written = database.write(|_| Ok(((), at(index))));
        written.expect("it can be written");
    }

    fn seen(database: &Database) -> Result<u64, StateError> {
        let read = database.begin_read()?;
        let meta = read.open_table(META).expect("it was committed");
        let index = meta.get("applied_index").expect("it can be read");
        let bytes = index.expect("it was written").value().try_into();
        Ok(u64::from_le_bytes(bytes.expect("eight bytes")))
    }

    fn is_behind(database: &Database, index: u64) -> bool {
        matches!(seen(database), Err(StateError::Behind(told)) if told == index)
    }

    #[test]
    fn writes_share_a_transaction_until_somebody_looks() {
        let database = Database::new(raw());
        let begins = |index| {
            let written = database.write(|_| Ok(((), at(index))));
            written.expect("it can be written").1
        };
        assert!(begins(1));
        assert!(!begins(2));
        assert_eq!(seen(&database).expect("it can be read"), 2);
        assert!(begins(3));
        database.commit().expect("it can be committed");
        let unlocked = database.get().begin_read().expect("it can be read");
        unlocked.open_table(META).expect("it was committed");
        assert!(begins(4));
    }

    #[test]
    fn readers_never_see_less_than_was_told() {
        let database = Database::new(raw());
        write(&database, 5);
        let failed = database.write::<()>(|_| Err(StateError::Meta("test")));
        assert!(matches!(failed, Err(StateError::Meta("test"))));
        assert!(is_behind(&database, 5));
        // What is durable is older; the log is then applied again.
        database.replace(raw(), Some(5));
        assert!(is_behind(&database, 5));
        write(&database, 4);
        assert!(is_behind(&database, 5));
        write(&database, 6);
        assert_eq!(seen(&database).expect("it can be read"), 6);
    }

    #[test]
    fn a_commit_that_fails_for_a_reader_is_told_to_the_writer() {
        let database = Database::new(raw());
        let written = database.write(|transaction| {
            // A table that is never closed keeps the commit from opening it.
            std::mem::forget(transaction.open_table(META).during("open a table")?);
            Ok(((), at(7)))
        });
        written.expect("it can be written");
        assert!(is_behind(&database, 7));
        assert!(is_behind(&database, 7));
        let failed = database.write(|_| Ok(((), at(8))));
        assert!(matches!(failed, Err(StateError::Database { .. })));
    }
}
