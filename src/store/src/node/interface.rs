//! What goes into a member and what comes out of it.

use std::io;

use crate::command::Command;
use crate::consensus::raft::StartError;
use crate::consensus::{Message, Standing};
use crate::mvcc::write::Answer;
use crate::proto::mvccpb::Event;
use crate::refused::Refused;
use crate::state::StateError;
use crate::wal::WalError;

/// How a member is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Memory for pages of the state, in bytes.
    pub cache_bytes: usize,
    /// Bytes of records above which nothing that grows is taken.
    pub quota_bytes: u64,
    /// Size of the log's segments, in bytes.
    pub segment_bytes: usize,
    /// Random for each process.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 32 << 20,
            quota_bytes: 2 << 30,
            segment_bytes: crate::wal::SEGMENT_BYTES,
            seed: 0,
        }
    }
}

/// Why a member cannot start or go on. After one of these the node must be dropped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The state.
    #[error("state")]
    State(#[from] StateError),
    /// The log.
    #[error("log")]
    Wal(#[from] WalError),
    /// Consensus.
    #[error("consensus")]
    Start(#[from] StartError),
    /// The log lacks entries that were durable.
    #[error("the log is damaged: it ends at entry {last}, but entry {known} was durable")]
    LogEndsEarly {
        /// The last entry that was read.
        last: u64,
        /// An entry that was known to be durable.
        known: u64,
    },
    /// The log lacks entries between the state and its first one.
    #[error(
        "the log is damaged: it begins at entry {first}, but the state ends at entry {applied}"
    )]
    LogBeginsLate {
        /// The first entry that was read.
        first: u64,
        /// The last entry that is in the state.
        applied: u64,
    },
    /// The free space cannot be asked for.
    #[error("ask for the free space")]
    Free(#[source] io::Error),
}

/// What goes into a member. `T` is what the answer goes back with.
#[derive(Debug)]
pub enum Input<T> {
    /// Change the state.
    Propose {
        /// How.
        command: Box<Command>,
        /// For the answer.
        ticket: T,
    },
    /// Tell when the state holds every change that was acknowledged before.
    Read {
        /// For the answer.
        ticket: T,
    },
    /// Start a lease's clock anew.
    Renew {
        /// The lease.
        id: i64,
        /// For the answer.
        ticket: T,
    },
    /// Ask how long a lease lasts.
    TimeToLive {
        /// The lease.
        id: i64,
        /// For the answer.
        ticket: T,
    },
    /// A message of another member.
    Receive(Box<Message>),
}

/// A good answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To [`Input::Propose`].
    Answer(Answer),
    /// To [`Input::Read`]: read now.
    Read,
    /// To [`Input::Renew`].
    Renewed {
        /// The present revision.
        revision: i64,
        /// Seconds granted; `None` when there is no such lease.
        ttl: Option<i64>,
    },
    /// To [`Input::TimeToLive`].
    TimeToLive {
        /// The present revision.
        revision: i64,
        /// Seconds left and seconds granted; `None` when there is no such lease.
        times: Option<(i64, i64)>,
    },
}

/// What comes out of a member, in the order in which it must be passed on.
#[derive(Debug)]
pub enum Output<T> {
    /// An answer.
    Reply {
        /// Whose.
        ticket: T,
        /// What.
        result: Result<Reply, Refused>,
    },
    /// The keyspace changed.
    Changed {
        /// The new revision.
        revision: i64,
        /// All its changes.
        events: Vec<Event>,
    },
    /// Revisions below this one can no longer be read.
    Compacted(i64),
    /// For another member.
    Send(Message),
    /// Where the member stands now; only when that has changed.
    Status(Status),
}

/// Where a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// In consensus.
    pub standing: Standing,
    /// Whether it takes requests.
    pub serves: bool,
    /// The last applied entry.
    pub applied_index: u64,
    /// Bytes of the state's records.
    pub live_bytes: i64,
    /// Nothing that grows is taken, for want of room.
    pub full: bool,
}
