//! Where the root filesystem is.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use orlop_sys::loopdev::{LoopDevice, Options};
use thiserror::Error;

use crate::cmdline::CommandLine;
use crate::coldplug::{ColdplugError, Devices};
use crate::disks;
use crate::modprobe::chain;
use crate::modules::Loader;
use crate::slot::{self, Search, SlotError};
use crate::{CARRIED_ROOT, ROOT_LABEL, times};

/// How long a disk may take to appear. USB storage alone waits a second before it looks.
pub(crate) const DEADLINE_MS: u64 = 30_000;

/// How long the root may take once the disk with its boot entry is there.
const REST_MS: u64 = 5_000;

/// Why there is no root.
#[derive(Debug, Error)]
pub(crate) enum RootError {
    #[error("cannot open the carried root {CARRIED_ROOT}")]
    OpenCarried(#[source] io::Error),
    #[error("cannot attach {CARRIED_ROOT} to a loop device")]
    Attach(#[source] io::Error),
    #[error("cannot look for disks")]
    Devices(#[source] ColdplugError),
    #[error(
        "no disk with boot entries, or with an erofs volume labelled {ROOT_LABEL}, appeared within {seconds} s; block devices seen: {seen}"
    )]
    NotFound { seconds: u64, seen: String },
    #[error("no disk has the partitions of roothash={hash}; block devices seen: {seen}")]
    NoPartitions { hash: String, seen: String },
    #[error("cannot open the verified root")]
    Slot(#[source] SlotError),
    #[error("cannot mount the root {device} on {target}")]
    Mount {
        device: PathBuf,
        target: &'static str,
        #[source]
        source: nix::errno::Errno,
    },
    #[error("cannot make {path}")]
    Directory {
        path: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot lay a writable /etc over the root's")]
    EtcOverlay(#[source] nix::errno::Errno),
}

/// A block device with the root's filesystem.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) device: PathBuf,
    /// A loop device has to stay open until it is mounted, since it detaches with its last user.
    _attached: Option<LoopDevice>,
}

/// Finds the root, in this order: the one that the command line's `roothash=` names, the one that this initramfs carries, the
/// one of the boot entry that is chosen, a whole disk with the root's label. For disks it waits [`DEADLINE_MS`], loading
/// drivers as devices appear.
pub(crate) fn find_root(
    devices: &mut Devices,
    loader: &mut Loader,
    line: &CommandLine,
) -> Result<Root, RootError> {
    let root_hash = slot::root_hash(line);
    let mut search = Search::new(root_hash.as_deref()).map_err(RootError::Slot)?;
    if !search.is_chosen() && Path::new(CARRIED_ROOT).exists() {
        return attach_carried(loader);
    }
    let mut deadline_ns = times::now_ns().saturating_add(DEADLINE_MS * 1_000_000);
    loop {
        if let Some(found) = search.look(loader).map_err(RootError::Slot)? {
            let device = slot::open_verified(&found, loader).map_err(RootError::Slot)?;
            return Ok(Root {
                device,
                _attached: None,
            });
        }
        let disks: Vec<PathBuf> = disks::whole_disks()
            .iter()
            .map(|n| disks::node(n))
            .collect();
        if !search.is_chosen()
            && let Some(device) = disks.iter().find(|device| has_root_label(device))
        {
            return Ok(Root {
                device: device.clone(),
                _attached: None,
            });
        }
        if search.has_disk() {
            deadline_ns = deadline_ns.min(times::now_ns().saturating_add(REST_MS * 1_000_000));
        }
        let left_ns = deadline_ns.saturating_sub(times::now_ns());
        if left_ns == 0 {
            let seen: Vec<String> = disks.iter().map(|d| d.display().to_string()).collect();
            let seen = if seen.is_empty() {
                "none".to_owned()
            } else {
                seen.join(" ")
            };
            return Err(match root_hash {
                Some(hash) => RootError::NoPartitions { hash, seen },
                None => RootError::NotFound {
                    seconds: DEADLINE_MS / 1000,
                    seen,
                },
            });
        }
        devices
            .wait(left_ns.div_ceil(1_000_000))
            .map_err(RootError::Devices)?;
        devices.drain(loader, |_| {}).map_err(RootError::Devices)?;
    }
}

fn attach_carried(loader: &mut Loader) -> Result<Root, RootError> {
    load(loader, "loop");
    let file = File::open(CARRIED_ROOT).map_err(RootError::OpenCarried)?;
    let options = Options {
        read_only: true,
        autoclear: true,
        block_size: 0,
    };
    let attached = LoopDevice::attach(file.as_fd(), options).map_err(RootError::Attach)?;
    Ok(Root {
        device: attached.path().to_owned(),
        _attached: Some(attached),
    })
}

/// A module that fails is a line; whether it was needed, the next step shows.
fn load(loader: &mut Loader, module: &str) {
    if let Err(error) = loader.load(module) {
        log::warn!("boot: {}", chain(&error));
    }
}

/// Whether the device holds an erofs filesystem with the root's label (`fs/erofs/erofs_fs.h`).
fn has_root_label(device: &Path) -> bool {
    let mut superblock = [0; 128];
    let read =
        File::open(device).and_then(|file| file.read_exact_at(&mut superblock, SUPERBLOCK_OFFSET));
    read.is_ok() && is_root_superblock(&superblock)
}

/// `EROFS_SUPER_OFFSET`
const SUPERBLOCK_OFFSET: u64 = 1024;

/// `EROFS_SUPER_MAGIC_V1`, and the 16 bytes of `volume_name` at offset 64 of the superblock.
fn is_root_superblock(superblock: &[u8]) -> bool {
    let Some(label) = superblock.get(64..80) else {
        return false;
    };
    let end = label.iter().position(|b| *b == 0).unwrap_or(label.len());
    superblock.starts_with(&0xE0F5_E1E2_u32.to_le_bytes())
        && label.get(..end) == Some(ROOT_LABEL.as_bytes())
}

/// Mounts the root read-only on `target`, with a writable `/etc` in memory over its own.
pub(crate) fn mount_root(
    root: &Root,
    target: &'static str,
    loader: &mut Loader,
) -> Result<(), RootError> {
    load(loader, "erofs");
    load(loader, "overlay");
    make_directory(target, 0o755)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
    mount(
        Some(&root.device),
        target,
        Some("erofs"),
        flags,
        None::<&str>,
    )
    .map_err(|source| RootError::Mount {
        device: root.device.clone(),
        target,
        source,
    })?;
    make_directory("/run/orlop/etc", 0o700)?;
    make_directory("/run/orlop/etc/upper", 0o755)?;
    make_directory("/run/orlop/etc/work", 0o700)?;
    let etc = format!("{target}/etc");
    let data = format!("lowerdir={etc},upperdir=/run/orlop/etc/upper,workdir=/run/orlop/etc/work");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("etc"),
        etc.as_str(),
        Some("overlay"),
        flags,
        Some(data.as_str()),
    )
    .map_err(RootError::EtcOverlay)
}

fn make_directory(path: &'static str, mode: libc::mode_t) -> Result<(), RootError> {
    match nix::unistd::mkdir(path, nix::sys::stat::Mode::from_bits_truncate(mode)) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => Err(RootError::Directory {
            path,
            source: error.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(label: &[u8]) -> [u8; 128] {
        let mut block = [0; 128];
        block[..4].copy_from_slice(&[0xE2, 0xE1, 0xF5, 0xE0]);
        block[64..64 + label.len()].copy_from_slice(label);
        block
    }

    #[test]
    fn only_an_erofs_with_the_whole_label_is_the_root() {
        assert!(is_root_superblock(&superblock(b"orlop-root")));
        assert!(!is_root_superblock(&superblock(b"orlop-root2")));
        assert!(!is_root_superblock(&superblock(b"")));
        assert!(!is_root_superblock(&superblock(b"orlop-root")[..70]));
        let mut other = superblock(b"orlop-root");
        other[0] = 0;
        assert!(!is_root_superblock(&other));
    }
}
