//! Taking storage apart: swapoff(2), and removal of device-mapper devices (`include/uapi/linux/dm-ioctl.h`).

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Stops swapping to `path`. See [swapoff(2)](https://man7.org/linux/man-pages/man2/swapoff.2.html).
///
/// # Errors
/// `EINVAL` when it is no swap space in use, `ENOMEM` when what it holds does not fit into memory.
pub fn swap_off(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a C string, which the kernel only reads.
    let result = unsafe { libc::swapoff(path.as_ptr()) };
    nix::errno::Errno::result(result)?;
    Ok(())
}

/// `_IOWR(0xfd, DM_DEV_REMOVE_CMD, struct dm_ioctl)`
const DM_DEV_REMOVE: libc::Ioctl = 0xC138_FD04_u32 as libc::Ioctl;

/// `struct dm_ioctl`, 312 bytes.
#[repr(C)]
struct DmIoctl {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

const _: () = assert!(size_of::<DmIoctl>() == 312);

/// Removes the device-mapper device `name`.
///
/// # Errors
/// `EBUSY` while it is in use, `ENXIO` when there is none of that name.
pub fn remove_mapping(name: &str) -> io::Result<()> {
    let mut request = DmIoctl {
        version: [4, 0, 0],
        data_size: size_of::<DmIoctl>() as u32,
        data_start: size_of::<DmIoctl>() as u32,
        target_count: 0,
        open_count: 0,
        flags: 0,
        event_nr: 0,
        padding: 0,
        dev: 0,
        name: [0; 128],
        uuid: [0; 129],
        data: [0; 7],
    };
    // The last byte stays NUL.
    let room = request.name.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.name.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/mapper/control")?;
    // SAFETY: the kernel reads and writes at most `data_size` bytes, the size of `request`, during the call.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), DM_DEV_REMOVE, &raw mut request) };
    nix::errno::Errno::result(result)?;
    Ok(())
}
