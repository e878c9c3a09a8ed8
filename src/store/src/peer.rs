//! What members say to each other, and its bytes (`docs/store-peers.md`).

use crate::bytes::{Ended, Reader, put_bytes};
use crate::command::{Change, Command, CommandError, Origin};
use crate::consensus::Message;
use crate::consensus::message::MessageError;
use crate::refused::Refused;

/// What goes from one member to another.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerMessage {
    /// Who sent it.
    pub from: u64,
    /// Whom it is for.
    pub to: u64,
    /// What it says.
    pub body: Body,
}

/// What a member may ask the leader to put into the log.
#[derive(Debug, Clone, PartialEq)]
pub enum Proposal {
    /// A change of the state.
    Command(Command),
    /// A change of who takes part.
    Change(Change),
}

impl Proposal {
    /// Whether it may make the state larger, so that a full disk must refuse it.
    pub fn grows(&self) -> bool {
        match self {
            Self::Command(command) => command.grows(),
            Self::Change(_) => false,
        }
    }

    /// Length in bytes, about.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Command(command) => command.body_bytes(),
            Self::Change(_) => 256,
        }
    }
}

/// Why the leader did not take what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no room.
    NoSpace = 1,
    /// Another change of members is under way.
    ChangePending = 2,
    /// Too few of the voters that would be left are there.
    NotEnoughStarted = 3,
    /// The learner has not caught up.
    LearnerNotReady = 4,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoSpace => Self::NoSpace,
            Refusal::ChangePending => Self::ChangePending,
            Refusal::NotEnoughStarted => Self::NotEnoughStarted,
            Refusal::LearnerNotReady => Self::LearnerNotReady,
        }
    }
}

/// What a message says.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// For consensus.
    Consensus(Message),
    /// To the leader: put this into the log.
    Propose {
        /// The leader's term; in another one it is void.
        term: u64,
        /// Who asks, and the number of the request there.
        origin: Origin,
        /// What.
        proposal: Proposal,
    },
    /// To a proposer: it was not put into the log.
    Refuse {
        /// The number of the request.
        number: u64,
        /// Why.
        reason: Refusal,
    },
    /// To the leader: tell of this lease.
    Lease {
        /// The number of the question.
        number: u64,
        /// The lease.
        id: i64,
        /// Start its clock anew.
        renew: bool,
    },
    /// From the leader.
    LeaseIs {
        /// The number of the question.
        number: u64,
        /// The leader's revision.
        revision: i64,
        /// Seconds left and seconds granted; `None` when there is no such lease.
        times: Option<(i64, i64)>,
    },
    /// A part of a state.
    Part {
        /// Which state: the last entry in it.
        index: u64,
        /// Number of the part; 0 is the first.
        part: u32,
        /// Its bytes.
        bytes: Vec<u8>,
        /// With the last part: what consensus says about the state.
        message: Option<Message>,
    },
    /// So many parts of a state have been received.
    PartsTaken {
        /// Which state.
        index: u64,
        /// How many.
        parts: u32,
    },
    /// The receiver has been removed from the cluster.
    Removed,
}

/// Bytes that are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerMessageError {
    /// Too short.
    #[error("a message between members ends early")]
    Ended,
    /// Written by a later version.
    #[error("message kind {0} between members is not known")]
    Kind(u8),
    /// Its message of consensus.
    #[error(transparent)]
    Consensus(#[from] MessageError),
    /// Its command.
    #[error(transparent)]
    Command(#[from] CommandError),
}

impl From<Ended> for PeerMessageError {
    fn from(Ended: Ended) -> Self {
        Self::Ended
    }
}

impl PeerMessage {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_to(&mut out);
        out
    }

    /// Appends its bytes.
    pub(crate) fn encode_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.from.to_le_bytes());
        out.extend_from_slice(&self.to.to_le_bytes());
        match &self.body {
            Body::Consensus(message) => {
                out.push(1);
                message.encode(out);
            }
            Body::Propose {
                term,
                origin,
                proposal,
            } => {
                out.push(2);
                out.extend_from_slice(&term.to_le_bytes());
                match proposal {
                    Proposal::Command(command) => {
                        out.push(1);
                        out.extend_from_slice(&command.encode(*origin));
                    }
                    Proposal::Change(change) => {
                        out.push(2);
                        out.extend_from_slice(&change.encode(*origin));
                    }
                }
            }
            Body::Refuse { number, reason } => {
                out.push(3);
                out.extend_from_slice(&number.to_le_bytes());
                out.push(*reason as u8);
            }
            Body::Lease { number, id, renew } => {
                out.push(4);
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(&id.to_le_bytes());
                out.push(u8::from(*renew));
            }
            Body::LeaseIs {
                number,
                revision,
                times,
            } => {
                out.push(5);
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(&revision.to_le_bytes());
                let (left, granted) = times.unwrap_or((-1, -1));
                out.extend_from_slice(&left.to_le_bytes());
                out.extend_from_slice(&granted.to_le_bytes());
            }
            Body::Part {
                index,
                part,
                bytes,
                message,
            } => {
                out.push(6);
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(&part.to_le_bytes());
                put_bytes(bytes, out);
                if let Some(message) = message {
                    message.encode(out);
                }
            }
            Body::PartsTaken { index, parts } => {
                out.push(7);
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(&parts.to_le_bytes());
            }
            Body::Removed => out.push(8),
        }
    }

    /// The inverse of [`PeerMessage::encode`].
    ///
    /// # Errors
    /// [`PeerMessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, PeerMessageError> {
        let mut reader = Reader(bytes);
        let (from, to) = (reader.u64()?, reader.u64()?);
        let body = match reader.u8()? {
            1 => Body::Consensus(Message::decode(reader.0)?),
            2 => {
                let term = reader.u64()?;
                let (origin, proposal) = match reader.u8()? {
                    1 => {
                        let (origin, command) = Command::decode(reader.0)?;
                        (origin, Proposal::Command(command))
                    }
                    2 => {
                        let (origin, change) = Change::decode(reader.0)?;
                        (origin, Proposal::Change(change))
                    }
                    other => return Err(PeerMessageError::Kind(other)),
                };
                Body::Propose {
                    term,
                    origin,
                    proposal,
                }
            }
            3 => Body::Refuse {
                number: reader.u64()?,
                reason: match reader.u8()? {
                    1 => Refusal::NoSpace,
                    2 => Refusal::ChangePending,
                    3 => Refusal::NotEnoughStarted,
                    4 => Refusal::LearnerNotReady,
                    other => return Err(PeerMessageError::Kind(other)),
                },
            },
            4 => Body::Lease {
                number: reader.u64()?,
                id: reader.i64()?,
                renew: reader.u8()? != 0,
            },
            5 => Body::LeaseIs {
                number: reader.u64()?,
                revision: reader.i64()?,
                times: Some((reader.i64()?, reader.i64()?)).filter(|(_, granted)| *granted >= 0),
            },
            6 => Body::Part {
                index: reader.u64()?,
                part: reader.u32()?,
                bytes: reader.bytes()?.to_vec(),
                message: if reader.0.is_empty() {
                    None
                } else {
                    Some(Message::decode(reader.0)?)
                },
            },
            7 => Body::PartsTaken {
                index: reader.u64()?,
                parts: reader.u32()?,
            },
            8 => Body::Removed,
            other => return Err(PeerMessageError::Kind(other)),
        };
        Ok(Self { from, to, body })
    }
}
