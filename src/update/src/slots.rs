//! Which slot an update goes to, and whether it may: pure.

use orlop_boot::entries::{Entry, Standing, Version};
pub use orlop_boot::gpt::{ROOT_TYPE, VERITY_TYPE};
use orlop_disk::{PartitionTable, TableEntry};
use thiserror::Error;
use uuid::Uuid;

use crate::hex::Hash;
use crate::manifest::{Manifest, Which};
use crate::storage::EspFile;

/// The names of the slots: their partitions are `root-a` and `root-a-verity`, `root-b` and `root-b-verity`.
pub const NAMES: [&str; 2] = ["a", "b"];

/// What is left free on the EFI system partition beyond the new image, in bytes: for directories and whole clusters.
const ESP_RESERVE: u64 = 256 << 10;

/// A place for a root and its hash tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// One of [`NAMES`].
    pub name: &'static str,
    /// The root's partition.
    pub root: TableEntry,
    /// The hash tree's partition.
    pub verity: TableEntry,
}

impl Slot {
    /// The name of the root's partition in `slot`.
    #[must_use]
    pub fn root_name(slot: &str) -> String {
        format!("root-{slot}")
    }

    /// The name of the hash tree's partition in `slot`.
    #[must_use]
    pub fn verity_name(slot: &str) -> String {
        format!("root-{slot}-verity")
    }

    /// Both slots of a disk.
    pub fn both(table: &PartitionTable) -> Result<[Self; 2], Refusal> {
        let find = |name: String, kind: Uuid| {
            let entry = table
                .named(&name)
                .filter(|entry| entry.kind == kind)
                .cloned();
            entry.ok_or(Refusal::NoSlot(name))
        };
        let slot = |name: &'static str| {
            Ok(Self {
                name,
                root: find(Self::root_name(name), ROOT_TYPE)?,
                verity: find(Self::verity_name(name), VERITY_TYPE)?,
            })
        };
        let [a, b] = NAMES;
        Ok([slot(a)?, slot(b)?])
    }

    /// Whether this slot holds the root with that hash, as its partitions' UUIDs say.
    #[must_use]
    pub fn holds(&self, hash: &Hash) -> bool {
        self.root.unique == hash.root_uuid() && self.verity.unique == hash.verity_uuid()
    }

    /// Where a part goes; the kernel image goes elsewhere.
    #[must_use]
    pub fn place(&self, which: Which) -> Option<&TableEntry> {
        match which {
            Which::Uki | Which::Loader => None,
            Which::Root => Some(&self.root),
            Which::Verity => Some(&self.verity),
        }
    }
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The root hash on the kernel's command line; `None` when the root is in memory.
    pub root_hash: Option<Hash>,
    /// The version.
    pub version: Version,
    /// What `uname -m` says.
    pub architecture: String,
}

/// What the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Take an older version too.
    pub allow_downgrade: bool,
    /// Take a version that failed on this machine before.
    pub retry: bool,
}

/// Why an update is not begun. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// For another machine.
    #[error("it is for {payload}; this machine is {machine}")]
    Architecture {
        /// The payload's.
        payload: String,
        /// The machine's.
        machine: String,
    },
    /// It runs already.
    #[error("{0} is what runs")]
    Running(Version),
    /// It is in the other slot already.
    #[error("{0} is in the other slot already; a reboot starts it")]
    Installed(Version),
    /// Older than what runs.
    #[error(
        "it brings {payload}, which is older than {running} that runs; --allow-downgrade takes it all the same"
    )]
    Older {
        /// The payload's.
        payload: Version,
        /// What runs.
        running: Version,
    },
    /// It failed here.
    #[error("{0} failed on this machine before; --retry takes it all the same")]
    Failed(Version),
    /// What runs was not found good yet.
    #[error(
        "{running} runs on trial, and the other slot holds {good}, the last good version; try again when `orlop slots` calls {running} good"
    )]
    OnTrial {
        /// What runs.
        running: Version,
        /// What would be overwritten.
        good: Version,
    },
    /// The root is in memory.
    #[error(
        "this machine runs from memory, not from a slot on a disk; `orlop install` puts it on one"
    )]
    InMemory,
    /// The disk has no slots.
    #[error("the disk has no partition {0}")]
    NoSlot(String),
    /// The running root is in neither slot.
    #[error("neither slot of the disk holds what runs (root hash {0})")]
    NotHere(Hash),
    /// Both slots claim to be the running root.
    #[error(
        "both slots have the running root's UUIDs (root hash {0}), so that the one that runs cannot be told"
    )]
    Ambiguous(Hash),
    /// Another partition has a UUID that the root hash gives.
    #[error("{0} has a UUID that belongs to the root hash {1}")]
    Conflict(String, Hash),
    /// A part does not fit.
    #[error("{part} has {bytes} bytes, and the slot has room for {room}")]
    TooLarge {
        /// The part.
        part: Which,
        /// Its size.
        bytes: u64,
        /// The partition's.
        room: u64,
    },
    /// The EFI system partition is full.
    #[error(
        "the EFI system partition has {free} bytes to spare, and the kernel image needs {needs}"
    )]
    EspFull {
        /// What there is, stale entries counted in.
        free: u64,
        /// What is needed.
        needs: u64,
    },
}

/// What an update will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where the root and its tree go.
    pub slot: Slot,
    /// Files on the EFI system partition that boot what will not be there any more.
    pub stale: Vec<String>,
    /// The new entry.
    pub entry: Entry,
}

/// Decides where `manifest` goes on the disk with `table`, whose EFI system partition has `files` and `free_bytes` left.
pub fn plan(
    manifest: &Manifest,
    table: &PartitionTable,
    files: &[EspFile],
    free_bytes: u64,
    running: &Running,
    options: Options,
) -> Result<Plan, Refusal> {
    if manifest.architecture != running.architecture {
        let (payload, machine) = (manifest.architecture.clone(), running.architecture.clone());
        return Err(Refusal::Architecture { payload, machine });
    }
    let running_hash = running.root_hash.ok_or(Refusal::InMemory)?;
    if manifest.version == running.version || manifest.root_hash == running_hash {
        return Err(Refusal::Running(running.version.clone()));
    }
    if manifest.version < running.version && !options.allow_downgrade {
        let (payload, running) = (manifest.version.clone(), running.version.clone());
        return Err(Refusal::Older { payload, running });
    }
    let slot = other(Slot::both(table)?, &running_hash)?;
    let entries: Vec<(&EspFile, Entry)> = files
        .iter()
        .filter_map(|file| Some((file, Entry::parse(&file.name)?)))
        .collect();
    judge_entries(manifest, &entries, &slot, running, &running_hash, options)?;
    let hash = &manifest.root_hash;
    let ours = [slot.root.number, slot.verity.number];
    let is_taken = |entry: &&TableEntry| {
        !ours.contains(&entry.number)
            && [hash.root_uuid(), hash.verity_uuid()].contains(&entry.unique)
    };
    if let Some(other) = table.entries.iter().find(is_taken) {
        return Err(Refusal::Conflict(other.name.clone(), *hash));
    }
    if hash.root_uuid() == hash.verity_uuid() {
        return Err(Refusal::Conflict(slot.verity.name, *hash));
    }
    for (which, part) in manifest.parts() {
        let bytes = part.bytes;
        match slot.place(which) {
            Some(place) if bytes > place.size_bytes => {
                return Err(Refusal::TooLarge {
                    part: which,
                    bytes,
                    room: place.size_bytes,
                });
            }
            _ => {}
        }
    }
    let is_stale = |file: &&EspFile| {
        let is_running = file.root_hash == Some(running_hash);
        let entry = Entry::parse(&file.name);
        // An image of the running version that cannot be read is left for a rescuer.
        let is_ours =
            entry.is_some_and(|entry| file.root_hash.is_some() || entry.version != running.version);
        !is_running && (is_ours || file.root_hash.is_some_and(|hash| slot.holds(&hash)))
    };
    let stale: Vec<&EspFile> = files.iter().filter(is_stale).collect();
    let freed: u64 = stale.iter().map(|file| file.bytes).sum();
    let (free, needs) = (
        free_bytes.saturating_add(freed),
        manifest.parts.uki.bytes.saturating_add(ESP_RESERVE),
    );
    if free < needs {
        return Err(Refusal::EspFull { free, needs });
    }
    Ok(Plan {
        slot,
        stale: stale.into_iter().map(|file| file.name.clone()).collect(),
        entry: Entry::new(manifest.version.clone()),
    })
}

/// The slot that does not run.
pub(crate) fn other([a, b]: [Slot; 2], running: &Hash) -> Result<Slot, Refusal> {
    match (a.holds(running), b.holds(running)) {
        (true, false) => Ok(b),
        (false, true) => Ok(a),
        (true, true) => Err(Refusal::Ambiguous(*running)),
        (false, false) => Err(Refusal::NotHere(*running)),
    }
}

/// Whether the entries that are there allow the update.
fn judge_entries(
    manifest: &Manifest,
    entries: &[(&EspFile, Entry)],
    slot: &Slot,
    running: &Running,
    running_hash: &Hash,
    options: Options,
) -> Result<(), Refusal> {
    let in_slot = entries
        .iter()
        .filter(|(file, _)| file.root_hash.is_some_and(|hash| slot.holds(&hash)));
    for (file, entry) in in_slot.clone() {
        if entry.version != manifest.version {
            continue;
        }
        let has_failed = entry.standing() == Standing::Bad;
        if has_failed && !options.retry {
            return Err(Refusal::Failed(entry.version.clone()));
        }
        if !has_failed && file.root_hash == Some(manifest.root_hash) {
            return Err(Refusal::Installed(entry.version.clone()));
        }
    }
    let is_good = |entry: &Entry| entry.standing() == Standing::Good;
    let of_running = entries
        .iter()
        .filter(|(file, _)| file.root_hash == Some(*running_hash));
    let mut of_running = of_running.map(|(_, entry)| entry).peekable();
    let is_on_trial = of_running.peek().is_some() && !of_running.any(is_good);
    let mut good = in_slot.filter(|(_, entry)| is_good(entry));
    match good.next() {
        Some((_, good)) if is_on_trial => Err(Refusal::OnTrial {
            running: running.version.clone(),
            good: good.version.clone(),
        }),
        _ => Ok(()),
    }
}
