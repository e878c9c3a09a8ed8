//! The keyspace: every key at every revision since the last compaction, in a transactional database.
//!
//! `view` reads, `write` applies commands, `compact` gives old revisions up, `scrub` looks for damage, `check` refuses
//! requests before they reach the log. The tables are those of `docs/store-format.md`.

pub(crate) mod check;
pub(crate) mod compact;
pub(crate) mod scrub;
pub(crate) mod table;
pub(crate) mod txn;
pub(crate) mod view;
pub(crate) mod write;

pub use check::MAX_TXN_OPERATIONS;
pub use scrub::Scrub;
pub use view::{ReadError, Reader};
pub use write::{Answer, Applied, LeaseChange};
