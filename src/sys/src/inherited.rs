//! Descriptors that a process was started with, known only by their number.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A new, close-on-exec descriptor for what the inherited descriptor `number` refers to; `number` itself stays open.
///
/// # Errors
/// `EBADF` when no descriptor of that number is open, `EMFILE` when the process has too many.
///
/// See <https://man7.org/linux/man-pages/man2/F_DUPFD.2const.html>.
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer and touches no memory; a number that is not open yields EBADF.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made `fd`, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// As [`duplicate`], and `number` is closed: whatever else is started does not inherit it.
///
/// # Errors
/// As for [`duplicate`]; `number` stays open then.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    let fd = duplicate(number)?;
    nix::unistd::close(number)?;
    Ok(fd)
}

/// Makes the descriptor `number` stay open over execve(2); one that is not open is no matter.
pub fn keep(number: RawFd) {
    // SAFETY: F_SETFD takes an integer and touches no memory; a number that is not open yields EBADF.
    unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
}

/// Makes execve(2) close the descriptor `number`; one that is not open is no matter.
pub fn hide(number: RawFd) {
    // SAFETY: F_SETFD takes an integer and touches no memory; a number that is not open yields EBADF.
    unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Whether the descriptor `number` is closed by execve(2).
#[must_use]
pub fn is_private(number: RawFd) -> bool {
    // SAFETY: F_GETFD touches no memory; a number that is not open yields EBADF.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_duplicate_reads_what_the_original_would() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"x").unwrap();
        drop(writer);
        let mut text = String::new();
        std::fs::File::from(duplicate(reader.as_raw_fd()).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "x");
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn what_is_taken_is_closed_under_its_old_number() {
        use std::os::fd::IntoRawFd as _;
        let (reader, mut writer) = io::pipe().unwrap();
        let taken = take(reader.into_raw_fd()).unwrap();
        // The only reading end: with a second one open the write would wait in the pipe.
        drop(taken);
        assert_eq!(
            writer.write_all(b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn a_number_that_is_not_open_is_an_error() {
        assert_eq!(duplicate(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
