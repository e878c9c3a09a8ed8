//! What an update writes to: a disk with both slots, and the directory of boot entries. Behind traits, so that tests can cut
//! the power after any write.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::syncfs;
use orlop_boot::{esp, pe};
use orlop_sys::blkdev;

use crate::hex::Hash;

/// A disk.
pub trait Disk {
    /// Its size in bytes.
    fn size_bytes(&self) -> u64;
    /// The size of its sectors in bytes.
    fn sector_bytes(&self) -> u64;
    /// Fills `into` from `at`.
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()>;
    /// Writes all of `bytes`. Not on the medium before [`Self::sync`].
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Has all writes on the medium, and later reads come from there.
    fn sync(&mut self) -> io::Result<()>;
}

/// The directory of boot entries on the EFI system partition.
pub trait Esp {
    /// Names and sizes in bytes of its files.
    fn files(&self) -> io::Result<Vec<(String, u64)>>;
    /// What can still be stored, in bytes.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Fills `into` from `at` of a file.
    fn read_at(&self, name: &str, into: &mut [u8], at: u64) -> io::Result<()>;
    /// Writes into a file, which is made when it is not there. Not on the medium before [`Self::sync`].
    fn write_at(&mut self, name: &str, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Removes a file. Not on the medium before [`Self::sync`].
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Has everything on the medium, and later reads come from there.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file on the EFI system partition, as far as updates care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EspFile {
    /// The name.
    pub name: String,
    /// The size in bytes.
    pub bytes: u64,
    /// The root that it boots; `None` when it is no whole image, or one without a root hash.
    pub root_hash: Option<Hash>,
}

/// The root hash on the command line of a kernel image.
pub(crate) fn root_hash(read: &dyn Fn(u64, usize) -> Option<Vec<u8>>) -> Option<Hash> {
    let line = pe::text(read, ".cmdline")?;
    Some(Hash(esp::root_hash_of(&line)?.0))
}

/// The files of `esp`, with the roots that they boot.
pub fn read_files(esp: &dyn Esp) -> io::Result<Vec<EspFile>> {
    let files = esp.files()?.into_iter().map(|(name, bytes)| {
        let read = |at: u64, length: usize| {
            let mut into = vec![0; length];
            let end = at.checked_add(length as u64)?;
            (end <= bytes)
                .then(|| esp.read_at(&name, &mut into, at).ok())
                .flatten()?;
            Some(into)
        };
        let root_hash = root_hash(&read);
        EspFile {
            name,
            bytes,
            root_hash,
        }
    });
    let mut files: Vec<EspFile> = files.collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// A block device, or a regular file with a disk's image.
#[derive(Debug)]
pub struct DeviceDisk {
    file: File,
    size_bytes: u64,
    sector_bytes: u64,
}

impl DeviceDisk {
    /// Opens a disk for reading, and for writing when `is_writable`.
    pub fn open(path: &Path, is_writable: bool) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(is_writable)
            .open(path)?;
        let metadata = file.metadata()?;
        let (size_bytes, sector_bytes) = if metadata.file_type().is_block_device() {
            (
                blkdev::size_bytes(&file)?,
                u64::from(blkdev::sector_bytes(&file)?).max(512),
            )
        } else if metadata.is_file() {
            (metadata.len(), 512)
        } else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "neither a block device nor a file",
            ));
        };
        Ok(Self {
            file,
            size_bytes,
            sector_bytes,
        })
    }

    /// The open device.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Disk for DeviceDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn sector_bytes(&self) -> u64 {
        self.sector_bytes
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(into, at)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        forget(&self.file)
    }
}

/// The directory `EFI/Linux` of a mounted EFI system partition.
#[derive(Debug)]
pub struct MountedEsp {
    directory: PathBuf,
}

impl MountedEsp {
    /// The entries below the mount point `mount`; the directory is made when it is not there.
    pub fn open(mount: &Path) -> io::Result<Self> {
        let directory = mount.join(esp::ENTRIES);
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }
}

impl Esp for MountedEsp {
    fn files(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                files.push((name, metadata.len()));
            }
        }
        Ok(files)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = fstatvfs(File::open(&self.directory)?)?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }

    fn read_at(&self, name: &str, into: &mut [u8], at: u64) -> io::Result<()> {
        File::open(self.directory.join(name))?.read_exact_at(into, at)
    }

    fn write_at(&mut self, name: &str, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.directory.join(name))?;
        file.write_all_at(bytes, at)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.directory.join(name))
    }

    fn sync(&mut self) -> io::Result<()> {
        syncfs(File::open(&self.directory)?)?;
        for (name, _) in self.files()? {
            let file = File::open(self.directory.join(name))?;
            file.sync_all()?;
            forget(&file)?;
        }
        Ok(())
    }
}

/// Drops clean pages from the kernel's cache, so that what is read next was really written (posix_fadvise(2)).
fn forget(file: &File) -> io::Result<()> {
    Ok(posix_fadvise(
        file,
        0,
        0,
        PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    )?)
}
