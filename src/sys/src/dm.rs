//! Device-mapper: devices that are made of others by the kernel (`include/uapi/linux/dm-ioctl.h`).
//!
//! Without udev's cookies: whoever makes a device waits for nobody, since devtmpfs makes its node.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

/// The node that devtmpfs makes when the module `dm-mod` is loaded.
const CONTROL: &str = "/dev/mapper/control";

/// The interface's version that is asked for; the kernel refuses another major number only.
const VERSION: [u32; 3] = [4, 0, 0];

/// `sizeof(struct dm_ioctl)`, which is a part of each command's number.
const HEADER_BYTES: usize = 312;
/// `sizeof(struct dm_target_spec)`
const TARGET_BYTES: usize = 40;
/// A name with its zero (`DM_NAME_LEN`); a UUID with its (`DM_UUID_LEN`).
const NAME_BYTES: usize = 128;
const UUID_BYTES: usize = 129;

const DM_READONLY_FLAG: u32 = 1;
const DM_DEFERRED_REMOVE: u32 = 1 << 17;

/// The commands, as `_IOWR(0xfd, NUMBER, struct dm_ioctl)`.
#[derive(Clone, Copy)]
enum Command {
    Create = 3,
    Remove = 4,
    /// Resumes when its flags are zero.
    Suspend = 6,
    LoadTable = 9,
}

/// One line of a device's table: a range of its sectors and who answers for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<'a> {
    /// The first sector, of 512 bytes.
    pub start_sector: u64,
    /// How many sectors.
    pub sectors: u64,
    /// The target's type, `verity`; at most 15 bytes.
    pub kind: &'a str,
    /// What the type takes, as `Documentation/admin-guide/device-mapper` has it.
    pub parameters: &'a str,
}

/// The kernel's device-mapper.
#[derive(Debug)]
pub struct DeviceMapper {
    control: File,
}

impl DeviceMapper {
    /// Opens `/dev/mapper/control`.
    ///
    /// # Errors
    /// What open(2) gives; `ENOENT`: the module `dm-mod` is not loaded.
    pub fn open() -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
        Ok(Self { control })
    }

    /// Makes a device without a table and gives its node, `/dev/dm-N`.
    ///
    /// # Errors
    /// `EBUSY`: the name or the UUID is taken. `InvalidInput`: one of them is too long or empty.
    pub fn create(&self, name: &str, uuid: &str) -> io::Result<PathBuf> {
        let mut message = Message::new(name, 0, &[])?;
        message.put_text(176, UUID_BYTES, uuid)?;
        self.run(Command::Create, &mut message)?;
        // `huge_encode_dev`: the minor number's lower 8 bits, the major number's 12, the rest of the minor number's.
        let device = message.u64_at(40);
        let minor = (device & 0xff) | ((device >> 12) & !0xff);
        Ok(PathBuf::from(format!("/dev/dm-{minor}")))
    }

    /// Loads the table that [`DeviceMapper::resume`] makes the device's.
    ///
    /// # Errors
    /// `EINVAL`: the kernel does not take the table, and says why in its log.
    pub fn load_table(&self, name: &str, read_only: bool, targets: &[Target]) -> io::Result<()> {
        let flags = if read_only { DM_READONLY_FLAG } else { 0 };
        let mut message = Message::new(name, flags, targets)?;
        self.run(Command::LoadTable, &mut message)
    }

    /// Lets the device work with the table that was loaded last.
    ///
    /// # Errors
    /// `ENXIO`: there is no such device.
    pub fn resume(&self, name: &str) -> io::Result<()> {
        self.run(Command::Suspend, &mut Message::new(name, 0, &[])?)
    }

    /// Removes a device; `deferred`: when its last user is gone.
    ///
    /// # Errors
    /// `EBUSY`: it is in use. `ENXIO`: there is no such device.
    pub fn remove(&self, name: &str, deferred: bool) -> io::Result<()> {
        let flags = if deferred { DM_DEFERRED_REMOVE } else { 0 };
        self.run(Command::Remove, &mut Message::new(name, flags, &[])?)
    }

    fn run(&self, command: Command, message: &mut Message) -> io::Result<()> {
        // _IOC_READ | _IOC_WRITE, the header's size, 0xfd, the number.
        let request = (3_u64 << 30) | ((HEADER_BYTES as u64) << 16) | 0xfd00 | command as u64;
        // SAFETY: the kernel reads `data_size` bytes and writes no more than that; `Message::new` sets it to the length of
        // `bytes`, which is alive and borrowed for this call.
        let result = unsafe {
            libc::ioctl(
                self.control.as_raw_fd(),
                request as libc::Ioctl,
                message.bytes.as_mut_ptr(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// `struct dm_ioctl` and what follows it.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(name: &str, flags: u32, targets: &[Target]) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let mut bytes = vec![0; HEADER_BYTES];
        for target in targets {
            let parameters = target.parameters.as_bytes();
            if parameters.contains(&0) || target.kind.len() > 15 || target.kind.contains('\0') {
                return Err(invalid());
            }
            // The next specification is aligned; `next` counts from this one's start.
            let length = (TARGET_BYTES + parameters.len() + 1).next_multiple_of(8);
            let mut kind = [0; 16];
            for (to, from) in kind.iter_mut().zip(target.kind.bytes()) {
                *to = from;
            }
            let end = bytes.len() + length;
            bytes.extend_from_slice(&target.start_sector.to_ne_bytes());
            bytes.extend_from_slice(&target.sectors.to_ne_bytes());
            bytes.extend_from_slice(&0_u32.to_ne_bytes());
            bytes.extend_from_slice(&u32::try_from(length).map_err(|_| invalid())?.to_ne_bytes());
            bytes.extend_from_slice(&kind);
            bytes.extend_from_slice(parameters);
            bytes.resize(end, 0);
        }
        let size = u32::try_from(bytes.len()).map_err(|_| invalid())?;
        let count = u32::try_from(targets.len()).map_err(|_| invalid())?;
        let mut message = Self { bytes };
        let words = [
            (0, VERSION[0]),
            (4, VERSION[1]),
            (8, VERSION[2]),
            (12, size),
            (16, HEADER_BYTES as u32),
            (20, count),
            (28, flags),
        ];
        for (at, word) in words {
            message.put(at, &word.to_ne_bytes());
        }
        if name.is_empty() {
            return Err(invalid());
        }
        message.put_text(48, NAME_BYTES, name)?;
        Ok(message)
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(value) {
            *to = *from;
        }
    }

    /// A text with its zero in a field of `room` bytes.
    fn put_text(&mut self, at: usize, room: usize, text: &str) -> io::Result<()> {
        if text.len() >= room || text.contains('\0') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.put(at, text.as_bytes());
        Ok(())
    }

    fn u64_at(&self, at: usize) -> u64 {
        let bytes = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.bytes.get(48..48 + NAME_BYTES).unwrap_or_default();
        let name = CStr::from_bytes_until_nul(name).unwrap_or_default();
        write!(f, "Message({name:?}, {} bytes)", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_laid_out_as_the_kernel_reads_it() {
        let target = Target {
            start_sector: 0,
            sectors: 6416,
            kind: "verity",
            parameters: "1 254:1",
        };
        let message = Message::new("root", DM_READONLY_FLAG, &[target.clone(), target]).unwrap();
        let word = |at: usize| u32::from_ne_bytes(*message.bytes[at..].first_chunk().unwrap());
        assert_eq!(word(12) as usize, message.bytes.len());
        assert_eq!((word(16), word(20), word(28)), (312, 2, 1));
        assert_eq!(&message.bytes[48..53], b"root\0");
        assert_eq!(message.u64_at(312 + 8), 6416);
        assert_eq!(word(312 + 20), 48);
        assert_eq!(&message.bytes[312 + 24..312 + 31], b"verity\0");
        assert_eq!(&message.bytes[312 + 40..312 + 48], b"1 254:1\0");
        assert_eq!(message.u64_at(360 + 8), 6416);
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        let long = "x".repeat(NAME_BYTES);
        for name in ["", "a\0b", long.as_str()] {
            assert!(Message::new(name, 0, &[]).is_err(), "{name:?}");
        }
    }
}
