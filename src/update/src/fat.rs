//! A new FAT32 filesystem with files in it (Microsoft's "FAT: General Overview of On-Disk Format" 1.03), as a list of writes.
//!
//! Every file is one run of clusters whose place is known before its contents are, so that they can be streamed there.

use std::collections::BTreeMap;

use thiserror::Error;

/// Sectors before the first FAT; what every formatter takes.
const RESERVED_SECTORS: u64 = 32;

/// Copies of the FAT.
const FATS: u64 = 2;

/// Fewer clusters would make it FAT16, more are not allowed.
const FEWEST_CLUSTERS: u64 = 65_525;
const MOST_CLUSTERS: u64 = 0x0fff_fff5;

const END_OF_CHAIN: u32 = 0x0fff_ffff;
const FIRST_CLUSTER: u64 = 2;
const ENTRY_BYTES: usize = 32;

const ATTRIBUTE_VOLUME: u8 = 0x08;
const ATTRIBUTE_DIRECTORY: u8 = 0x10;
const ATTRIBUTE_FILE: u8 = 0x20;
const ATTRIBUTE_LONG_NAME: u8 = 0x0f;

/// Characters of a name in one of its entries.
const LONG_NAME_UNITS: usize = 13;

/// 2020-01-01: FAT knows nothing before 1980, and the same files give the same bytes.
const DATE: u16 = (2020 - 1980) << 9 | 1 << 5 | 1;

/// What is formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// Its size in bytes.
    pub bytes: u64,
    /// The disk's sectors in bytes.
    pub sector_bytes: u64,
    /// Sectors of the disk before it.
    pub hidden_sectors: u64,
    /// The serial number.
    pub id: u32,
    /// The label, 11 capitals at most.
    pub label: &'static str,
}

/// A filesystem to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formatted {
    /// What is to be written: offsets in bytes from the volume's start, and bytes. The boot sector is the last.
    pub writes: Vec<(u64, Vec<u8>)>,
    /// Where each file's contents go, in the order in which they were given.
    pub places: Vec<u64>,
}

/// Why there is no filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FatError {
    /// Too small or too large for FAT32.
    #[error("FAT32 does not fit {0} bytes in sectors of {1}")]
    Size(u64, u64),
    /// The files do not fit.
    #[error("{needed} bytes of files do not fit an EFI system partition of {bytes}")]
    Full {
        /// The size of the partition.
        bytes: u64,
        /// The size of the files.
        needed: u64,
    },
    /// A name that is not written.
    #[error("{0:?} is no name of a file on the EFI system partition")]
    Name(String),
}

/// What is in a directory, by name.
#[derive(Debug, Default)]
struct Directory {
    directories: BTreeMap<String, Directory>,
    /// Sizes and numbers in the list of files.
    files: BTreeMap<String, (u64, usize)>,
}

/// The sizes of a volume's areas.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    sector_bytes: u64,
    cluster_sectors: u64,
    fat_sectors: u64,
    clusters: u64,
    sectors: u64,
}

impl Geometry {
    fn new(volume: &Volume) -> Result<Self, FatError> {
        let error = || FatError::Size(volume.bytes, volume.sector_bytes);
        let sector_bytes = volume.sector_bytes;
        if !sector_bytes.is_power_of_two() || !(512..=4096).contains(&sector_bytes) {
            return Err(error());
        }
        let sectors = volume.bytes / sector_bytes;
        // The largest clusters of at most 4 KiB that leave it FAT32.
        let sizes = [8_u64, 4, 2, 1]
            .into_iter()
            .filter(|count| count * sector_bytes <= 4096);
        sizes
            .filter_map(|cluster_sectors| {
                // Each cluster takes itself and four bytes in each FAT.
                let data = sectors.checked_sub(RESERVED_SECTORS)?;
                let entries = data / cluster_sectors + FIRST_CLUSTER;
                let fat_sectors = (entries * 4).div_ceil(sector_bytes);
                let clusters = data.checked_sub(FATS * fat_sectors)? / cluster_sectors;
                Some(Self {
                    sector_bytes,
                    cluster_sectors,
                    fat_sectors,
                    clusters,
                    sectors,
                })
            })
            .find(|geometry| {
                (FEWEST_CLUSTERS..MOST_CLUSTERS).contains(&geometry.clusters)
                    && sectors <= u64::from(u32::MAX)
            })
            .ok_or_else(error)
    }

    fn cluster_bytes(&self) -> u64 {
        self.cluster_sectors * self.sector_bytes
    }

    /// Where a cluster lies, in bytes.
    fn place(&self, cluster: u64) -> u64 {
        let data = (RESERVED_SECTORS + FATS * self.fat_sectors) * self.sector_bytes;
        data + (cluster - FIRST_CLUSTER) * self.cluster_bytes()
    }
}

/// Clusters given out one after the other.
#[derive(Debug)]
struct Allocator {
    geometry: Geometry,
    fat: Vec<u32>,
}

impl Allocator {
    /// The first of as many clusters as `bytes` take, at least one.
    fn take(&mut self, bytes: u64) -> u64 {
        let first = self.fat.len() as u64;
        let count = bytes.div_ceil(self.geometry.cluster_bytes()).max(1);
        for next in first + 1..first + count {
            self.fat.push(next as u32);
        }
        self.fat.push(END_OF_CHAIN);
        first
    }
}

/// Lays out `volume` with `files`: absolute paths without a slash at their start, and sizes in bytes. Directories are made as needed.
pub fn format(volume: &Volume, files: &[(String, u64)]) -> Result<Formatted, FatError> {
    let geometry = Geometry::new(volume)?;
    let mut tree = Directory::default();
    for (number, (path, bytes)) in files.iter().enumerate() {
        let error = || FatError::Name(path.clone());
        let mut names: Vec<&str> = path.split('/').collect();
        let is_name = |name: &&str| {
            let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-+~^".contains(&b);
            !name.is_empty()
                && name.len() <= 200
                && !name.starts_with('.')
                && !name.ends_with('.')
                && name.bytes().all(is_allowed)
        };
        if !names.iter().all(is_name) || *bytes > u64::from(u32::MAX) {
            return Err(error());
        }
        let name = names.pop().ok_or_else(error)?;
        let mut directory = &mut tree;
        for name in names {
            directory = directory.directories.entry(name.to_owned()).or_default();
        }
        if directory
            .files
            .insert(name.to_owned(), (*bytes, number))
            .is_some()
        {
            return Err(error());
        }
    }
    let needed = files.iter().fold(0_u64, |sum, (_, bytes)| {
        sum.saturating_add(bytes + geometry.cluster_bytes())
    });
    // Room for directories, of which none here has more than a few names.
    if needed.saturating_add(1 << 20) > geometry.clusters * geometry.cluster_bytes() {
        return Err(FatError::Full {
            bytes: volume.bytes,
            needed,
        });
    }
    let mut formatted = Formatted {
        writes: Vec::new(),
        places: vec![0; files.len()],
    };
    let mut allocator = Allocator {
        geometry,
        fat: vec![0x0fff_fff8, END_OF_CHAIN],
    };
    write_directory(&tree, None, volume.label, &mut allocator, &mut formatted);

    let used = allocator.fat.len() as u64 - FIRST_CLUSTER;
    let mut fat: Vec<u8> = allocator
        .fat
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    fat.resize((geometry.fat_sectors * geometry.sector_bytes) as usize, 0);
    for copy in 0..FATS {
        let at = (RESERVED_SECTORS + copy * geometry.fat_sectors) * geometry.sector_bytes;
        formatted.writes.push((at, fat.clone()));
    }
    let (boot, info) = (
        boot_sector(volume, &geometry),
        information_sector(&geometry, used),
    );
    // The copies, zeros between, and last the sector that makes it a filesystem.
    for (sector, bytes) in [(1, &info), (6, &boot), (7, &info), (0, &boot)] {
        formatted
            .writes
            .push((sector * geometry.sector_bytes, bytes.clone()));
    }
    Ok(formatted)
}

/// Lays out a directory and what is below it, and gives its first cluster. `parent` is its parent's; the root has none.
fn write_directory(
    directory: &Directory,
    parent: Option<u64>,
    label: &str,
    allocator: &mut Allocator,
    formatted: &mut Formatted,
) -> u64 {
    let names = directory.directories.keys().chain(directory.files.keys());
    let entries: usize = names
        .map(|name| 1 + name.len().div_ceil(LONG_NAME_UNITS))
        .sum();
    let bytes = (entries + 3) * ENTRY_BYTES;
    let own = allocator.take(bytes as u64);
    let mut list = Vec::with_capacity(bytes);
    match parent {
        None => list.extend(entry(&padded(label), ATTRIBUTE_VOLUME, 0, 0)),
        Some(parent) => {
            list.extend(entry(&padded("."), ATTRIBUTE_DIRECTORY, own, 0));
            // The root counts as 0 here.
            let parent = if parent == FIRST_CLUSTER { 0 } else { parent };
            list.extend(entry(&padded(".."), ATTRIBUTE_DIRECTORY, parent, 0));
        }
    }
    let mut number = 0;
    let mut add = |name: &str, attributes: u8, cluster: u64, bytes: u64| {
        number += 1;
        list.extend(named_entries(name, number, attributes, cluster, bytes));
    };
    for (name, below) in &directory.directories {
        let cluster = write_directory(below, Some(own), label, allocator, formatted);
        add(name, ATTRIBUTE_DIRECTORY, cluster, 0);
    }
    for (name, (bytes, file)) in &directory.files {
        let cluster = allocator.take(*bytes);
        if let Some(place) = formatted.places.get_mut(*file) {
            *place = allocator.geometry.place(cluster);
        }
        add(name, ATTRIBUTE_FILE, cluster, *bytes);
    }
    let cluster_bytes = allocator.geometry.cluster_bytes() as usize;
    list.resize(bytes.div_ceil(cluster_bytes) * cluster_bytes, 0);
    formatted.writes.push((allocator.geometry.place(own), list));
    own
}

fn padded(name: &str) -> [u8; 11] {
    let mut short = [b' '; 11];
    for (to, from) in short.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    short
}

/// A short entry (§6).
fn entry(short: &[u8; 11], attributes: u8, cluster: u64, bytes: u64) -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in entry.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, short);
    put(11, &[attributes]);
    for at in [16, 18, 24] {
        put(at, &DATE.to_le_bytes());
    }
    put(20, &((cluster >> 16) as u16).to_le_bytes());
    put(26, &(cluster as u16).to_le_bytes());
    put(28, &(bytes as u32).to_le_bytes());
    entry
}

/// A name's entries: the long name's, last part first, and the short one (§7). `number` makes the short name unique in its directory.
fn named_entries(name: &str, number: u32, attributes: u8, cluster: u64, bytes: u64) -> Vec<u8> {
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let letters = |text: &str, most: usize| -> String {
        text.chars()
            .filter(char::is_ascii_alphanumeric)
            .take(most)
            .collect::<String>()
            .to_ascii_uppercase()
    };
    let is_short =
        letters(stem, 8) == stem && letters(extension, 3) == extension && !stem.is_empty();
    let tail = format!("~{number}");
    let stem = if is_short {
        stem.to_owned()
    } else {
        letters(stem, 8 - tail.len()) + &tail
    };
    let short = padded(&format!("{stem:<8}{}", letters(extension, 3)));
    let mut entries = Vec::new();
    if !is_short {
        // §7.2: the sum of the short name binds the entries to it.
        let sum = short
            .iter()
            .fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        let units: Vec<u16> = name.encode_utf16().collect();
        let parts: Vec<&[u16]> = units.chunks(LONG_NAME_UNITS).collect();
        for (index, part) in parts.iter().enumerate().rev() {
            let last = if index + 1 == parts.len() { 0x40 } else { 0 };
            // After the name a zero, and then ones.
            let unit = |at: usize| {
                part.get(at)
                    .copied()
                    .unwrap_or(if at == part.len() { 0 } else { 0xffff })
            };
            let bytes = |from: usize, to: usize| {
                (from..to)
                    .flat_map(|at| unit(at).to_le_bytes())
                    .collect::<Vec<u8>>()
            };
            entries.push(last | (index as u8 + 1));
            entries.extend(bytes(0, 5));
            entries.extend([ATTRIBUTE_LONG_NAME, 0, sum]);
            entries.extend(bytes(5, 11));
            entries.extend([0, 0]);
            entries.extend(bytes(11, 13));
        }
    }
    entries.extend(entry(&short, attributes, cluster, bytes));
    entries
}

/// The boot sector with its BIOS parameter block (§3).
fn boot_sector(volume: &Volume, geometry: &Geometry) -> Vec<u8> {
    let mut sector = vec![0; geometry.sector_bytes as usize];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in sector.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, &[0xeb, 0x58, 0x90]);
    put(3, b"ORLOP   ");
    put(11, &(geometry.sector_bytes as u16).to_le_bytes());
    put(13, &[geometry.cluster_sectors as u8]);
    put(14, &(RESERVED_SECTORS as u16).to_le_bytes());
    put(16, &[FATS as u8]);
    put(21, &[0xf8]);
    put(24, &63_u16.to_le_bytes());
    put(26, &255_u16.to_le_bytes());
    put(
        28,
        &u32::try_from(volume.hidden_sectors)
            .unwrap_or(0)
            .to_le_bytes(),
    );
    put(32, &(geometry.sectors as u32).to_le_bytes());
    put(36, &(geometry.fat_sectors as u32).to_le_bytes());
    put(44, &(FIRST_CLUSTER as u32).to_le_bytes());
    put(48, &1_u16.to_le_bytes());
    put(50, &6_u16.to_le_bytes());
    put(64, &[0x80]);
    put(66, &[0x29]);
    put(67, &volume.id.to_le_bytes());
    put(71, &padded(volume.label));
    put(82, b"FAT32   ");
    put(510, &[0x55, 0xaa]);
    sector
}

/// The sector with the free clusters (§5).
fn information_sector(geometry: &Geometry, used: u64) -> Vec<u8> {
    let mut sector = vec![0; geometry.sector_bytes as usize];
    let mut put = |at: usize, number: u32| {
        for (to, from) in sector.iter_mut().skip(at).zip(number.to_le_bytes()) {
            *to = from;
        }
    };
    put(0, 0x4161_5252);
    put(484, 0x6141_7272);
    put(488, (geometry.clusters - used) as u32);
    put(492, (used + FIRST_CLUSTER) as u32);
    put(508, 0xaa55_0000);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESP: Volume = Volume {
        bytes: 256 << 20,
        sector_bytes: 512,
        hidden_sectors: 2048,
        id: 7,
        label: "ORLOP-ESP",
    };

    #[test]
    fn what_does_not_fit_is_refused() {
        let format = |bytes, sector_bytes, files: &[(&str, u64)]| {
            let files: Vec<(String, u64)> = files
                .iter()
                .map(|(name, bytes)| ((*name).to_owned(), *bytes))
                .collect();
            super::format(
                &Volume {
                    bytes,
                    sector_bytes,
                    ..ESP
                },
                &files,
            )
        };
        assert!(matches!(format(1 << 20, 512, &[]), Err(FatError::Size(..))));
        assert!(
            matches!(format(256 << 20, 4096, &[]), Err(FatError::Size(..))),
            "that many clusters make FAT16"
        );
        assert!(format(512 << 20, 4096, &[("a", 1)]).is_ok());
        assert!(matches!(
            format(256 << 20, 512, &[("a", 256 << 20)]),
            Err(FatError::Full { .. })
        ));
        for name in ["", "/a", "a//b", "a b", "..", "é", "a/"] {
            assert!(
                matches!(format(256 << 20, 512, &[(name, 1)]), Err(FatError::Name(_))),
                "{name}"
            );
        }
        assert!(matches!(
            format(256 << 20, 512, &[("a", 1), ("a", 1)]),
            Err(FatError::Name(_))
        ));
    }

    #[test]
    fn the_boot_sector_is_written_last() {
        let formatted = format(&ESP, &[("a".to_owned(), 1)]).unwrap();
        assert_eq!(formatted.writes.last().unwrap().0, 0);
    }
}
