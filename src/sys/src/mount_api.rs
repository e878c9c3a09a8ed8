//! Mounts by descriptor: a thin layer over `fsopen(2)`, `open_tree(2)`, `move_mount(2)`, and `mount_setattr(2)`.
//!
//! No function here resolves a path inside a container's root: targets are descriptors that the caller opened with
//! `openat2(2)`, so that a symbolic link in an image cannot redirect a mount.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use rustix::path::Arg;

/// Attributes of a mount: `MOUNT_ATTR_*` of `include/uapi/linux/mount.h`.
pub use rustix::mount::MountAttrFlags as MountAttributes;

/// Makes a new filesystem of `kind` and a mount of it that is attached nowhere yet.
///
/// An option without `=` is set as a flag.
pub fn new_filesystem(
    kind: &str,
    source: &str,
    options: &[&str],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", source)?;
    for option in options {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(context.as_fd(), key, value)?,
            None => fsconfig_set_flag(context.as_fd(), *option)?,
        }
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// A detached copy of the mount (`recursive`: and of those below it) at `path` in the caller's own namespace.
pub fn copy_tree(path: impl Arg, recursive: bool) -> io::Result<OwnedFd> {
    Ok(open_tree(CWD, path, copy_flags(recursive))?)
}

/// A detached copy of the mount at what `fd` refers to.
pub fn copy_tree_of(fd: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    Ok(open_tree(
        fd,
        c"",
        copy_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH,
    )?)
}

fn copy_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags | OpenTreeFlags::AT_RECURSIVE
    } else {
        flags
    }
}

/// Attaches the detached `mount` on top of what `target` refers to.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, c"", target, c"", flags)?)
}

/// How mounts and unmounts travel between copies of a mount: `MS_*` of `include/uapi/linux/mount.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    Private,
    /// From the origin to the copy.
    Slave,
    /// Both ways.
    Shared,
}

/// `struct mount_attr`.
#[repr(C)]
#[derive(Debug, Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes attributes and propagation of the mount that `mount` refers to, `recursive`: and of all below it.
///
/// See [mount_setattr(2)](https://man7.org/linux/man-pages/man2/mount_setattr.2.html); needs Linux 5.12.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    set: MountAttrFlags,
    clear: MountAttrFlags,
    propagation: Option<Propagation>,
    recursive: bool,
) -> io::Result<()> {
    let attributes = MountAttr {
        attr_set: u64::from(set.bits()),
        attr_clr: u64::from(clear.bits()),
        propagation: match propagation {
            None => 0,
            Some(Propagation::Private) => libc::MS_PRIVATE,
            Some(Propagation::Slave) => libc::MS_SLAVE,
            Some(Propagation::Shared) => libc::MS_SHARED,
        },
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let path: &CStr = c"";
    // SAFETY: `path` is a C string and `attributes` a `mount_attr` of the size given; the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
