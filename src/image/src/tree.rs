//! A directory tree that an image's entries are put into, and that nothing in them can lead out of.
//!
//! Every path is resolved by the kernel inside the tree's root (`openat2(2)`, `RESOLVE_IN_ROOT`), so a symbolic link of the
//! image, whatever it points at, ends within. The last component is never followed.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags, makedev,
};
use rustix::io::Errno;

/// How often a resolution is tried again that some rename elsewhere on the machine disturbed (`openat2(2)`, EAGAIN).
const RESOLVE_TRIES: u32 = 64;
/// The largest extended attribute, and the largest list of their names (`XATTR_SIZE_MAX`, include/uapi/linux/limits.h).
const XATTR_BYTES: usize = 65_536;

/// Owner, mode, times and extended attributes of one entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission bits with set-id and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_s: i64,
    pub(crate) mtime_ns: u32,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What stands at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Present {
    Nothing,
    Directory,
    /// A character device 0:0, overlayfs' mark that a lower name is gone.
    Whiteout,
    Other,
}

/// A tree being filled. `lowers` are the trees under it, lowest first.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    root: OwnedFd,
    lowers: &'a [OwnedFd],
    /// Owners and devices can be made as they are in the archive.
    privileged: bool,
    /// Directories that had to be made without an entry of their own, for their times.
    pub(crate) implied: Vec<(Vec<u8>, Attributes)>,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(root: OwnedFd, lowers: &'a [OwnedFd]) -> Self {
        Self {
            root,
            lowers,
            privileged: rustix::process::geteuid().is_root(),
            implied: Vec::new(),
        }
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.root.as_fd()
    }

    /// The name of overlayfs' mark that a directory hides those under it; unprivileged mounts have their own.
    pub(crate) fn opaque_name(&self) -> &'static str {
        if self.privileged {
            "trusted.overlay.opaque"
        } else {
            "user.overlay.opaque"
        }
    }

    /// Opens directory `path` (no `..`, relative, empty for the root), links resolved inside the tree.
    pub(crate) fn directory(&self, path: &[u8]) -> io::Result<OwnedFd> {
        open_in(&self.root, path)
    }

    /// Opens the directory of components `parts`, making those that are missing.
    ///
    /// A directory without an entry gets the attributes that it has in the layers below, since in an overlay the upper
    /// directory's attributes are the ones that count.
    pub(crate) fn make_directories(&mut self, parts: &[&[u8]]) -> io::Result<OwnedFd> {
        match self.directory(&parts.join(&b'/')) {
            Err(err)
                if matches!(
                    err.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            result => return result,
        }
        let mut current = self.directory(b"")?;
        for (depth, name) in parts.iter().enumerate() {
            let path = parts.get(..=depth).unwrap_or_default().join(&b'/');
            match self.directory(&path) {
                Ok(next) => {
                    current = next;
                    continue;
                }
                Err(err) if err.kind() == io::ErrorKind::NotFound => {
                    make_directory(&current, name)?;
                    let next = open_directory(&current, name)?;
                    let attributes = self
                        .inherited(&path)
                        .unwrap_or_else(Attributes::of_new_directory);
                    self.set_attributes(&next, &attributes)?;
                    self.implied.push((path, attributes));
                    current = next;
                }
                Err(err) if err.kind() == io::ErrorKind::NotADirectory => {
                    if present(&current, name)? != Present::Whiteout {
                        return Err(err);
                    }
                    // The name was removed and made anew by one layer: nothing below shines through.
                    self.replace_whiteout_by_directory(&current, name)?;
                    current = open_directory(&current, name)?;
                    self.set_attributes(&current, &Attributes::of_new_directory())?;
                }
                Err(err) => return Err(err),
            }
        }
        Ok(current)
    }

    /// Puts an opaque directory where a whiteout stands.
    pub(crate) fn replace_whiteout_by_directory(
        &self,
        parent: &OwnedFd,
        name: &[u8],
    ) -> io::Result<()> {
        rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
        make_directory(parent, name)?;
        self.mark_opaque(&open_directory(parent, name)?)
    }

    /// Marks a directory as hiding what is under it.
    pub(crate) fn mark_opaque(&self, directory: &OwnedFd) -> io::Result<()> {
        Ok(rustix::fs::fsetxattr(
            directory,
            self.opaque_name(),
            b"y",
            XattrFlags::empty(),
        )?)
    }

    /// Owner, mode and extended attributes of an open file or directory; times are set last, by [`set_times`].
    pub(crate) fn set_attributes(&self, fd: &OwnedFd, attributes: &Attributes) -> io::Result<()> {
        // Order matters: a change of owner clears set-id bits and file capabilities.
        if self.privileged {
            rustix::fs::fchown(
                fd,
                Some(Uid::from_raw(attributes.uid)),
                Some(Gid::from_raw(attributes.gid)),
            )?;
        }
        rustix::fs::fchmod(fd, Mode::from_raw_mode(attributes.mode))?;
        for (name, value) in &attributes.xattrs {
            tolerate(
                name,
                rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()),
            )?;
        }
        Ok(())
    }

    /// The same, times included, for what cannot be opened: links, devices, pipes.
    pub(crate) fn set_attributes_at(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        is_symlink: bool,
        attributes: &Attributes,
    ) -> io::Result<()> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        if self.privileged {
            let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
            rustix::fs::chownat(parent, name, Some(uid), Some(gid), nofollow)?;
        }
        if !is_symlink {
            rustix::fs::chmodat(
                parent,
                name,
                Mode::from_raw_mode(attributes.mode),
                AtFlags::empty(),
            )?;
        }
        if !attributes.xattrs.is_empty() {
            let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
            path.extend_from_slice(name);
            for (name, value) in &attributes.xattrs {
                let set = rustix::fs::lsetxattr(
                    path.as_slice(),
                    name.as_slice(),
                    value,
                    XattrFlags::empty(),
                );
                tolerate(name, set)?;
            }
        }
        Ok(rustix::fs::utimensat(
            parent,
            name,
            &attributes.timestamps(),
            nofollow,
        )?)
    }

    /// Makes a device node. Without privilege it is left out: the result is `false`.
    pub(crate) fn make_device(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> io::Result<bool> {
        if !self.privileged {
            return Ok(false);
        }
        rustix::fs::mknodat(parent, name, kind, Mode::RUSR, makedev(major, minor))?;
        Ok(true)
    }

    /// The attributes of directory `path` in the layers below, if it is one there.
    pub(crate) fn inherited(&self, path: &[u8]) -> Option<Attributes> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let path = if path.is_empty() { b"." } else { path };
        for lower in self.lowers.iter().rev() {
            match rustix::fs::openat2(lower, path, flags, Mode::empty(), resolve) {
                Ok(fd) => return Attributes::of(&fd).ok(),
                Err(Errno::NOENT) => {}
                // A whiteout, a file or a link on the way: what lies further down is hidden.
                Err(_) => return None,
            }
        }
        None
    }

    /// Whether some layer below has anything at `path`. In doubt it has: a whiteout too many hides nothing that is there.
    pub(crate) fn exists_below(&self, path: &[u8]) -> bool {
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        self.lowers.iter().any(|lower| {
            match rustix::fs::openat2(lower, path, flags, Mode::empty(), resolve) {
                Ok(fd) => rustix::fs::fstat(&fd)
                    .map_or(true, |stat| Present::of(&stat) != Present::Whiteout),
                Err(err) => !matches!(err, Errno::NOENT | Errno::NOTDIR),
            }
        })
    }

    /// Names at the top of the layers below, for an opaque root: overlayfs does not heed the mark there.
    pub(crate) fn top_names_below(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for lower in self.lowers {
            let directory = open_directory(lower, b".")?;
            for entry in rustix::fs::Dir::read_from(&directory)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if !matches!(name.as_slice(), b"." | b"..") && !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }

    /// A regular file below at `path`, to be copied up before it gets another name.
    pub(crate) fn file_below(&self, path: &[u8]) -> Option<(File, Attributes)> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        for lower in self.lowers.iter().rev() {
            match rustix::fs::openat2(lower, path, flags, Mode::empty(), resolve) {
                Ok(fd) => {
                    let stat = rustix::fs::fstat(&fd).ok()?;
                    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                        return None;
                    }
                    let attributes = Attributes::of(&fd).ok()?;
                    return Some((File::from(fd), attributes));
                }
                Err(Errno::NOENT) => {}
                Err(_) => return None,
            }
        }
        None
    }
}

impl Attributes {
    fn of_new_directory() -> Self {
        Self {
            mode: 0o755,
            ..Self::default()
        }
    }

    /// Reads them from an open file. Overlayfs' own marks are left out.
    fn of(fd: &OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(fd)?;
        let mut names = vec![0; XATTR_BYTES];
        let count = match rustix::fs::flistxattr(fd, names.as_mut_slice()) {
            Ok(count) => count,
            Err(Errno::NOTSUP) => 0,
            Err(err) => return Err(err.into()),
        };
        let mut xattrs = Vec::new();
        let mut value = vec![0; XATTR_BYTES];
        for name in names.get(..count).unwrap_or_default().split(|&b| b == 0) {
            if name.is_empty() || is_overlay_mark(name) {
                continue;
            }
            let length = rustix::fs::fgetxattr(fd, name, value.as_mut_slice())?;
            xattrs.push((
                name.to_vec(),
                value.get(..length).unwrap_or_default().to_vec(),
            ));
        }
        Ok(Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_s: stat.st_mtime,
            mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            xattrs,
        })
    }

    fn timestamps(&self) -> Timestamps {
        timestamps(self.mtime_s, self.mtime_ns)
    }
}

impl Present {
    fn of(stat: &Stat) -> Self {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Self::Directory,
            FileType::CharacterDevice if stat.st_rdev == 0 => Self::Whiteout,
            _ => Self::Other,
        }
    }
}

/// Whether an extended attribute steers overlayfs, privileged or not.
pub(crate) fn is_overlay_mark(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// What stands at `name` in `parent`.
pub(crate) fn present(parent: &OwnedFd, name: &[u8]) -> io::Result<Present> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Present::of(&stat)),
        Err(Errno::NOENT) => Ok(Present::Nothing),
        Err(err) => Err(err.into()),
    }
}

/// Makes a directory that only its owner can enter; its mode comes with its other attributes.
pub(crate) fn make_directory(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(parent, name, Mode::RWXU)?)
}

/// Opens the directory `name` itself, never through a link.
pub(crate) fn open_directory(parent: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Makes the whiteout that hides a lower `name`.
pub(crate) fn make_whiteout(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::mknodat(
        parent,
        name,
        FileType::CharacterDevice,
        Mode::empty(),
        makedev(0, 0),
    )?)
}

/// Removes whatever stands at `name`, directories with all they hold.
pub(crate) fn remove(parent: &OwnedFd, name: &[u8], present: Present) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    if present == Present::Directory {
        let path = std::path::Path::new("/proc/self/fd")
            .join(parent.as_raw_fd().to_string())
            .join(std::ffi::OsStr::from_bytes(name));
        return std::fs::remove_dir_all(path);
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?)
}

/// Sets the times of an open file or directory.
pub(crate) fn set_times(fd: &OwnedFd, mtime_s: i64, mtime_ns: u32) -> io::Result<()> {
    Ok(rustix::fs::futimens(fd, &timestamps(mtime_s, mtime_ns))?)
}

fn timestamps(mtime_s: i64, mtime_ns: u32) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime_s,
        tv_nsec: i64::from(mtime_ns),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn open_in(root: &OwnedFd, path: &[u8]) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if tries < RESOLVE_TRIES => tries += 1,
            result => return Ok(result?),
        }
    }
}

/// A file system without this class of attributes cannot keep it, and no tool treats that as an error.
fn tolerate(name: &[u8], set: rustix::io::Result<()>) -> io::Result<()> {
    match set {
        Err(Errno::NOTSUP) => {
            log::warn!(
                "the image store's file system cannot keep the attribute {:?}",
                String::from_utf8_lossy(name)
            );
            Ok(())
        }
        Err(err) if err == Errno::PERM && name.starts_with(b"user.") => Ok(()),
        result => Ok(result?),
    }
}
