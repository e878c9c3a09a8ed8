//! Block devices: size, sector size and partitions (`include/uapi/linux/fs.h`, `include/uapi/linux/blkpg.h`).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

const BLKRRPART: libc::Ioctl = 0x125F;
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKPG: libc::Ioctl = 0x1269;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272_u32 as libc::Ioctl;
const BLKPG_ADD_PARTITION: libc::c_int = 1;
const BLKPG_RESIZE_PARTITION: libc::c_int = 3;

/// `struct blkpg_partition`, 152 bytes.
#[repr(C)]
struct BlkpgPartition {
    start_bytes: i64,
    length_bytes: i64,
    number: libc::c_int,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// `struct blkpg_ioctl_arg`, 24 bytes.
#[repr(C)]
struct BlkpgIoctlArg {
    op: libc::c_int,
    flags: libc::c_int,
    data_length: libc::c_int,
    data: *const BlkpgPartition,
}

const _: () = assert!(size_of::<BlkpgPartition>() == 152 && size_of::<BlkpgIoctlArg>() == 24);

/// The size of a block device in bytes. See [`BLKGETSIZE64`](https://man7.org/linux/man-pages/man2/ioctl_blkgetsize64.2const.html).
pub fn size_bytes(device: impl AsFd) -> io::Result<u64> {
    let mut size = 0_u64;
    // SAFETY: the kernel writes one u64 through the pointer, which is to a live local.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKGETSIZE64, &raw mut size) };
    nix::errno::Errno::result(result)?;
    Ok(size)
}

/// The logical sector size of a block device in bytes.
pub fn sector_bytes(device: impl AsFd) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: the kernel writes one int through the pointer, which is to a live local.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKSSZGET, &raw mut size) };
    nix::errno::Errno::result(result)?;
    u32::try_from(size).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Has the kernel read a disk's partition table again. `EBUSY` while one of its partitions is in use.
pub fn reread_partitions(disk: impl AsFd) -> io::Result<()> {
    // SAFETY: BLKRRPART takes no argument and touches no memory of ours.
    let result = unsafe { libc::ioctl(disk.as_fd().as_raw_fd(), BLKRRPART) };
    nix::errno::Errno::result(result)?;
    Ok(())
}

/// Tells the kernel of a partition that it has not found by itself. `EBUSY` when it overlaps one that it knows.
pub fn add_partition(
    disk: impl AsFd,
    number: u32,
    start_bytes: u64,
    length_bytes: u64,
) -> io::Result<()> {
    change_partition(BLKPG_ADD_PARTITION, disk, number, start_bytes, length_bytes)
}

/// Tells the kernel of a partition's new length, also while it or others of its disk are in use. `EINVAL` when it starts
/// elsewhere, `EBUSY` when it would overlap another.
pub fn resize_partition(
    disk: impl AsFd,
    number: u32,
    start_bytes: u64,
    length_bytes: u64,
) -> io::Result<()> {
    change_partition(
        BLKPG_RESIZE_PARTITION,
        disk,
        number,
        start_bytes,
        length_bytes,
    )
}

fn change_partition(
    op: libc::c_int,
    disk: impl AsFd,
    number: u32,
    start_bytes: u64,
    length_bytes: u64,
) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let partition = BlkpgPartition {
        start_bytes: i64::try_from(start_bytes).map_err(invalid)?,
        length_bytes: i64::try_from(length_bytes).map_err(invalid)?,
        number: libc::c_int::try_from(number).map_err(invalid)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let argument = BlkpgIoctlArg {
        op,
        flags: 0,
        data_length: size_of::<BlkpgPartition>() as libc::c_int,
        data: &raw const partition,
    };
    // SAFETY: the kernel reads the argument and the partition behind its pointer; both are live locals of the sizes that
    // it expects.
    let result = unsafe { libc::ioctl(disk.as_fd().as_raw_fd(), BLKPG, &raw const argument) };
    nix::errno::Errno::result(result)?;
    Ok(())
}
