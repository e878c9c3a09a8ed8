//! What the log's entries ask the state to do, and their bytes (`docs/store-format.md`, "Command").

use prost::Message;

use crate::bytes::Reader;
use crate::consensus::MemberChange;
use crate::proto::etcdserverpb::{
    AlarmRequest, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    Member, PutRequest, TxnRequest,
};
use crate::v2;

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 18;

/// A change of the state.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Writes a key.
    Put(PutRequest),
    /// Deletes keys.
    DeleteRange(DeleteRangeRequest),
    /// Compares, then writes and deletes at one revision.
    Txn(TxnRequest),
    /// Gives up old revisions.
    Compact(CompactionRequest),
    /// Makes a lease; its id is chosen.
    LeaseGrant(LeaseGrantRequest),
    /// Ends a lease and the keys that hang on it.
    LeaseRevoke(LeaseRevokeRequest),
    /// Raises or clears a member's alarm.
    Alarm(AlarmRequest),
    /// A member says its name and where its clients are served.
    Publish(Member),
    /// A member is reached by other members at these URLs.
    MovePeer(Member),
    /// Writes by etcd's v2 API.
    V2(v2::Request),
}

/// Which request of which member a command answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The member that proposed it.
    pub member: u64,
    /// Its number for it, unique over restarts.
    pub number: u64,
}

/// An entry that is not a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Too short.
    #[error("a command of {0} bytes is too short")]
    Short(usize),
    /// Written by a later version.
    #[error("command version {0} is not known")]
    Version(u8),
    /// Written by a later version.
    #[error("command kind {0} is not known")]
    Kind(u8),
    /// The body is not the message that its kind says.
    #[error("the body of a command of kind {0} is broken")]
    Body(u8),
}

impl Command {
    fn kind(&self) -> u8 {
        match self {
            Self::Put(_) => 1,
            Self::DeleteRange(_) => 2,
            Self::Txn(_) => 3,
            Self::Compact(_) => 4,
            Self::LeaseGrant(_) => 5,
            Self::LeaseRevoke(_) => 6,
            Self::Alarm(_) => 7,
            Self::Publish(_) => 8,
            Self::MovePeer(_) => 9,
            Self::V2(_) => 10,
        }
    }

    /// Whether it may make the state larger, so that a full disk must refuse it.
    pub fn grows(&self) -> bool {
        match self {
            Self::Put(_) | Self::Txn(_) | Self::LeaseGrant(_) => true,
            Self::V2(request) => {
                !matches!(request.kind, v2::Kind::Delete | v2::Kind::CompareAndDelete)
            }
            _ => false,
        }
    }

    /// Length of the body in bytes.
    pub fn body_bytes(&self) -> usize {
        match self {
            Self::Put(body) => body.encoded_len(),
            Self::DeleteRange(body) => body.encoded_len(),
            Self::Txn(body) => body.encoded_len(),
            Self::Compact(body) => body.encoded_len(),
            Self::LeaseGrant(body) => body.encoded_len(),
            Self::LeaseRevoke(body) => body.encoded_len(),
            Self::Alarm(body) => body.encoded_len(),
            Self::Publish(body) | Self::MovePeer(body) => body.encoded_len(),
            Self::V2(body) => body.bytes(),
        }
    }

    /// The data of the log's entry.
    pub fn encode(&self, origin: Origin) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.body_bytes());
        out.push(VERSION);
        out.push(self.kind());
        out.extend_from_slice(&origin.member.to_le_bytes());
        out.extend_from_slice(&origin.number.to_le_bytes());
        // Encoding into a vector grows it and cannot fail.
        let _ = match self {
            Self::Put(body) => body.encode(&mut out),
            Self::DeleteRange(body) => body.encode(&mut out),
            Self::Txn(body) => body.encode(&mut out),
            Self::Compact(body) => body.encode(&mut out),
            Self::LeaseGrant(body) => body.encode(&mut out),
            Self::LeaseRevoke(body) => body.encode(&mut out),
            Self::Alarm(body) => body.encode(&mut out),
            Self::Publish(body) | Self::MovePeer(body) => body.encode(&mut out),
            Self::V2(body) => {
                body.encode(&mut out);
                Ok(())
            }
        };
        out
    }

    /// The inverse of [`Command::encode`].
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn decode(data: &[u8]) -> Result<(Origin, Self), CommandError> {
        let (head, body) = data
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or(CommandError::Short(data.len()))?;
        if head[0] != VERSION {
            return Err(CommandError::Version(head[0]));
        }
        let kind = head[1];
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        let origin = Origin {
            member: number(2),
            number: number(10),
        };
        let broken = |_| CommandError::Body(kind);
        let command = match kind {
            1 => Self::Put(PutRequest::decode(body).map_err(broken)?),
            2 => Self::DeleteRange(DeleteRangeRequest::decode(body).map_err(broken)?),
            3 => Self::Txn(TxnRequest::decode(body).map_err(broken)?),
            4 => Self::Compact(CompactionRequest::decode(body).map_err(broken)?),
            5 => Self::LeaseGrant(LeaseGrantRequest::decode(body).map_err(broken)?),
            6 => Self::LeaseRevoke(LeaseRevokeRequest::decode(body).map_err(broken)?),
            7 => Self::Alarm(AlarmRequest::decode(body).map_err(broken)?),
            8 => Self::Publish(Member::decode(body).map_err(broken)?),
            9 => Self::MovePeer(Member::decode(body).map_err(broken)?),
            10 => Self::V2(v2::Request::decode(body).map_err(|_| CommandError::Body(kind))?),
            other => return Err(CommandError::Kind(other)),
        };
        Ok((origin, command))
    }
}

/// A change of who takes part, as it goes with an entry of the log (`docs/store-format.md`, "Change").
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What changes.
    pub kind: MemberChange,
    /// A learner that gets a vote by itself once it has caught up.
    pub promote: bool,
    /// The record of a member that is added.
    pub member: Member,
}

impl Change {
    /// The context of the log's entry.
    pub fn encode(&self, origin: Origin) -> Vec<u8> {
        let (kind, id) = match self.kind {
            MemberChange::AddLearner(id) => (1, id),
            MemberChange::Promote(id) => (2, id),
            MemberChange::Remove(id) => (3, id),
        };
        let mut out = vec![VERSION, kind, u8::from(self.promote)];
        for number in [origin.member, origin.number, id] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        // Encoding into a vector grows it and cannot fail.
        let _ = self.member.encode(&mut out);
        out
    }

    /// The inverse of [`Change::encode`].
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn decode(context: &[u8]) -> Result<(Origin, Self), CommandError> {
        let short = |_| CommandError::Short(context.len());
        let mut reader = Reader(context);
        let version = reader.u8().map_err(short)?;
        if version != VERSION {
            return Err(CommandError::Version(version));
        }
        let kind = reader.u8().map_err(short)?;
        let promote = reader.u8().map_err(short)? != 0;
        let origin = Origin {
            member: reader.u64().map_err(short)?,
            number: reader.u64().map_err(short)?,
        };
        let id = reader.u64().map_err(short)?;
        let kind = match kind {
            1 => MemberChange::AddLearner(id),
            2 => MemberChange::Promote(id),
            3 => MemberChange::Remove(id),
            other => return Err(CommandError::Kind(other)),
        };
        let member = Member::decode(reader.0).map_err(|_| CommandError::Body(0))?;
        Ok((
            origin,
            Self {
                kind,
                promote,
                member,
            },
        ))
    }
}
