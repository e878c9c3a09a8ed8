//! The switch from the initramfs to the root.
//!
//! By `MS_MOVE` and chroot(2) in the only thread of PID 1, never by a new mount namespace: kernel threads share this
//! process's `fs_struct`, so its chroot moves their root too, and the modprobe that the kernel starts afterwards comes from
//! the real root. `unshare(CLONE_NEWNS)` would cut that tie.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, execve};
use thiserror::Error;

use crate::mounts::api_targets;

/// Why the root could not be entered.
#[derive(Debug, Error)]
pub(crate) enum SwitchError {
    #[error("cannot move {from} to {to}")]
    Move {
        from: String,
        to: String,
        #[source]
        source: nix::errno::Errno,
    },
    #[error("cannot enter {path}")]
    Enter {
        path: String,
        #[source]
        source: nix::errno::Errno,
    },
    #[error("cannot start {program}")]
    Start {
        program: &'static str,
        #[source]
        source: nix::errno::Errno,
    },
}

/// Takes the API filesystems along, frees the initramfs and makes `target` the root of PID 1 and the kernel.
pub(crate) fn switch_root(target: &str) -> Result<(), SwitchError> {
    let move_mount = |from: &str, to: &str| {
        mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(|source| {
            SwitchError::Move {
                from: from.to_owned(),
                to: to.to_owned(),
                source,
            }
        })
    };
    for api in api_targets() {
        move_mount(api, &format!("{target}{api}"))?;
    }
    let enter = |path: &str| {
        chdir(path).map_err(|source| SwitchError::Enter {
            path: path.to_owned(),
            source,
        })
    };
    enter(target)?;
    free_initramfs();
    move_mount(".", "/")?;
    chroot(".").map_err(|source| SwitchError::Enter {
        path: ".".to_owned(),
        source,
    })?;
    enter("/")
}

/// Deletes all of the initramfs, which lives in memory. What is mounted in it is on other devices and is left alone; an image
/// that a loop device holds loses its name only.
fn free_initramfs() {
    if let Ok(root) = std::fs::symlink_metadata("/")
        && let Err(error) = delete_contents(Path::new("/"), root.dev())
    {
        log::warn!("boot: some of the initramfs stays in memory: {error}");
    }
}

fn delete_contents(directory: &Path, device: u64) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let metadata = std::fs::symlink_metadata(&path)?;
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            delete_contents(&path, device)?;
            // The mount point of the root stays: it is busy.
            let _ = std::fs::remove_dir(&path);
        } else {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The program of the root that becomes PID 1.
const INIT: &CStr = c"/usr/bin/orlop";

/// Replaces this process by the root's init; returns only on failure.
pub(crate) fn exec_init() -> SwitchError {
    let arguments = [c"/sbin/init"];
    let mut environment = vec![c"HOME=/".to_owned(), c"TERM=linux".to_owned(), path()];
    if let Some(number) = crate::slot::watchdog_descriptor() {
        let variable = format!("{}={number}", crate::slot::WATCHDOG_VARIABLE);
        environment.extend(CString::new(variable));
    }
    match execve(INIT, &arguments, &environment) {
        Ok(never) => match never {},
        Err(source) => SwitchError::Start {
            program: "/usr/bin/orlop",
            source,
        },
    }
}

fn path() -> CString {
    c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()
}
