//! Putting Orlop on a disk: partition table, EFI system partition, the first slot. `docs/install.md` has the layout.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use orlop_boot::entries::Entry;
use orlop_boot::esp::ENTRIES;
pub use orlop_boot::gpt::ESP_TYPE;
use orlop_disk::{Found, PartitionTable, State, TableEntry, TableWrite, claim, unclaim};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use uuid::Uuid;

use crate::apply::{Phase, Progress, read_table, write_table};
use crate::fat::{self, FatError, Formatted, Volume};
use crate::hex::Hash;
use crate::manifest::{Manifest, Which};
use crate::payload::{Payload, PayloadError};
use crate::slots::{NAMES, ROOT_TYPE, Slot, VERITY_TYPE};
use crate::storage::Disk;

/// The name of the EFI system partition, and its name until the installation is done.
pub const ESP_NAME: &str = "esp";
const ESP_UNFINISHED: &str = "esp-new";

/// The name of the data volume's partition until the first start from the disk makes its filesystem.
pub const VAR_NAME: &str = "orlop-var-new";

/// The attribute "read-only" (Discoverable Partitions Specification).
const READ_ONLY: u64 = 1 << 60;

const MIB: u64 = 1 << 20;

/// What is written last of the kernel image; see [`crate::apply`].
const SECTOR_BYTES: usize = 512;

/// Where the loader goes: where firmware looks, and where systemd-boot's own tools do.
const LOADER_PATHS: [&str; 2] = ["EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"];

/// The loader's configuration: no menu unless a key is held, nothing but our entries, of which versions are started, no command
/// lines by hand.
const LOADER_CONFIGURATION: (&str, &[u8]) = (
    "loader/loader.conf",
    b"timeout 0\ndefault orlop_*\neditor no\nauto-entries no\nauto-firmware no\n",
);

/// How large the partitions are, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The EFI system partition: room for three kernel images of the largest profile, and more.
    pub esp_bytes: u64,
    /// Each root.
    pub root_bytes: u64,
    /// Each hash tree; a tree takes 1/127 of its root.
    pub verity_bytes: u64,
    /// The least that the data volume takes; it gets all that is left.
    pub var_bytes: u64,
}

impl Layout {
    /// The layout on disks with sectors of that size. FAT32 needs more bytes in larger sectors.
    #[must_use]
    pub fn of(sector_bytes: u64) -> Self {
        Self {
            esp_bytes: if sector_bytes > 512 {
                512 * MIB
            } else {
                256 * MIB
            },
            root_bytes: 256 * MIB,
            verity_bytes: 4 * MIB,
            var_bytes: 16 * MIB,
        }
    }

    /// The least that a disk has, in bytes.
    #[must_use]
    pub fn least_bytes(&self) -> u64 {
        // A MiB at each end for the tables.
        self.esp_bytes + 2 * (self.root_bytes + self.verity_bytes) + self.var_bytes + 2 * MIB
    }
}

/// What may be overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permission {
    /// What others made, and an installation of Orlop with its data.
    pub wipe: bool,
    /// A disk that is a data volume of Orlop's.
    pub wipe_data_volume: bool,
}

/// What a disk is to an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Nothing is lost.
    Free,
    /// An installation that was cut short.
    Unfinished,
    /// Orlop is on it.
    Installed,
    /// A data volume.
    DataVolume,
    /// Somebody else's; what, to be read after "holds".
    Foreign(String),
}

/// Why nothing is installed.
#[derive(Debug, Error)]
pub enum InstallError {
    /// The disk can not be looked at.
    #[error(transparent)]
    Inspect(#[from] orlop_disk::InspectError),
    /// The disk can not be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// Somebody else's data.
    #[error("{0} holds {1}; `wipe` lets the installation overwrite it")]
    Foreign(PathBuf, String),
    /// An installation.
    #[error("Orlop is installed on {0} already; `wipe` installs it anew, and its data are lost")]
    Installed(PathBuf),
    /// A data volume.
    #[error(
        "{0} holds a data volume of Orlop, which `wipe` does not overwrite; --wipe-data-volume does"
    )]
    DataVolume(PathBuf),
    /// Too small.
    #[error("the disk has {is} bytes, fewer than the {least} that an installation needs")]
    TooSmall {
        /// The disk's size.
        is: u64,
        /// What is needed.
        least: u64,
    },
    /// For another machine.
    #[error("it is for {payload}; this machine is {machine}")]
    Architecture {
        /// The payload's.
        payload: String,
        /// The machine's.
        machine: String,
    },
    /// A part does not fit.
    #[error("{part} has {bytes} bytes, and there is room for {room}")]
    TooLarge {
        /// The part.
        part: Which,
        /// Its size.
        bytes: u64,
        /// The partition's.
        room: u64,
    },
    /// Nothing to boot with.
    #[error("the payload has no boot loader, so that it can be an update but not be installed")]
    NoLoader,
    /// No filesystem.
    #[error(transparent)]
    Fat(#[from] FatError),
    /// The payload is damaged, or its source broke off.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The disk can not be written.
    #[error("cannot write {0}")]
    Write(&'static str, #[source] io::Error),
    /// A part can not be read back.
    #[error("cannot read {0} back")]
    ReadBack(Which, #[source] io::Error),
    /// The medium does not hold what was written to it.
    #[error("the disk does not give back what was written: {0} is damaged after writing")]
    BadMedium(Which),
}

/// What the disk at `device` is to an installation. Only reads.
pub fn look(device: &Path, disk: &dyn Disk) -> Result<Target, InstallError> {
    if let Some(table) = read_table(disk) {
        let has_slots = NAMES
            .iter()
            .all(|slot| table.named(&Slot::root_name(slot)).is_some());
        let esp = table.entries.first().map(|entry| entry.name.as_str());
        if has_slots && esp == Some(ESP_NAME) {
            return Ok(Target::Installed);
        }
        if has_slots && esp == Some(ESP_UNFINISHED) {
            // Only the last write was cut: somebody may have started from the disk since, and have data on it.
            let has_data =
                has_data(&table, disk).map_err(|e| InstallError::Read(device.to_owned(), e))?;
            return Ok(if has_data {
                Target::Installed
            } else {
                Target::Unfinished
            });
        }
    }
    Ok(match orlop_disk::inspect(device)? {
        Found::Blank | Found::Orlop(State::Unfinished) => Target::Free,
        Found::Orlop(State::Complete { .. } | State::Damaged { .. }) => Target::DataVolume,
        Found::Foreign { what } => Target::Foreign(what),
    })
}

/// Whether anything stands where the data volume's filesystem would begin.
fn has_data(table: &PartitionTable, disk: &dyn Disk) -> io::Result<bool> {
    let Some(var) = table
        .entries
        .iter()
        .find(|entry| entry.kind == orlop_disk::VAR_TYPE)
    else {
        return Ok(false);
    };
    let mut start = vec![0; (64 << 10).min(var.size_bytes) as usize];
    disk.read_at(&mut start, var.start_bytes)?;
    Ok(start.iter().any(|byte| *byte != 0))
}

/// Whether `permission` goes for what the disk holds.
pub fn permit(device: &Path, target: &Target, permission: Permission) -> Result<(), InstallError> {
    let device = device.to_owned();
    match target {
        Target::Free | Target::Unfinished => Ok(()),
        Target::DataVolume if permission.wipe_data_volume => Ok(()),
        Target::DataVolume => Err(InstallError::DataVolume(device)),
        _ if permission.wipe => Ok(()),
        Target::Installed => Err(InstallError::Installed(device)),
        Target::Foreign(what) => Err(InstallError::Foreign(device, what.clone())),
    }
}

/// Everything that is decided before the first write.
#[derive(Debug)]
struct Plan {
    table: PartitionTable,
    formatted: Formatted,
    /// Where each part goes on the disk, in bytes; the loader goes to two places.
    places: Vec<(Which, u64)>,
    /// Small files: places and contents.
    files: Vec<(u64, Vec<u8>)>,
}

/// Puts the payload on a whole disk, which is the caller's to give away (see [`permit`]). `files` are more files for the EFI system partition.
///
/// Until the kernel image's first sector is written the disk boots nothing; until its partitions have their names it is known as unfinished, so that it
/// can be done again.
pub fn install<R: Read>(
    mut payload: Payload<R>,
    architecture: &str,
    disk: &mut dyn Disk,
    files: &[(String, Vec<u8>)],
    progress: &mut dyn FnMut(Progress),
) -> Result<Entry, InstallError> {
    let manifest = payload.manifest().clone();
    if manifest.architecture != architecture {
        let (payload, machine) = (manifest.architecture, architecture.to_owned());
        return Err(InstallError::Architecture { payload, machine });
    }
    let entry = Entry::new(manifest.version.clone());
    let mut plan = plan(&manifest, &entry, disk, files)?;

    let table_error = |e| InstallError::Write("the partition table", e);
    wipe_ends(disk).map_err(table_error)?;
    let mark = |disk: &mut dyn Disk, write: TableWrite| {
        disk.write_at(&write.bytes, write.at)
            .and_then(|()| disk.sync())
            .map_err(table_error)
    };
    let claim = claim(disk.size_bytes());
    mark(disk, claim)?;
    write_table(disk, &plan.table).map_err(table_error)?;
    let esp_at = plan
        .table
        .entries
        .first()
        .map_or(0, |entry| entry.start_bytes);
    let esp_error = |e| InstallError::Write("the EFI system partition", e);
    for (at, bytes) in &plan.formatted.writes {
        disk.write_at(bytes, esp_at + at).map_err(esp_error)?;
    }
    for (at, bytes) in &plan.files {
        disk.write_at(bytes, esp_at + at).map_err(esp_error)?;
    }
    // An older filesystem in the data volume's place would be taken for one.
    let var = plan
        .table
        .entries
        .last()
        .map_or((0, 0), |var| (var.start_bytes, var.size_bytes));
    disk.write_at(&vec![0; MIB.min(var.1) as usize], var.0)
        .map_err(|e| InstallError::Write("the data volume", e))?;

    let head = write_parts(&mut payload, &plan, disk, progress)?;
    read_back(&manifest, &plan, disk, &head, progress)?;
    let uki = plan
        .places
        .iter()
        .find(|(which, _)| *which == Which::Uki)
        .map_or(0, |(_, at)| *at);
    disk.write_at(&head, uki)
        .and_then(|()| disk.sync())
        .map_err(esp_error)?;
    if let Some(esp) = plan.table.entries.first_mut() {
        ESP_NAME.clone_into(&mut esp.name);
    }
    // Read again, so that it is known which copies there are now.
    let table = read_table(disk).map(|mut table| {
        table.entries.clone_from(&plan.table.entries);
        table
    });
    write_table(disk, &table.unwrap_or(plan.table)).map_err(table_error)?;
    mark(disk, unclaim())?;
    Ok(entry)
}

fn plan(
    manifest: &Manifest,
    entry: &Entry,
    disk: &dyn Disk,
    files: &[(String, Vec<u8>)],
) -> Result<Plan, InstallError> {
    let layout = Layout::of(disk.sector_bytes());
    if disk.size_bytes() < layout.least_bytes() {
        return Err(InstallError::TooSmall {
            is: disk.size_bytes(),
            least: layout.least_bytes(),
        });
    }
    let loader = manifest
        .parts
        .loader
        .as_ref()
        .ok_or(InstallError::NoLoader)?;
    for (part, bytes, room) in [
        (Which::Root, manifest.parts.root.bytes, layout.root_bytes),
        (
            Which::Verity,
            manifest.parts.verity.bytes,
            layout.verity_bytes,
        ),
    ] {
        if bytes > room {
            return Err(InstallError::TooLarge { part, bytes, room });
        }
    }
    let table = new_table(&layout, manifest, disk);
    let mut names: Vec<(String, u64)> = vec![(
        format!("{ENTRIES}/{}", entry.file_name()),
        manifest.parts.uki.bytes,
    )];
    names.extend(LOADER_PATHS.map(|path| (path.to_owned(), loader.bytes)));
    let (path, bytes) = LOADER_CONFIGURATION;
    let contents: Vec<(String, Vec<u8>)> = [(path.to_owned(), bytes.to_vec())]
        .into_iter()
        .chain(files.to_vec())
        .collect();
    names.extend(
        contents
            .iter()
            .map(|(path, bytes)| (path.clone(), bytes.len() as u64)),
    );
    let esp_at = table.entries.first().map_or(0, |entry| entry.start_bytes);
    let volume = Volume {
        bytes: layout.esp_bytes,
        sector_bytes: disk.sector_bytes(),
        hidden_sectors: esp_at / disk.sector_bytes(),
        id: u32::from_le_bytes(*b"orlp"),
        label: "ORLOP-ESP",
    };
    let formatted = fat::format(&volume, &names)?;
    let mut places = Vec::new();
    let (parts, small) = formatted
        .places
        .split_at_checked(1 + LOADER_PATHS.len())
        .unwrap_or_default();
    for (number, at) in parts.iter().enumerate() {
        places.push((
            if number == 0 {
                Which::Uki
            } else {
                Which::Loader
            },
            esp_at + at,
        ));
    }
    let [slot, _] = NAMES;
    for (which, name) in [
        (Which::Root, Slot::root_name(slot)),
        (Which::Verity, Slot::verity_name(slot)),
    ] {
        places.extend(table.named(&name).map(|entry| (which, entry.start_bytes)));
    }
    let files = small
        .iter()
        .copied()
        .zip(contents.into_iter().map(|(_, bytes)| bytes))
        .collect();
    Ok(Plan {
        table,
        formatted,
        places,
        files,
    })
}

/// EFI system partition, two slots of which the first is the payload's, and the rest for the data volume.
fn new_table(layout: &Layout, manifest: &Manifest, disk: &dyn Disk) -> PartitionTable {
    let mut table = PartitionTable::new(disk.size_bytes(), disk.sector_bytes());
    let mut start_bytes = MIB;
    let mut number = 0;
    let mut add = |name: String, kind: Uuid, unique: Uuid, size_bytes: u64, attributes: u64| {
        number += 1;
        table.entries.push(TableEntry {
            number,
            kind,
            unique,
            start_bytes,
            size_bytes,
            attributes,
            name,
        });
        start_bytes += size_bytes;
    };
    add(
        ESP_UNFINISHED.to_owned(),
        ESP_TYPE,
        Uuid::new_v4(),
        layout.esp_bytes,
        0,
    );
    let [first, second] = NAMES;
    let hash = &manifest.root_hash;
    let (root, tree) = (layout.root_bytes, layout.verity_bytes);
    add(
        Slot::root_name(first),
        ROOT_TYPE,
        hash.root_uuid(),
        root,
        READ_ONLY,
    );
    add(
        Slot::verity_name(first),
        VERITY_TYPE,
        hash.verity_uuid(),
        tree,
        READ_ONLY,
    );
    add(
        Slot::root_name(second),
        ROOT_TYPE,
        Uuid::new_v4(),
        root,
        READ_ONLY,
    );
    add(
        Slot::verity_name(second),
        VERITY_TYPE,
        Uuid::new_v4(),
        tree,
        READ_ONLY,
    );
    let used = layout.least_bytes() - layout.var_bytes - MIB;
    let rest = (disk.size_bytes() - used - MIB) / MIB * MIB;
    add(
        VAR_NAME.to_owned(),
        orlop_disk::VAR_TYPE,
        Uuid::new_v4(),
        rest,
        0,
    );
    table
}

/// Zeros at both ends, so that nothing of an older table or filesystem is found again.
fn wipe_ends(disk: &mut dyn Disk) -> io::Result<()> {
    let zeros = vec![0; MIB as usize];
    let end = disk.size_bytes() - MIB;
    disk.write_at(&zeros, end)?;
    disk.write_at(&zeros, 0)?;
    disk.sync()
}

/// Writes all parts, the kernel image's first sector left zero, and gives that sector.
fn write_parts<R: Read>(
    payload: &mut Payload<R>,
    plan: &Plan,
    disk: &mut dyn Disk,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<u8>, InstallError> {
    let total_bytes = payload.manifest().bytes();
    let parts: Vec<Which> = payload.manifest().parts().map(|(which, _)| which).collect();
    let mut done_bytes = 0;
    let mut head = Vec::new();
    for which in parts {
        let mut at = 0;
        let mut sink = |bytes: &[u8]| {
            for (_, place) in plan.places.iter().filter(|(of, _)| *of == which) {
                let written = if which == Which::Uki && at == 0 {
                    let (first, rest) = bytes.split_at(SECTOR_BYTES.min(bytes.len()));
                    head = first.to_vec();
                    disk.write_at(&[vec![0; first.len()].as_slice(), rest].concat(), *place)
                } else {
                    disk.write_at(bytes, place + at)
                };
                written.map_err(|e| InstallError::Write(which.name(), e))?;
            }
            at += bytes.len() as u64;
            done_bytes += bytes.len() as u64;
            progress(Progress {
                phase: Phase::Write,
                done_bytes,
                total_bytes,
            });
            Ok(())
        };
        payload.next_part::<InstallError>(&mut sink)?;
    }
    disk.sync()
        .map_err(|e| InstallError::Write("the disk", e))?;
    Ok(head)
}

fn read_back(
    manifest: &Manifest,
    plan: &Plan,
    disk: &dyn Disk,
    head: &[u8],
    progress: &mut dyn FnMut(Progress),
) -> Result<(), InstallError> {
    let total_bytes = manifest.bytes();
    let mut done_bytes = 0;
    for (which, part) in manifest.parts() {
        let place = plan
            .places
            .iter()
            .find(|(of, _)| *of == which)
            .map_or(0, |(_, at)| *at);
        let mut hash = Sha256::new();
        let mut at = 0;
        while at < part.bytes {
            let mut chunk = vec![0; MIB.min(part.bytes - at) as usize];
            disk.read_at(&mut chunk, place + at)
                .map_err(|e| InstallError::ReadBack(which, e))?;
            if which == Which::Uki && at == 0 {
                for (to, from) in chunk.iter_mut().zip(head) {
                    *to = *from;
                }
            }
            hash.update(&chunk);
            at += chunk.len() as u64;
            done_bytes += chunk.len() as u64;
            progress(Progress {
                phase: Phase::ReadBack,
                done_bytes,
                total_bytes,
            });
        }
        if Hash(hash.finalize().into()) != part.sha256 {
            return Err(InstallError::BadMedium(which));
        }
    }
    Ok(())
}
