//! One member as a deterministic machine: consensus, log, state and lease clocks.
//!
//! [`Node::step`] takes requests, messages and the time, does what they lead to on its [`Disk`], returns answers and
//! changes, and gives messages to its [`Outbox`]. It starts no thread and reads no clock: the simulation steps it as the
//! server does.

mod changes;
mod interface;
mod reads;
mod requests;
mod room;
mod transfer;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::command::Origin;
use crate::consensus::raft::{RaftConsensus, Start};
use crate::consensus::{Consensus, Entry, HardState};
use crate::disk::Disk;
use crate::lease::Leases;
use crate::mvcc::write::{Answer, Applied};
use crate::peer::{Body, PeerMessage};
use crate::roster::Roster;
use crate::state::{Database, Genesis, State};
use crate::wal::{Owner, Recovered, Wal};
use requests::{Pending, Seen};
use transfer::{Receiving, Sending};

pub use interface::{AutoCompaction, Input, NodeError, Options, Outbox, Output, Reply, Status};

/// The length of a tick, in which heartbeats and time-outs are counted.
pub const TICK: Duration = Duration::from_millis(100);
/// The largest command, in bytes (etcd's `--max-request-bytes`).
pub const MAX_REQUEST_BYTES: usize = 3 << 19;
/// Ticks without a write after which the hard state is written.
const QUIET_TICKS: u32 = 1;

/// One member.
#[derive(Debug)]
pub struct Node<T> {
    disk: Arc<dyn Disk>,
    options: Options,
    owner: Owner,
    outbox: Outbox,
    consensus: RaftConsensus,
    wal: Wal,
    state: State,
    leases: Leases,
    hard_state: HardState,
    /// The hard state has changed since it was last written.
    hard_state_unsaved: bool,
    /// Upper half of the request numbers: random, so that those of another life are not ours.
    life: u32,
    /// Counter for their lower half.
    requests: u32,
    /// Requests for the log, by number.
    pending: BTreeMap<u64, Pending<T>>,
    /// The term for which `seen` holds.
    seen_term: u64,
    /// Requests of other members that were put into the log in this term, by member and life.
    seen: HashMap<(u64, u32), Seen>,
    /// Compactions whose answer waits for the space to be given back.
    physical: HashMap<u64, i64>,
    compacting: Vec<(i64, T, Answer)>,
    reads: reads::Reads<T>,
    questions: reads::Questions<T>,
    transferring: Option<(u64, Duration, T)>,
    /// The term in which this member leads and has applied all of its predecessors' entries.
    serving_term: Option<u64>,
    /// The leader that requests were last given to, or 0.
    leader: u64,
    next_tick: Duration,
    ticks: u64,
    quiet_ticks: u32,
    /// Commands given to consensus that are not yet written.
    queued_bytes: usize,
    /// Log written since the last checkpoint.
    unsaved_bytes: usize,
    /// When the first change since the last checkpoint was made.
    unsaved_since: Option<Duration>,
    /// Revisions of the past and when they were the present, oldest first; of the leader.
    ages: VecDeque<(Duration, i64)>,
    full: bool,
    /// The state found no room though the disk said that there was some: since when. Nothing that grows is taken until it finds room.
    broke_off: Option<Duration>,
    sending: BTreeMap<u64, Sending>,
    receiving: Option<Receiving>,
    /// The roster was told since it last changed.
    roster_told: bool,
    removed: bool,
    status: Status,
    now: Duration,
    outputs: Vec<Output<T>>,
}

impl<T> Node<T> {
    /// Opens a member, or makes one as `genesis` says. `now` is the time on the clock that [`Node::step`] will go by.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub fn open(
        disk: Arc<dyn Disk>,
        options: Options,
        now: Duration,
        outbox: Outbox,
        genesis: impl FnOnce() -> Genesis,
    ) -> Result<Self, NodeError> {
        let open_wal = |owner| {
            Wal::open(
                Arc::clone(&disk),
                owner,
                options.seed,
                options.segment_bytes,
            )
        };
        if !State::exists(&*disk)? {
            // The log comes first: a state without one has then surely lost it.
            Wal::remove_unused(&*disk)?;
            let genesis = genesis();
            open_wal(Owner {
                cluster: genesis.cluster,
                member: genesis.member,
            })?;
            State::create(&*disk, options.cache_bytes, &genesis)?;
        }
        State::clear_incoming(&*disk)?;
        let mut state = State::open(Arc::clone(&disk), options.cache_bytes)?;
        state.set_syncs(options.syncs)?;
        let owner = state.owner;
        if !Wal::exists(&*disk)? {
            return Err(NodeError::LogMissing);
        }
        let (mut wal, mut recovered) = open_wal(owner)?;
        if is_void(&recovered, state.installed) {
            wal.append(Some(state.installed), &[], &recovered.hard_state)?;
            recovered.entries.clear();
        }
        check_ends(&recovered, &state)?;
        let hard_state = recovered.hard_state;
        let (before, entries) = kept(recovered.entries, state.applied);
        let consensus = RaftConsensus::new(Start {
            member: owner.member,
            members: state.roster.ids(),
            hard_state,
            applied: state.applied,
            before,
            entries,
            seed: options.seed,
            election_ticks: options.election_ticks.max(2),
            heartbeat_ticks: options
                .heartbeat_ticks
                .clamp(1, options.election_ticks.max(2) - 1),
        })?;
        let mut node = Self {
            disk,
            owner,
            outbox,
            consensus,
            wal,
            state,
            leases: Leases::default(),
            hard_state,
            hard_state_unsaved: false,
            life: (options.seed >> 32) as u32 ^ options.seed as u32,
            options,
            requests: 0,
            pending: BTreeMap::new(),
            seen_term: 0,
            seen: HashMap::new(),
            physical: HashMap::new(),
            compacting: Vec::new(),
            reads: reads::Reads::default(),
            questions: reads::Questions::default(),
            transferring: None,
            serving_term: None,
            leader: 0,
            next_tick: now + TICK,
            ticks: 0,
            quiet_ticks: 0,
            queued_bytes: 0,
            unsaved_bytes: 0,
            unsaved_since: None,
            ages: VecDeque::new(),
            full: false,
            broke_off: None,
            sending: BTreeMap::new(),
            receiving: None,
            roster_told: false,
            removed: false,
            status: Status::default(),
            now,
            outputs: Vec::new(),
        };
        if node.is_alone() {
            node.consensus.campaign();
        }
        node.look_for_room()?;
        Ok(node)
    }

    /// Whose it is.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// The present revision.
    pub fn revision(&self) -> i64 {
        self.state.revision
    }

    /// For readers in other threads.
    pub fn database(&self) -> Database {
        self.state.database()
    }

    /// Who takes part.
    pub fn roster(&self) -> &Roster {
        &self.state.roster
    }

    /// The shortest time-out after which a silent leader is taken for gone.
    fn election_time(&self) -> Duration {
        TICK.saturating_mul(u32::try_from(self.options.election_ticks).unwrap_or(u32::MAX))
    }

    /// Whether this member alone decides, and no one follows.
    fn is_alone(&self) -> bool {
        matches!(self.state.roster.members.as_slice(), [only] if only.id == self.owner.member)
    }

    /// Until when the node need not be stepped if nothing comes in.
    pub fn next_step(&self) -> Duration {
        if self.state.compacts() {
            self.now
        } else {
            self.leases
                .next()
                .map_or(self.next_tick, |at| at.max(self.now).min(self.next_tick))
        }
    }

    /// Takes in what has come, does all that follows from it, and returns what goes out.
    ///
    /// # Errors
    /// See [`NodeError`]. What was asked for and not answered has an unknown outcome then.
    pub fn step(
        &mut self,
        now: Duration,
        inputs: impl IntoIterator<Item = Input<T>>,
    ) -> Result<Vec<Output<T>>, NodeError> {
        self.now = now.max(self.now);
        for input in inputs {
            self.take(input)?;
        }
        self.ask_for_reads();
        self.run()?;
        if self.state.compacts() {
            self.compact()?;
        }
        let mut ticks = 0;
        while self.next_tick <= self.now {
            // After a pause of the whole process only so many ticks count: others may have been silent for no longer.
            if ticks < self.options.election_ticks {
                self.consensus.tick();
            }
            ticks += 1;
            self.next_tick += TICK;
        }
        if ticks > 0 {
            self.ticks += ticks as u64;
            self.tick()?;
        }
        self.expire_leases();
        self.run()?;
        let leader = self.consensus.standing().leader;
        if std::mem::replace(&mut self.leader, leader) != leader && leader != 0 {
            // What was held goes to it at once.
            self.send_held_requests();
            self.ask_for_reads();
            self.run()?;
        }
        self.wal.prepare()?;
        self.follow_checkpoint()?;
        self.checkpoint_if_due()?;
        self.report();
        Ok(std::mem::take(&mut self.outputs))
    }

    /// Makes the state durable, so that the next start has nothing to apply again. What waits is answered.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub fn close(mut self) -> Result<Vec<Output<T>>, NodeError> {
        self.save_hard_state()?;
        if self.state.is_dirty() && !self.is_short_of_room()? {
            self.checkpoint()?;
        }
        self.settle()?;
        self.stop_requests();
        Ok(self.outputs)
    }

    fn send(&mut self, to: u64, body: Body) {
        self.outbox.send(PeerMessage {
            from: self.owner.member,
            to,
            body,
        });
    }

    /// Does what consensus wants done.
    fn run(&mut self) -> Result<(), NodeError> {
        while let Some(work) = self.consensus.work() {
            for message in work.send {
                if let Some(mark) = message.snapshot() {
                    self.begin_sending(mark, message)?;
                } else {
                    self.send(message.to(), Body::Consensus(message));
                }
            }
            if let Some(hard_state) = work.hard_state {
                self.hard_state = hard_state;
                self.hard_state_unsaved = true;
            }
            if let Some(mark) = &work.install {
                self.install(mark)?;
            }
            let reset = work.install.map(|mark| (mark.index, mark.term));
            if work.must_write || !work.entries.is_empty() {
                self.write(reset, &work.entries)?;
            }
            self.consensus.written(work.number);
            if let Some((index, term)) = reset {
                self.consensus.applied(index, term);
            }
            for message in work.send_after_write {
                self.send(message.to(), Body::Consensus(message));
            }
            if !work.committed.is_empty() {
                self.apply(&work.committed)?;
            }
            for (number, index) in work.reads {
                self.reads.placed(number, index);
            }
            self.release_reads();
        }
        self.queued_bytes = 0;
        Ok(())
    }

    /// Writes to the log; all of it is durable then.
    fn write(&mut self, reset: Option<(u64, u64)>, entries: &[Entry]) -> Result<(), NodeError> {
        self.wal.append(reset, entries, &self.hard_state)?;
        self.hard_state_unsaved = false;
        self.quiet_ticks = 0;
        self.unsaved_bytes += entries.iter().map(|e| e.data.len()).sum::<usize>();
        Ok(())
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), NodeError> {
        let applied = match self.state.apply(entries) {
            Err(err) if err.is_full() => {
                self.recover()?;
                self.state.apply(entries)?
            }
            other => other?,
        };
        self.unsaved_since.get_or_insert(self.now);
        self.unsaved_bytes += self.state.copied_bytes();
        for (origin, applied) in applied {
            self.pass_on(origin, applied)?;
        }
        let (index, term) = self.state.applied;
        self.consensus.applied(index, term);
        let standing = self.consensus.standing();
        if standing.leads && term == standing.term && self.serving_term != Some(term) {
            self.serving_term = Some(term);
            self.commit()?;
            self.leases
                .restart(self.state.leases()?, self.now, self.election_time());
        }
        Ok(())
    }

    fn pass_on(&mut self, origin: Option<Origin>, applied: Applied) -> Result<(), NodeError> {
        if let Some(change) = applied.change {
            self.follow_change(change)?;
        }
        if applied.members_changed {
            self.roster_told = false;
        }
        for change in applied.leases {
            self.leases.follow(change, self.now);
        }
        if let Some(revision) = applied
            .events
            .first()
            .and_then(|e| e.kv.as_ref())
            .map(|kv| kv.mod_revision)
        {
            self.outputs.push(Output::Changed {
                revision,
                events: applied.events,
            });
        }
        if applied.compacted {
            self.outputs
                .push(Output::Compacted(self.state.compact_revision));
        }
        if let Some(origin) = origin.filter(|o| o.member == self.owner.member) {
            self.answer(origin.number, applied.answer);
        }
        Ok(())
    }

    /// What is done once a tick.
    fn tick(&mut self) -> Result<(), NodeError> {
        let standing = self.consensus.standing();
        if self
            .serving_term
            .is_some_and(|term| !standing.leads || term != standing.term)
        {
            self.serving_term = None;
        }
        self.quiet_ticks = self.quiet_ticks.saturating_add(1);
        if self.quiet_ticks > QUIET_TICKS {
            self.save_hard_state()?;
        }
        self.look_for_room()?;
        self.tick_requests();
        self.tick_transfers()?;
        self.tick_changes();
        self.give_up_old();
        Ok(())
    }

    /// Writes the hard state if it has changed: then a reader of the log knows up to where it was durable.
    fn save_hard_state(&mut self) -> Result<(), NodeError> {
        if self.hard_state_unsaved && self.has_own_room() {
            self.wal.append(None, &[], &self.hard_state)?;
            self.hard_state_unsaved = false;
        }
        Ok(())
    }

    fn report(&mut self) {
        let standing = self.consensus.standing();
        let serves = if standing.leads {
            self.serving_term == Some(standing.term)
        } else {
            standing.leader != 0
        };
        let status = Status {
            standing,
            serves,
            applied_index: self.state.applied.0,
            live_bytes: self.state.live_bytes,
            full: self.full,
        };
        if status != self.status {
            self.status = status;
            // Before the answers, so that their headers have the right term.
            self.outputs.insert(0, Output::Status(status));
        }
        if !self.roster_told {
            self.roster_told = true;
            self.outputs
                .push(Output::Roster(Box::new(self.state.roster.clone())));
        }
        if self.removed {
            self.outputs.push(Output::Removed);
        }
    }
}

/// Whether the log is older than the state that was received: that took the log's place, but there was no time to say so.
fn is_void(recovered: &Recovered, installed: (u64, u64)) -> bool {
    if recovered.reset == Some(installed) {
        return false;
    }
    let Some(last) = recovered.entries.last() else {
        return false;
    };
    let other = recovered
        .entries
        .iter()
        .find(|e| e.index == installed.0)
        .is_some_and(|e| e.term != installed.1);
    last.index < installed.0 || other
}

/// The log's last entries may all be applied and given up, but never fewer than those that were known to be durable.
fn check_ends(recovered: &Recovered, state: &State) -> Result<(), NodeError> {
    let applied = state.applied.0;
    let last = recovered.entries.last().map_or(0, |e| e.index);
    let commit = recovered.hard_state.commit;
    let known = applied.max(commit);
    let fresh = applied == state.installed.0;
    if last.max(applied) < known || (last < applied && commit < applied && !fresh) {
        return Err(NodeError::LogEndsEarly { last, known });
    }
    let first = recovered.entries.iter().map(|e| e.index);
    if let Some(first) = first
        .filter(|index| *index > applied)
        .min()
        .filter(|first| *first > applied + 1)
    {
        return Err(NodeError::LogBeginsLate { first, applied });
    }
    Ok(())
}

/// The entries that consensus is given, and what comes before them.
fn kept(mut entries: Vec<Entry>, applied: (u64, u64)) -> ((u64, u64), Vec<Entry>) {
    let reaches = entries.last().is_some_and(|e| e.index >= applied.0);
    match entries.first() {
        // Those that are applied already may be of use to members that lag behind.
        Some(first) if reaches && first.index <= applied.0 => {
            let before = (first.index, first.term);
            entries.remove(0);
            (before, entries)
        }
        _ => {
            entries.retain(|e| e.index > applied.0);
            (applied, entries)
        }
    }
}
