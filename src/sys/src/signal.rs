//! Signals through a descriptor, signalfd(2), real-time ones included, and the children that end, waitpid(2).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// Blocked signals, readable one by one.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks the signals of these numbers for this process and opens a descriptor that gives them.
    ///
    /// # Errors
    /// Those of sigprocmask(2) and signalfd(2).
    pub fn block(numbers: &[i32]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset(3) initialises the set it is given.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for number in numbers {
            // SAFETY: the set was initialised above; a number that is no signal answers with an error.
            if unsafe { libc::sigaddset(set.as_mut_ptr(), *number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: the set is initialised, and the old mask is not asked for.
        if unsafe { libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let raw =
            unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` was opened above and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Self { fd })
    }

    /// The number of the next signal; `None` when none is pending.
    #[must_use]
    pub fn next(&self) -> Option<i32> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the kernel writes at most `size` bytes to `info`.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if usize::try_from(read) != Ok(size) {
            return None;
        }
        // SAFETY: the kernel has written a whole record.
        let info = unsafe { info.assume_init() };
        i32::try_from(info.ssi_signo).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By exit(2) with this code.
    Exited(u8),
    /// By this signal; `true` when it left a core.
    Killed(i32, bool),
}

/// Takes note of one child that has ended; `None` when no more have, and the error `ECHILD` when no child is left.
///
/// # Errors
/// Those of waitpid(2).
pub fn reap() -> io::Result<Option<(i32, End)>> {
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes one int to `status`.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match pid {
            0 => return Ok(None),
            pid if pid > 0 => {
                let end = if libc::WIFEXITED(status) {
                    End::Exited(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX))
                } else {
                    End::Killed(libc::WTERMSIG(status), libc::WCOREDUMP(status))
                };
                return Ok(Some((pid, end)));
            }
            _ => {
                let err = io::Error::last_os_error();
                if err.kind() != io::ErrorKind::Interrupted {
                    return Err(err);
                }
            }
        }
    }
}

/// Lets SIGPIPE end this process, as it does any program that a shell starts: whoever read its output, such as `head`, has enough.
/// Rust's own start ignores the signal, and `println!` panics instead.
pub fn end_with_closed_pipes() {
    // SAFETY: the default disposition runs none of our code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Ignores `SIGPIPE`, and lets a program that this process becomes ignore it.
pub fn ignore_closed_pipes() {
    // SAFETY: to ignore a signal runs none of our code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
