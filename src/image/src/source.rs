//! What an image is read from: a directory, or an archive whose members are found by name.
//!
//! An archive is read through once for its headers; data is then read from where it lies. A compressed archive, or one that
//! is a pipe, is first written to an unlinked file of the store.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::decompress::{self, Compression};
use crate::tar;

/// The most members that an archive of an image may have.
const MAX_MEMBERS: usize = 100_000;
/// The most bytes of their names and links together: what the index costs in memory.
const MAX_NAME_BYTES: usize = 16 * 1024 * 1024;
/// The most symbolic links that are followed from one member to another.
const MAX_LINKS: usize = 8;

/// What cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive or directory itself cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// As the caller named it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The archive is not a readable tar.
    #[error("{path} is no image archive")]
    Archive {
        /// As the caller named it.
        path: PathBuf,
        /// Why.
        #[source]
        source: tar::Error,
    },
    /// The archive has more members, or longer names, than any image.
    #[error(
        "{path} has more than {MAX_MEMBERS} members, or more than {MAX_NAME_BYTES} bytes of names"
    )]
    TooManyMembers {
        /// As the caller named it.
        path: PathBuf,
    },
    /// The compressed archive does not fit the limit or the disk when it is uncompressed.
    #[error("cannot uncompress {path}")]
    Spool {
        /// As the caller named it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A member is not there.
    #[error("{path} has no file {name:?}")]
    Missing {
        /// The archive or directory.
        path: PathBuf,
        /// The member.
        name: String,
    },
    /// A member cannot be read.
    #[error("cannot read {name:?} of {path}")]
    Member {
        /// The archive or directory.
        path: PathBuf,
        /// The member.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A document is larger than any sane one.
    #[error("{name:?} of {path} is larger than {limit_bytes} bytes")]
    DocumentTooLarge {
        /// The archive or directory.
        path: PathBuf,
        /// The member.
        name: String,
        /// The limit.
        limit_bytes: u64,
    },
}

/// A part of a file, read without moving the file's own position.
#[derive(Debug, Clone)]
pub struct Section {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Section {
    /// Bytes left.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end - self.position
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf
            .len()
            .min(usize::try_from(self.len()).unwrap_or(usize::MAX));
        let count = self
            .file
            .read_at(buf.get_mut(..want).unwrap_or_default(), self.position)?;
        if count == 0 && want > 0 {
            // The file became shorter since it was looked at.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        Ok(count)
    }
}

impl tar::Skip for Section {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        if count > self.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count;
        Ok(())
    }
}

#[derive(Debug)]
enum Member {
    Data { offset: u64, size: u64 },
    Link(String),
}

#[derive(Debug)]
enum Inner {
    Directory(OwnedFd),
    Archive {
        file: Arc<File>,
        members: HashMap<String, Member>,
    },
}

/// An opened directory or archive.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    inner: Inner,
}

impl Source {
    /// Opens `path`. `spool` makes an unlinked file for an archive that has to be uncompressed, which may then have at most
    /// `max_spool_bytes`.
    ///
    /// # Errors
    /// When it cannot be read or is not a tar archive.
    pub fn open(
        path: &Path,
        max_spool_bytes: u64,
        spool: impl FnOnce() -> io::Result<File>,
    ) -> Result<Self, Error> {
        let open_error = |source| Error::Open {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(open_error)?;
        let metadata = file.metadata().map_err(open_error)?;
        if metadata.is_dir() {
            return Ok(Self {
                path: path.to_owned(),
                inner: Inner::Directory(file.into()),
            });
        }
        let mut start = [0; 8];
        let compression = match metadata.is_file() {
            true => {
                let count = file.read_at(&mut start, 0).map_err(open_error)?;
                Compression::sniff(start.get(..count).unwrap_or_default())
            }
            false => Compression::None,
        };
        let file = if metadata.is_file() && compression == Compression::None {
            file
        } else {
            uncompress(file, max_spool_bytes, spool).map_err(|source| Error::Spool {
                path: path.to_owned(),
                source,
            })?
        };
        let end = file.metadata().map_err(open_error)?.len();
        let file = Arc::new(file);
        let members = index(
            path,
            Section {
                file: Arc::clone(&file),
                position: 0,
                end,
            },
        )?;
        Ok(Self {
            path: path.to_owned(),
            inner: Inner::Archive { file, members },
        })
    }

    /// As the caller of [`Source::open`] named it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a regular file `name` (relative, parts parted by `/`).
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.section(name).is_ok()
    }

    /// The data of member `name`. Links between members of an archive are followed; those in a directory are not.
    ///
    /// # Errors
    /// When it is not there, or is no regular file.
    pub fn section(&self, name: &str) -> Result<Section, Error> {
        match &self.inner {
            Inner::Directory(directory) => self.section_of_directory(directory, name),
            Inner::Archive { file, members } => {
                let mut current = clean(name.as_bytes(), "");
                for _ in 0..MAX_LINKS {
                    match current.as_ref().and_then(|c| members.get(c)) {
                        Some(Member::Data { offset, size }) => {
                            let (file, position) = (Arc::clone(file), *offset);
                            return Ok(Section {
                                file,
                                position,
                                end: offset + size,
                            });
                        }
                        Some(Member::Link(target)) => current = Some(target.clone()),
                        None => break,
                    }
                }
                Err(Error::Missing {
                    path: self.path.clone(),
                    name: name.to_owned(),
                })
            }
        }
    }

    fn section_of_directory(&self, directory: &OwnedFd, name: &str) -> Result<Section, Error> {
        // Not blocking, lest a pipe in the place of a file stop us.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let member = |source| Error::Member {
            path: self.path.clone(),
            name: name.to_owned(),
            source,
        };
        let missing = || Error::Missing {
            path: self.path.clone(),
            name: name.to_owned(),
        };
        let fd = match rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Err(missing()),
            Err(err) => return Err(member(err.into())),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|err| member(err.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(missing());
        }
        let end = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(Section {
            file: Arc::new(File::from(fd)),
            position: 0,
            end,
        })
    }

    /// The whole of member `name`, which may have at most `limit_bytes`.
    ///
    /// # Errors
    /// When it cannot be read or is larger.
    pub fn document(&self, name: &str, limit_bytes: u64) -> Result<Vec<u8>, Error> {
        let mut section = self.section(name)?;
        if section.len() > limit_bytes {
            return Err(Error::DocumentTooLarge {
                path: self.path.clone(),
                name: name.to_owned(),
                limit_bytes,
            });
        }
        let mut bytes = Vec::new();
        section
            .read_to_end(&mut bytes)
            .map_err(|source| Error::Member {
                path: self.path.clone(),
                name: name.to_owned(),
                source,
            })?;
        Ok(bytes)
    }
}

/// Writes what `file` holds when it is uncompressed to a spool file.
fn uncompress(
    file: File,
    max_bytes: u64,
    spool: impl FnOnce() -> io::Result<File>,
) -> io::Result<File> {
    let mut to = spool()?;
    let copied = io::copy(
        &mut decompress::reader(file)?.take(max_bytes.saturating_add(1)),
        &mut to,
    )?;
    if copied > max_bytes {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {max_bytes} bytes"),
        ));
    }
    Ok(to)
}

/// Where each member's data lies.
fn index(path: &Path, section: Section) -> Result<HashMap<String, Member>, Error> {
    let mut members = HashMap::new();
    let mut name_bytes = 0;
    let mut reader = tar::Reader::new(section);
    let archive = |source| Error::Archive {
        path: path.to_owned(),
        source,
    };
    let mut count = 0;
    while let Some(entry) = reader.next_entry().map_err(archive)? {
        name_bytes += entry.path.len() + entry.link.len();
        count += 1;
        if count > MAX_MEMBERS || name_bytes > MAX_NAME_BYTES {
            return Err(Error::TooManyMembers {
                path: path.to_owned(),
            });
        }
        let Some(name) = clean(&entry.path, "") else {
            continue;
        };
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let member = match entry.kind {
            tar::Kind::File => Some(Member::Data {
                offset: reader.position(),
                size: entry.size,
            }),
            tar::Kind::Symlink => clean(&entry.link, folder).map(Member::Link),
            tar::Kind::HardLink => clean(&entry.link, "").map(Member::Link),
            _ => None,
        };
        if let Some(member) = member {
            members.insert(name, member);
        }
    }
    Ok(members)
}

/// The name of a member without `.` and `..`, seen from `folder`; `None` when it leads out of the archive or is not text.
fn clean(name: &[u8], folder: &str) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let start = if name.starts_with('/') { "" } else { folder };
    let mut parts: Vec<&str> = Vec::new();
    for part in start.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
