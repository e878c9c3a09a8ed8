//! etcd's v2 keys over the same keyspace.
//!
//! The v2 key `/a/b` is the v3 key `/a/b`. A directory that was made is the v3 key with a slash at its end; one that
//! only has keys below it is there as long as they are. The index is the revision. A time to live is a lease of the key's own,
//! with an id below 0. What a write was to v2 is kept with its record, so that watches can look back as far as the history goes.

pub(crate) mod apply;
mod request;
pub(crate) mod tree;
pub(crate) mod watch;

use serde::Serialize;

pub use request::{Kind, Request, RequestError};

/// Why a v2 request was refused: etcd's error codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {cause}", message(*.code))]
pub struct V2Error {
    /// etcd's code.
    pub code: u16,
    /// What about.
    pub cause: String,
}

impl V2Error {
    pub(crate) fn new(code: u16, cause: impl Into<String>) -> Self {
        let cause = cause.into();
        Self { code, cause }
    }

    /// etcd's words for the code.
    pub fn message(&self) -> &'static str {
        message(self.code)
    }

    /// The status that HTTP answers with.
    pub fn status(&self) -> u16 {
        match self.code {
            KEY_NOT_FOUND => 404,
            NOT_A_FILE | DIRECTORY_NOT_EMPTY => 403,
            COMPARE_FAILED | KEY_EXISTS => 412,
            RAFT_INTERNAL | DURING_ELECTION => 500,
            _ => 400,
        }
    }
}

pub(crate) const KEY_NOT_FOUND: u16 = 100;
pub(crate) const COMPARE_FAILED: u16 = 101;
pub(crate) const NOT_A_FILE: u16 = 102;
pub(crate) const NOT_A_DIRECTORY: u16 = 104;
pub(crate) const KEY_EXISTS: u16 = 105;
pub(crate) const ROOT_READ_ONLY: u16 = 107;
pub(crate) const DIRECTORY_NOT_EMPTY: u16 = 108;
pub(crate) const PREV_VALUE_REQUIRED: u16 = 201;
pub(crate) const TTL_NOT_A_NUMBER: u16 = 202;
pub(crate) const INDEX_NOT_A_NUMBER: u16 = 203;
pub(crate) const INVALID_FIELD: u16 = 209;
pub(crate) const INVALID_FORM: u16 = 210;
pub(crate) const REFRESH_VALUE: u16 = 211;
pub(crate) const REFRESH_TTL_REQUIRED: u16 = 212;
pub(crate) const RAFT_INTERNAL: u16 = 300;
pub(crate) const DURING_ELECTION: u16 = 301;
pub(crate) const INDEX_CLEARED: u16 = 401;

fn message(code: u16) -> &'static str {
    match code {
        KEY_NOT_FOUND => "Key not found",
        COMPARE_FAILED => "Compare failed",
        NOT_A_FILE => "Not a file",
        NOT_A_DIRECTORY => "Not a directory",
        KEY_EXISTS => "Key already exists",
        ROOT_READ_ONLY => "Root is read only",
        DIRECTORY_NOT_EMPTY => "Directory not empty",
        PREV_VALUE_REQUIRED => "PrevValue is Required in POST form",
        TTL_NOT_A_NUMBER => "The given TTL in POST form is not a number",
        INDEX_NOT_A_NUMBER => "The given index in POST form is not a number",
        INVALID_FIELD => "Invalid field",
        INVALID_FORM => "Invalid POST form",
        REFRESH_VALUE => "Value provided on refresh",
        REFRESH_TTL_REQUIRED => "A TTL must be provided on refresh",
        DURING_ELECTION => "During Leader Election",
        INDEX_CLEARED => "The event in requested index is outdated and cleared",
        _ => "Raft Internal Error",
    }
}

/// What a write was to v2; kept with each record of the keyspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Also each put by v3.
    Set = 0,
    /// Also each deletion by v3.
    Delete = 1,
    Create = 2,
    Update = 3,
    CompareAndSwap = 4,
    CompareAndDelete = 5,
    /// By a lease's end.
    Expire = 6,
    /// A new time to live, which no one is told of.
    Refresh = 7,
    /// Below a directory that was deleted.
    DeleteBelow = 8,
    /// A directory made for what was put into it.
    Parent = 9,
}

impl Action {
    pub(crate) fn decode(byte: u8) -> Option<Self> {
        [
            Self::Set,
            Self::Delete,
            Self::Create,
            Self::Update,
            Self::CompareAndSwap,
            Self::CompareAndDelete,
            Self::Expire,
            Self::Refresh,
            Self::DeleteBelow,
            Self::Parent,
        ]
        .into_iter()
        .find(|action| *action as u8 == byte)
    }

    pub(crate) fn deletes(self) -> bool {
        matches!(
            self,
            Self::Delete | Self::CompareAndDelete | Self::Expire | Self::DeleteBelow
        )
    }

    /// v2's word for it; `None` for what watches are not told of.
    pub(crate) fn word(self) -> Option<&'static str> {
        match self {
            Self::Set => Some("set"),
            Self::Delete => Some("delete"),
            Self::Create => Some("create"),
            Self::Update => Some("update"),
            Self::CompareAndSwap => Some("compareAndSwap"),
            Self::CompareAndDelete => Some("compareAndDelete"),
            Self::Expire => Some("expire"),
            Self::Refresh | Self::DeleteBelow | Self::Parent => None,
        }
    }
}

/// A key or a directory, as v2 shows it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Node {
    /// The path; none for the root.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// The value of a key; none for directories, and for what was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Whether it is a directory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dir: bool,
    /// When it ends (RFC 3339, UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
    /// Seconds that it still lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<i64>,
    /// What is in a directory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Node>,
    /// Index of the last change.
    #[serde(rename = "modifiedIndex", skip_serializing_if = "is_zero")]
    pub modified_index: i64,
    /// Index at which it was made.
    #[serde(rename = "createdIndex", skip_serializing_if = "is_zero")]
    pub created_index: i64,
    /// Its lease; 0 when it has none.
    #[serde(skip)]
    pub lease: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_zero(index: &i64) -> bool {
    *index == 0
}

/// What a request did or found, or what a watch is told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// v2's word for it.
    pub action: &'static str,
    /// What it is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Node>,
    /// What it was before.
    #[serde(rename = "prevNode", skip_serializing_if = "Option::is_none")]
    pub prev_node: Option<Node>,
}

/// The path as the store has it: it begins with a slash, and has no empty, `.` or `..` segments; `/` is the root.
pub fn clean(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

/// The key of a directory that was made.
pub(crate) fn directory_key(path: &str) -> Vec<u8> {
    if path == "/" {
        return b"/".to_vec();
    }
    format!("{path}/").into_bytes()
}

/// The end of the range of all keys that begin so.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    // A slash is never the highest byte.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
