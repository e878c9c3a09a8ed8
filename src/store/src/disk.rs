//! The directory that the store writes to, as a trait: the real one, or a simulated one that loses unsynced writes.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

/// One open file.
pub trait DiskFile: Debug + Send + Sync {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills `out` from `offset`; an error when the file ends before.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data` at `offset`. Not durable before [`DiskFile::sync`].
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Cuts or extends with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes data and length durable (`fdatasync`). After an error nothing is known about the file: it must not be retried.
    fn sync(&self) -> io::Result<()>;
}

/// One directory without subdirectories.
pub trait Disk: Debug + Send + Sync {
    /// Opens a file for reading and writing; creates it where `create` says so.
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DiskFile>>;
    /// All names.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Gives `from` the name `to`, replacing what had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes the names durable.
    fn sync_names(&self) -> io::Result<()>;
    /// Bytes that an ordinary process may still allocate.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// Whether a read failed because what was written is not there any more: the file is shorter, or the disk or the file system
/// found the damage themselves.
pub fn is_damage(err: &io::Error) -> bool {
    let found = [Errno::EIO, Errno::EBADMSG, Errno::EUCLEAN];
    err.kind() == io::ErrorKind::UnexpectedEof
        || err
            .raw_os_error()
            .is_some_and(|number| found.contains(&Errno::from_raw(number)))
}

/// A directory of the host, locked against a second process.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Open on the directory itself, for syncing its names.
    handle: File,
    /// Holds the lock until it is dropped.
    _lock: File,
}

impl Directory {
    /// Opens `path`, which is created (mode 0700) where it is missing.
    ///
    /// # Errors
    /// Of the calls, and [`io::ErrorKind::WouldBlock`] when another process uses the directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path.join("lock"))?;
        lock.try_lock()?;
        Ok(Self {
            path: path.to_owned(),
            handle: File::open(path)?,
            _lock: lock,
        })
    }
}

impl Disk for Directory {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .open(self.path.join(name))?;
        Ok(Arc::new(HostFile(file)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.handle)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// A file of the host.
#[derive(Debug)]
struct HostFile(File);

impl DiskFile for HostFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
