//! What a service's processes share among themselves and with nobody else: directories for `/tmp`, and namespaces.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use orlop_unit::Launch;
use rustix::fs::{Mode, OFlags, fstat};
use rustix::io::Errno;
use rustix::mount::mount_bind;

use crate::report::{During as _, Failure};

/// `NSFS_MAGIC` of `include/uapi/linux/magic.h`.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Makes the directories, or finds them.
pub(super) fn make(launch: &Launch) -> Result<(), Failure> {
    for path in launch.private_directories.iter().map(Path::new) {
        let step = || format!("make {}", path.display());
        let mut names = path.components().rev().map(|c| c.as_os_str());
        let (Some(unit), Some(all)) = (names.next(), names.next()) else {
            return Err(Failure::refused(step()));
        };
        let parent = path.ancestors().nth(2).unwrap_or(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut parent = rustix::fs::open(parent, flags, Mode::empty()).during(step)?;
        // Everybody may write to the first: what is found there has to be root's, and closed to others.
        for (name, mode) in [(all, 0o700), (unit, 0o700), (OsStr::new("tmp"), 0o1777)] {
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).during(step),
            }
            let made = rustix::fs::openat(&parent, name, flags, Mode::empty()).during(step)?;
            let found = fstat(&made).during(step)?;
            if found.st_uid != 0 || (mode == 0o700 && found.st_mode & 0o077 != 0) {
                return Err(Failure::refused(format!(
                    "{}: it is somebody else's",
                    step()
                )));
            }
            rustix::fs::fchmod(&made, Mode::from_raw_mode(mode)).during(step)?;
            parent = made;
        }
    }
    Ok(())
}

/// Enters the unit's namespace of a kind, `net` or `ipc`, making it with `prepare` when it is the first of its processes.
pub(super) fn enter(
    launch: &Launch,
    kind: &str,
    flag: CloneFlags,
    prepare: impl FnOnce() -> io::Result<()>,
) -> Result<(), Failure> {
    let step = || format!("enter the unit's own {kind} namespace");
    let path = PathBuf::from(format!("{}.{kind}", launch.namespaces));
    match open_namespace(&path).during(step)? {
        Some(namespace) => setns(namespace, flag).during(step),
        None => {
            unshare(flag).during(step)?;
            prepare().during(step)?;
            keep(kind, &path).during(step)
        }
    }
}

/// Enters the network namespace at `path`.
pub(super) fn enter_network(path: &str) -> Result<(), Failure> {
    let step = || format!("enter the network namespace {path}");
    let namespace = open_namespace(Path::new(path)).during(step)?;
    let Some(namespace) = namespace else {
        return Err(Failure::refused(format!("{}: there is none", step())));
    };
    setns(namespace, CloneFlags::CLONE_NEWNET).during(step)
}

fn open_namespace(path: &Path) -> io::Result<Option<OwnedFd>> {
    let opened = match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened?,
    };
    let is_one = rustix::fs::fstatfs(&opened)?.f_type == NSFS_MAGIC;
    Ok(is_one.then_some(opened))
}

fn keep(kind: &str, path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC;
    drop(rustix::fs::open(path, flags, Mode::empty())?);
    Ok(mount_bind(format!("/proc/self/ns/{kind}"), path)?)
}
