//! What netlink sockets need beyond `socket`, `bind`, `send` and `recv`.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)`: the kernel's refusals then carry its own words for the reason.
///
/// See [netlink(7)](https://man7.org/linux/man-pages/man7/netlink.7.html).
pub fn report_reasons(fd: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads size_of::<c_int>() bytes from `on`.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_EXT_ACK,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
