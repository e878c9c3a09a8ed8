//! The EFI system partition, mounted for as long as something is done with it.
//!
//! Renames are all that happens to entries, so that a full partition hinders nothing.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use thiserror::Error;

use crate::entries::Entry;
use crate::pe;
use crate::verity::RootHash;

/// Where Unified Kernel Images lie (Boot Loader Specification, "Type #2").
pub const ENTRIES: &str = "EFI/Linux";

/// What an update writes last of an image.
const SECTOR_BYTES: usize = 512;

/// Why something was not done with the partition.
#[derive(Debug, Error)]
pub enum EspError {
    /// No place to mount it at.
    #[error("cannot make {0}")]
    Directory(PathBuf, #[source] io::Error),
    /// It is not mounted.
    #[error("cannot mount the EFI system partition {0}")]
    Mount(PathBuf, #[source] nix::errno::Errno),
    /// Its entries can not be listed.
    #[error("cannot list {ENTRIES} of the EFI system partition")]
    List(#[source] io::Error),
    /// An entry keeps its name.
    #[error("cannot rename {from} to {to} on the EFI system partition")]
    Rename {
        /// The old name.
        from: String,
        /// The new name.
        to: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is an entry of the new name already.
    #[error("cannot rename {from}: there is a {to} already")]
    Exists {
        /// The old name.
        from: String,
        /// The new name.
        to: String,
    },
}

/// The mounted partition; it is unmounted, and so written, when this goes.
#[derive(Debug)]
pub struct Esp {
    target: PathBuf,
    is_mounted: bool,
}

impl Esp {
    /// Mounts the partition `device` on a directory of its own below `/run/orlop`.
    ///
    /// # Errors
    /// What mkdir(2) and mount(2) give.
    pub fn mount(device: &Path) -> Result<Self, EspError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let target = PathBuf::from(format!("/run/orlop/esp-{}-{number}", std::process::id()));
        match fs::create_dir(&target) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
                return Err(EspError::Directory(target, err));
            }
            _ => {}
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        // The names are ASCII; the kernel has both tables as modules.
        let data = "umask=077,codepage=437,iocharset=ascii";
        if let Err(errno) = mount(Some(device), &target, Some("vfat"), flags, Some(data)) {
            let _ = fs::remove_dir(&target);
            return Err(EspError::Mount(device.to_owned(), errno));
        }
        Ok(Self {
            target,
            is_mounted: true,
        })
    }

    /// A directory that holds what a partition would: for tests.
    #[cfg(test)]
    pub(crate) fn of_directory(target: &Path) -> Self {
        Self {
            target: target.to_owned(),
            is_mounted: false,
        }
    }

    /// A path on the partition.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.target.join(relative)
    }

    /// The entries of ours, sorted by name; a partition without the directory has none. Left out are those of which an
    /// update wrote only a part: they are nothing to be tried, and nothing to be given up.
    ///
    /// # Errors
    /// The directory can not be read.
    pub fn entries(&self) -> Result<Vec<Entry>, EspError> {
        let listing = match fs::read_dir(self.path(ENTRIES)) {
            Ok(listing) => listing,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(err) => return Err(EspError::List(err)),
        };
        let mut names: Vec<String> = listing
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        let entries = names.iter().filter_map(|name| Entry::parse(name));
        Ok(entries.filter(|entry| !self.is_unfinished(entry)).collect())
    }

    /// Whether an entry's image is one that an update began and did not finish: `docs/update-payload.md` has its first sector
    /// written last. No loader takes it for an image either.
    fn is_unfinished(&self, entry: &Entry) -> bool {
        let mut sector = [0; SECTOR_BYTES];
        File::open(self.path(ENTRIES).join(entry.file_name()))
            .and_then(|file| {
                let length = file.metadata()?.len().min(SECTOR_BYTES as u64);
                file.take(length).read(&mut sector)
            })
            .is_ok_and(|_| sector == [0; SECTOR_BYTES])
    }

    /// Gives an entry another counter.
    ///
    /// # Errors
    /// There is one of that name, or the rename fails.
    pub fn rename(&self, from: &Entry, to: &Entry) -> Result<(), EspError> {
        let directory = self.path(ENTRIES);
        let (from, to) = (from.file_name(), to.file_name());
        if from == to {
            return Ok(());
        }
        let target = directory.join(&to);
        if target.exists() {
            return Err(EspError::Exists { from, to });
        }
        fs::rename(directory.join(&from), target)
            .and_then(|()| File::open(&directory)?.sync_all())
            .map_err(|source| EspError::Rename { from, to, source })
    }

    /// The command line inside of an entry's image; `None` when the image is damaged.
    #[must_use]
    pub fn command_line(&self, entry: &Entry) -> Option<String> {
        let file = File::open(self.path(ENTRIES).join(entry.file_name())).ok()?;
        let read = |at: u64, length: usize| {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, at).ok()?;
            Some(bytes)
        };
        pe::text(&read, ".cmdline")
    }

    /// The root hash of an entry; `None` when the image is damaged.
    #[must_use]
    pub fn root_hash(&self, entry: &Entry) -> Option<RootHash> {
        root_hash_of(&self.command_line(entry)?)
    }
}

/// The `roothash=` of a command line.
#[must_use]
pub fn root_hash_of(command_line: &str) -> Option<RootHash> {
    crate::cmdline::CommandLine::parse(command_line)
        .value("roothash")?
        .parse()
        .ok()
}

impl Drop for Esp {
    fn drop(&mut self) {
        if !self.is_mounted {
            return;
        }
        // Lazily where somebody looks around in it: what was renamed is synced already.
        if umount2(&self.target, MntFlags::empty()).is_err() {
            let _ = umount2(&self.target, MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir(&self.target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_its_first_sector_is_no_entry() {
        let directory = tempfile::tempdir().unwrap();
        let esp = Esp::of_directory(directory.path());
        fs::create_dir_all(esp.path(ENTRIES)).unwrap();
        let entry = Entry::new("1".parse().unwrap());
        let mut image = pe::sample("roothash=", 2048);
        let whole = image.clone();
        image[..512].fill(0);
        for (bytes, is_unfinished) in [
            (&whole[..], false),
            (&whole[..700], false),
            (&image[..], true),
            (&[], true),
        ] {
            fs::write(esp.path(ENTRIES).join(entry.file_name()), bytes).unwrap();
            assert_eq!(esp.entries().unwrap().is_empty(), is_unfinished);
        }
    }
}
