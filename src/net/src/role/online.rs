//! Whether the machine has a network, for those that wait for it: `orlop net --wait-online SECONDS`.
//!
//! The role keeps the file `online` in its directory for as long as one link has an address.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use thiserror::Error;

use super::resolver;

/// The file's name; it holds the addresses in words.
const NAME: &str = "online";

/// Why waiting ended without a network.
#[derive(Debug, Error)]
pub enum Error {
    /// The directory cannot be watched.
    #[error("cannot watch {path}")]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        err: io::Error,
    },
    /// No link got an address in time.
    #[error("no network after {} s; see `journalctl -u orlop-net.service`", .0.as_secs())]
    TimedOut(Duration),
}

/// Tells those that wait. A failure costs them their time-out and nothing more.
pub(super) fn publish(directory: &Path, addresses: Option<&str>) {
    let path = directory.join(NAME);
    let written = match addresses {
        Some(text) => resolver::replace(&path, format!("{text}\n").as_bytes()),
        None => match fs::remove_file(&path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        },
    };
    if let Err(err) = written {
        log::error!("cannot write {}: {err}", path.display());
    }
}

/// Waits until one link has an address, and gives the addresses in words.
///
/// `run` is the role's directory, `/run/orlop`.
///
/// # Errors
/// The network does not come within `patience`, or the directory cannot be watched.
pub fn wait(run: &Path, patience: Duration) -> Result<String, Error> {
    let directory = run.join("net");
    let failed = |err: io::Error| Error::Watch {
        path: directory.clone(),
        err,
    };
    // The role may not have made it yet.
    fs::create_dir_all(&directory).map_err(failed)?;
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .map_err(|err| failed(err.into()))?;
    let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE;
    watch
        .add_watch(&directory, flags)
        .map_err(|err| failed(err.into()))?;
    let deadline = Instant::now() + patience;
    loop {
        if let Ok(text) = fs::read_to_string(directory.join(NAME)) {
            return Ok(text.trim_end().to_owned());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::TimedOut(patience));
        }
        // Rounded up: waking too early would spin.
        let left_ms = left.as_micros().div_ceil(1000).min(i32::MAX as u128);
        let timeout = PollTimeout::try_from(left_ms).unwrap_or(PollTimeout::MAX);
        match poll(
            &mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(err) => return Err(failed(err.into())),
        }
        match watch.read_events() {
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(err) => return Err(failed(err.into())),
        }
    }
}
