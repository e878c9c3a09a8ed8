//! The state as a file (`docs/store-format.md`, "Snapshot file"): made from a running member, looked at, and turned into the
//! data of the first members of a new cluster.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::bytes::Reader;
use crate::disk::{Directory, Disk};
use crate::server::{BootstrapError, first_member};
use crate::state::incoming::Incoming;
use crate::state::outgoing::{LEASE_RECORD, META_RECORD, Outgoing, REVISION_RECORD};
use crate::state::{Database, StateError};
use crate::wal::{Owner, Wal, WalError};

/// What a file begins with.
const MAGIC: &[u8; 8] = b"ORLOPSNP";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 16;
/// Length of the SHA-256 at the end.
const DIGEST_BYTES: usize = 32;
/// Before the checksum, zeros fill the last piece of this size: clients of etcd's look for a checksum there.
const PIECE_BYTES: u64 = 512;
/// A file is read in pieces of this size.
const READ_BYTES: usize = 256 << 10;
/// Memory for pages of a state that is made.
const CACHE_BYTES: usize = 32 << 20;

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be read.
    #[error("read the snapshot {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// It is something else.
    #[error("{} is no snapshot of this store", .0.display())]
    Foreign(PathBuf),
    /// A later version made it.
    #[error("the snapshot {} has the format {version}, which is not known", path.display())]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// It is not what was written.
    #[error("the snapshot {} is damaged: {what}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// There is data already.
    #[error("data-dir {:?} exists", .0.display())]
    Exists(PathBuf),
    /// The directory cannot be used.
    #[error("use the data directory {}", path.display())]
    DataDir {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// The state cannot be made.
    #[error("make the state")]
    State(#[from] StateError),
    /// The log cannot be made.
    #[error("make the log")]
    Wal(#[from] WalError),
}

/// A snapshot on its way out of a member: the state at one revision, read in one transaction that stops no writer.
#[derive(Debug)]
pub struct Saving {
    outgoing: Option<Outgoing>,
    digest: Sha256,
    sent_bytes: u64,
    /// What is still to come, in bytes.
    remaining_bytes: u64,
}

impl Saving {
    /// Holds on to the state as it is now.
    ///
    /// # Errors
    /// Of the database.
    pub fn new(database: &Database) -> Result<Self, StateError> {
        let outgoing = Outgoing::of(database)?;
        let unpadded = HEAD_BYTES as u64 + outgoing.bytes()?;
        Ok(Self {
            outgoing: Some(outgoing),
            digest: Sha256::new(),
            sent_bytes: 0,
            remaining_bytes: unpadded.next_multiple_of(PIECE_BYTES) + DIGEST_BYTES as u64,
        })
    }

    /// The next part, of about `max_bytes`, and the bytes that are left after it; nothing at the end.
    ///
    /// # Errors
    /// Of the database.
    pub fn part(&mut self, max_bytes: usize) -> Result<Option<(Vec<u8>, u64)>, StateError> {
        let Some(outgoing) = &mut self.outgoing else {
            return Ok(None);
        };
        let mut out = Vec::new();
        if self.sent_bytes == 0 {
            out.extend_from_slice(MAGIC);
            out.extend_from_slice(&VERSION.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
        }
        let (records, last) = outgoing.records(max_bytes)?;
        out.extend_from_slice(&records);
        if last {
            let length = self.sent_bytes + out.len() as u64;
            let padding = length.next_multiple_of(PIECE_BYTES) - length;
            out.resize(out.len() + padding as usize, 0);
        }
        self.digest.update(&out);
        if last {
            out.extend_from_slice(&std::mem::take(&mut self.digest).finalize());
            self.outgoing = None;
        }
        self.sent_bytes += out.len() as u64;
        self.remaining_bytes = match last {
            true => 0,
            false => self.remaining_bytes.saturating_sub(out.len() as u64),
        };
        Ok(Some((out, self.remaining_bytes)))
    }
}

/// What `etcdctl snapshot status` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// CRC-32 of the file without its checksum.
    pub hash: u32,
    /// The revision that it was made at.
    pub revision: i64,
    /// Records of keys that it holds: every revision that was kept counts.
    pub total_keys: u64,
    /// Its length in bytes.
    pub total_bytes: u64,
}

/// Reads a whole file and checks it.
///
/// # Errors
/// See [`SnapshotError`].
pub fn status(path: &Path) -> Result<SnapshotStatus, SnapshotError> {
    let mut source = Source::open(path)?;
    let mut status = SnapshotStatus {
        hash: source.crc,
        revision: 0,
        total_keys: 0,
        total_bytes: source.total_bytes,
    };
    while let Some(records) = source.records()? {
        let mut rest = records.as_slice();
        while let Some((record, after)) = record_bytes(rest).and_then(|n| rest.split_at_checked(n))
        {
            rest = after;
            match record.first() {
                Some(&REVISION_RECORD) => status.total_keys += 1,
                Some(&META_RECORD) => {
                    if let Some(revision) = revision_of(record) {
                        status.revision = revision;
                    }
                }
                _ => {}
            }
        }
    }
    Ok(status)
}

/// The revision, if this is its record.
fn revision_of(record: &[u8]) -> Option<i64> {
    let mut reader = Reader(record.get(1..)?);
    let name = reader.bytes().ok()?;
    let value = reader.bytes().ok()?;
    (name == b"revision")
        .then(|| value.try_into().ok().map(i64::from_le_bytes))
        .flatten()
}

/// Whose state is made of a snapshot.
#[derive(Debug, Clone)]
pub struct Restore {
    /// The directory that is made.
    pub data_dir: PathBuf,
    /// The member's name.
    pub name: String,
    /// The URLs at which other members reach it.
    pub peer_urls: Vec<String>,
    /// The first members of the new cluster: names and URLs.
    pub members: Vec<(String, Vec<String>)>,
    /// Tells this cluster from others of the same members.
    pub token: String,
    /// The revision is raised by so much, so that no revision of the old cluster means something else in this one.
    pub bump_revision: i64,
    /// Revisions up to the one it begins with cannot be read: whoever watches from one is told so.
    pub mark_compacted: bool,
}

/// Makes the data of a member of a new cluster, whose ids follow from its first members and the snapshot: all of them make
/// theirs by themselves from the same file.
///
/// # Errors
/// See [`SnapshotError`].
pub fn restore(path: &Path, restore: &Restore) -> Result<Owner, RestoreError> {
    let mut source = Source::open(path)?;
    let digest: String = source.digest.iter().map(|b| format!("{b:02x}")).collect();
    let token = format!("{} {digest}", restore.token);
    let genesis = first_member(&restore.name, &restore.peer_urls, &restore.members, &token)?;
    let data_dir = |err| SnapshotError::DataDir {
        path: restore.data_dir.clone(),
        err,
    };
    if restore.data_dir.exists() {
        return Err(SnapshotError::Exists(restore.data_dir.clone()).into());
    }
    let owner = Owner {
        cluster: genesis.cluster,
        member: genesis.member,
    };
    let disk = Arc::new(Directory::open(&restore.data_dir).map_err(data_dir)?);
    // As everywhere, the log comes first.
    Wal::open(
        Arc::clone(&disk) as Arc<dyn Disk>,
        owner,
        genesis.cluster,
        crate::wal::SEGMENT_BYTES,
    )
    .map_err(SnapshotError::from)?;
    let incoming = Incoming::new(disk, CACHE_BYTES, owner).map_err(SnapshotError::from)?;
    while let Some(records) = source.records()? {
        incoming.put(&records).map_err(SnapshotError::from)?;
    }
    incoming
        .found(&genesis, restore.bump_revision, restore.mark_compacted)
        .map_err(SnapshotError::from)?;
    Ok(owner)
}

/// Why a snapshot is not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file, or what is made of it.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The first members are not understood.
    #[error("the new cluster")]
    Members(#[from] BootstrapError),
}

/// A file whose checksum is right, to be read record by record.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    file: File,
    /// Bytes of records and padding that were not read yet.
    left: u64,
    total_bytes: u64,
    crc: u32,
    digest: [u8; DIGEST_BYTES],
    /// The beginning of a record whose end was not read yet.
    begun: Vec<u8>,
    ended: bool,
}

impl Source {
    fn open(path: &Path) -> Result<Self, SnapshotError> {
        let read = |err| SnapshotError::Read {
            path: path.to_owned(),
            err,
        };
        let damaged = |what| SnapshotError::Damaged {
            path: path.to_owned(),
            what,
        };
        let mut file = File::open(path).map_err(read)?;
        let total_bytes = file.metadata().map_err(read)?.len();
        let mut head = [0; HEAD_BYTES];
        if total_bytes < (HEAD_BYTES + DIGEST_BYTES) as u64 {
            return Err(SnapshotError::Foreign(path.to_owned()));
        }
        file.read_exact(&mut head).map_err(read)?;
        if head.first_chunk::<8>() != Some(MAGIC) {
            return Err(SnapshotError::Foreign(path.to_owned()));
        }
        let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        let mut digest = Sha256::new();
        digest.update(head);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head);
        let left = total_bytes - (HEAD_BYTES + DIGEST_BYTES) as u64;
        let mut unread = left;
        let mut bytes = vec![0; READ_BYTES];
        while unread > 0 {
            let length = unread.min(READ_BYTES as u64) as usize;
            let piece = &mut bytes[..length];
            file.read_exact(piece).map_err(read)?;
            digest.update(&*piece);
            crc.update(piece);
            unread -= length as u64;
        }
        let mut told = [0; DIGEST_BYTES];
        file.read_exact(&mut told).map_err(read)?;
        if digest.finalize().as_slice() != told {
            return Err(damaged("its checksum is another"));
        }
        if version != VERSION {
            return Err(SnapshotError::Version {
                path: path.to_owned(),
                version,
            });
        }
        file.seek(SeekFrom::Start(HEAD_BYTES as u64))
            .map_err(read)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            left,
            total_bytes,
            crc: crc.finalize(),
            digest: told,
            begun: Vec::new(),
            ended: false,
        })
    }

    /// Some whole records; nothing at the end.
    fn records(&mut self) -> Result<Option<Vec<u8>>, SnapshotError> {
        let damaged = |what| SnapshotError::Damaged {
            path: self.path.clone(),
            what,
        };
        while !self.ended {
            if self.left == 0 {
                self.ended = true;
                let rest = std::mem::take(&mut self.begun);
                return match rest.iter().all(|b| *b == 0) {
                    true => Ok(None),
                    false => Err(damaged("a record ends early")),
                };
            }
            let length = self.left.min(READ_BYTES as u64) as usize;
            let begun = self.begun.len();
            self.begun.resize(begun + length, 0);
            let piece = self.begun.get_mut(begun..).unwrap_or_default();
            self.file
                .read_exact(piece)
                .map_err(|err| SnapshotError::Read {
                    path: self.path.clone(),
                    err,
                })?;
            self.left -= length as u64;
            let mut whole = 0;
            while let Some(next) = self.begun.get(whole..).and_then(record_bytes)
                && whole + next <= self.begun.len()
            {
                whole += next;
            }
            let rest = self.begun.split_off(whole);
            let records = std::mem::replace(&mut self.begun, rest);
            if !records.is_empty() {
                return Ok(Some(records));
            }
        }
        Ok(None)
    }
}

/// The length of the record that begins here; nothing when that is not known yet, or it is none.
fn record_bytes(bytes: &[u8]) -> Option<usize> {
    let (kind, rest) = bytes.split_first()?;
    let length = |at: usize| {
        let field = rest.get(at..at.checked_add(4)?)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(field)).ok()
    };
    let body = match *kind {
        META_RECORD => {
            let name = length(0)?.checked_add(4)?;
            name.checked_add(4)?.checked_add(length(name)?)?
        }
        LEASE_RECORD => 16,
        REVISION_RECORD => length(16)?.checked_add(20)?,
        _ => return None,
    };
    body.checked_add(1)
}
