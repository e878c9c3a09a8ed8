//! Processes by descriptor: what has a pidfd cannot be mistaken for a later process of the same number.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Opens the process `pid` of the caller's PID namespace.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(
        pid,
        rustix::process::PidfdFlags::empty(),
    )?)
}

/// Sends signal number `signal` (0: only checks). Real-time signals are welcome.
///
/// See [pidfd_send_signal(2)](https://man7.org/linux/man-pages/man2/pidfd_send_signal.2.html).
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null `siginfo` is allowed and means what kill(2) would send.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            no_info,
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Waits at most `timeout` (`None`: for ever) for the process to end; whether it did.
///
/// Works for any process, not only for children, and reaps none.
pub fn wait_for_exit(pidfd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
    let deadline = timeout.map(|t| std::time::Instant::now() + t);
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(std::time::Instant::now()));
        let left = left.and_then(|l| Timespec::try_from(l).ok());
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut polled, left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the process has ended.
pub fn has_exited(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    wait_for_exit(pidfd, Some(Duration::ZERO))
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// Waits for a child to end, and reaps it.
pub fn wait_child(pidfd: BorrowedFd<'_>) -> io::Result<Exit> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                return Ok(match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, signal) => Exit::Signal(signal.unwrap_or(libc::SIGKILL)),
                });
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// When the process `pid` started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
///
/// Together with the number it names a process for good.
pub fn start_time_ticks(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field may hold anything, spaces and parentheses included.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "no start time in /proc/PID/stat",
            )
        })
}

/// Opens one of the process' namespaces: `kind` is a name in `/proc/PID/ns`.
///
/// # Errors
/// `ESRCH` when the process behind `pidfd` is not, or no longer, the one with the number `pid`.
pub fn open_namespace(pidfd: BorrowedFd<'_>, pid: i32, kind: &str) -> io::Result<OwnedFd> {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/{kind}"))?;
    // The number was the process' own as long as that has not ended.
    if has_exited(pidfd)? {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(namespace.into())
}

/// Takes a copy of descriptor `fd` of another process.
///
/// See [pidfd_getfd(2)](https://man7.org/linux/man-pages/man2/pidfd_getfd.2.html).
pub fn copy_descriptor(pidfd: BorrowedFd<'_>, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes plain numbers only.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made a new descriptor, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as i32) })
}
