//! The medium that a live system was started from, with what can be installed from it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use thiserror::Error;

/// The word on the kernel command line of a live medium.
pub const WORD: &str = "orlop.live";

/// The medium's label.
pub const LABEL: &str = "ORLOP_LIVE";

/// Where the medium is mounted.
pub const MOUNT: &str = "/run/orlop/live";

/// The payload on it.
pub const PAYLOAD: &str = "/run/orlop/live/orlop.update";

/// How long a drive may take until it shows its medium.
const WAIT: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(100);

/// Why the medium is not there.
#[derive(Debug, Error)]
pub enum LiveError {
    /// Nobody has it.
    #[error("no drive has a medium labelled {LABEL} after {0} s")]
    NotThere(u64),
    /// It is not mounted.
    #[error("cannot mount the live medium {0} on {MOUNT}")]
    Mount(PathBuf, #[source] io::Error),
}

/// Whether this machine was started from a live medium.
#[must_use]
pub fn is_live() -> bool {
    fs::read_to_string("/proc/cmdline")
        .is_ok_and(|line| line.split_ascii_whitespace().any(|word| word == WORD))
}

/// Mounts the medium, unless it is; its drive may still be on its way.
///
/// # Errors
/// There is no such medium, or it can not be mounted.
pub fn ensure_mounted() -> Result<(), LiveError> {
    if Path::new(PAYLOAD).exists() {
        return Ok(());
    }
    let deadline = Instant::now() + WAIT;
    let device = loop {
        match find() {
            Some(device) => break device,
            None if Instant::now() >= deadline => return Err(LiveError::NotThere(WAIT.as_secs())),
            None => std::thread::sleep(INTERVAL),
        }
    };
    let error = |e| LiveError::Mount(device.clone(), e);
    fs::create_dir_all(MOUNT).map_err(error)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(&device), MOUNT, Some("iso9660"), flags, None::<&str>)
        .map_err(|errno| error(errno.into()))
}

/// The whole disk or drive with the label.
fn find() -> Option<PathBuf> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/block")
        .ok()?
        .flatten()
        .filter(|entry| !entry.path().join("partition").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        // An absent floppy takes seconds to say so.
        .filter(|name| {
            !["loop", "ram", "zram", "fd", "dm-"]
                .iter()
                .any(|k| name.starts_with(k))
        })
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|name| Path::new("/dev").join(name.replace('!', "/")))
        .find(|device| File::open(device).is_ok_and(|file| has_label(&file)))
}

/// The primary volume descriptor is in sector 16, its volume identifier at 40 (ECMA-119 §8.4).
fn has_label(volume: &File) -> bool {
    let mut descriptor = [0; 72];
    volume.read_exact_at(&mut descriptor, 16 * 2048).is_ok()
        && descriptor.starts_with(b"\x01CD001")
        && descriptor
            .get(40..)
            .is_some_and(|label| label.trim_ascii_end() == LABEL.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn only_the_medium_with_the_whole_label_is_it() {
        for (label, is_it) in [("ORLOP_LIVE", true), ("ORLOP_LIVES", false), ("", false)] {
            let mut volume = tempfile::tempfile().unwrap();
            let mut image = vec![0; 16 * 2048];
            image.extend_from_slice(b"\x01CD001\x01\x00");
            image.extend_from_slice(&[b' '; 32]);
            image.extend_from_slice(format!("{label:<32}").as_bytes());
            volume.write_all(&image).unwrap();
            assert_eq!(has_label(&volume), is_it, "{label}");
        }
        assert!(!has_label(&tempfile::tempfile().unwrap()));
    }
}
