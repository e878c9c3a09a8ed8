//! [`Consensus`] by the `raft` crate: pre-vote, check-quorum, safe reads, writes that finish later.

use std::collections::VecDeque;

use raft::prelude::{
    ConfChange, ConfChangeType, ConfState, Entry as RaftEntry, EntryType,
    HardState as RaftHardState, Snapshot, SnapshotMetadata,
};
use raft::{
    Config, GetEntriesContext, RaftState, RawNode, SnapshotStatus, StateRole, Storage, StorageError,
};

use super::message::join;
use super::{
    BadChange, Consensus, Dropped, Entry, EntryKind, HardState, Mark, MemberChange, Members,
    Message, Progress, Standing, Work,
};

/// Ticks between two heartbeats.
pub const HEARTBEAT_TICKS: usize = 1;
/// Ticks of silence after which a member stands for election; drawn anew up to twice as many.
pub const ELECTION_TICKS: usize = 10;
/// Where all voters see at once that the leader is gone they stand for election in turn, so many ticks one after the other: those that
/// stand together may take each other's votes, and the next attempt is a whole time-out away.
const TURN_TICKS: usize = 2;
/// Entries of one message between members.
pub(super) const MESSAGE_BYTES: u64 = 1 << 20;
/// Messages on their way to one follower.
const IN_FLIGHT: usize = 256;
/// Entries that no majority has yet, above which no more are taken.
const UNCOMMITTED_BYTES: u64 = 64 << 20;

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
    /// Index and term of the entry before the first of `entries`: the applied one, or one before it.
    pub before: (u64, u64),
    /// The entries that are kept, without a gap, up to the last.
    pub entries: Vec<Entry>,
    /// Seeds the time-outs.
    pub seed: u64,
    /// The shortest time-out after which a silent leader is taken for gone, in ticks.
    pub election_ticks: usize,
    /// Time between two heartbeats, in ticks; less than that time-out.
    pub heartbeat_ticks: usize,
}

/// Consensus cannot start from what is on the disk.
#[derive(Debug, thiserror::Error)]
#[error("start consensus from the log")]
pub struct StartError(#[source] raft::Error);

/// The `raft` crate's machine and the part of the log that it may still ask for.
pub struct RaftConsensus {
    node: RawNode<Log>,
    seed: u64,
    /// The leader whose connection broke, and the term in which it led.
    lost: Option<(u64, u64)>,
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
            applied: start.applied,
            start: start.before,
            bytes: start.entries.iter().map(|e| e.data.len()).sum(),
            entries: start.entries.into_iter().map(to_raft).collect(),
        };
        let config = Config {
            id: start.member,
            applied,
            election_tick: start.election_ticks,
            heartbeat_tick: start.heartbeat_ticks,
            max_size_per_msg: MESSAGE_BYTES,
            max_inflight_msgs: IN_FLIGHT,
            max_uncommitted_size: UNCOMMITTED_BYTES,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, log, &logger).map_err(StartError)?;
        let mut consensus = Self {
            node,
            seed: start.seed,
            lost: None,
        };
        consensus.draw_timeout();
        Ok(consensus)
    }

    /// The library draws time-outs from the thread's random numbers; ours come from the seed, so that a run can be repeated.
    /// A new term or role gives a new one.
    fn draw_timeout(&mut self) {
        let raft = &mut self.node.raft;
        let mut z = self
            .seed
            .wrapping_add(raft.id)
            .wrapping_add(raft.term.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .wrapping_add(raft.state as u64);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let shortest = raft.election_timeout();
        let more = match self.lost {
            Some((leader, term))
                if term == raft.term
                    && raft.leader_id == 0
                    && raft.state == StateRole::Follower =>
            {
                let voters = raft.prs().conf().to_conf_state().voters;
                let before = voters.iter().filter(|v| **v < raft.id && **v != leader);
                1 + TURN_TICKS * before.count()
            }
            _ => (z as usize) % shortest,
        };
        raft.set_randomized_election_timeout(shortest + more);
    }

    /// Who takes part.
    pub fn members(&self) -> Members {
        from_conf_state(&self.node.raft.prs().conf().to_conf_state())
    }

    /// Index of the last entry.
    pub fn last_index(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    /// Bytes of the entries in memory.
    pub fn kept_bytes(&self) -> usize {
        self.node.store().bytes
    }

    /// Indexes of the first and the last entry in memory, if there is one.
    pub fn kept(&self) -> Option<(u64, u64)> {
        let log = self.node.store();
        (!log.entries.is_empty()).then(|| (log.start.0 + 1, log.last_index()))
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
        self.draw_timeout();
    }

    fn campaign(&mut self) {
        // It fails for a member that may not vote, which is then right to wait.
        let _ = self.node.campaign();
        self.draw_timeout();
    }

    fn propose(&mut self, data: Vec<u8>) -> Result<(), Dropped> {
        if self.node.raft.state != StateRole::Leader {
            return Err(Dropped);
        }
        self.node.propose(Vec::new(), data).map_err(|_| Dropped)
    }

    fn propose_change(&mut self, change: MemberChange, context: Vec<u8>) -> Result<(), Dropped> {
        if self.node.raft.state != StateRole::Leader || self.node.raft.has_pending_conf() {
            return Err(Dropped);
        }
        self.node
            .propose_conf_change(context, to_conf_change(change))
            .map_err(|_| Dropped)
    }

    fn apply_change(&mut self, change: MemberChange) -> Result<Members, BadChange> {
        let members = self.node.apply_conf_change(&to_conf_change(change));
        let members = members.map_err(|err| BadChange {
            change,
            reason: err.to_string(),
        })?;
        self.node.mut_store().members = members.clone();
        Ok(from_conf_state(&members))
    }

    fn transfer(&mut self, to: u64) {
        self.node.transfer_leader(to);
    }

    fn snapshot_ended(&mut self, to: u64, brought: bool) {
        let status = if brought {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        self.node.report_snapshot(to, status);
    }

    fn lost(&mut self, member: u64) {
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader {
            self.node.report_unreachable(member);
        } else if raft.leader_id == member && raft.state == StateRole::Follower {
            // As if it had been silent for the shortest time-out.
            raft.election_elapsed = raft.election_timeout();
            // What is asked meanwhile waits for the next leader, or for a sign of this one.
            raft.leader_id = 0;
            self.lost = Some((member, raft.term));
            self.draw_timeout();
        }
    }

    fn read(&mut self, number: u64) {
        // The leader tells reads apart by this, so it must differ between members.
        let mut context = self.node.raft.id.to_le_bytes().to_vec();
        context.extend_from_slice(&number.to_le_bytes());
        self.node.read_index(context);
    }

    fn receive(&mut self, message: Message) {
        // A message of a former member or for a former term is not an event.
        let _ = self.node.step(message.0);
        self.draw_timeout();
    }

    fn work(&mut self) -> Option<Work> {
        if !self.node.has_ready() {
            return None;
        }
        let mut ready = self.node.ready();
        let entries = ready.take_entries();
        let hard_state = ready.hs().cloned();
        let install = Some(ready.snapshot().get_metadata())
            .filter(|meta| meta.index > 0)
            .map(|meta| Mark {
                index: meta.index,
                term: meta.term,
                members: from_conf_state(meta.get_conf_state()),
            });
        let log = self.node.mut_store();
        if let Some(mark) = &install {
            log.reset(mark);
        }
        if let Some(hard_state) = &hard_state {
            log.hard_state = hard_state.clone();
        }
        log.append(&entries);
        let work = Work {
            number: ready.number(),
            send: join(ready.take_messages()),
            send_after_write: join(ready.take_persisted_messages()),
            install,
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
                    let (_, number) = r.request_ctx.split_last_chunk()?;
                    Some((u64::from_le_bytes(*number), r.index))
                })
                .collect(),
        };
        self.node.advance_append_async(ready);
        Some(work)
    }

    fn written(&mut self, number: u64) {
        self.node.on_persist_ready(number);
    }

    fn applied(&mut self, index: u64, term: u64) {
        self.node.mut_store().applied = (index, term);
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

    fn progress(&self) -> Vec<Progress> {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return Vec::new();
        }
        let mut all: Vec<Progress> = raft
            .prs()
            .iter()
            .filter(|(member, _)| **member != raft.id)
            .map(|(member, progress)| Progress {
                member: *member,
                matched: progress.matched,
                active: progress.recent_active,
            })
            .collect();
        all.sort_unstable_by_key(|p| p.member);
        all
    }
}

fn to_conf_change(change: MemberChange) -> ConfChange {
    let (kind, member) = match change {
        MemberChange::AddLearner(member) => (ConfChangeType::AddLearnerNode, member),
        MemberChange::Promote(member) => (ConfChangeType::AddNode, member),
        MemberChange::Remove(member) => (ConfChangeType::RemoveNode, member),
    };
    let mut out = ConfChange {
        node_id: member,
        ..ConfChange::default()
    };
    out.set_change_type(kind);
    out
}

fn from_conf_state(state: &ConfState) -> Members {
    let mut members = Members {
        voters: state.voters.clone(),
        learners: state.learners.clone(),
    };
    members.voters.sort_unstable();
    members.learners.sort_unstable();
    members
}

pub(super) fn to_conf_state(members: &Members) -> ConfState {
    ConfState {
        voters: members.voters.clone(),
        learners: members.learners.clone(),
        ..ConfState::default()
    }
}

fn to_raft_hard_state(state: &HardState) -> RaftHardState {
    RaftHardState {
        term: state.term,
        vote: state.vote,
        commit: state.commit,
    }
}

pub(super) fn to_raft(entry: Entry) -> RaftEntry {
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

pub(super) fn kind_of(entry: &RaftEntry) -> EntryKind {
    match entry.get_entry_type() {
        EntryType::EntryNormal => EntryKind::Command,
        EntryType::EntryConfChange => EntryKind::Change,
        EntryType::EntryConfChangeV2 => EntryKind::JointChange,
    }
}

fn from_raft(entry: RaftEntry) -> Entry {
    Entry {
        index: entry.index,
        term: entry.term,
        kind: kind_of(&entry),
        data: entry.data,
        context: entry.context,
    }
}

/// The log as the machine reads it: all that is not yet forgotten, in memory.
struct Log {
    hard_state: RaftHardState,
    members: ConfState,
    /// Index and term of the last applied entry, which a snapshot would hold.
    applied: (u64, u64),
    /// Index and term of the entry before the first one here.
    start: (u64, u64),
    entries: VecDeque<RaftEntry>,
    /// Bytes of their data.
    bytes: usize,
}

impl Log {
    fn last_index(&self) -> u64 {
        self.start.0 + self.entries.len() as u64
    }

    fn append(&mut self, entries: &[RaftEntry]) {
        let Some(first) = entries.first() else { return };
        let keep = first.index.saturating_sub(self.start.0 + 1) as usize;
        while self.entries.len() > keep {
            self.bytes -= self.entries.pop_back().map_or(0, |e| e.data.len());
        }
        self.bytes += entries.iter().map(|e| e.data.len()).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    /// Starts anew after a snapshot.
    fn reset(&mut self, mark: &Mark) {
        self.members = to_conf_state(&mark.members);
        self.start = (mark.index, mark.term);
        self.entries.clear();
        self.bytes = 0;
    }

    fn forget(&mut self, index: u64) {
        while let Some(entry) = self.entries.front().filter(|e| e.index <= index) {
            self.start = (entry.index, entry.term);
            self.bytes -= entry.data.len();
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

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let (index, term) = self.applied;
        if index < request_index || index == 0 {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        let metadata = SnapshotMetadata {
            conf_state: Some(self.members.clone()),
            index,
            term,
        };
        Ok(Snapshot {
            metadata: Some(metadata),
            ..Snapshot::default()
        })
    }
}
