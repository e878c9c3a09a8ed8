//! What can be wrong with the state.

use std::io;

use super::{STATE_FILE, SUSPECT_FILE};
use crate::command::CommandError;

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The database failed.
    #[error("{operation}")]
    Database {
        /// What was being done.
        operation: &'static str,
        /// The cause.
        #[source]
        err: Box<redb::Error>,
    },
    /// The file cannot be opened.
    #[error("open {STATE_FILE}")]
    File(#[source] io::Error),
    /// A record is not what was written.
    #[error("the record of revision {revision} is damaged")]
    Damaged {
        /// Its revision.
        revision: i64,
    },
    /// A value of `meta` is missing or of the wrong length.
    #[error("{0:?} in the table meta is missing or broken")]
    Meta(&'static str),
    /// The program that last opened the state panicked.
    #[error(
        "{STATE_FILE} cannot be opened without a fault (remove the file {SUSPECT_FILE} to try it again)"
    )]
    Unreadable,
    /// Written by another version.
    #[error("state format {0} is not known")]
    Format(u32),
    /// An entry of the log is not a command.
    #[error("entry {index} of the log")]
    Command {
        /// Its index.
        index: u64,
        /// The cause.
        #[source]
        err: CommandError,
    },
    /// The log holds a change of members of a kind that is not made.
    #[error("entry {0} of the log changes several members at once")]
    Change(u64),
    /// What was written last was lost; the log is being applied again.
    #[error("the log is being applied again, up to entry {0}")]
    Behind(u64),
    /// What came as a snapshot is not one.
    #[error("the snapshot is broken: {0}")]
    Snapshot(&'static str),
}

impl StateError {
    /// Whether just room is missing.
    pub fn is_full(&self) -> bool {
        let Self::Database { err, .. } = self else {
            return false;
        };
        matches!(&**err, redb::Error::Io(err) if matches!(err.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// Whether what was durable is not there any more.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Meta(_) | Self::Unreadable => true,
            Self::Database { err, .. } => match &**err {
                redb::Error::Corrupted(_)
                | redb::Error::TableDoesNotExist(_)
                | redb::Error::TableTypeMismatch { .. } => true,
                redb::Error::Io(err) => err.kind() == io::ErrorKind::InvalidData,
                _ => false,
            },
            _ => false,
        }
    }
}

/// Names the operation that a database error came from.
pub(crate) trait During<T> {
    fn during(self, operation: &'static str) -> Result<T, StateError>;
}

impl<T, E: Into<redb::Error>> During<T> for Result<T, E> {
    fn during(self, operation: &'static str) -> Result<T, StateError> {
        self.map_err(|err| StateError::Database {
            operation,
            err: Box::new(err.into()),
        })
    }
}
