//! The hardware watchdog, which resets a machine that does not feed it (`include/uapi/linux/watchdog.h`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::Path;

/// `_IOR('W', 2, int)`, `_IOR('W', 5, int)`, `_IOWR('W', 6, int)`
const WDIOC_GETBOOTSTATUS: libc::Ioctl = 0x8004_5702_u32 as libc::Ioctl;
const WDIOC_KEEPALIVE: libc::Ioctl = 0x8004_5705_u32 as libc::Ioctl;
const WDIOC_SETTIMEOUT: libc::Ioctl = 0xC004_5706_u32 as libc::Ioctl;

/// The card reset the machine before.
const WDIOF_CARDRESET: libc::c_int = 0x20;

/// The first watchdog's node.
pub const DEVICE: &str = "/dev/watchdog0";

/// An open watchdog, which counts down from now on.
///
/// Closing it does not stop it: this module never writes the letter `V` that would. What has to outlive a process is a machine
/// that is looked after.
#[derive(Debug)]
pub struct Watchdog {
    file: File,
}

impl Watchdog {
    /// Opens `device` and so starts it.
    ///
    /// # Errors
    /// What open(2) gives; `EBUSY`: somebody else feeds it.
    pub fn open(device: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).open(device)?;
        Ok(Self { file })
    }

    /// The open watchdog that this process was started with, as descriptor `number`; see [`Watchdog::pass_on`].
    ///
    /// # Errors
    /// `EBADF`: there is no such descriptor.
    pub fn inherited(number: RawFd) -> io::Result<Self> {
        let file = File::from(crate::inherited::take(number)?);
        Ok(Self { file })
    }

    /// The number of its descriptor.
    #[must_use]
    pub fn number(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Lets the program that this process executes next have the watchdog, and gives the number of its descriptor.
    ///
    /// # Errors
    /// What fcntl(2) gives.
    pub fn pass_on(&self) -> io::Result<RawFd> {
        rustix::io::fcntl_setfd(&self.file, rustix::io::FdFlags::empty())?;
        Ok(self.file.as_raw_fd())
    }

    /// Sets after how many seconds without food the machine is reset, and gives what the hardware made of it.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: the hardware's time is fixed. `EINVAL`: out of its range.
    pub fn set_timeout(&self, seconds: u32) -> io::Result<u32> {
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let mut value = libc::c_int::try_from(seconds).map_err(invalid)?;
        // SAFETY: the kernel reads and writes one int through the pointer, which is to a live local.
        let result =
            unsafe { libc::ioctl(self.file.as_raw_fd(), WDIOC_SETTIMEOUT, &raw mut value) };
        nix::errno::Errno::result(result)?;
        u32::try_from(value).map_err(invalid)
    }

    /// Feeds it.
    ///
    /// # Errors
    /// What the driver gives.
    pub fn keep_alive(&self) -> io::Result<()> {
        let mut unused: libc::c_int = 0;
        // SAFETY: the kernel ignores the argument; should a driver write to it, it is one int in a live local.
        let result =
            unsafe { libc::ioctl(self.file.as_raw_fd(), WDIOC_KEEPALIVE, &raw mut unused) };
        nix::errno::Errno::result(result)?;
        Ok(())
    }

    /// Whether it was this watchdog that ended the machine's last run. Hardware that cannot tell says no.
    #[must_use]
    pub fn has_reset(&self) -> bool {
        let mut status: libc::c_int = 0;
        // SAFETY: the kernel writes one int through the pointer, which is to a live local.
        let result =
            unsafe { libc::ioctl(self.file.as_raw_fd(), WDIOC_GETBOOTSTATUS, &raw mut status) };
        result == 0 && status & WDIOF_CARDRESET != 0
    }
}
