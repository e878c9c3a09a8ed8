//! The reasons for which a request is refused, with the code and the text that etcd's clients compare.

/// Why a request was refused. The text is etcd's to the letter: its clients turn it back into their own errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The key is empty.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on a key that is not there, or an operation of no kind.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// `ignore_value` together with a value.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// More than [`crate::mvcc::MAX_TXN_OPERATIONS`] in one list of a transaction.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOperations,
    /// A transaction writes a key twice.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// The revision has been compacted away.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// The revision does not exist yet.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// The disk, or the quota, is full.
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// There is no such lease.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// The lease exists.
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    /// A time to live above [`crate::lease::MAX_TTL_SECONDS`].
    #[error("etcdserver: too large lease TTL")]
    LeaseTooLong,
    /// The request is larger than [`crate::node::MAX_REQUEST_BYTES`].
    #[error("etcdserver: request is too large")]
    TooLarge,
    /// More requests wait than the member takes.
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    /// There is no leader.
    #[error("etcdserver: no leader")]
    NoLeader,
    /// The outcome is not known: it took too long.
    #[error("etcdserver: request timed out")]
    TimedOut,
    /// The member is shutting down.
    #[error("etcdserver: server stopped")]
    Stopped,
    /// The state cannot be read.
    #[error("etcdserver: corrupt cluster")]
    Corrupt,
    /// No member has that id.
    #[error("etcdserver: member not found")]
    MemberNotFound,
    /// A member has that id, or had it.
    #[error("etcdserver: member ID already exist")]
    MemberExists,
    /// A member has that URL for its peers.
    #[error("etcdserver: Peer URLs already exists")]
    PeerUrlExists,
    /// A URL for peers that is none, or not `http`.
    #[error("etcdserver: given member URLs are invalid")]
    BadMemberUrl,
    /// More than [`crate::roster::MAX_LEARNERS`].
    #[error("etcdserver: too many learner members in cluster")]
    TooManyLearners,
    /// Only a learner can be promoted.
    #[error("etcdserver: can only promote a learner member")]
    NotLearner,
    /// The learner has not caught up.
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    /// Too few of the voters that would be left are there.
    #[error("etcdserver: re-configuration failed due to not enough started members")]
    NotEnoughStarted,
    /// Another change of members is under way.
    #[error("etcdserver: another change of members is under way")]
    ChangePending,
    /// Only the leader can do it.
    #[error("etcdserver: not leader")]
    NotLeader,
    /// Leadership can be given to a voter only.
    #[error("etcdserver: bad leader transferee")]
    BadTransferee,
    /// Leadership did not change in time.
    #[error("etcdserver: request timed out, leader transfer took too long")]
    TransferTimedOut,
    /// The member has been removed from the cluster.
    #[error("etcdserver: the member has been permanently removed from the cluster")]
    Removed,
}

/// The gRPC status codes that are used (<https://grpc.io/docs/guides/status-codes/>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 3.
    InvalidArgument,
    /// 5.
    NotFound,
    /// 8.
    ResourceExhausted,
    /// 9.
    FailedPrecondition,
    /// 11.
    OutOfRange,
    /// 14.
    Unavailable,
    /// 15.
    DataLoss,
}

impl Refused {
    /// etcd's status code for it.
    pub fn code(self) -> Code {
        match self {
            Self::EmptyKey
            | Self::KeyNotFound
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::TooManyOperations
            | Self::DuplicateKey
            | Self::BadMemberUrl
            | Self::TooLarge => Code::InvalidArgument,
            Self::Compacted | Self::FutureRevision | Self::LeaseTooLong => Code::OutOfRange,
            Self::NoSpace | Self::TooManyRequests => Code::ResourceExhausted,
            Self::LeaseNotFound | Self::MemberNotFound => Code::NotFound,
            Self::LeaseExists
            | Self::MemberExists
            | Self::PeerUrlExists
            | Self::TooManyLearners
            | Self::NotLearner
            | Self::LearnerNotReady
            | Self::NotEnoughStarted
            | Self::BadTransferee
            | Self::NotLeader => Code::FailedPrecondition,
            Self::NoLeader
            | Self::TimedOut
            | Self::Stopped
            | Self::ChangePending
            | Self::TransferTimedOut
            | Self::Removed => Code::Unavailable,
            Self::Corrupt => Code::DataLoss,
        }
    }
}
