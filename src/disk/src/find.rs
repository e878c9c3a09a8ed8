//! Disks by name or serial number, and the devices of their partitions, as `/sys` has them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::inspect::Partition;

const SYS_BLOCK: &str = "/sys/class/block";

/// How often `/sys` is looked at while something is waited for.
const INTERVAL: Duration = Duration::from_millis(5);

/// Why a disk was not found.
#[derive(Debug, Error)]
pub enum FindError {
    /// There is none of that name.
    #[error("no disk {name} after {waited_s} s; there are {present}")]
    NotThere {
        /// What was looked for.
        name: String,
        /// How long.
        waited_s: u64,
        /// What there is instead, with serial numbers.
        present: String,
    },
}

/// The device of a disk that is named by a path (`/dev/vdb`) or by `serial=…`, waiting up to `wait` for it to appear.
pub fn resolve(name: &str, wait: Duration) -> Result<PathBuf, FindError> {
    let find = || match name.strip_prefix("serial=") {
        Some(serial) => disks()
            .into_iter()
            .find(|disk| disk.serial.as_deref() == Some(serial))
            .map(|disk| disk.node()),
        None => Some(PathBuf::from(name)),
    };
    poll(wait, || find().filter(|path| path.exists())).ok_or_else(|| {
        let present: Vec<String> = disks().iter().map(Disk::to_string).collect();
        FindError::NotThere {
            name: name.to_owned(),
            waited_s: wait.as_secs(),
            present: if present.is_empty() {
                "none".to_owned()
            } else {
                present.join(", ")
            },
        }
    })
}

/// Asks until there is an answer or the time is over.
pub(crate) fn poll<T>(wait: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + wait;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(INTERVAL);
    }
}

/// The name under which the kernel knows a disk, `vdb` for a link in `/dev/disk` too.
pub(crate) fn kernel_name(device: &Path) -> Option<String> {
    let real = fs::canonicalize(device).ok()?;
    Some(real.file_name()?.to_str()?.to_owned())
}

/// The device of a partition of the disk that the kernel calls `disk`, when the kernel knows it with that number and place.
pub(crate) fn partition_node(disk: &str, partition: &Partition) -> Option<PathBuf> {
    // The kernel counts in 512 bytes whatever the disk's sectors are (Documentation/ABI/stable/sysfs-block).
    let is_same = |directory: &Path| {
        let is = |file: &str, value: u64| {
            let text = fs::read_to_string(directory.join(file));
            text.is_ok_and(|text| text.trim().parse() == Ok(value))
        };
        is("partition", u64::from(partition.number))
            && is("start", partition.start_bytes / 512)
            && is("size", partition.size_bytes / 512)
    };
    let name = entries(disk)
        .find(|entry| is_same(&entry.path()))?
        .file_name();
    Some(Path::new("/dev").join(name)).filter(|node| node.exists())
}

/// Whether the kernel knows any partition of `disk`.
pub(crate) fn has_partitions(disk: &str) -> bool {
    entries(disk).any(|entry| entry.path().join("partition").exists())
}

fn entries(disk: &str) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(Path::new(SYS_BLOCK).join(disk))
        .into_iter()
        .flatten()
        .flatten()
}

struct Disk {
    name: String,
    serial: Option<String>,
}

impl Disk {
    fn node(&self) -> PathBuf {
        // A `!` in /sys stands for a directory in /dev (cciss!c0d0).
        Path::new("/dev").join(self.name.replace('!', "/"))
    }
}

impl std::fmt::Display for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.node().display())?;
        match &self.serial {
            Some(serial) => write!(f, " (serial={serial})"),
            None => Ok(()),
        }
    }
}

/// The disks that are not partitions, in the order of their names.
fn disks() -> Vec<Disk> {
    let entries = fs::read_dir(SYS_BLOCK).into_iter().flatten().flatten();
    let mut disks: Vec<Disk> = entries
        .filter(|entry| !entry.path().join("partition").exists())
        .filter_map(|entry| {
            Some(Disk {
                name: entry.file_name().into_string().ok()?,
                serial: serial(&entry.path()),
            })
        })
        .filter(|disk| {
            !["loop", "ram", "zram", "dm-"]
                .iter()
                .any(|kind| disk.name.starts_with(kind))
        })
        .collect();
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    disks
}

/// The serial number: virtio has it beside the disk, NVMe below its controller, SCSI in VPD page 0x80 (SPC-4 §7.8.13: four
/// bytes of header).
fn serial(disk: &Path) -> Option<String> {
    let text = |path: &str| fs::read_to_string(disk.join(path)).ok();
    let page = || {
        let bytes = fs::read(disk.join("device/vpd_pg80")).ok()?;
        Some(String::from_utf8_lossy(bytes.get(4..)?).into_owned())
    };
    let serial = text("serial")
        .or_else(|| text("device/serial"))
        .or_else(page)?;
    let serial = serial
        .trim_matches(|c: char| c.is_whitespace() || c == '\0')
        .to_owned();
    (!serial.is_empty()).then_some(serial)
}
