//! Messages of consensus between members, and their bytes (`docs/store-peers.md`, "Consensus").

use raft::prelude::{Message as RaftMessage, MessageType, Snapshot, SnapshotMetadata};

use super::raft::{MESSAGE_BYTES, kind_of, to_conf_state, to_raft};
use super::{Entry, EntryKind, Mark, Members};
use crate::bytes::{Ended, Reader, put_bytes, put_ids};

/// A message between members.
#[derive(Debug, Clone, PartialEq)]
pub struct Message(pub(crate) RaftMessage);

/// Bytes that are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Too short.
    #[error("a message of consensus ends early")]
    Ended,
    /// Written by a later version.
    #[error("message kind {0} of consensus is not known")]
    Kind(u8),
    /// Written by a later version.
    #[error("entry kind {0} is not known")]
    EntryKind(u8),
    /// It asks for a place in the log without saying for which read.
    #[error("a read of consensus without its number")]
    NoContext,
    /// There is more than a message.
    #[error("a message of consensus has bytes after its end")]
    Rest,
}

impl From<Ended> for MessageError {
    fn from(Ended: Ended) -> Self {
        Self::Ended
    }
}

/// More than a message takes without its entries, if it is not about a state.
const HEAD_BYTES: usize = 128;

/// The kinds that go from member to member, by their number on the wire.
const KINDS: [(u8, MessageType); 13] = [
    (3, MessageType::MsgAppend),
    (4, MessageType::MsgAppendResponse),
    (5, MessageType::MsgRequestVote),
    (6, MessageType::MsgRequestVoteResponse),
    (7, MessageType::MsgSnapshot),
    (8, MessageType::MsgHeartbeat),
    (9, MessageType::MsgHeartbeatResponse),
    (13, MessageType::MsgTransferLeader),
    (14, MessageType::MsgTimeoutNow),
    (15, MessageType::MsgReadIndex),
    (16, MessageType::MsgReadIndexResp),
    (17, MessageType::MsgRequestPreVote),
    (18, MessageType::MsgRequestPreVoteResponse),
];

impl Message {
    /// The member that it is for.
    pub fn to(&self) -> u64 {
        self.0.to
    }

    /// The member that sent it.
    pub fn from(&self) -> u64 {
        self.0.from
    }

    /// The sender's term; 0 for kinds that have none.
    pub fn term(&self) -> u64 {
        self.0.term
    }

    /// Bytes of the entries in it.
    pub fn entry_bytes(&self) -> usize {
        self.0.entries.iter().map(|e| e.data.len() + 64).sum()
    }

    /// Whether it brings entries for the log.
    pub fn appends(&self) -> bool {
        self.0.msg_type == MessageType::MsgAppend as i32 && !self.0.entries.is_empty()
    }

    /// The state that has to be brought along, if it is about one.
    pub fn snapshot(&self) -> Option<Mark> {
        let meta = self.0.get_snapshot().get_metadata();
        (self.0.msg_type == MessageType::MsgSnapshot as i32).then(|| Mark {
            index: meta.index,
            term: meta.term,
            members: Members {
                voters: meta.get_conf_state().voters.clone(),
                learners: meta.get_conf_state().learners.clone(),
            },
        })
    }

    /// A request for a vote that says its sender's log is of the latest term: a member that takes it has skipped the check.
    /// For tests of the checks.
    #[doc(hidden)]
    pub fn with_latest_log(mut self) -> Self {
        let kind = self.0.msg_type;
        let votes = [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote];
        if votes.iter().any(|vote| *vote as i32 == kind) {
            self.0.log_term = u64::MAX;
        }
        self
    }

    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let message = &self.0;
        out.reserve(HEAD_BYTES + self.entry_bytes());
        let kind = KINDS
            .iter()
            .find(|(_, kind)| *kind as i32 == message.msg_type);
        out.push(kind.map_or(0, |(number, _)| *number));
        out.push(u8::from(message.reject));
        for number in [
            message.to,
            message.from,
            message.term,
            message.log_term,
            message.index,
            message.commit,
            message.commit_term,
            message.reject_hint,
            message.request_snapshot,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_bytes(&message.context, out);
        match self.snapshot() {
            None => out.push(0),
            Some(mark) => {
                out.push(1);
                out.extend_from_slice(&mark.index.to_le_bytes());
                out.extend_from_slice(&mark.term.to_le_bytes());
                put_ids(&mark.members.voters, out);
                put_ids(&mark.members.learners, out);
            }
        }
        out.extend_from_slice(&(message.entries.len() as u32).to_le_bytes());
        for entry in &message.entries {
            out.push(kind_of(entry) as u8);
            out.extend_from_slice(&entry.index.to_le_bytes());
            out.extend_from_slice(&entry.term.to_le_bytes());
            put_bytes(&entry.data, out);
            put_bytes(&entry.context, out);
        }
    }

    /// The inverse of [`Message::encode`].
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader(bytes);
        let number = reader.u8()?;
        let (_, kind) = KINDS
            .iter()
            .find(|(n, _)| *n == number)
            .ok_or(MessageError::Kind(number))?;
        let mut message = RaftMessage {
            msg_type: *kind as i32,
            reject: reader.u8()? != 0,
            to: reader.u64()?,
            from: reader.u64()?,
            term: reader.u64()?,
            log_term: reader.u64()?,
            index: reader.u64()?,
            commit: reader.u64()?,
            commit_term: reader.u64()?,
            reject_hint: reader.u64()?,
            request_snapshot: reader.u64()?,
            context: reader.bytes()?.to_vec(),
            ..RaftMessage::default()
        };
        if reader.u8()? != 0 {
            let (index, term) = (reader.u64()?, reader.u64()?);
            let members = Members {
                voters: reader.ids()?,
                learners: reader.ids()?,
            };
            let metadata = SnapshotMetadata {
                conf_state: Some(to_conf_state(&members)),
                index,
                term,
            };
            message.snapshot = Some(Snapshot {
                metadata: Some(metadata),
                ..Snapshot::default()
            });
        }
        for _ in 0..reader.u32()? {
            let kind = match reader.u8()? {
                0 => EntryKind::Command,
                1 => EntryKind::Change,
                2 => EntryKind::JointChange,
                other => return Err(MessageError::EntryKind(other)),
            };
            message.entries.push(to_raft(Entry {
                kind,
                index: reader.u64()?,
                term: reader.u64()?,
                data: reader.bytes()?.to_vec(),
                context: reader.bytes()?.to_vec(),
            }));
        }
        if !reader.0.is_empty() {
            return Err(MessageError::Rest);
        }
        if *kind == MessageType::MsgReadIndex && message.entries.is_empty() {
            return Err(MessageError::NoContext);
        }
        Ok(Self(message))
    }
}

/// Makes one message of appends to one member that follow one another: the machine makes one for each proposal. Its own way of
/// joining them (`batch_append`) has no limit, and takes what is sent after a refusal for what follows an earlier message.
pub(super) fn join(messages: Vec<RaftMessage>) -> Vec<Message> {
    // By member: the place of the last message to it, and the bytes of the entries there.
    let mut last: Vec<(u64, usize, usize)> = Vec::new();
    let mut out: Vec<Message> = Vec::new();
    for message in messages {
        let to = message.to;
        let message = Message(message);
        let bytes = message.entry_bytes();
        let Some((_, place, before)) = last.iter_mut().find(|(of, ..)| *of == to) else {
            last.push((to, out.len(), bytes));
            out.push(message);
            continue;
        };
        match out.get_mut(*place) {
            Some(earlier)
                if *before + bytes <= MESSAGE_BYTES as usize && follows(&earlier.0, &message.0) =>
            {
                *before += bytes;
                earlier.0.commit = message.0.commit;
                earlier.0.entries.extend(message.0.entries);
            }
            _ => {
                (*place, *before) = (out.len(), bytes);
                out.push(message);
            }
        }
    }
    out
}

/// Whether both append, and `later` begins where `earlier` ends: then both at once do what one after the other does.
fn follows(earlier: &RaftMessage, later: &RaftMessage) -> bool {
    let end = earlier.entries.last();
    let end = end.map_or((earlier.index, earlier.log_term), |e| (e.index, e.term));
    let append = MessageType::MsgAppend as i32;
    (earlier.msg_type, later.msg_type) == (append, append)
        && earlier.term == later.term
        && end == (later.index, later.log_term)
        && earlier.commit <= later.commit
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raft::prelude::Entry as RaftEntry;

    use super::*;

    /// A follower's log, by the rule of section 5.3 of the Raft paper: the terms of its entries from 1 on, and how many of them are
    /// committed.
    #[derive(Debug, Clone, PartialEq)]
    struct Follower {
        terms: Vec<u64>,
        commit: u64,
    }

    impl Follower {
        fn take(&mut self, message: &RaftMessage) {
            let term_at = |terms: &[u64], index: u64| match index {
                0 => Some(0),
                index => terms.get(index as usize - 1).copied(),
            };
            if term_at(&self.terms, message.index) != Some(message.log_term) {
                return;
            }
            let mut last = message.index;
            for entry in &message.entries {
                if term_at(&self.terms, entry.index) != Some(entry.term) {
                    self.terms.truncate(entry.index as usize - 1);
                    self.terms.push(entry.term);
                }
                last = entry.index;
            }
            self.commit = self.commit.max(message.commit.min(last));
        }
    }

    fn append(to: u64, after: u64, terms: &[u64], entries: usize, bytes: usize) -> RaftMessage {
        let term_at = |index: u64| match index {
            0 => 0,
            index => terms[index as usize - 1],
        };
        let entries = (after + 1..=after + entries as u64)
            .take_while(|index| *index <= terms.len() as u64)
            .map(|index| RaftEntry {
                index,
                term: term_at(index),
                data: vec![0; bytes],
                ..RaftEntry::default()
            });
        let mut message = RaftMessage {
            to,
            term: 9,
            index: after,
            log_term: term_at(after),
            ..RaftMessage::default()
        };
        message.set_msg_type(MessageType::MsgAppend);
        message.set_entries(entries.collect());
        message
    }

    proptest! {
        #[test]
        fn joined_appends_do_what_they_did_one_by_one(
            steps in prop::collection::vec((1..3u64, prop::bool::ANY, 0..12u64, 0..4usize), 0..20),
            rises in prop::collection::vec(0..2u64, 12),
            shared in 0..=12usize,
            own in 0..6usize,
        ) {
            let mut term = 1;
            let terms: Vec<u64> = rises.iter().map(|rise| { term += 2 * rise; term }).collect();
            // What a member has that the leader has not is of another term.
            let has = [&terms[..shared], &[2; 6][..own]].concat();
            let mut next = [0; 3];
            let mut messages = Vec::new();
            for (commit, (to, follows, after, entries)) in steps.into_iter().enumerate() {
                let after = if follows { next[to as usize] } else { after };
                let mut message = append(to, after, &terms, entries, 8);
                next[to as usize] = after + message.entries.len() as u64;
                message.commit = commit as u64;
                messages.push(message);
            }
            let joined = join(messages.clone());
            prop_assert!(joined.len() <= messages.len());
            for to in 1..3 {
                let mut one_by_one = Follower { terms: has.clone(), commit: 0 };
                let mut at_once = one_by_one.clone();
                messages.iter().filter(|m| m.to == to).for_each(|m| one_by_one.take(m));
                joined.iter().filter(|m| m.0.to == to).for_each(|m| at_once.take(&m.0));
                prop_assert_eq!(one_by_one, at_once);
            }
        }
    }

    #[test]
    fn what_is_proposed_together_goes_out_in_one_message_up_to_its_limit() {
        let terms = [1; 8];
        let one_each = |bytes| {
            (0..8).flat_map(move |after| [2, 3].map(|to| append(to, after, &terms, 1, bytes)))
        };
        let lengths = |messages: Vec<Message>| -> Vec<(u64, usize)> {
            messages
                .iter()
                .map(|m| (m.to(), m.0.entries.len()))
                .collect()
        };
        assert_eq!(lengths(join(one_each(100).collect())), [(2, 8), (3, 8)]);
        let third = MESSAGE_BYTES as usize / 3 - 64;
        let limited = [(2, 3), (3, 3), (2, 3), (3, 3), (2, 2), (3, 2)];
        assert_eq!(lengths(join(one_each(third).collect())), limited);
    }
}
