//! Agreement on one log, as the rest of the store sees it.
//!
//! [`Consensus`] is a deterministic machine without I/O: proposals, messages, ticks and finished writes go in; what to
//! write, send and apply comes out. [`raft::RaftConsensus`] is the one that is used.

pub mod message;
pub mod raft;

use std::fmt::Debug;

pub use message::Message;

/// What an entry of the log means to consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EntryKind {
    /// A command for the state; empty data is the mark of a new term.
    #[default]
    Command = 0,
    /// One member joins or leaves.
    Change = 1,
    /// Several members join or leave.
    JointChange = 2,
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// Its place; the first is 1.
    pub index: u64,
    /// The term of the leader that made it.
    pub term: u64,
    /// What it means to consensus.
    pub kind: EntryKind,
    /// The command or the change.
    pub data: Vec<u8>,
    /// What goes with a change.
    pub context: Vec<u8>,
}

/// What a member must not forget besides the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HardState {
    /// The latest term it knows.
    pub term: u64,
    /// Whom it voted for in that term; 0 is nobody.
    pub vote: u64,
    /// The highest index that it knows to be committed. It may lag behind.
    pub commit: u64,
}

/// Who takes part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// Those whose majority decides.
    pub voters: Vec<u64>,
    /// Those who only follow.
    pub learners: Vec<u64>,
}

/// A change of who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberChange {
    /// This one follows from now on, without a vote.
    AddLearner(u64),
    /// This learner has a vote from now on.
    Promote(u64),
    /// This one takes no part any more.
    Remove(u64),
}

/// A state that stands for all entries up to one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mark {
    /// The last entry in it.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Who takes part as of that entry.
    pub members: Members,
}

/// What the owner has to do, in this order: send `send`, replace the state as `install` says, make `entries` and
/// `hard_state` durable if `must_write`, report that with [`Consensus::written`], send `send_after_write`, apply `committed`.
#[derive(Debug, Default)]
pub struct Work {
    /// To be given to [`Consensus::written`].
    pub number: u64,
    /// Messages that need not wait for the disk.
    pub send: Vec<Message>,
    /// Messages that must wait for the disk.
    pub send_after_write: Vec<Message>,
    /// The state that was received with a snapshot takes the place of the present one, and of the log.
    pub install: Option<Mark>,
    /// Entries that must be durable; they replace what the log has from the first one's index on.
    pub entries: Vec<Entry>,
    /// The hard state, if it has changed.
    pub hard_state: Option<HardState>,
    /// Whether anything here must be durable before the rest. If not, a changed commit index may be written at leisure.
    pub must_write: bool,
    /// Entries to be applied, in order.
    pub committed: Vec<Entry>,
    /// Reads that see every write that was acknowledged before they were asked for, once the index is applied:
    /// the number given to [`Consensus::read`], and the index.
    pub reads: Vec<(u64, u64)>,
}

/// Where a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// The present term.
    pub term: u64,
    /// The leader, or 0.
    pub leader: u64,
    /// Whether this member leads.
    pub leads: bool,
    /// The highest committed index.
    pub commit: u64,
}

/// Consensus refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no leader to take it")]
pub struct Dropped;

/// A change of members that does not fit those that are there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{change:?} does not fit the members: {reason}")]
pub struct BadChange {
    /// Which.
    pub change: MemberChange,
    /// Why.
    pub reason: String,
}

/// How far another member is, as the leader knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Who.
    pub member: u64,
    /// It has the log up to this entry.
    pub matched: u64,
    /// It was heard of within the last election time-out.
    pub active: bool,
}

/// Agreement on a log.
pub trait Consensus: Debug {
    /// One tick of time has passed.
    fn tick(&mut self);
    /// Stands for election at once.
    fn campaign(&mut self);
    /// Asks for an entry.
    ///
    /// # Errors
    /// [`Dropped`] when this member can neither append it nor forward it.
    fn propose(&mut self, data: Vec<u8>) -> Result<(), Dropped>;
    /// Asks for a change of who takes part; `context` goes with its entry.
    ///
    /// # Errors
    /// [`Dropped`] when this member does not lead, or another change is not yet applied.
    fn propose_change(&mut self, change: MemberChange, context: Vec<u8>) -> Result<(), Dropped>;
    /// A change is applied; who takes part now.
    ///
    /// # Errors
    /// [`BadChange`] when it does not fit, which is a contradiction between the state and consensus.
    fn apply_change(&mut self, change: MemberChange) -> Result<Members, BadChange>;
    /// Hands leadership to another voter, if that can be.
    fn transfer(&mut self, to: u64);
    /// A snapshot for a member was brought there, or could not be.
    fn snapshot_ended(&mut self, to: u64, brought: bool);
    /// The connection with a member broke, which may be its end.
    fn lost(&mut self, member: u64);
    /// Asks for a point in the log that is not older than now; it comes as one of [`Work::reads`], or never.
    fn read(&mut self, number: u64);
    /// Takes a message of another member.
    fn receive(&mut self, message: Message);
    /// What there is to do, if anything.
    fn work(&mut self) -> Option<Work>;
    /// All work up to this number is durable.
    fn written(&mut self, number: u64);
    /// All entries up to this one are applied.
    fn applied(&mut self, index: u64, term: u64);
    /// Entries up to this index, which are in a durable state, are not needed any more.
    fn forget(&mut self, index: u64);
    /// Where the member stands.
    fn standing(&self) -> Standing;
    /// How far all others are; empty when this member does not lead.
    fn progress(&self) -> Vec<Progress>;
}
