//! The kernel's filesystems, as the initramfs stage needs them and the root finds them moved.

use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkdir;
use thiserror::Error;

use crate::index::Index;

/// A filesystem that could not be mounted, or a directory for it that could not be made.
#[derive(Debug, Error)]
pub(crate) enum MountError {
    #[error("cannot make directory {path}")]
    Directory {
        path: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot mount {filesystem} on {target}")]
    Mount {
        filesystem: &'static str,
        target: &'static str,
        #[source]
        source: nix::errno::Errno,
    },
}

struct Api {
    target: &'static str,
    filesystem: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const NOSUID_NODEV_NOEXEC: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

const API: [Api; 4] = [
    Api {
        target: "/proc",
        filesystem: "proc",
        flags: NOSUID_NODEV_NOEXEC,
        data: "",
    },
    Api {
        target: "/sys",
        filesystem: "sysfs",
        flags: NOSUID_NODEV_NOEXEC,
        data: "",
    },
    // Not noexec: programs map /dev/zero executable.
    Api {
        target: "/dev",
        filesystem: "devtmpfs",
        flags: MsFlags::MS_NOSUID,
        data: "mode=755",
    },
    Api {
        target: "/run",
        filesystem: "tmpfs",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: "mode=755,size=20%,nr_inodes=200k",
    },
];

/// The targets of [`mount_api`]: what the switch of root takes along.
pub(crate) fn api_targets() -> impl Iterator<Item = &'static str> {
    API.iter().map(|api| api.target)
}

/// Mounts `/proc`, `/sys`, `/dev`, `/run` and makes `/run/orlop`.
pub(crate) fn mount_api() -> Result<(), MountError> {
    for api in &API {
        directory(api.target)?;
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
        })?;
    }
    directory("/run/orlop")
}

/// Makes a directory, mode 755, unless it is there.
fn directory(path: &'static str) -> Result<(), MountError> {
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
