//! Loop devices: a regular file as a block device (loop(4), `include/uapi/linux/loop.h`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

const LOOP_CONTROL: &str = "/dev/loop-control";
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// Others may take the free device between asking and configuring; so often is it tried anew.
const ATTEMPTS: u32 = 64;

/// `struct loop_info64`, 232 bytes.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`, 304 bytes.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

/// How a file is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The device refuses writes.
    pub read_only: bool,
    /// The kernel detaches it when its last user (a mount, say) is gone.
    pub autoclear: bool,
    /// Logical block size in bytes, a power of two from 512 to the page size; 0 = 512.
    pub block_size: u32,
}

/// An attached loop device. Dropping it closes the descriptor and, without `autoclear`, leaves the device attached.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    file: File,
}

impl LoopDevice {
    /// Attaches `backing` to a free loop device.
    ///
    /// # Errors
    /// Open errors of `/dev/loop-control` (`ENOENT`: the module `loop` is not loaded) and of the device, and what
    /// `LOOP_CTL_GET_FREE` and `LOOP_CONFIGURE` give; `EBUSY` only after many tries.
    pub fn attach(backing: BorrowedFd<'_>, options: Options) -> io::Result<Self> {
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open(LOOP_CONTROL)?;
        let mut last = io::Error::from_raw_os_error(libc::EBUSY);
        for _ in 0..ATTEMPTS {
            let number = get_free(control.as_fd())?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let file = OpenOptions::new()
                .read(true)
                .write(!options.read_only)
                .open(&path)?;
            match configure(file.as_fd(), backing, options) {
                Ok(()) => return Ok(Self { path, file }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The device node, `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Detaches the file; with users left, the kernel does it when the last is gone.
    ///
    /// # Errors
    /// What `LOOP_CLR_FD` gives.
    pub fn detach(self) -> io::Result<()> {
        clear(self.file.as_fd())
    }
}

/// Detaches whatever `device` (an open `/dev/loopN`) holds: `LOOP_CLR_FD`.
///
/// # Errors
/// `ENXIO` when nothing is attached.
pub fn clear(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD takes no argument; the kernel reads and writes no memory of ours.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The number of a free loop device, made if there is none: `LOOP_CTL_GET_FREE`.
fn get_free(control: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument; the kernel reads and writes no memory of ours.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    if number < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(number)
    }
}

/// Attaches in one step: `LOOP_CONFIGURE` (Linux 5.8).
fn configure(device: BorrowedFd<'_>, backing: BorrowedFd<'_>, options: Options) -> io::Result<()> {
    let mut flags = 0;
    if options.read_only {
        flags |= LO_FLAGS_READ_ONLY;
    }
    if options.autoclear {
        flags |= LO_FLAGS_AUTOCLEAR;
    }
    let config = LoopConfig {
        fd: u32::try_from(backing.as_raw_fd())
            .map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?,
        block_size: options.block_size,
        info: LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the kernel only reads `size_of::<loop_config>()` = 304 bytes, the size asserted above, during the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
