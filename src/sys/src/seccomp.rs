//! `seccomp(2)`: puts a filter on the calling thread.

use std::io;

/// One instruction of classic BPF: `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Instruction {
    /// Operation: `BPF_*` of `include/uapi/linux/bpf_common.h`.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip when it does not.
    pub jump_false: u8,
    /// The operand.
    pub operand: u32,
}

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

/// Filters every later system call of the calling thread and its children through `program`.
///
/// # Errors
/// `EACCES` without `no_new_privs` or `CAP_SYS_ADMIN`; `EINVAL` for a program that the kernel does not accept, one of
/// more than `BPF_MAXINSNS` (4096) instructions included.
/// See [seccomp(2)](https://man7.org/linux/man-pages/man2/seccomp.2.html).
pub fn install(program: &[Instruction]) -> io::Result<()> {
    let Ok(length) = u16::try_from(program.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let program = Program {
        length,
        instructions: program.as_ptr(),
    };
    // SAFETY: `program` points to `length` instructions laid out as `sock_filter`; the kernel copies and checks them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
