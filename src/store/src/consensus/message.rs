//! Messages of consensus between members, and their bytes (`docs/store-peers.md`, "Consensus").

use raft::prelude::{Message as RaftMessage, MessageType, Snapshot, SnapshotMetadata};

use super::raft::{kind_of, to_conf_state, to_raft};
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
const MESSAGE_BYTES: usize = 128;

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
        out.reserve(MESSAGE_BYTES + self.entry_bytes());
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
