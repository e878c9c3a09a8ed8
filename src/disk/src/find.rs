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
    /// There are several.
    #[error("{name} fits {fitting}; name one of them by its path or serial number")]
    Several {
        /// What was looked for.
        name: String,
        /// The disks.
        fitting: String,
    },
    /// It names no disk in any known way.
    #[error("{0:?} names no disk: a path, serial=…, model=… or size=…")]
    Unknown(String),
}

/// How a disk is named.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Selector {
    Path(PathBuf),
    Serial(String),
    /// In any case of letters; a `*` at the end stands for anything.
    Model(String),
    /// In bytes, with a hundredth of tolerance: makers round.
    Size(u64),
    Largest,
    Smallest,
}

impl Selector {
    fn parse(name: &str) -> Option<Self> {
        let (key, value) = match name.split_once('=') {
            Some((key @ ("serial" | "model" | "size"), value)) => (key, value),
            _ => return (!name.is_empty()).then(|| Self::Path(PathBuf::from(name))),
        };
        match (key, value) {
            (_, "") => None,
            ("serial", serial) => Some(Self::Serial(serial.to_owned())),
            ("model", model) => Some(Self::Model(model.to_lowercase())),
            (_, "largest") => Some(Self::Largest),
            (_, "smallest") => Some(Self::Smallest),
            (_, size) => Some(Self::Size(parse_size(size)?)),
        }
    }

    /// The disks that fit.
    fn find(&self, disks: Vec<Disk>) -> Vec<Disk> {
        let fits = |disk: &Disk| match self {
            Self::Path(_) => false,
            Self::Serial(serial) => disk.serial.as_ref() == Some(serial),
            Self::Model(model) => disk.model.as_ref().is_some_and(|is| {
                let is = is.to_lowercase();
                model
                    .strip_suffix('*')
                    .map_or(is == *model, |start| is.starts_with(start))
            }),
            Self::Size(size) => disk.size_bytes.abs_diff(*size) <= size / 100,
            Self::Largest | Self::Smallest => true,
        };
        let mut fitting: Vec<Disk> = disks.into_iter().filter(fits).collect();
        let wanted = match self {
            Self::Largest => fitting.iter().map(|disk| disk.size_bytes).max(),
            Self::Smallest => fitting.iter().map(|disk| disk.size_bytes).min(),
            _ => None,
        };
        if let Some(wanted) = wanted {
            fitting.retain(|disk| disk.size_bytes == wanted);
        }
        fitting
    }
}

/// A size in bytes: `500GB` (decimal), `20GiB` or `20G` (binary), or a plain number.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let unit: u64 = match unit {
        "" | "B" => 1,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)
        .filter(|size| *size > 0)
}

/// Whether `name` is a way to name a disk that [`resolve`] knows.
#[must_use]
pub fn is_disk_name(name: &str) -> bool {
    Selector::parse(name).is_some()
}

/// The device of a disk that is named by a path (`/dev/vdb`), `serial=…`, `model=…` (any case; a `*` at the end stands for anything) or
/// `size=…` (`20GiB`, `500GB`, within a hundredth; `largest`, `smallest`), waiting up to `wait` for it to appear.
///
/// A name that fits several disks is an error, except for a serial number, where the first counts.
pub fn resolve(name: &str, wait: Duration) -> Result<PathBuf, FindError> {
    let selector = Selector::parse(name).ok_or_else(|| FindError::Unknown(name.to_owned()))?;
    let find = || match &selector {
        Selector::Path(path) => Some(vec![path.clone()]).filter(|_| path.exists()),
        Selector::Serial(_) => {
            let found = selector.find(disks()).into_iter().next()?.node();
            Some(vec![found]).filter(|found| found.iter().all(|path| path.exists()))
        }
        _ => {
            let candidates = disks().into_iter().filter(|disk| disk.is_fixed).collect();
            let found = selector.find(candidates);
            let nodes = found.iter().map(Disk::node).filter(|path| path.exists());
            Some(nodes.collect()).filter(|found: &Vec<_>| !found.is_empty())
        }
    };
    let list = |disks: Vec<String>| match disks.is_empty() {
        true => "none".to_owned(),
        false => disks.join(", "),
    };
    let found = poll(wait, find).ok_or_else(|| FindError::NotThere {
        name: name.to_owned(),
        waited_s: wait.as_secs(),
        present: list(disks().iter().map(Disk::to_string).collect()),
    })?;
    match found.as_slice() {
        [one] => Ok(one.clone()),
        several => Err(FindError::Several {
            name: name.to_owned(),
            fitting: list(
                several
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect(),
            ),
        }),
    }
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

#[derive(Debug, Clone, Default)]
struct Disk {
    name: String,
    serial: Option<String>,
    model: Option<String>,
    size_bytes: u64,
    /// Neither removable nor read-only nor an optical drive: a place to install to.
    is_fixed: bool,
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
        let serial = self
            .serial
            .as_ref()
            .map(|serial| format!("serial={serial}"));
        let model = self.model.as_ref().map(|model| format!("model={model}"));
        let known: Vec<String> = serial.into_iter().chain(model).collect();
        match known.is_empty() {
            false => write!(f, " ({})", known.join(", ")),
            true => Ok(()),
        }
    }
}

/// The disks that are not partitions, in the order of their names.
fn disks() -> Vec<Disk> {
    let entries = fs::read_dir(SYS_BLOCK).into_iter().flatten().flatten();
    let mut disks: Vec<Disk> = entries
        .filter(|entry| !entry.path().join("partition").exists())
        .filter_map(|entry| {
            let path = entry.path();
            let name = entry.file_name().into_string().ok()?;
            let text = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
            let is_zero = |file: &str| text(file).trim() == "0";
            let is_drive = ["sr", "fd"].iter().any(|kind| name.starts_with(kind));
            Some(Disk {
                serial: serial(&path),
                model: Some(text("device/model").trim().to_owned())
                    .filter(|model| !model.is_empty()),
                // In sectors of 512 bytes, whatever the disk's are.
                size_bytes: text("size")
                    .trim()
                    .parse::<u64>()
                    .unwrap_or(0)
                    .saturating_mul(512),
                is_fixed: is_zero("removable") && is_zero("ro") && !is_zero("size") && !is_drive,
                name,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, serial: &str, model: &str, size_bytes: u64) -> Disk {
        Disk {
            name: name.to_owned(),
            serial: Some(serial.to_owned()),
            model: Some(model.to_owned()),
            size_bytes,
            is_fixed: true,
        }
    }

    #[test]
    fn disks_are_found_by_serial_model_and_size() {
        let disks = vec![
            disk("sda", "S1", "Samsung SSD 870", 500_107_862_016),
            disk("sdb", "S2", "Samsung SSD 990", 1_000_204_886_016),
            disk("nvme0n1", "N1", "WD Blue", 20 << 30),
        ];
        let names = |name: &str| -> Vec<String> {
            let found = Selector::parse(name).unwrap().find(disks.clone());
            found.into_iter().map(|disk| disk.name).collect()
        };
        assert_eq!(names("serial=S2"), ["sdb"]);
        assert_eq!(names("serial=s2"), [""; 0]);
        assert_eq!(names("model=wd blue"), ["nvme0n1"]);
        assert_eq!(names("model=samsung*"), ["sda", "sdb"]);
        assert_eq!(names("size=500GB"), ["sda"]);
        assert_eq!(names("size=20GiB"), ["nvme0n1"]);
        assert_eq!(names("size=largest"), ["sdb"]);
        assert_eq!(names("size=smallest"), ["nvme0n1"]);
        assert_eq!(names("size=1GiB"), [""; 0]);
    }

    #[test]
    fn what_names_no_disk_is_told() {
        for name in [
            "",
            "serial=",
            "model=",
            "size=",
            "size=big",
            "size=0",
            "size=99999999999999999999T",
        ] {
            assert!(!is_disk_name(name), "{name}");
            assert!(
                matches!(resolve(name, Duration::ZERO), Err(FindError::Unknown(_))),
                "{name}"
            );
        }
        let error = resolve("serial=no-such-disk", Duration::ZERO).unwrap_err();
        assert!(
            error.to_string().contains("no disk serial=no-such-disk"),
            "{error}"
        );
    }
}
