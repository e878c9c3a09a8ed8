//! The kernel's entropy pool, random(4).

use std::io;
use std::os::fd::AsRawFd as _;

/// `RNDADDENTROPY` of `include/uapi/linux/random.h`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;

/// The most seed bytes that one call takes.
pub const SEED_MAX: usize = 512;

#[repr(C)]
struct PoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; SEED_MAX],
}

/// Mixes `seed` into the pool, and credits it as entropy when `credit` says so.
///
/// At most [`SEED_MAX`] bytes of `seed` are used.
///
/// # Errors
/// Those of opening `/dev/urandom` and of the ioctl, which needs `CAP_SYS_ADMIN`.
pub fn add_entropy(seed: &[u8], credit: bool) -> io::Result<()> {
    let used = seed.get(..seed.len().min(SEED_MAX)).unwrap_or_default();
    let len = i32::try_from(used.len()).unwrap_or(0);
    let mut info = PoolInfo {
        entropy_count: if credit { len.saturating_mul(8) } else { 0 },
        buf_size: len,
        buf: [0; SEED_MAX],
    };
    for (to, from) in info.buf.iter_mut().zip(used) {
        *to = *from;
    }
    let urandom = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/urandom")?;
    // SAFETY: the kernel reads `buf_size` bytes of `buf`, at most `SEED_MAX`, which `info` holds.
    let result = unsafe { libc::ioctl(urandom.as_raw_fd(), RNDADDENTROPY, &raw const info) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Random bytes, getrandom(2), without waiting for the pool to be ready.
///
/// # Errors
/// `WouldBlock` before the pool is ready.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the kernel writes at most `N` bytes to `bytes`.
    let read = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, libc::GRND_NONBLOCK) };
    if usize::try_from(read) == Ok(N) {
        Ok(bytes)
    } else {
        Err(io::Error::last_os_error())
    }
}
