//! What the log's entries ask the state to do, and their bytes (`docs/store-format.md`, "Command").

use prost::Message;

use crate::proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
    TxnRequest,
};

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
        }
    }

    /// Whether it may make the state larger, so that a full disk must refuse it.
    pub fn grows(&self) -> bool {
        matches!(self, Self::Put(_) | Self::Txn(_) | Self::LeaseGrant(_))
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
            other => return Err(CommandError::Kind(other)),
        };
        Ok((origin, command))
    }
}
