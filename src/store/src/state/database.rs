//! The database of the state, for readers in any thread.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::ReadTransaction;

use super::{During as _, StateError};

/// The database, for readers in any thread. It can be replaced under them, when it is opened anew after an error.
#[derive(Debug, Clone)]
pub struct Database {
    open: Arc<RwLock<Arc<redb::Database>>>,
    /// How many hold on to the state of some moment.
    holds: Arc<AtomicUsize>,
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
            holds: Arc::default(),
        }
    }

    pub(super) fn get(&self) -> Arc<redb::Database> {
        Arc::clone(&self.open.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn replace(&self, raw: redb::Database) {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(raw);
    }

    pub(super) fn hold(&self) -> Hold {
        self.holds.fetch_add(1, Ordering::Relaxed);
        Hold(Arc::clone(&self.holds))
    }

    /// Whether somebody holds on to an earlier state.
    pub(super) fn is_held(&self) -> bool {
        self.holds.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn begin_read(&self) -> Result<ReadTransaction, StateError> {
        use redb::ReadableDatabase;
        self.get().begin_read().during("begin to read")
    }
}
