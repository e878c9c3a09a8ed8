//! This machine: what it runs, and one update at a time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::libc;
use orlop_boot::entries::Version;
use serde::Deserialize;
use thiserror::Error;

use crate::hex::Hash;
use crate::slots::Running;

/// The keys that this machine trusts, in its verified root.
pub const KEYS: &str = "/usr/lib/orlop/update-keys";

/// What the boot stage leaves of a start from a slot.
pub use orlop_boot::slot::RECORD;

/// Held by whoever writes to slots.
const LOCK: &str = "/run/orlop/update.lock";

/// What checks FAT.
const FSCK: &str = "/sbin/fsck.fat";

const OS_RELEASE: &str = "/usr/lib/os-release";

/// Why this machine is not known well enough.
#[derive(Debug, Error)]
pub enum SystemError {
    /// A file can not be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// The record is not understood.
    #[error("{0} is damaged")]
    Record(PathBuf, #[source] serde_json::Error),
    /// The version is not.
    #[error("{OS_RELEASE} names no version")]
    NoVersion,
    /// The EFI system partition can not be checked.
    #[error("cannot check the EFI system partition {0}: {1}")]
    Check(PathBuf, String),
    /// Another update.
    #[error("another update or installation is running ({LOCK} is locked)")]
    Busy,
    /// No lock.
    #[error("cannot lock {LOCK}")]
    Lock(#[source] io::Error),
}

/// A start from a slot, as the boot stage records it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Record {
    /// The version that runs.
    pub version: Version,
    /// The hash of its root.
    pub root_hash: Hash,
    /// The disk that has it.
    pub disk: PathBuf,
    /// The partition with the boot entries.
    pub esp: PathBuf,
}

impl Record {
    /// Reads the record at `path`; `None` on a machine that was not started from a slot.
    pub fn read(path: &Path) -> Result<Option<Self>, SystemError> {
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| SystemError::Record(path.to_owned(), e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(SystemError::Read(path.to_owned(), e)),
        }
    }

    /// What runs.
    #[must_use]
    pub fn running(&self) -> Running {
        Running {
            root_hash: Some(self.root_hash),
            version: self.version.clone(),
            architecture: architecture().to_owned(),
        }
    }
}

/// What `uname -m` says.
#[must_use]
pub fn architecture() -> &'static str {
    std::env::consts::ARCH
}

/// The version of the image that runs, from wherever it was started: `VERSION_ID` of os-release(5).
pub fn version() -> Result<Version, SystemError> {
    let text =
        fs::read_to_string(OS_RELEASE).map_err(|e| SystemError::Read(OS_RELEASE.into(), e))?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_ID="));
    value
        .and_then(|value| value.trim_matches('"').parse().ok())
        .ok_or(SystemError::NoVersion)
}

/// Keeps other updates out until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or says that another has it.
    pub fn take() -> Result<Self, SystemError> {
        let file = fs::create_dir_all("/run/orlop")
            .and_then(|()| File::create(LOCK))
            .map_err(SystemError::Lock)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(SystemError::Busy),
            Err(fs::TryLockError::Error(e)) => Err(SystemError::Lock(e)),
        }
    }
}

/// Mends what a power cut left on the EFI system partition `device`, before anything is written to it.
///
/// FAT has no journal: a file that was being written when the power went holds clusters that nobody can reach, or names some that
/// are free, at which the kernel makes the filesystem read-only. Where somebody looks around in the partition it is left alone.
pub fn mend(device: &Path) -> Result<(), SystemError> {
    let mut options = File::options();
    // `O_EXCL` on a block device fails while it is mounted (open(2)).
    match options.read(true).custom_flags(libc::O_EXCL).open(device) {
        Ok(file) => drop(file),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
        Err(e) => return Err(SystemError::Read(device.to_owned(), e)),
    }
    let error = |why: String| SystemError::Check(device.to_owned(), why);
    let output = Command::new(FSCK)
        .arg("-a")
        .arg(device)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| error(format!("{FSCK}: {e}")))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match output.status.code() {
        Some(0) => Ok(()),
        // fsck.fat(8): errors were found, and mended.
        Some(1) => {
            log::warn!(
                "update: mended the EFI system partition: {}",
                said.lines().map(str::trim).collect::<Vec<_>>().join("; ")
            );
            Ok(())
        }
        _ => Err(error(format!("{FSCK}: {}: {}", output.status, said.trim()))),
    }
}
