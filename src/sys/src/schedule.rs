//! How the kernel's schedulers treat the calling thread and what it becomes.

use std::io;

fn outcome(result: libc::c_long) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets the policy, one of `SCHED_*`, and its priority, 0 for those that have none; `reset_on_fork` keeps both from children.
///
/// # Errors
/// `EPERM` without `CAP_SYS_NICE`, `EINVAL` for a priority that the policy does not have.
///
/// See [sched_setscheduler(2)](https://man7.org/linux/man-pages/man2/sched_setscheduler.2.html).
pub fn set_policy(policy: u32, priority: u8, reset_on_fork: bool) -> io::Result<()> {
    let parameters = libc::sched_param {
        sched_priority: i32::from(priority),
    };
    let reset = if reset_on_fork {
        libc::SCHED_RESET_ON_FORK
    } else {
        0
    };
    let policy = i32::try_from(policy).unwrap_or(-1) | reset;
    // The C library's own wrapper refuses to do it (musl), so the kernel is asked itself.
    // SAFETY: the kernel reads one `sched_param`, which `parameters` is.
    outcome(unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            policy,
            &raw const parameters,
        )
    })
}

/// Sets the class (0 none, 1 real time, 2 best effort, 3 idle) and the priority (0 first, 7 last) of input and output.
///
/// # Errors
/// `EPERM` for the real-time class without a capability for it, `EINVAL` for numbers out of range.
///
/// See [ioprio_set(2)](https://man7.org/linux/man-pages/man2/ioprio_set.2.html).
pub fn set_io_priority(class: u32, priority: u8) -> io::Result<()> {
    /// `IOPRIO_WHO_PROCESS` of `include/uapi/linux/ioprio.h`.
    const PROCESS: libc::c_int = 1;
    /// `IOPRIO_CLASS_SHIFT`.
    const CLASS_SHIFT: u32 = 13;
    let value = class << CLASS_SHIFT | u32::from(priority);
    // SAFETY: three numbers and no memory.
    outcome(unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0, value) })
}
