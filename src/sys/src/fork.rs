//! Work in a forked copy of this process, with a deadline: for system calls that may hang or must not hit the caller itself.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid};

/// The most bytes that are taken of what a child says.
const SAID_MAX: usize = 64 * 1024;

/// What became of the child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What it wrote.
    pub said: Vec<u8>,
    /// Whether it ended before the deadline. One that did not was killed, and may still hang in the kernel.
    pub has_ended: bool,
}

/// A child that was forked and not yet waited for. Dropped, it stays until this process ends.
#[derive(Debug)]
pub struct Running {
    child: Pid,
    said: File,
}

impl Running {
    /// Waits until the child ends or `deadline` is over.
    ///
    /// # Errors
    /// What poll(2) and read(2) give.
    pub fn wait(mut self, deadline: Duration) -> io::Result<Report> {
        let said = listen(&mut self.said, Instant::now() + deadline)?;
        Ok(finish(self.child, said))
    }
}

/// Runs `work` in a forked child and waits until it ends or `deadline` is over. `work` may write to the file it gets.
///
/// The child has this thread alone and shares no memory: a lock that another thread held stays locked in it, so that only
/// processes with one thread may rely on all of the standard library in `work`.
///
/// # Errors
/// What pipe2(2) and [fork(2)](https://man7.org/linux/man-pages/man2/fork.2.html) give.
pub fn run(deadline: Duration, work: impl FnOnce(&mut File)) -> io::Result<Report> {
    start(work)?.wait(deadline)
}

/// As [`run`], but this process goes on beside the child.
///
/// # Errors
/// As for [`run`].
pub fn start(work: impl FnOnce(&mut File)) -> io::Result<Running> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: the child runs `work` and ends by _exit, so that no destructor or exit handler of the parent's runs twice; the
    // callers have one thread, so that no lock is held by a thread which the child lacks.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            drop(reader);
            work(&mut File::from(writer));
            exit()
        }
        ForkResult::Parent { child } => {
            drop(writer);
            Ok(Running {
                child,
                said: File::from(reader),
            })
        }
    }
}

/// Ends this process without running anything of it.
fn exit() -> ! {
    // SAFETY: _exit(2) takes no memory of ours and does not return.
    unsafe { libc::_exit(0) }
}

/// What comes before the end of the pipe, and whether the end came in time.
fn listen(reader: &mut File, deadline: Instant) -> io::Result<(Vec<u8>, bool)> {
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Ok((said, false)),
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        match reader.read(&mut buffer)? {
            0 => return Ok((said, true)),
            length => {
                let room = SAID_MAX.saturating_sub(said.len());
                said.extend_from_slice(buffer.get(..length.min(room)).unwrap_or_default());
            }
        }
    }
}

fn finish(child: Pid, (said, has_ended): (Vec<u8>, bool)) -> Report {
    if has_ended {
        // The pipe is closed by the end of the child alone, so this does not wait.
        while waitpid(child, None) == Err(nix::errno::Errno::EINTR) {}
    } else {
        // Killed it may stay in the kernel for ever: it is not waited for.
        let _ = kill(child, Signal::SIGKILL);
        let _ = waitpid(child, Some(WaitPidFlag::WNOHANG));
    }
    Report { said, has_ended }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_child_writes_arrives_and_a_child_that_hangs_does_not_hold_up_its_parent() {
        let report = run(Duration::from_secs(20), |out| {
            let _ = nix::unistd::write(out, b"done");
        })
        .unwrap();
        assert_eq!(
            (report.said.as_slice(), report.has_ended),
            (&b"done"[..], true)
        );
        let report = run(Duration::from_millis(20), |_| {
            loop {
                nix::unistd::pause();
            }
        })
        .unwrap();
        assert!(!report.has_ended);
    }
}
