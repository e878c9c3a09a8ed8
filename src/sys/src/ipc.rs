//! Objects of System V inter-process communication, which outlive those who made them (sysvipc(7)).

use std::io;

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A segment of shared memory.
    SharedMemory,
    /// A set of semaphores.
    Semaphores,
    /// A queue of messages.
    Messages,
}

impl Kind {
    /// Each of them, with the file of `/proc/sysvipc` that lists them (proc_sysvipc(5)).
    pub const ALL: [(Self, &'static str); 3] = [
        (Self::SharedMemory, "/proc/sysvipc/shm"),
        (Self::Semaphores, "/proc/sysvipc/sem"),
        (Self::Messages, "/proc/sysvipc/msg"),
    ];
}

/// Removes the object of that number; shared memory that is still attached goes with the last who has it.
///
/// # Errors
/// `EPERM` for somebody else's, `EINVAL` for one that is not there.
///
/// See [shmctl(2)](https://man7.org/linux/man-pages/man2/shmctl.2.html) and its sisters.
pub fn remove(kind: Kind, id: i32) -> io::Result<()> {
    let result = match kind {
        // SAFETY: IPC_RMID makes no use of the pointer, which may be null.
        Kind::SharedMemory => unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) },
        // SAFETY: IPC_RMID takes no fourth argument.
        Kind::Semaphores => unsafe { libc::semctl(id, 0, libc::IPC_RMID) },
        // SAFETY: IPC_RMID makes no use of the pointer, which may be null.
        Kind::Messages => unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) },
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_cannot_be_removed() {
        for (kind, _) in Kind::ALL {
            let gone = remove(kind, i32::MAX).unwrap_err();
            assert_eq!(gone.raw_os_error(), Some(libc::EINVAL), "{kind:?}");
        }
    }
}
