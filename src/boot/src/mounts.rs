//! The kernel's own filesystems: the table of all, and the part that the initramfs stage mounts and the root finds moved.

use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkdir;
use thiserror::Error;

use crate::index::Index;

/// A filesystem that could not be mounted, or a directory for it that could not be made.
#[derive(Debug, Error)]
pub enum MountError {
    /// The directory.
    #[error("cannot make directory {path}")]
    Directory {
        /// The directory.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The filesystem.
    #[error("cannot mount {filesystem} on {target}")]
    Mount {
        /// Its type.
        filesystem: &'static str,
        /// Where.
        target: &'static str,
        /// Why.
        #[source]
        source: nix::errno::Errno,
    },
}

/// A filesystem of the kernel's own, and where it belongs.
#[derive(Debug, Clone, Copy)]
pub struct Api {
    /// Where it is mounted.
    pub target: &'static str,
    /// Its type.
    pub filesystem: &'static str,
    /// Its flags.
    pub flags: MsFlags,
    /// Its options.
    pub data: &'static str,
    /// Who mounts it.
    pub when: When,
}

/// Who mounts an [`Api`] filesystem, and whether a machine can be without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The initramfs stage, which takes it along; `init` where there was no such stage.
    Early,
    /// `init`.
    Late,
    /// `init`, where the kernel has it.
    Optional,
}

const NOSUID_NODEV: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const NOSUID_NODEV_NOEXEC: MsFlags = NOSUID_NODEV.union(MsFlags::MS_NOEXEC);

const fn api(
    target: &'static str,
    filesystem: &'static str,
    flags: MsFlags,
    data: &'static str,
    when: When,
) -> Api {
    Api {
        target,
        filesystem,
        flags,
        data,
        when,
    }
}

/// Every filesystem of the kernel's own, those first that others lie in.
#[rustfmt::skip]
pub const API: &[Api] = &[
    api("/proc", "proc", NOSUID_NODEV_NOEXEC, "", When::Early),
    api("/sys", "sysfs", NOSUID_NODEV_NOEXEC, "", When::Early),
    // Not noexec: programs map /dev/zero executable.
    api("/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=755", When::Early),
    api("/run", "tmpfs", NOSUID_NODEV, "mode=755,size=20%,nr_inodes=200k", When::Early),
    // 5 is the group tty; programs open /dev/ptmx, which devpts answers for when it is in a directory beside it.
    api("/dev/pts", "devpts", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "gid=5,mode=620,ptmxmode=666", When::Late),
    api("/dev/shm", "tmpfs", NOSUID_NODEV, "mode=1777,size=50%", When::Late),
    api("/tmp", "tmpfs", NOSUID_NODEV, "mode=1777,size=50%,nr_inodes=1m", When::Late),
    api("/sys/fs/cgroup", "cgroup2", NOSUID_NODEV_NOEXEC, "nsdelegate,memory_recursiveprot", When::Late),
    api("/dev/mqueue", "mqueue", NOSUID_NODEV_NOEXEC, "", When::Optional),
    api("/dev/hugepages", "hugetlbfs", NOSUID_NODEV_NOEXEC, "", When::Optional),
    api("/sys/fs/bpf", "bpf", NOSUID_NODEV_NOEXEC, "mode=700", When::Optional),
    api("/sys/kernel/security", "securityfs", NOSUID_NODEV_NOEXEC, "", When::Optional),
    api("/sys/kernel/tracing", "tracefs", NOSUID_NODEV_NOEXEC, "", When::Optional),
    api("/sys/fs/pstore", "pstore", NOSUID_NODEV_NOEXEC, "", When::Optional),
];

fn early() -> impl Iterator<Item = &'static Api> {
    API.iter().filter(|api| api.when == When::Early)
}

/// The targets of [`mount_api`]: what the switch of root takes along.
pub(crate) fn api_targets() -> impl Iterator<Item = &'static str> {
    early().map(|api| api.target)
}

/// Mounts `/proc`, `/sys`, `/dev`, `/run` and makes `/run/orlop`.
pub(crate) fn mount_api() -> Result<(), MountError> {
    for api in early() {
        directory(api.target)?;
        mount_one(api)?;
    }
    directory("/run/orlop")
}

/// Mounts one filesystem on its directory, which has to be there.
///
/// # Errors
/// What mount(2) gives, with the filesystem and the target.
pub fn mount_one(api: &Api) -> Result<(), MountError> {
    // The kernel would have modprobe look for a module that shows programs for debugging in it, and wait (kernel/bpf/inode.c).
    let _quiet = (api.filesystem == "bpf").then(NoModules::begin).flatten();
    mount(
        Some(api.filesystem),
        api.target,
        Some(api.filesystem),
        api.flags,
        Some(api.data),
    )
    .map_err(|source| MountError::Mount {
        filesystem: api.filesystem,
        target: api.target,
        source,
    })
}

/// Which program the kernel runs to load modules; none when it is empty (Documentation/admin-guide/sysctl/kernel.rst, `modprobe`).
const LOADER: &str = "/proc/sys/kernel/modprobe";

/// While this lives the kernel asks nobody for modules.
struct NoModules {
    loader: String,
}

impl NoModules {
    /// Where it cannot be told so, modprobe looks in vain, which takes a little longer.
    fn begin() -> Option<Self> {
        let loader = std::fs::read_to_string(LOADER).ok()?;
        std::fs::write(LOADER, "\n").ok()?;
        Some(Self { loader })
    }
}

impl Drop for NoModules {
    fn drop(&mut self) {
        let _ = std::fs::write(LOADER, &self.loader);
    }
}

/// Makes a directory, mode 755, unless it is there.
///
/// # Errors
/// What mkdir(2) gives.
pub fn directory(path: &'static str) -> Result<(), MountError> {
    match mkdir(path, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => Err(MountError::Directory {
            path,
            source: error.into(),
        }),
    }
}

/// Makes the nodes in `/dev` whose opening loads the module behind them: `net/tun`, `fuse`, `loop-control`, …
pub(crate) fn make_nodes(index: &Index) {
    for node in index.nodes() {
        let path = Path::new("/dev").join(&node.path);
        if let Some(parent) = path.parent() {
            // Fails only where mknod below fails too, and is reported there.
            let _ = std::fs::create_dir_all(parent);
        }
        let kind = if node.block {
            SFlag::S_IFBLK
        } else {
            SFlag::S_IFCHR
        };
        // Root alone: whoever may use a device gets it from its driver or from the container's configuration.
        let mode = Mode::from_bits_truncate(0o600);
        match mknod(
            &path,
            kind,
            mode,
            makedev(node.major.into(), node.minor.into()),
        ) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => log::warn!("boot: cannot make {}: {}", path.display(), error.desc()),
        }
    }
}
