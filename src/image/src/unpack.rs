//! Applies one layer's tar to a directory of its own, in the form that overlayfs stacks.
//!
//! The rules are those of image-spec, layer.md, "Applying Changesets", with removals kept as overlayfs' marks: `.wh.NAME`
//! becomes a character device 0:0, `.wh..wh..opq` the attribute `trusted.overlay.opaque=y` (kernel,
//! Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use crate::limits::Limits;
use crate::tar::{self, Entry, Kind, Skip};
use crate::tree::{self, Attributes, Present, Tree};

/// The longest name of one directory entry (`NAME_MAX`, include/uapi/linux/limits.h).
const MAX_NAME_BYTES: usize = 255;
/// How much is copied at a time.
const COPY_BYTES: usize = 128 * 1024;
/// How much may be written between two looks at the free space.
const SPACE_CHECK_BYTES: u64 = 16 << 20;
/// How many entries may be made between two looks at the free space.
const SPACE_CHECK_ENTRIES: u64 = 4096;
/// How many inodes an import leaves free, where a file system counts them.
const RESERVE_INODES: u64 = 1024;

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tar stream is broken.
    #[error(transparent)]
    Tar(#[from] tar::Error),
    /// An entry's path cannot be one in an image.
    #[error("entry {path:?}: {reason}")]
    Refused {
        /// As it stands in the archive.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More entries than [`Limits::entries`].
    #[error("more than {limit} entries")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// The entry's data cannot be read.
    #[error("cannot read the data of {path:?}")]
    Read {
        /// As it stands in the archive.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The entry's data cannot be written.
    #[error("cannot write {path:?}")]
    Write {
        /// As it stands in the archive.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The entry cannot be made.
    #[error("cannot make {path:?}")]
    Make {
        /// As it stands in the archive.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The target of a hard link is not there, or cannot be linked to.
    #[error("cannot link {path:?} to {target:?}")]
    Link {
        /// As it stands in the archive.
        path: String,
        /// The target, as it stands in the archive.
        target: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Owner, mode, times or extended attributes cannot be set.
    #[error("cannot set owner, mode and attributes of {path:?}")]
    Attributes {
        /// As it stands in the archive.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file system is nearly full.
    #[error(
        "no room: {free_bytes} bytes and {free_inodes} inodes are free, and {reserve_bytes} and {RESERVE_INODES} must stay free"
    )]
    NoRoom {
        /// What the file system has left.
        free_bytes: u64,
        /// What must stay free.
        reserve_bytes: u64,
        /// Inodes left.
        free_inodes: u64,
    },
    /// The list of directory times cannot be kept.
    #[error("cannot keep the directories' times")]
    Times(#[source] io::Error),
}

/// What a layer came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Entries in the tar.
    pub entries: u64,
    /// Bytes of file data written.
    pub bytes: u64,
}

/// Unpacks what `reader` yields into the empty directory `root`. `lowers` are the layers under it, lowest first; `spool` is
/// an empty file of no name, for what must wait until the end.
///
/// # Errors
/// At the first entry that is refused or fails; what was made until then stays, for the caller to remove.
pub fn unpack<R: Skip>(
    reader: &mut tar::Reader<R>,
    root: OwnedFd,
    lowers: &[OwnedFd],
    spool: File,
    limits: &Limits,
) -> Result<Summary, Error> {
    let mut unpacking = Unpacking {
        tree: Tree::new(root, lowers),
        limits,
        times: Times(BufWriter::new(spool)),
        buffer: vec![0; COPY_BYTES],
        opaque_root: false,
        summary: Summary::default(),
        bytes_at_check: 0,
    };
    unpacking.start()?;
    while let Some(entry) = reader.next_entry()? {
        unpacking.summary.entries += 1;
        if unpacking.summary.entries > limits.entries {
            return Err(Error::TooManyEntries {
                limit: limits.entries,
            });
        }
        if unpacking
            .summary
            .entries
            .is_multiple_of(SPACE_CHECK_ENTRIES)
        {
            unpacking.check_space()?;
        }
        unpacking.entry(&entry, reader)?;
    }
    unpacking.finish()
}

struct Unpacking<'a> {
    tree: Tree<'a>,
    limits: &'a Limits,
    times: Times,
    buffer: Vec<u8>,
    opaque_root: bool,
    summary: Summary,
    bytes_at_check: u64,
}

/// What a name beginning with `.wh.` asks for.
enum Marker<'a> {
    /// No marker: an ordinary name.
    None,
    /// The layers' directories of this path are hidden.
    Opaque,
    /// The lower entry of this name is gone.
    Whiteout(&'a [u8]),
    /// AUFS' own bookkeeping, which old Docker versions left in layers.
    Aufs,
}

impl Unpacking<'_> {
    /// The root has no entry in most layers; like any directory without one, it keeps what it is below.
    fn start(&mut self) -> Result<(), Error> {
        self.check_space()?;
        let root = self.tree.directory(b"").map_err(|source| Error::Make {
            path: "/".to_owned(),
            source,
        })?;
        let attributes = self.tree.inherited(b"").unwrap_or(Attributes {
            mode: 0o755,
            ..Attributes::default()
        });
        self.set_directory(&root, b"", "/", &attributes)
    }

    fn entry<R: Skip>(&mut self, entry: &Entry, data: &mut tar::Reader<R>) -> Result<(), Error> {
        let parts = parts_of(&entry.path, self.limits)?;
        let shown = || shown(&entry.path);
        let attributes = attributes_of(entry)?;
        let Some((name, folders)) = parts.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(refused(&entry.path, "the root of an image is a directory"));
            }
            let root = self.tree.directory(b"").map_err(|source| Error::Make {
                path: shown(),
                source,
            })?;
            return self.set_directory(&root, b"", &shown(), &attributes);
        };
        if folders.iter().any(|folder| folder.starts_with(b".wh..wh.")) {
            return Ok(());
        }
        if folders.iter().any(|folder| folder.starts_with(b".wh.")) {
            return Err(refused(&entry.path, "a whiteout holds nothing"));
        }
        let marker = marker_of(name, entry)?;
        if matches!(marker, Marker::Aufs) {
            return Ok(());
        }
        let parent = self
            .tree
            .make_directories(folders)
            .map_err(|source| Error::Make {
                path: shown(),
                source,
            })?;
        self.note_implied()?;
        match marker {
            Marker::Opaque if folders.is_empty() => self.opaque_root = true,
            Marker::Opaque => {
                self.tree
                    .mark_opaque(&parent)
                    .map_err(|source| Error::Make {
                        path: shown(),
                        source,
                    })?;
            }
            Marker::Whiteout(target) => {
                let path = [folders, &[target]].concat().join(&b'/');
                self.whiteout(&parent, target, &path)
                    .map_err(|source| Error::Make {
                        path: shown(),
                        source,
                    })?;
            }
            Marker::Aufs => {}
            // Overlayfs takes such a device for a whiteout wherever it comes from, so it may as well be one.
            Marker::None if entry.kind == Kind::Character && entry.device == (0, 0) => {
                self.whiteout(&parent, name, &parts.join(&b'/'))
                    .map_err(|source| Error::Make {
                        path: shown(),
                        source,
                    })?;
            }
            Marker::None => self.place(entry, &parts, &parent, name, &attributes, data)?,
        }
        Ok(())
    }

    /// Hides the lower `target`. It never touches what this layer itself has there, in whichever order they come.
    fn whiteout(&mut self, parent: &OwnedFd, target: &[u8], path: &[u8]) -> io::Result<()> {
        match tree::present(parent, target)? {
            Present::Nothing if self.tree.exists_below(path) => tree::make_whiteout(parent, target),
            Present::Directory => self
                .tree
                .mark_opaque(&tree::open_directory(parent, target)?),
            Present::Nothing | Present::Whiteout | Present::Other => Ok(()),
        }
    }

    fn place<R: Skip>(
        &mut self,
        entry: &Entry,
        parts: &[&[u8]],
        parent: &OwnedFd,
        name: &[u8],
        attributes: &Attributes,
        data: &mut tar::Reader<R>,
    ) -> Result<(), Error> {
        let make = |source| Error::Make {
            path: shown(&entry.path),
            source,
        };
        // The target must be looked up before its new name is cleared.
        let target = match entry.kind {
            Kind::HardLink => Some(self.link_target(entry)?),
            _ => None,
        };
        let present = tree::present(parent, name).map_err(make)?;
        match (entry.kind, present) {
            (_, Present::Nothing) | (Kind::Directory, Present::Directory) => {}
            (Kind::Directory, Present::Whiteout) => {
                self.tree
                    .replace_whiteout_by_directory(parent, name)
                    .map_err(make)?;
            }
            _ => tree::remove(parent, name, present).map_err(make)?,
        }
        let set = |source| Error::Attributes {
            path: shown(&entry.path),
            source,
        };
        match entry.kind {
            Kind::Directory => {
                if matches!(present, Present::Nothing | Present::Other) {
                    tree::make_directory(parent, name).map_err(make)?;
                }
                let directory = tree::open_directory(parent, name).map_err(make)?;
                return self.set_directory(
                    &directory,
                    &parts.join(&b'/'),
                    &shown(&entry.path),
                    attributes,
                );
            }
            Kind::File => self.file(entry, parent, name, attributes, data)?,
            Kind::HardLink => {
                let Some((directory, target_name)) = target else {
                    return Ok(());
                };
                rustix::fs::linkat(
                    &directory,
                    target_name.as_slice(),
                    parent,
                    name,
                    AtFlags::empty(),
                )
                .map_err(|err| link_error(entry, err.into()))?;
            }
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(refused(&entry.path, "a symbolic link without a target"));
                }
                rustix::fs::symlinkat(entry.link.as_slice(), parent, name)
                    .map_err(|err| make(err.into()))?;
                self.tree
                    .set_attributes_at(parent, name, true, attributes)
                    .map_err(set)?;
            }
            Kind::Fifo => {
                rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::RUSR, 0)
                    .map_err(|err| make(err.into()))?;
                self.tree
                    .set_attributes_at(parent, name, false, attributes)
                    .map_err(set)?;
            }
            Kind::Character | Kind::Block => {
                let kind = match entry.kind {
                    Kind::Block => FileType::BlockDevice,
                    _ => FileType::CharacterDevice,
                };
                if self
                    .tree
                    .make_device(parent, name, kind, entry.device)
                    .map_err(make)?
                {
                    self.tree
                        .set_attributes_at(parent, name, false, attributes)
                        .map_err(set)?;
                } else {
                    log::warn!(
                        "device {:?} of the image is left out: only root can make it",
                        shown(&entry.path)
                    );
                }
            }
        }
        Ok(())
    }

    fn file<R: Skip>(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &[u8],
        attributes: &Attributes,
        data: &mut tar::Reader<R>,
    ) -> Result<(), Error> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(|err| {
                Error::Make {
                    path: shown(&entry.path),
                    source: err.into(),
                }
            })?;
        let mut file = File::from(fd);
        self.copy(entry, data, &mut file)?;
        let fd = OwnedFd::from(file);
        self.tree
            .set_attributes(&fd, attributes)
            .and_then(|()| tree::set_times(&fd, attributes.mtime_s, attributes.mtime_ns))
            .map_err(|source| Error::Attributes {
                path: shown(&entry.path),
                source,
            })
    }

    fn copy(&mut self, entry: &Entry, from: &mut impl Read, to: &mut File) -> Result<(), Error> {
        loop {
            let count = match from.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(Error::Read {
                        path: shown(&entry.path),
                        source,
                    });
                }
            };
            to.write_all(self.buffer.get(..count).unwrap_or_default())
                .map_err(|source| Error::Write {
                    path: shown(&entry.path),
                    source,
                })?;
            self.summary.bytes += count as u64;
            if self.summary.bytes - self.bytes_at_check >= SPACE_CHECK_BYTES {
                self.check_space()?;
            }
        }
    }

    /// The directory and name that a hard link's target has in this layer; a lower file is copied up first, as overlayfs
    /// does when a container links it.
    fn link_target(&mut self, entry: &Entry) -> Result<(OwnedFd, Vec<u8>), Error> {
        let parts = parts_of(&entry.link, self.limits)?;
        let Some((name, folders)) = parts.split_last() else {
            return Err(refused(&entry.path, "a hard link to the root"));
        };
        if parts_of(&entry.path, self.limits)? == parts {
            return Err(refused(&entry.path, "a hard link to itself"));
        }
        let directory = match self.tree.directory(&folders.join(&b'/')) {
            Ok(directory) => Some(directory),
            Err(err) if err.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(link_error(entry, source)),
        };
        let present = match &directory {
            Some(directory) => {
                tree::present(directory, name).map_err(|source| link_error(entry, source))?
            }
            None => Present::Nothing,
        };
        match (directory, present) {
            (Some(directory), Present::Other) => Ok((directory, name.to_vec())),
            (_, Present::Nothing) => {
                let Some((file, attributes)) = self.tree.file_below(&parts.join(&b'/')) else {
                    return Err(link_error(entry, io::ErrorKind::NotFound.into()));
                };
                let directory = self
                    .tree
                    .make_directories(folders)
                    .map_err(|source| link_error(entry, source))?;
                self.note_implied()?;
                self.copy_up(entry, file, &attributes, &directory, name)?;
                Ok((directory, name.to_vec()))
            }
            _ => Err(refused(
                &entry.path,
                "a hard link to a directory or to a removed file",
            )),
        }
    }

    fn copy_up(
        &mut self,
        entry: &Entry,
        mut from: File,
        attributes: &Attributes,
        parent: &OwnedFd,
        name: &[u8],
    ) -> Result<(), Error> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|err| link_error(entry, err.into()))?;
        let mut file = File::from(fd);
        self.copy(entry, &mut from, &mut file)?;
        let fd = OwnedFd::from(file);
        self.tree
            .set_attributes(&fd, attributes)
            .and_then(|()| tree::set_times(&fd, attributes.mtime_s, attributes.mtime_ns))
            .map_err(|source| link_error(entry, source))
    }

    /// Attributes now, times when nothing is put into it any more.
    fn set_directory(
        &mut self,
        directory: &OwnedFd,
        path: &[u8],
        shown: &str,
        attributes: &Attributes,
    ) -> Result<(), Error> {
        self.tree
            .set_attributes(directory, attributes)
            .map_err(|source| Error::Attributes {
                path: shown.to_owned(),
                source,
            })?;
        self.times.add(path, attributes).map_err(Error::Times)
    }

    fn note_implied(&mut self) -> Result<(), Error> {
        for (path, attributes) in self.tree.implied.drain(..) {
            self.times.add(&path, &attributes).map_err(Error::Times)?;
        }
        Ok(())
    }

    fn check_space(&mut self) -> Result<(), Error> {
        self.bytes_at_check = self.summary.bytes;
        let stat = rustix::fs::fstatvfs(self.tree.root()).map_err(|err| Error::Make {
            path: "/".to_owned(),
            source: err.into(),
        })?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        let reserve_bytes = self
            .limits
            .reserve_bytes
            .min(stat.f_blocks.saturating_mul(stat.f_frsize) / 20);
        let inodes_low = stat.f_files > 2 * RESERVE_INODES && stat.f_favail < RESERVE_INODES;
        if free_bytes < reserve_bytes || inodes_low {
            return Err(Error::NoRoom {
                free_bytes,
                reserve_bytes,
                free_inodes: stat.f_favail,
            });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Summary, Error> {
        if self.opaque_root {
            self.hide_everything_below().map_err(|source| Error::Make {
                path: "/".to_owned(),
                source,
            })?;
        }
        self.times.set_all(&self.tree).map_err(Error::Times)?;
        Ok(self.summary)
    }

    fn hide_everything_below(&mut self) -> io::Result<()> {
        let root = self.tree.directory(b"")?;
        for name in self.tree.top_names_below()? {
            self.whiteout(&root, &name, &name)?;
        }
        Ok(())
    }
}

/// Directories' times, kept on disk until the end: a layer may have more directories than should be kept in memory.
///
/// Each record is the seconds (8 bytes), nanoseconds (4) and length of the path (2), little-endian, and the path.
struct Times(BufWriter<File>);

impl Times {
    fn add(&mut self, path: &[u8], attributes: &Attributes) -> io::Result<()> {
        let length =
            u16::try_from(path.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.0.write_all(&attributes.mtime_s.to_le_bytes())?;
        self.0.write_all(&attributes.mtime_ns.to_le_bytes())?;
        self.0.write_all(&length.to_le_bytes())?;
        self.0.write_all(path)
    }

    fn set_all(self, tree: &Tree<'_>) -> io::Result<()> {
        let mut file = self
            .0
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        let mut records = BufReader::new(file);
        let mut head = [0; 14];
        let mut path = Vec::new();
        loop {
            match records.read_exact(&mut head) {
                Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                result => result?,
            }
            let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, l0, l1] = head;
            path.resize(usize::from(u16::from_le_bytes([l0, l1])), 0);
            records.read_exact(&mut path)?;
            // A later entry may have put something else in its place.
            let Ok(directory) = tree.directory(&path) else {
                continue;
            };
            let mtime_s = i64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            tree::set_times(&directory, mtime_s, u32::from_le_bytes([n0, n1, n2, n3]))?;
        }
    }
}

/// The components of a path in the archive; those of an absolute one are taken from the root of the tree.
fn parts_of<'p>(path: &'p [u8], limits: &Limits) -> Result<Vec<&'p [u8]>, Error> {
    if path.is_empty() {
        return Err(refused(path, "an entry without a name"));
    }
    let mut parts = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(refused(path, "the path leads upwards (\"..\")")),
            part if part.len() > MAX_NAME_BYTES => {
                return Err(refused(path, "a name longer than 255 bytes"));
            }
            part => parts.push(part),
        }
    }
    if parts.len() > limits.path_depth {
        return Err(refused(path, "the path is too deep"));
    }
    Ok(parts)
}

fn marker_of<'n>(name: &'n [u8], entry: &Entry) -> Result<Marker<'n>, Error> {
    let Some(target) = name.strip_prefix(b".wh.") else {
        return Ok(Marker::None);
    };
    match target {
        b".wh..opq" => Ok(Marker::Opaque),
        _ if target.starts_with(b".wh.") => Ok(Marker::Aufs),
        b"" | b"." | b".." => Err(refused(
            &entry.path,
            "a whiteout of no name, or of a whole directory",
        )),
        _ if entry.kind != Kind::File => {
            Err(refused(&entry.path, "a whiteout that is no regular file"))
        }
        target => Ok(Marker::Whiteout(target)),
    }
}

fn attributes_of(entry: &Entry) -> Result<Attributes, Error> {
    if entry
        .xattrs
        .iter()
        .any(|(name, _)| tree::is_overlay_mark(name))
    {
        return Err(refused(
            &entry.path,
            "it carries an attribute that steers overlayfs",
        ));
    }
    Ok(Attributes {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime_s: entry.mtime_s,
        mtime_ns: entry.mtime_ns,
        xattrs: entry.xattrs.clone(),
    })
}

fn refused(path: &[u8], reason: &'static str) -> Error {
    Error::Refused {
        path: shown(path),
        reason,
    }
}

fn link_error(entry: &Entry, source: io::Error) -> Error {
    Error::Link {
        path: shown(&entry.path),
        target: shown(&entry.link),
        source,
    }
}

/// A path for messages, not longer than a line.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}
