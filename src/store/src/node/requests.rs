//! Requests for the log, here or by way of the leader, and what other members say.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Input, MAX_REQUEST_BYTES, Node, NodeError, Output, Reply};
use crate::command::{Command, Origin};
use crate::consensus::{Consensus, Message};
use crate::mvcc::write::Answer;
use crate::peer::{Body, PeerMessage, Proposal, Refusal};
use crate::proto::etcdserverpb::LeaseRevokeRequest;
use crate::refused::Refused;

/// After this time a request whose outcome is not known is answered so: etcd's 5 s and two election time-outs.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(7);
/// Commands that are gathered into one write.
const BATCH_BYTES: usize = 1 << 20;
/// Leases that are ended in one tick.
const EXPIRE_LEASES: usize = 200;
/// Requests of one life of another member that are remembered above the lowest that has not come.
const SEEN: usize = 8192;
/// Lives of other members whose requests are remembered in one term.
const LIVES: usize = 1024;

/// A request for the log.
#[derive(Debug)]
pub(super) struct Pending<T> {
    since: Duration,
    /// For whom; the member's own requests have no one.
    ticket: Option<T>,
    /// What has not been given to a leader yet.
    held: Option<Proposal>,
}

/// Which requests of one life of a member have come.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// All up to this one, or they count so.
    floor: u32,
    above: BTreeSet<u32>,
}

impl Seen {
    /// Whether it is new; from now on it is not.
    fn take(&mut self, number: u32) -> bool {
        if number <= self.floor || !self.above.insert(number) {
            return false;
        }
        while let Some(next) = self.floor.checked_add(1)
            && self.above.remove(&next)
        {
            self.floor = next;
        }
        if self.above.len() > SEEN
            && let Some(lowest) = self.above.pop_first()
        {
            self.floor = lowest;
        }
        true
    }
}

impl<T> Node<T> {
    pub(super) fn take(&mut self, input: Input<T>) -> Result<(), NodeError> {
        match input {
            Input::Propose { command, ticket } => {
                return self.propose(Proposal::Command(*command), Some(ticket));
            }
            Input::Change { change, ticket } => {
                return self.propose(Proposal::Change(*change), Some(ticket));
            }
            Input::Receive(message) => return self.receive(*message),
            Input::Transfer { to, ticket } => self.transfer(to, ticket),
            Input::Read { ticket } => self.reads.add(ticket),
            Input::Renew { id, ticket } => self.ask_of_lease(id, true, ticket),
            Input::TimeToLive { id, ticket } => self.ask_of_lease(id, false, ticket),
            Input::Lost(member) => self.consensus.lost(member),
        }
        Ok(())
    }

    pub(super) fn reply(&mut self, ticket: T, result: Result<Reply, Refused>) {
        self.outputs.push(Output::Reply { ticket, result });
    }

    fn propose(&mut self, proposal: Proposal, ticket: Option<T>) -> Result<(), NodeError> {
        if proposal.bytes() > MAX_REQUEST_BYTES {
            if let Some(ticket) = ticket {
                self.reply(ticket, Err(Refused::TooLarge));
            }
            return Ok(());
        }
        self.requests = self.requests.wrapping_add(1);
        let number = (u64::from(self.life) << 32) | u64::from(self.requests);
        self.pending.insert(
            number,
            Pending {
                since: self.now,
                ticket,
                held: Some(proposal),
            },
        );
        self.give_to_leader(number)
    }

    /// Puts a request that is held into the log, or sends it to the leader. Without a leader it stays held.
    fn give_to_leader(&mut self, number: u64) -> Result<(), NodeError> {
        let standing = self.consensus.standing();
        if standing.leader == 0 {
            return Ok(());
        }
        let Some(proposal) = self.pending.get_mut(&number).and_then(|p| p.held.take()) else {
            return Ok(());
        };
        let origin = Origin {
            member: self.owner.member,
            number,
        };
        if let Proposal::Command(Command::Compact(request)) = &proposal
            && request.physical
        {
            self.physical.insert(number, request.revision);
        }
        if !standing.leads {
            let body = Body::Propose {
                term: standing.term,
                origin,
                proposal,
            };
            self.send(standing.leader, body);
            return Ok(());
        }
        if let Err(refused) = self.append(&proposal, origin)? {
            self.refuse(number, refused);
        }
        Ok(())
    }

    fn refuse(&mut self, number: u64, refused: Refused) {
        self.physical.remove(&number);
        if let Some(ticket) = self.pending.remove(&number).and_then(|p| p.ticket) {
            self.reply(ticket, Err(refused));
        }
    }

    /// Puts something into the log, as the leader.
    fn append(
        &mut self,
        proposal: &Proposal,
        origin: Origin,
    ) -> Result<Result<(), Refused>, NodeError> {
        let size = proposal.bytes();
        if self.queued_bytes > 0 && self.queued_bytes + size > BATCH_BYTES {
            self.run()?;
            self.wal.prepare()?;
        }
        let grows = proposal.grows();
        let reserve = self.reserve_bytes(grows);
        let stopped = self.full || !self.state.roster.alarms.is_empty();
        if grows && stopped || self.wal.room_bytes() < self.queued_bytes + size + reserve {
            return Ok(Err(Refused::NoSpace));
        }
        let taken = match proposal {
            Proposal::Command(command) => {
                let data = command.encode(origin);
                // What surrounds an entry in a block is less than this.
                self.queued_bytes += data.len() + 64;
                self.consensus.propose(data)
            }
            Proposal::Change(change) => {
                if let Err(refusal) = self.check_change(change) {
                    return Ok(Err(refusal.into()));
                }
                self.queued_bytes += 512;
                let context = change.encode(origin);
                let asked = self.consensus.propose_change(change.kind, context);
                if asked.is_err() {
                    return Ok(Err(Refused::ChangePending));
                }
                asked
            }
        };
        Ok(taken.map_err(|_| Refused::TooManyRequests))
    }

    /// A request of this member itself.
    pub(super) fn ask_for_own(&mut self, proposal: Proposal) {
        // Nothing that the member asks for by itself is large enough to need a write before it.
        let _ = self.propose(proposal, None);
    }

    /// Whether a request of this member itself is on its way.
    pub(super) fn has_own_request(&self) -> bool {
        self.pending.values().any(|p| p.ticket.is_none())
    }

    /// An entry of this member's came out of the log.
    pub(super) fn answer(&mut self, number: u64, answer: Result<Answer, Refused>) {
        let physical = self.physical.remove(&number);
        let Some(ticket) = self.pending.remove(&number).and_then(|p| p.ticket) else {
            return;
        };
        match (physical, answer) {
            (Some(revision), Ok(answer)) => self.compacting.push((revision, ticket, answer)),
            (_, answer) => self.reply(ticket, answer.map(Reply::Answer)),
        }
    }

    /// There is another leader: what was held goes to it.
    pub(super) fn send_held_requests(&mut self) {
        let held: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, p)| p.held.is_some())
            .map(|(number, _)| *number)
            .collect();
        for number in held {
            // Whatever must be written first is written in the next step.
            if self.queued_bytes > BATCH_BYTES / 2 || self.give_to_leader(number).is_err() {
                break;
            }
        }
        self.send_questions();
    }

    fn receive(&mut self, message: PeerMessage) -> Result<(), NodeError> {
        let PeerMessage { from, to, body } = message;
        if to != self.owner.member || from == to {
            return Ok(());
        }
        match body {
            Body::Consensus(message) => self.receive_consensus(from, message),
            Body::Propose {
                term,
                origin,
                proposal,
            } => return self.receive_proposal(from, term, origin, &proposal),
            Body::Refuse { number, reason } => self.refuse(number, reason.into()),
            Body::Lease { number, id, renew } => {
                self.asked_of_lease(from, number, id, renew);
            }
            Body::LeaseIs {
                number,
                revision,
                times,
            } => {
                self.told_of_lease(number, revision, times);
            }
            Body::Part {
                index,
                part,
                bytes,
                message,
            } => return self.receive_part(from, index, part, &bytes, message),
            Body::PartsTaken { index, parts } => return self.parts_taken(from, index, parts),
            Body::Removed => {
                // One that is no member itself has no say in it.
                self.removed |= self.state.roster.member(from).is_some();
            }
        }
        Ok(())
    }

    fn receive_consensus(&mut self, from: u64, message: Message) {
        // A state comes in parts, and what consensus says about it with the last one.
        let stray = message.from() != from || message.to() != self.owner.member;
        if stray || message.snapshot().is_some() {
            return;
        }
        if self.state.roster.removed.contains(&from) {
            self.send(from, Body::Removed);
            return;
        }
        // A log without room takes no entries; votes and heartbeats go on.
        let room = self.wal.room_bytes() > self.queued_bytes + message.entry_bytes();
        if message.appends() && !room {
            return;
        }
        if message.appends() {
            self.queued_bytes += message.entry_bytes();
        }
        self.consensus.receive(message);
    }

    fn receive_proposal(
        &mut self,
        from: u64,
        term: u64,
        origin: Origin,
        proposal: &Proposal,
    ) -> Result<(), NodeError> {
        let standing = self.consensus.standing();
        if !standing.leads || term != standing.term || origin.member != from {
            return Ok(());
        }
        // A message that comes twice must not be done twice. In another term it is void, so only this term's count.
        if self.seen_term != term {
            self.seen_term = term;
            self.seen.clear();
        }
        let life = (from, (origin.number >> 32) as u32);
        if self.seen.len() >= LIVES && !self.seen.contains_key(&life) {
            return Ok(());
        }
        if !self
            .seen
            .entry(life)
            .or_default()
            .take(origin.number as u32)
        {
            return Ok(());
        }
        let reason = match self.append(proposal, origin)? {
            Ok(()) => return Ok(()),
            Err(Refused::NoSpace) => Refusal::NoSpace,
            Err(Refused::ChangePending) => Refusal::ChangePending,
            Err(Refused::NotEnoughStarted) => Refusal::NotEnoughStarted,
            Err(Refused::LearnerNotReady) => Refusal::LearnerNotReady,
            // Whoever asked hears nothing, and its time runs out.
            Err(_) => return Ok(()),
        };
        let number = origin.number;
        self.send(from, Body::Refuse { number, reason });
        Ok(())
    }

    pub(super) fn expire_leases(&mut self) {
        if self.serving_term.is_none() {
            return;
        }
        for id in self.leases.expired(self.now, EXPIRE_LEASES) {
            self.requests = self.requests.wrapping_add(1);
            let origin = Origin {
                member: self.owner.member,
                number: (u64::from(self.life) << 32) | u64::from(self.requests),
            };
            let data = Command::LeaseRevoke(LeaseRevokeRequest { id }).encode(origin);
            self.queued_bytes += data.len() + 64;
            if !self.has_own_room() || self.consensus.propose(data).is_err() {
                self.leases.retry(id);
                return;
            }
        }
    }

    /// Asks again what was not answered, and gives up what has waited for too long.
    pub(super) fn tick_requests(&mut self) {
        let now = self.now;
        let late = |since: &Duration| now.saturating_sub(*since) > REQUEST_TIMEOUT;
        // Numbers grow with time, so the oldest come first.
        while let Some(first) = self.pending.first_entry().filter(|e| late(&e.get().since)) {
            let number = *first.key();
            self.refuse(number, Refused::TimedOut);
        }
        self.tick_reads();
    }

    /// Answers all that waits: no one will do it later.
    pub(super) fn stop_requests(&mut self) {
        for (_, pending) in std::mem::take(&mut self.pending) {
            if let Some(ticket) = pending.ticket {
                self.reply(ticket, Err(Refused::Stopped));
            }
        }
    }
}
