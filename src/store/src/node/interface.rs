//! What goes into a member and what comes out of it.

use std::io;
use std::time::Duration;

use crate::command::{Change, Command};
use crate::consensus::raft::{ELECTION_TICKS, HEARTBEAT_TICKS, StartError};
use crate::consensus::{BadChange, Standing};
use crate::disk::is_damage;
use crate::mvcc::write::Answer;
use crate::peer::PeerMessage;
use crate::proto::mvccpb::Event;
use crate::refused::Refused;
use crate::roster::Roster;
use crate::state::{StateError, Syncs};
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
    /// Time since the first change that makes a checkpoint of the state due.
    pub checkpoint_time: Duration,
    /// Which old revisions are given up without being asked.
    pub auto_compaction: AutoCompaction,
    /// Entries that are kept in memory for members that lag behind; one that lags further gets the whole state.
    pub keep_entries: u64,
    /// Bytes of one part of a state that is sent to another member.
    pub part_bytes: usize,
    /// The shortest time-out after which a silent leader is taken for gone, in ticks ([`super::TICK`]); at least 2.
    pub election_ticks: usize,
    /// Time between two heartbeats, in ticks; less than that time-out.
    pub heartbeat_ticks: usize,
    /// How checkpoints become durable.
    pub syncs: Syncs,
    /// Random for each process.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 32 << 20,
            quota_bytes: 2 << 30,
            segment_bytes: crate::wal::SEGMENT_BYTES,
            checkpoint_time: Duration::from_secs(5),
            auto_compaction: AutoCompaction::Age(Duration::from_secs(3600)),
            keep_entries: 5000,
            part_bytes: 256 << 10,
            election_ticks: ELECTION_TICKS,
            heartbeat_ticks: HEARTBEAT_TICKS,
            syncs: Syncs::WhenAsked,
            seed: 0,
        }
    }
}

/// Which old revisions a leader gives up by itself. Over the quota it gives up all of them, unless this is `Never`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoCompaction {
    /// None.
    Never,
    /// Those that were superseded longer ago than this (etcd's `periodic`).
    Age(Duration),
    /// Those further back than so many (etcd's `revision`).
    Count(i64),
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
    /// There is a state, but no log.
    #[error("the log is missing")]
    LogMissing,
    /// The state and consensus differ in who takes part.
    #[error("members")]
    Members(#[from] BadChange),
    /// Consensus wants a state that was not received.
    #[error("the state up to entry {0} has not been received")]
    NoSnapshot(u64),
    /// The free space cannot be asked for.
    #[error("ask for the free space")]
    Free(#[source] io::Error),
}

impl NodeError {
    /// Whether the data is not in the format of this version.
    pub fn is_of_another_version(&self) -> bool {
        matches!(self, Self::State(StateError::Format(_)))
    }

    /// Whether what was durable is not there any more.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::State(err) => err.is_damage(),
            Self::Wal(WalError::Read { err, .. }) => is_damage(err),
            Self::Wal(WalError::Damaged { .. })
            | Self::LogEndsEarly { .. }
            | Self::LogBeginsLate { .. }
            | Self::LogMissing => true,
            _ => false,
        }
    }
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
    /// Change who takes part.
    Change {
        /// How.
        change: Box<Change>,
        /// For the answer.
        ticket: T,
    },
    /// Hand leadership to another voter.
    Transfer {
        /// To whom.
        to: u64,
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
    Receive(Box<PeerMessage>),
    /// The connection with another member broke, which may be its end.
    Lost(u64),
}

/// A good answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To [`Input::Propose`] and [`Input::Change`].
    Answer(Answer),
    /// To [`Input::Transfer`].
    Transferred,
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
    /// The state was replaced by a later one: all that changed in between was not told.
    Jumped {
        /// The new revision.
        revision: i64,
        /// Revisions below this one can no longer be read.
        compact_revision: i64,
    },
    /// Who takes part, or an alarm, has changed.
    Roster(Box<Roster>),
    /// This member has been removed from the cluster: it must not go on.
    Removed,
    /// Where the member stands now; only when that has changed.
    Status(Status),
}

/// Where a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// In consensus.
    pub standing: Standing,
    /// Whether it takes requests: it knows a leader, or leads and has applied all that its predecessors committed.
    pub serves: bool,
    /// The last applied entry.
    pub applied_index: u64,
    /// Bytes of the state's records.
    pub live_bytes: i64,
    /// Nothing that grows is taken, for want of room.
    pub full: bool,
}

/// Takes what goes to other members: at once, since some of it need not wait for the disk.
pub struct Outbox(Box<dyn FnMut(PeerMessage) + Send>);

impl Outbox {
    /// Calls `send` for each message.
    pub fn new(send: impl FnMut(PeerMessage) + Send + 'static) -> Self {
        Self(Box::new(send))
    }

    /// For a member that has no others.
    pub fn none() -> Self {
        Self::new(|_| {})
    }

    pub(super) fn send(&mut self, message: PeerMessage) {
        (self.0)(message);
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outbox")
    }
}
