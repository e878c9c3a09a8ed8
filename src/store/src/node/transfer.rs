//! The whole state for a member that lags too far behind: sent in parts, each after the one before it was taken.

use std::sync::Arc;
use std::time::Duration;

use super::{Node, NodeError, Output, TICK};
use crate::consensus::{Consensus, Mark, Message};
use crate::peer::Body;
use crate::state::incoming::Incoming;
use crate::state::outgoing::Outgoing;

/// Time after which a part is sent again.
const SEND_AGAIN: Duration = TICK.saturating_mul(5);
/// Time without a sign of the receiver after which its state is given up.
const GIVE_UP: Duration = TICK.saturating_mul(50);

/// A state on its way to a member.
#[derive(Debug)]
pub(super) struct Sending {
    outgoing: Outgoing,
    /// What consensus says about it; it goes with the last part.
    message: Message,
    /// Number of the part that is on its way.
    part: u32,
    bytes: Vec<u8>,
    last: bool,
    sent: Duration,
    /// When the receiver last took a part.
    taken: Duration,
}

impl Sending {
    pub(super) fn mark(&self) -> &Mark {
        &self.outgoing.mark
    }
}

/// A state on its way here.
#[derive(Debug)]
pub(super) struct Receiving {
    from: u64,
    index: u64,
    /// Parts that were taken.
    parts: u32,
    incoming: Incoming,
}

impl<T> Node<T> {
    /// Consensus wants a member to have the state.
    pub(super) fn begin_sending(&mut self, mark: Mark, message: Message) -> Result<(), NodeError> {
        let to = message.to();
        self.commit()?;
        let mut outgoing = Outgoing::new(&self.state)?;
        if (outgoing.mark.index, outgoing.mark.term) != (mark.index, mark.term) {
            // Consensus will ask again, for what the state is then.
            self.consensus.snapshot_ended(to, false);
            return Ok(());
        }
        let (bytes, last) = outgoing.part(self.options.part_bytes)?;
        let sending = Sending {
            outgoing,
            message,
            part: 0,
            bytes,
            last,
            sent: self.now,
            taken: self.now,
        };
        self.sending.insert(to, sending);
        self.send_part(to);
        Ok(())
    }

    fn send_part(&mut self, to: u64) {
        let Some(sending) = self.sending.get_mut(&to) else {
            return;
        };
        sending.sent = self.now;
        let body = Body::Part {
            index: sending.mark().index,
            part: sending.part,
            bytes: sending.bytes.clone(),
            message: sending.last.then(|| sending.message.clone()),
        };
        self.send(to, body);
    }

    /// A receiver says how far it is.
    pub(super) fn parts_taken(
        &mut self,
        from: u64,
        index: u64,
        parts: u32,
    ) -> Result<(), NodeError> {
        let now = self.now;
        let part_bytes = self.options.part_bytes;
        let Some(sending) = self.sending.get_mut(&from) else {
            return Ok(());
        };
        if sending.mark().index != index {
            return Ok(());
        }
        if parts == 0 && sending.part > 0 {
            // It has lost what it had.
            self.sending.remove(&from);
            self.consensus.snapshot_ended(from, false);
            return Ok(());
        }
        if parts != sending.part + 1 {
            return Ok(());
        }
        if sending.last {
            self.sending.remove(&from);
            self.consensus.snapshot_ended(from, true);
            return Ok(());
        }
        (sending.bytes, sending.last) = sending.outgoing.part(part_bytes)?;
        sending.part += 1;
        sending.taken = now;
        self.send_part(from);
        Ok(())
    }

    pub(super) fn tick_transfers(&mut self) -> Result<(), NodeError> {
        let leads = self.consensus.standing().leads;
        let now = self.now;
        let ids: Vec<u64> = self.sending.keys().copied().collect();
        for to in ids {
            let Some(sending) = self.sending.get(&to) else {
                continue;
            };
            if !leads || now.saturating_sub(sending.taken) > GIVE_UP {
                self.sending.remove(&to);
                self.consensus.snapshot_ended(to, false);
            } else if now.saturating_sub(sending.sent) >= SEND_AGAIN {
                self.send_part(to);
            }
        }
        Ok(())
    }

    pub(super) fn receive_part(
        &mut self,
        from: u64,
        index: u64,
        part: u32,
        bytes: &[u8],
        message: Option<Message>,
    ) -> Result<(), NodeError> {
        if index <= self.state.applied.0 {
            // It comes late. Consensus tells the leader how far we are.
            if let Some(message) = message {
                self.consensus.receive(message);
            }
            return self.tell_parts(from, index, part + 1);
        }
        let same = self
            .receiving
            .as_ref()
            .is_some_and(|r| r.from == from && r.index == index);
        if part == 0 && !same {
            self.stop_receiving()?;
            if self.is_short_of_room()? {
                return Ok(());
            }
            let disk = Arc::clone(&self.disk);
            let incoming = Incoming::new(disk, self.options.cache_bytes, self.owner);
            match incoming {
                Err(err) if err.is_full() => return Ok(()),
                incoming => {
                    self.receiving = Some(Receiving {
                        from,
                        index,
                        parts: 0,
                        incoming: incoming?,
                    });
                }
            }
        }
        let Some(receiving) = self
            .receiving
            .as_mut()
            .filter(|r| r.from == from && r.index == index)
        else {
            return self.tell_parts(from, index, 0);
        };
        if part == receiving.parts {
            match receiving.incoming.take(bytes, message.is_some()) {
                Ok(()) => receiving.parts += 1,
                Err(err) => {
                    log::warn!("a state from member {from:x}: {err}");
                    self.stop_receiving()?;
                    return self.tell_parts(from, index, 0);
                }
            }
        }
        let parts = self.receiving.as_ref().map_or(0, |r| r.parts);
        if let Some(message) = message.filter(|_| parts == part + 1) {
            // It is whole: consensus decides whether it is of use.
            self.consensus.receive(message);
            self.run()?;
            self.stop_receiving()?;
        }
        self.tell_parts(from, index, parts)
    }

    fn tell_parts(&mut self, to: u64, index: u64, parts: u32) -> Result<(), NodeError> {
        self.send(to, Body::PartsTaken { index, parts });
        Ok(())
    }

    fn stop_receiving(&mut self) -> Result<(), NodeError> {
        if let Some(receiving) = self.receiving.take() {
            receiving.incoming.discard()?;
        }
        Ok(())
    }

    /// Puts the state that was received in the place of the present one. The log must be told next.
    pub(super) fn install(&mut self, mark: &Mark) -> Result<(), NodeError> {
        let receiving = self
            .receiving
            .take()
            .filter(|r| r.index == mark.index)
            .ok_or(NodeError::NoSnapshot(mark.index))?;
        receiving.incoming.install(mark)?;
        self.state.reopen()?;
        self.unsaved_bytes = 0;
        self.unsaved_since = None;
        self.roster_told = false;
        self.outputs.push(Output::Jumped {
            revision: self.state.revision,
            compact_revision: self.state.compact_revision,
        });
        log::info!("the state up to entry {} has been received", mark.index);
        Ok(())
    }
}
