//! `clone3(2)`: a new process in new namespaces, with its pidfd.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Flags of `clone3(2)`, from `include/uapi/linux/sched.h`.
///
/// A plain set of bits; combine with `|`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CloneFlags(pub(crate) u64);

impl CloneFlags {
    /// A new mount namespace.
    pub const NEW_MOUNT: Self = Self(0x0002_0000);
    /// A new cgroup namespace, rooted at the cgroup that the process starts in.
    pub const NEW_CGROUP: Self = Self(0x0200_0000);
    /// A new UTS namespace.
    pub const NEW_UTS: Self = Self(0x0400_0000);
    /// A new IPC namespace.
    pub const NEW_IPC: Self = Self(0x0800_0000);
    /// A new PID namespace: the process is its PID 1.
    pub const NEW_PID: Self = Self(0x2000_0000);
    /// A new network namespace.
    pub const NEW_NETWORK: Self = Self(0x4000_0000);
    /// The parent of the caller becomes the parent of the new process.
    pub const PARENT: Self = Self(0x0000_8000);
    /// Handlers of the caller do not reach the new process (ignored signals do).
    pub const CLEAR_SIGNAL_HANDLERS: Self = Self(0x1_0000_0000);

    /// The caller's memory is the new process's as well.
    pub(crate) const MEMORY: Self = Self(0x100);
    const PIDFD: Self = Self(0x1000);
    pub(crate) const INTO_CGROUP: Self = Self(0x2_0000_0000);

    /// No flag.
    #[must_use]
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for CloneFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::ops::BitOrAssign for CloneFlags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// A process that [`spawn`] made.
#[derive(Debug)]
pub struct Spawned {
    /// Its number in the caller's PID namespace.
    pub pid: i32,
    /// Refers to the process for ever, whatever becomes of its number.
    pub pidfd: OwnedFd,
}

/// `struct clone_args` up to `cgroup` (`CLONE_ARGS_SIZE_VER2`).
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

/// Starts a copy of this process that runs `child` and exits with what it returns.
///
/// `into_cgroup` is a directory of cgroup2 in which the process starts. Needs Linux 5.7.
/// See [clone(2)](https://man7.org/linux/man-pages/man2/clone.2.html).
///
/// # Errors
/// Those of `clone3`, and `EBUSY` when the caller has other threads: the copy would
/// inherit whatever locks they hold.
pub fn spawn(
    flags: CloneFlags,
    into_cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> u8,
) -> io::Result<Spawned> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut flags = flags | CloneFlags::PIDFD;
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        pidfd: (&raw mut pidfd) as u64,
        ..CloneArgs::default()
    };
    // The kernel takes the signal from the caller itself with CLONE_PARENT, and refuses to be given one.
    if !flags.contains(CloneFlags::PARENT) {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = into_cgroup {
        flags |= CloneFlags::INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    args.flags = flags.0;

    // SAFETY: `args` is a valid `clone_args` of the size given and outlives the call, `pidfd` is a valid place for
    // an int. There is no other thread, so no lock is held by one that the copy lacks; without CLONE_VM the copy
    // has its own memory and goes on with its own copy of this stack.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // An unwinding panic must not run the parent's frames a second time.
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(125);
            // SAFETY: ends the process at once; nothing of the parent's is flushed or dropped twice.
            unsafe { libc::_exit(i32::from(code)) }
        }
        pid => Ok(Spawned {
            pid: pid as i32,
            // SAFETY: with CLONE_PIDFD the kernel stored a new descriptor in `pidfd`, owned by nobody else.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Marks every descriptor from `first` up close-on-exec, those that an unknown caller leaked included.
///
/// See [close_range(2)](https://man7.org/linux/man-pages/man2/close_range.2.html); needs Linux 5.11.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: sets a flag on descriptors; with CLOSE_RANGE_CLOEXEC none is closed under its owner.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `struct sigaction` as the kernel has it, which is not the C library's.
#[repr(C)]
struct KernelSignalAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// Gives every signal its default effect again.
///
/// A Rust program ignores `SIGPIPE`, which an `execve` would hand on; whoever started it may ignore others, the two that
/// the C library keeps to itself and does not let one change included.
pub fn reset_signal_dispositions() {
    let default = KernelSignalAction {
        handler: libc::SIG_DFL,
        flags: 0,
        restorer: 0,
        mask: 0,
    };
    let no_old: *const KernelSignalAction = std::ptr::null();
    for signal in 1..=64 {
        // SAFETY: `default` is laid out as the kernel's `sigaction` with a mask of 8 bytes, is only read, and runs no
        // code of ours. SIGKILL and SIGSTOP are refused, which is right.
        let _refused = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                no_old,
                8,
            )
        };
    }
}
