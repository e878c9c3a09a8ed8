//! [`Consensus`] by the `raft` crate: pre-vote, check-quorum, safe reads, writes that finish later.

use std::collections::VecDeque;

use raft::prelude::{
    ConfState, Entry as RaftEntry, EntryType, HardState as RaftHardState, Message as RaftMessage,
    Snapshot,
};
use raft::{Config, GetEntriesContext, RaftState, RawNode, StateRole, Storage, StorageError};

use super::{Consensus, Dropped, Entry, EntryKind, HardState, Members, Message, Standing, Work};

/// Ticks between two heartbeats.
const HEARTBEAT_TICKS: usize = 1;
/// Ticks of silence after which a member stands for election; drawn anew up to twice as many.
pub const ELECTION_TICKS: usize = 10;
/// Entries of one message between members.
const MESSAGE_BYTES: u64 = 1 << 20;
/// Messages on their way to one follower.
const IN_FLIGHT: usize = 256;

/// What a member knows when it starts.
#[derive(Debug, Default)]
pub struct Start {
    /// Its own id; never 0.
    pub member: u64,
    /// Who takes part.
    pub members: Members,
    /// The last hard state on disk.
    pub hard_state: HardState,
    /// The last applied entry's index and term; 0 and 0 on an empty member.
    pub applied: (u64, u64),
    /// The entries after the applied one.
    pub entries: Vec<Entry>,
}

/// Consensus cannot start from what is on the disk.
#[derive(Debug, thiserror::Error)]
#[error("start consensus from the log")]
pub struct StartError(#[source] raft::Error);

/// The `raft` crate's machine and the part of the log that it may still ask for.
pub struct RaftConsensus {
    node: RawNode<Log>,
}

impl std::fmt::Debug for RaftConsensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftConsensus")
            .field("standing", &self.standing())
            .finish_non_exhaustive()
    }
}

impl RaftConsensus {
    /// Starts from what is on the disk.
    ///
    /// # Errors
    /// [`StartError`] when the parts contradict each other.
    pub fn new(start: Start) -> Result<Self, StartError> {
        let (applied, applied_term) = start.applied;
        let mut hard_state = start.hard_state;
        // The commit index is written at leisure, so the state may be ahead of it.
        hard_state.commit = hard_state.commit.max(applied);
        hard_state.term = hard_state.term.max(applied_term);
        let log = Log {
            hard_state: to_raft_hard_state(&hard_state),
            members: ConfState {
                voters: start.members.voters,
                learners: start.members.learners,
                ..ConfState::default()
            },
            start: start.applied,
            entries: start.entries.into_iter().map(to_raft).collect(),
        };
        let config = Config {
            id: start.member,
            applied,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            max_size_per_msg: MESSAGE_BYTES,
            max_inflight_msgs: IN_FLIGHT,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, log, &logger).map_err(StartError)?;
        Ok(Self { node })
    }

    /// Whether this member alone decides.
    pub fn is_alone(&self) -> bool {
        self.node.store().members.voters == [self.node.raft.id]
    }

    /// The entries after `index` that are still in memory, up to `last`.
    pub fn entries_after(&self, index: u64, last: u64) -> Vec<Entry> {
        self.node
            .store()
            .entries
            .iter()
            .filter(|e| e.index > index && e.index <= last)
            .cloned()
            .map(from_raft)
            .collect()
    }
}

impl Consensus for RaftConsensus {
    fn tick(&mut self) {
        self.node.tick();
    }

    fn campaign(&mut self) {
        // It fails for a member that may not vote, which is then right to wait.
        let _ = self.node.campaign();
    }

    fn propose(&mut self, data: Vec<u8>) -> Result<(), Dropped> {
        self.node.propose(Vec::new(), data).map_err(|_| Dropped)
    }

    fn read(&mut self, number: u64) {
        self.node.read_index(number.to_le_bytes().to_vec());
    }

    fn receive(&mut self, message: Message) {
        // A message of a former member or for a former term is not an event.
        let _ = self.node.step(message.0);
    }

    fn work(&mut self) -> Option<Work> {
        if !self.node.has_ready() {
            return None;
        }
        let mut ready = self.node.ready();
        let entries = ready.take_entries();
        let hard_state = ready.hs().cloned();
        let log = self.node.mut_store();
        if let Some(hard_state) = &hard_state {
            log.hard_state = hard_state.clone();
        }
        log.append(&entries);
        let work = Work {
            number: ready.number(),
            send: wrap(ready.take_messages()),
            send_after_write: wrap(ready.take_persisted_messages()),
            entries: entries.into_iter().map(from_raft).collect(),
            hard_state: hard_state.map(|h| HardState {
                term: h.term,
                vote: h.vote,
                commit: h.commit,
            }),
            must_write: ready.must_sync(),
            committed: ready
                .take_committed_entries()
                .into_iter()
                .map(from_raft)
                .collect(),
            reads: ready
                .take_read_states()
                .into_iter()
                .filter_map(|r| {
                    Some((
                        u64::from_le_bytes(r.request_ctx.as_slice().try_into().ok()?),
                        r.index,
                    ))
                })
                .collect(),
        };
        self.node.advance_append_async(ready);
        Some(work)
    }

    fn written(&mut self, number: u64) {
        self.node.on_persist_ready(number);
    }

    fn applied(&mut self, index: u64) {
        self.node.advance_apply_to(index);
    }

    fn forget(&mut self, index: u64) {
        self.node.mut_store().forget(index);
    }

    fn standing(&self) -> Standing {
        let raft = &self.node.raft;
        Standing {
            term: raft.term,
            leader: raft.leader_id,
            leads: raft.state == StateRole::Leader,
            commit: raft.raft_log.committed,
        }
    }
}

fn wrap(messages: Vec<RaftMessage>) -> Vec<Message> {
    messages.into_iter().map(Message).collect()
}

fn to_raft_hard_state(state: &HardState) -> RaftHardState {
    RaftHardState {
        term: state.term,
        vote: state.vote,
        commit: state.commit,
    }
}

fn to_raft(entry: Entry) -> RaftEntry {
    let mut out = RaftEntry {
        term: entry.term,
        index: entry.index,
        data: entry.data,
        context: entry.context,
        ..RaftEntry::default()
    };
    out.set_entry_type(match entry.kind {
        EntryKind::Command => EntryType::EntryNormal,
        EntryKind::Change => EntryType::EntryConfChange,
        EntryKind::JointChange => EntryType::EntryConfChangeV2,
    });
    out
}

fn from_raft(entry: RaftEntry) -> Entry {
    let kind = match entry.get_entry_type() {
        EntryType::EntryNormal => EntryKind::Command,
        EntryType::EntryConfChange => EntryKind::Change,
        EntryType::EntryConfChangeV2 => EntryKind::JointChange,
    };
    Entry {
        index: entry.index,
        term: entry.term,
        kind,
        data: entry.data,
        context: entry.context,
    }
}

/// The log as the machine reads it: all that is not yet forgotten, in memory.
struct Log {
    hard_state: RaftHardState,
    members: ConfState,
    /// Index and term of the entry before the first one here.
    start: (u64, u64),
    entries: VecDeque<RaftEntry>,
}

impl Log {
    fn last_index(&self) -> u64 {
        self.start.0 + self.entries.len() as u64
    }

    fn append(&mut self, entries: &[RaftEntry]) {
        let Some(first) = entries.first() else { return };
        let keep = first.index.saturating_sub(self.start.0 + 1);
        self.entries.truncate(keep as usize);
        self.entries.extend(entries.iter().cloned());
    }

    fn forget(&mut self, index: u64) {
        while let Some(entry) = self.entries.front().filter(|e| e.index <= index) {
            self.start = (entry.index, entry.term);
            self.entries.pop_front();
        }
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState {
            hard_state: self.hard_state.clone(),
            conf_state: self.members.clone(),
        })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<RaftEntry>> {
        if low <= self.start.0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last_index() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let from = (low - self.start.0 - 1) as usize;
        let to = (high - self.start.0 - 1) as usize;
        let mut entries: Vec<RaftEntry> = self.entries.range(from..to).cloned().collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.start.0 {
            return Ok(self.start.1);
        }
        if index < self.start.0 {
            return Err(StorageError::Compacted.into());
        }
        let place = (index - self.start.0 - 1) as usize;
        self.entries
            .get(place)
            .map(|e| e.term)
            .ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.start.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last_index())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}
