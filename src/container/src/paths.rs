//! Paths inside a container's root, which its image may have filled with any symbolic link.
//!
//! Every lookup goes through `openat2(2)` with `RESOLVE_IN_ROOT`: an absolute link or a `..` stays in the root, and a
//! link of procfs that leads out is refused. What is made is made by descriptor, one component at a time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2, readlinkat};
use rustix::io::Errno;

/// As many symbolic links as the kernel itself follows.
const MAX_LINKS: u32 = 40;

/// The root directory of a container, held open.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

impl Root {
    /// Holds the directory at `path` of the caller's own files.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// The directory itself.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens what `path` names inside the root.
    pub(crate) fn lookup(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.lookup_with(path, flags, ResolveFlags::empty())
    }

    /// Opens what `path` names inside the root, if no component of it is a symbolic link.
    pub(crate) fn lookup_plain(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.lookup_with(path, flags, ResolveFlags::NO_SYMLINKS)
    }

    fn lookup_with(
        &self,
        path: &Path,
        flags: OFlags,
        more: ResolveFlags,
    ) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
        let flags = flags | OFlags::CLOEXEC;
        rustix::io::retry_on_intr(
            || match openat2(&self.0, path, flags, Mode::empty(), resolve) {
                // The kernel asks to try again when a rename happened meanwhile.
                Err(Errno::AGAIN) => Err(Errno::INTR),
                other => other,
            },
        )
    }

    /// Opens the directory `path`, making what is missing of it with mode 0755.
    pub(crate) fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.make(&normal(path), Kind::Directory, 0)
    }

    /// Opens what is at `path` as a place to mount a file on, making an empty file if there is nothing.
    pub(crate) fn file(&self, path: &Path) -> io::Result<OwnedFd> {
        self.make(&normal(path), Kind::File, 0)
    }

    fn make(&self, path: &Path, kind: Kind, links: u32) -> io::Result<OwnedFd> {
        let wanted = match kind {
            Kind::Directory => OFlags::PATH | OFlags::DIRECTORY,
            Kind::File => OFlags::PATH,
        };
        match self.lookup(path, wanted) {
            Err(Errno::NOENT) => {}
            Ok(found) if matches!(kind, Kind::File) && is_directory(&found)? => {
                return Err(Errno::ISDIR.into());
            }
            other => return Ok(other?),
        }
        if links >= MAX_LINKS {
            return Err(Errno::LOOP.into());
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::NOENT.into());
        };
        let parent_fd = self.make(parent, Kind::Directory, links)?;
        let made = match kind {
            Kind::Directory => mkdirat(&parent_fd, name, Mode::from_raw_mode(0o755)),
            Kind::File => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::WRONLY
                    | OFlags::CLOEXEC;
                rustix::fs::openat(&parent_fd, name, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
        };
        match made {
            Ok(()) => {
                let flags = wanted | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                Ok(rustix::fs::openat(&parent_fd, name, flags, Mode::empty())?)
            }
            // A link that leads nowhere yet: make what it names.
            Err(Errno::EXIST) => {
                let target = readlinkat(&parent_fd, name, Vec::new())?;
                let target = Path::new(std::ffi::OsStr::from_bytes(target.as_bytes()));
                self.make(&normal(&parent.join(target)), kind, links + 1)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the directory `path` for an API filesystem, making what is missing, and following no link at all.
    pub(crate) fn plain_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut current = rustix::io::fcntl_dupfd_cloexec(&self.0, 3)?;
        for component in normal(path).components() {
            let Component::Normal(name) = component else {
                continue;
            };
            match mkdirat(&current, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                // A read-only filesystem says so before it looks.
                Err(Errno::ROFS) => {}
                Err(error) => return Err(error.into()),
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            current = openat2(
                &current,
                name,
                flags,
                Mode::empty(),
                ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH,
            )
            .map_err(|e| if e == Errno::LOOP { Errno::NOTDIR } else { e })?;
        }
        Ok(current)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Directory,
    File,
}

/// Whether an open descriptor is a directory.
pub(crate) fn is_directory(fd: impl AsFd) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

/// `path` from the root, without `.` and `..`, which cannot climb above it.
pub(crate) fn normal(path: &Path) -> PathBuf {
    let mut result = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => {
                result.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("root")).unwrap();
        let root = Root::open(&directory.path().join("root")).unwrap();
        (directory, root)
    }

    #[test]
    fn a_link_out_of_the_root_is_followed_inside_it() {
        let (directory, root) = root();
        symlink("/etc", directory.path().join("root/conf")).unwrap();
        symlink("../../../../outside", directory.path().join("root/up")).unwrap();
        root.file(Path::new("/conf/made")).unwrap();
        root.directory(Path::new("/up/deep")).unwrap();
        assert!(directory.path().join("root/etc/made").is_file());
        assert!(directory.path().join("root/outside/deep").is_dir());
        assert!(!Path::new("/etc/made").exists());
    }

    #[test]
    fn links_in_a_circle_end() {
        let (directory, root) = root();
        symlink("b", directory.path().join("root/a")).unwrap();
        symlink("a", directory.path().join("root/b")).unwrap();
        assert!(root.directory(Path::new("/a/x")).is_err());
        assert!(root.file(Path::new("/a")).is_err());
    }

    #[test]
    fn an_api_filesystem_gets_a_real_directory_or_nothing() {
        let (directory, root) = root();
        symlink("/etc", directory.path().join("root/proc")).unwrap();
        std::fs::write(directory.path().join("root/sys"), "").unwrap();
        let not_a_directory = |path| {
            root.plain_directory(Path::new(path))
                .unwrap_err()
                .raw_os_error()
        };
        assert_eq!(not_a_directory("/proc"), Some(libc::ENOTDIR));
        assert_eq!(not_a_directory("/proc/x"), Some(libc::ENOTDIR));
        assert_eq!(not_a_directory("/sys"), Some(libc::ENOTDIR));
        root.plain_directory(Path::new("/dev/pts")).unwrap();
        assert!(directory.path().join("root/dev/pts").is_dir());
    }

    #[test]
    fn a_volume_of_a_file_does_not_land_on_a_directory() {
        let (_directory, root) = root();
        root.directory(Path::new("/data")).unwrap();
        assert_eq!(
            root.file(Path::new("/data")).unwrap_err().raw_os_error(),
            Some(libc::EISDIR)
        );
    }
}
