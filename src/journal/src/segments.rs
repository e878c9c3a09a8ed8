//! The files of a journal's directory: names, order, ids.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::entry::Id;

/// Where the machine's journal lies.
pub const DIRECTORY: &str = "/var/lib/orlop/journal";

/// A file that by its name is a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// Where it lies.
    pub path: PathBuf,
    /// The sequence number of its first record, by its name.
    pub first_sequence: u64,
    /// Its length.
    pub bytes: u64,
}

/// The name of the segment whose first record has that number.
#[must_use]
pub fn file_name(first_sequence: u64) -> String {
    format!("{first_sequence:016x}.journal")
}

/// The first record's number, if `name` is a segment's.
#[must_use]
pub fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".journal")?;
    let canonical = digits.len() == 16
        && digits
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    canonical
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
}

/// The segments of `directory`, oldest first.
///
/// # Errors
/// Those of reading the directory. A file that vanishes meanwhile is left out.
pub fn list(directory: &Path) -> io::Result<Vec<SegmentFile>> {
    let mut files = Vec::new();
    for item in std::fs::read_dir(directory)? {
        let item = item?;
        let Some(first_sequence) = item.file_name().to_str().and_then(parse_file_name) else {
            continue;
        };
        match item.metadata() {
            Ok(metadata) if metadata.is_file() => {
                files.push(SegmentFile {
                    path: item.path(),
                    first_sequence,
                    bytes: metadata.len(),
                });
            }
            Ok(_) => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
    }
    files.sort_by_key(|file| file.first_sequence);
    Ok(files)
}

/// Removes a segment; that it is gone already is as good.
///
/// # Errors
/// Those of unlink(2).
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

/// Removes the oldest segments, though never the newest, until all together take at most `limit_bytes` and none was last
/// written to before `oldest`; how many bytes were freed.
///
/// # Errors
/// Those of reading the directory and of removing.
pub fn vacuum(directory: &Path, limit_bytes: u64, oldest: Option<SystemTime>) -> io::Result<u64> {
    let files = list(directory)?;
    let mut total: u64 = files.iter().map(|file| file.bytes).sum();
    let mut freed = 0;
    for file in files.iter().rev().skip(1).rev() {
        let is_old = match oldest {
            Some(oldest) => std::fs::metadata(&file.path)?.modified()? < oldest,
            None => false,
        };
        if total <= limit_bytes && !is_old {
            break;
        }
        remove(&file.path)?;
        total -= file.bytes;
        freed += file.bytes;
    }
    Ok(freed)
}

/// This boot's id, or zero if the kernel does not tell.
#[must_use]
pub fn boot_id() -> Id {
    read_id("/proc/sys/kernel/random/boot_id")
}

/// This machine's id, or zero if it has none.
#[must_use]
pub fn machine_id() -> Id {
    read_id("/etc/machine-id")
}

/// A new random id (version 4 UUID of the kernel, `proc_sys_kernel(5)`).
#[must_use]
pub fn random_id() -> Id {
    read_id("/proc/sys/kernel/random/uuid")
}

fn read_id(path: &str) -> Id {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_string(&mut text));
    read.ok().and_then(|_| Id::parse(&text)).unwrap_or_default()
}
