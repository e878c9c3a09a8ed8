//! One member as a deterministic machine: consensus, log, state and lease clocks.
//!
//! [`Node::step`] takes requests, messages and the time, does what they lead to on its [`Disk`], and returns answers,
//! changes and messages. It starts no thread and reads no clock: the simulation steps it as the server does.

mod interface;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::command::{Command, Origin};
use crate::consensus::raft::{ELECTION_TICKS, RaftConsensus, Start};
use crate::consensus::{Consensus, Entry, HardState};
use crate::disk::Disk;
use crate::lease::Leases;
use crate::mvcc::write::{Answer, Applied};
use crate::proto::etcdserverpb::{LeaseRevokeRequest, Member};
use crate::refused::Refused;
use crate::state::{Database, Genesis, State};
use crate::wal::{Owner, Wal};

pub use interface::{Input, NodeError, Options, Output, Reply, Status};

/// The length of a tick: the time between two heartbeats.
pub const TICK: Duration = Duration::from_millis(100);
/// The largest command, in bytes (etcd's `--max-request-bytes`).
pub const MAX_REQUEST_BYTES: usize = 3 << 19;
/// After this time a request whose outcome is not known is answered so: etcd's 5 s and two election time-outs.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(7);
/// Log written since the last checkpoint that makes the next one due.
const CHECKPOINT_BYTES: usize = 4 << 20;
/// Time since the first change that makes a checkpoint due.
const CHECKPOINT_TIME: Duration = Duration::from_secs(5);
/// Time after which a checkpoint that found no room is tried again.
const RETRY_TIME: Duration = Duration::from_secs(1);
/// Commands that are gathered into one write.
const BATCH_BYTES: usize = 1 << 20;
/// Room in the log that only deletions, compactions and the member's own entries may use.
const LOG_RESERVE_BYTES: usize = 256 << 10;
/// Room in the log that only the member's own entries may use.
const OWN_RESERVE_BYTES: usize = 64 << 10;
/// Free space below which nothing that grows is taken: what a checkpoint may have to write.
const DISK_RESERVE_BYTES: u64 = 16 << 20;
/// Records that a compaction looks at in one step.
const COMPACT_RECORDS: usize = 1000;
/// Leases that are ended in one tick.
const EXPIRE_LEASES: usize = 200;
/// Ticks without a write after which the hard state is written.
const QUIET_TICKS: u32 = 1;

/// One member.
#[derive(Debug)]
pub struct Node<T> {
    disk: Arc<dyn Disk>,
    options: Options,
    owner: Owner,
    consensus: RaftConsensus,
    wal: Wal,
    state: State,
    leases: Leases,
    hard_state: HardState,
    /// The hard state has changed since it was last written.
    hard_state_unsaved: bool,
    /// Requests in the log, by number: since when, and for whom.
    pending: BTreeMap<u64, (Duration, T)>,
    /// Counter for the lower half of the request numbers.
    requests: u32,
    /// Compactions whose answer waits for the space to be given back.
    physical: HashMap<u64, i64>,
    compacting: Vec<(i64, T, Answer)>,
    /// Reads that have not yet been asked for.
    new_reads: Vec<T>,
    /// Reads that wait for consensus, by number: since when, and for whom.
    asked_reads: BTreeMap<u64, (Duration, Vec<T>)>,
    reads: u64,
    /// Reads that wait until the entry at their index is applied.
    placed_reads: Vec<(u64, Vec<T>)>,
    /// The term in which this member leads and has applied all of its predecessors' entries.
    serving_term: Option<u64>,
    next_tick: Duration,
    quiet_ticks: u32,
    /// Commands given to consensus that are not yet written.
    queued_bytes: usize,
    /// Log written since the last checkpoint.
    unsaved_bytes: usize,
    /// When the first change since the last checkpoint was made.
    unsaved_since: Option<Duration>,
    full: bool,
    /// The state found no room though the disk said that there was some: since when. Nothing that grows is taken until it finds room.
    broke_off: Option<Duration>,
    status: Status,
    now: Duration,
    outputs: Vec<Output<T>>,
}

impl<T> Node<T> {
    /// Opens a member, or makes the first one of a new cluster as `genesis` says. `now` is the time on the clock that
    /// [`Node::step`] will go by.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub fn open(
        disk: Arc<dyn Disk>,
        options: Options,
        now: Duration,
        genesis: impl FnOnce() -> Genesis,
    ) -> Result<Self, NodeError> {
        let state = State::open(Arc::clone(&disk), options.cache_bytes, genesis)?;
        let owner = state.owner;
        let (wal, recovered) = Wal::open(
            Arc::clone(&disk),
            owner,
            options.seed,
            options.segment_bytes,
        )?;
        let applied = state.applied.0;
        let last = recovered.entries.last().map_or(0, |e| e.index);
        let first = recovered
            .entries
            .iter()
            .map(|e| e.index)
            .find(|index| *index > applied);
        // The log's last entries may all be applied and given up, but never fewer than those that were known to be durable.
        let known = applied.max(recovered.hard_state.commit);
        if last.max(applied) < known || (last < applied && recovered.hard_state.commit < applied) {
            return Err(NodeError::LogEndsEarly { last, known });
        }
        if let Some(first) = first.filter(|first| *first > applied + 1) {
            return Err(NodeError::LogBeginsLate { first, applied });
        }
        let entries: Vec<Entry> = recovered
            .entries
            .into_iter()
            .filter(|e| e.index > applied)
            .collect();
        let hard_state = recovered.hard_state;
        let consensus = RaftConsensus::new(Start {
            member: owner.member,
            members: state.members.clone(),
            hard_state,
            applied: state.applied,
            entries,
        })?;
        let mut node = Self {
            disk,
            options,
            owner,
            consensus,
            wal,
            state,
            leases: Leases::default(),
            hard_state,
            hard_state_unsaved: false,
            pending: BTreeMap::new(),
            requests: 0,
            physical: HashMap::new(),
            compacting: Vec::new(),
            new_reads: Vec::new(),
            asked_reads: BTreeMap::new(),
            reads: 0,
            placed_reads: Vec::new(),
            serving_term: None,
            next_tick: now + TICK,
            quiet_ticks: 0,
            queued_bytes: 0,
            unsaved_bytes: 0,
            unsaved_since: None,
            full: false,
            broke_off: None,
            status: Status::default(),
            now,
            outputs: Vec::new(),
        };
        if node.consensus.is_alone() {
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

    /// The members as they are recorded.
    ///
    /// # Errors
    /// Of the state.
    pub fn member_records(&self) -> Result<Vec<Member>, NodeError> {
        Ok(self.state.member_records()?)
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
            if ticks < ELECTION_TICKS {
                self.consensus.tick();
            }
            ticks += 1;
            self.next_tick += TICK;
        }
        if ticks > 0 {
            self.tick()?;
        }
        self.expire_leases();
        self.run()?;
        self.wal.prepare()?;
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
        for (_, (_, ticket)) in std::mem::take(&mut self.pending) {
            self.outputs.push(Output::Reply {
                ticket,
                result: Err(Refused::Stopped),
            });
        }
        Ok(self.outputs)
    }

    fn take(&mut self, input: Input<T>) -> Result<(), NodeError> {
        let (ticket, result) = match input {
            Input::Propose { command, ticket } => return self.propose(&command, ticket),
            Input::Read { ticket } if self.serving_term.is_some() => {
                self.new_reads.push(ticket);
                return Ok(());
            }
            Input::Renew { id, ticket } if self.serving_term.is_some() => {
                let revision = self.state.revision;
                (
                    ticket,
                    Ok(Reply::Renewed {
                        revision,
                        ttl: self.leases.renew(id, self.now),
                    }),
                )
            }
            Input::TimeToLive { id, ticket } if self.serving_term.is_some() => {
                let revision = self.state.revision;
                (
                    ticket,
                    Ok(Reply::TimeToLive {
                        revision,
                        times: self.leases.time_to_live(id, self.now),
                    }),
                )
            }
            Input::Read { ticket }
            | Input::Renew { ticket, .. }
            | Input::TimeToLive { ticket, .. } => (ticket, Err(Refused::NoLeader)),
            Input::Receive(message) => {
                self.consensus.receive(*message);
                return Ok(());
            }
        };
        self.outputs.push(Output::Reply { ticket, result });
        Ok(())
    }

    fn propose(&mut self, command: &Command, ticket: T) -> Result<(), NodeError> {
        let size = command.body_bytes();
        if self.queued_bytes > 0 && self.queued_bytes + size > BATCH_BYTES {
            self.run()?;
            self.wal.prepare()?;
        }
        let reserve = if command.grows() {
            LOG_RESERVE_BYTES
        } else {
            OWN_RESERVE_BYTES
        };
        let refused = if size > MAX_REQUEST_BYTES {
            Some(Refused::TooLarge)
        } else if self.serving_term.is_none() {
            Some(Refused::NoLeader)
        } else if (command.grows() && self.full)
            || self.wal.room_bytes() < self.queued_bytes + size + reserve
        {
            Some(Refused::NoSpace)
        } else {
            None
        };
        if let Some(refused) = refused {
            self.outputs.push(Output::Reply {
                ticket,
                result: Err(refused),
            });
            return Ok(());
        }
        match self.append(command) {
            Some(number) => {
                if let Command::Compact(request) = command
                    && request.physical
                {
                    self.physical.insert(number, request.revision);
                }
                self.pending.insert(number, (self.now, ticket));
            }
            None => self.outputs.push(Output::Reply {
                ticket,
                result: Err(Refused::NoLeader),
            }),
        }
        Ok(())
    }

    /// Gives a command to consensus; its number, if that took it.
    fn append(&mut self, command: &Command) -> Option<u64> {
        self.requests = self.requests.wrapping_add(1);
        let number = (self.consensus.standing().term << 32) | u64::from(self.requests);
        let data = command.encode(Origin {
            member: self.owner.member,
            number,
        });
        // What surrounds an entry in a block is less than this.
        self.queued_bytes += data.len() + 64;
        self.consensus.propose(data).ok().map(|()| number)
    }

    fn ask_for_reads(&mut self) {
        if self.new_reads.is_empty() {
            return;
        }
        self.reads += 1;
        self.asked_reads
            .insert(self.reads, (self.now, std::mem::take(&mut self.new_reads)));
        self.consensus.read(self.reads);
    }

    /// Does what consensus wants done.
    fn run(&mut self) -> Result<(), NodeError> {
        while let Some(work) = self.consensus.work() {
            self.outputs.extend(work.send.into_iter().map(Output::Send));
            if let Some(hard_state) = work.hard_state {
                self.hard_state = hard_state;
                self.hard_state_unsaved = true;
            }
            if work.must_write || !work.entries.is_empty() {
                self.wal.append(None, &work.entries, &self.hard_state)?;
                self.hard_state_unsaved = false;
                self.quiet_ticks = 0;
                self.unsaved_bytes += work.entries.iter().map(|e| e.data.len()).sum::<usize>();
            }
            self.consensus.written(work.number);
            self.outputs
                .extend(work.send_after_write.into_iter().map(Output::Send));
            if !work.committed.is_empty() {
                self.apply(&work.committed)?;
            }
            for (number, index) in work.reads {
                if let Some((_, tickets)) = self.asked_reads.remove(&number) {
                    self.placed_reads.push((index, tickets));
                }
            }
            self.release_reads();
        }
        self.queued_bytes = 0;
        Ok(())
    }

    /// Answers the reads whose place in the log has been reached.
    fn release_reads(&mut self) {
        let applied = self.state.applied.0;
        for (index, tickets) in std::mem::take(&mut self.placed_reads) {
            if index <= applied {
                self.outputs
                    .extend(tickets.into_iter().map(|ticket| Output::Reply {
                        ticket,
                        result: Ok(Reply::Read),
                    }));
            } else {
                self.placed_reads.push((index, tickets));
            }
        }
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
        for (origin, applied) in applied {
            self.pass_on(origin, applied);
        }
        let (index, term) = self.state.applied;
        self.consensus.applied(index);
        let standing = self.consensus.standing();
        if standing.leads && term == standing.term && self.serving_term != Some(term) {
            self.serving_term = Some(term);
            self.leases
                .restart(self.state.leases()?, self.now, TICK * ELECTION_TICKS as u32);
        }
        Ok(())
    }

    fn pass_on(&mut self, origin: Option<Origin>, applied: Applied) {
        if let Some(change) = applied.lease {
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
        let Some(origin) = origin.filter(|o| o.member == self.owner.member) else {
            return;
        };
        let physical = self.physical.remove(&origin.number);
        let Some((_, ticket)) = self.pending.remove(&origin.number) else {
            return;
        };
        match (physical, applied.answer) {
            (Some(revision), Ok(answer)) => self.compacting.push((revision, ticket, answer)),
            (_, answer) => self.outputs.push(Output::Reply {
                ticket,
                result: answer.map(Reply::Answer),
            }),
        }
    }

    /// The database broke off for want of room: go back to what is durable and apply the log again. No one notices,
    /// since the same entries give the same state.
    fn recover(&mut self) -> Result<(), NodeError> {
        log::warn!("no room left for the state: applying the log again from the last checkpoint");
        let (target, _) = self.state.applied;
        self.full = true;
        self.broke_off = Some(self.now);
        self.state.reopen()?;
        let entries = self.consensus.entries_after(self.state.applied.0, target);
        self.state.apply(&entries)?;
        Ok(())
    }

    fn compact(&mut self) -> Result<(), NodeError> {
        match self.state.compact_some(COMPACT_RECORDS) {
            Err(err) if err.is_full() => self.recover()?,
            other => other?,
        }
        self.unsaved_since.get_or_insert(self.now);
        let done = self.state.compacted;
        for (revision, ticket, answer) in std::mem::take(&mut self.compacting) {
            if revision <= done {
                self.outputs.push(Output::Reply {
                    ticket,
                    result: Ok(Reply::Answer(answer)),
                });
            } else {
                self.compacting.push((revision, ticket, answer));
            }
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
        self.time_out();
        Ok(())
    }

    /// Writes the hard state if it has changed: then a reader of the log knows up to where it was durable.
    fn save_hard_state(&mut self) -> Result<(), NodeError> {
        if self.hard_state_unsaved && self.wal.room_bytes() > OWN_RESERVE_BYTES / 2 {
            self.wal.append(None, &[], &self.hard_state)?;
            self.hard_state_unsaved = false;
        }
        Ok(())
    }

    fn is_short_of_room(&self) -> Result<bool, NodeError> {
        Ok(self.disk.free_bytes().map_err(NodeError::Free)? < DISK_RESERVE_BYTES)
    }

    fn look_for_room(&mut self) -> Result<(), NodeError> {
        let over_quota =
            u64::try_from(self.state.live_bytes).unwrap_or(0) > self.options.quota_bytes;
        let full = over_quota
            || self.broke_off.is_some()
            || self.is_short_of_room()?
            || !self.wal.prepare()?;
        if full != self.full {
            if full {
                log::warn!(
                    "no room: writes are refused until there is ({} bytes of records)",
                    self.state.live_bytes
                );
            } else {
                log::info!("there is room again: writes are taken");
            }
        }
        self.full = full;
        Ok(())
    }

    fn time_out(&mut self) {
        let now = self.now;
        let late = |since: &Duration| now.saturating_sub(*since) > REQUEST_TIMEOUT;
        // Numbers grow with time, so the oldest come first.
        while let Some(first) = self.pending.first_entry().filter(|e| late(&e.get().0)) {
            let number = *first.key();
            let (_, ticket) = first.remove();
            self.physical.remove(&number);
            self.outputs.push(Output::Reply {
                ticket,
                result: Err(Refused::TimedOut),
            });
        }
        while let Some(first) = self.asked_reads.first_entry().filter(|e| late(&e.get().0)) {
            for ticket in first.remove().1 {
                self.outputs.push(Output::Reply {
                    ticket,
                    result: Err(Refused::TimedOut),
                });
            }
        }
    }

    fn expire_leases(&mut self) {
        if self.serving_term.is_none() {
            return;
        }
        for id in self.leases.expired(self.now, EXPIRE_LEASES) {
            let room = self.wal.room_bytes() > self.queued_bytes + OWN_RESERVE_BYTES / 2;
            if !room
                || self
                    .append(&Command::LeaseRevoke(LeaseRevokeRequest { id }))
                    .is_none()
            {
                self.leases.retry(id);
                return;
            }
        }
    }

    fn checkpoint_if_due(&mut self) -> Result<(), NodeError> {
        let after = |since: Option<Duration>, time| {
            since.is_some_and(|since| self.now.saturating_sub(since) >= time)
        };
        let due = match self.broke_off {
            Some(since) => after(Some(since), RETRY_TIME),
            None => {
                after(self.unsaved_since, CHECKPOINT_TIME) || self.unsaved_bytes >= CHECKPOINT_BYTES
            }
        };
        if due && self.state.is_dirty() && !self.is_short_of_room()? {
            self.checkpoint()?;
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), NodeError> {
        match self.state.checkpoint() {
            Err(err) if err.is_full() => return self.recover(),
            other => other?,
        }
        self.unsaved_bytes = 0;
        self.unsaved_since = None;
        if self.broke_off.take().is_some() {
            self.look_for_room()?;
        }
        let durable = self.state.durable.0;
        self.consensus.forget(durable);
        self.wal.trim(durable)?;
        Ok(())
    }

    fn report(&mut self) {
        let status = Status {
            standing: self.consensus.standing(),
            serves: self.serving_term.is_some(),
            applied_index: self.state.applied.0,
            live_bytes: self.state.live_bytes,
            full: self.full,
        };
        if status != self.status {
            self.status = status;
            // Before the answers, so that their headers have the right term.
            self.outputs.insert(0, Output::Status(status));
        }
    }
}
