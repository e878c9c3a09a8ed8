//! A v2 write as it stands in the log (`docs/store-format.md`, "Command").

use crate::bytes::{Ended, Reader, put_bytes};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Puts a key or a directory, whatever was there.
    Set = 1,
    /// Puts one that is not there.
    Create = 2,
    /// Puts a key into a directory, named by the next index.
    CreateInOrder = 3,
    /// Changes one that is there.
    Update = 4,
    /// Changes a key that has a certain value or index.
    CompareAndSwap = 5,
    /// Deletes a key or a directory.
    Delete = 6,
    /// Deletes a key that has a certain value or index.
    CompareAndDelete = 7,
}

/// A v2 write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub kind: Kind,
    /// Of which path; [`super::clean`].
    pub path: String,
    /// The value.
    pub value: String,
    /// About a directory.
    pub dir: bool,
    /// Deletes what is below too.
    pub recursive: bool,
    /// Keeps the value, tells no watch.
    pub refresh: bool,
    /// Seconds to live.
    pub ttl: Option<u64>,
    /// The value that must be there; empty: any.
    pub prev_value: String,
    /// The index that must be there; 0: any.
    pub prev_index: u64,
}

/// Bytes that are not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a v2 request that is broken")]
pub struct RequestError;

impl From<Ended> for RequestError {
    fn from(Ended: Ended) -> Self {
        Self
    }
}

impl Request {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let flags = u8::from(self.dir)
            | u8::from(self.recursive) << 1
            | u8::from(self.refresh) << 2
            | u8::from(self.ttl.is_some()) << 3;
        out.extend_from_slice(&[self.kind as u8, flags]);
        out.extend_from_slice(&self.ttl.unwrap_or(0).to_le_bytes());
        out.extend_from_slice(&self.prev_index.to_le_bytes());
        for text in [&self.path, &self.value, &self.prev_value] {
            put_bytes(text.as_bytes(), out);
        }
    }

    /// Length of its bytes.
    pub fn bytes(&self) -> usize {
        30 + self.path.len() + self.value.len() + self.prev_value.len()
    }

    /// The inverse of [`Request::encode`].
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RequestError> {
        let mut reader = Reader(bytes);
        let kind = match reader.u8()? {
            1 => Kind::Set,
            2 => Kind::Create,
            3 => Kind::CreateInOrder,
            4 => Kind::Update,
            5 => Kind::CompareAndSwap,
            6 => Kind::Delete,
            7 => Kind::CompareAndDelete,
            _ => return Err(RequestError),
        };
        let flags = reader.u8()?;
        let ttl = reader.u64()?;
        let prev_index = reader.u64()?;
        let mut text = || -> Result<String, RequestError> {
            let bytes = reader.bytes()?.to_vec();
            String::from_utf8(bytes).map_err(|_| RequestError)
        };
        Ok(Self {
            kind,
            path: text()?,
            value: text()?,
            prev_value: text()?,
            dir: flags & 1 != 0,
            recursive: flags & 2 != 0,
            refresh: flags & 4 != 0,
            ttl: (flags & 8 != 0).then_some(ttl),
            prev_index,
        })
    }
}
