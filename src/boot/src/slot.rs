//! Which slot is started, and how that came about.
//!
//! With `roothash=` on the kernel command line the loader has chosen, and counted the try; without it the choice and the
//! counting are made here, from the same names of files. Either way the root is what hashes to the root hash, and a start that
//! does not end well leaves its reason for the next one.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use orlop_sys::dm::{DeviceMapper, Target};
use orlop_sys::watchdog::{self, Watchdog};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::disks::{self, Disk, PartitionError};
use crate::entries::{self, Entry, Standing, Version};
use crate::esp::{self, Esp, EspError};
use crate::gpt::ESP_TYPE;
use crate::modprobe::chain;
use crate::modules::Loader;
use crate::trials::{Stage, Trials};
use crate::verity::{RootHash, SUPERBLOCK_BYTES, Superblock, SuperblockError};

/// Where [`Booted`] is kept while the machine runs.
pub const RECORD: &str = "/run/orlop/boot.json";

/// The name of the verified device.
const DEVICE: &str = "orlop-root";

/// So many starts of a good version may end before its root is entered; then it is no good any more.
const EARLY_ENDS: u32 = 3;

/// Watchdogs on no bus that would name them, the kernel's own last.
const WATCHDOG_DRIVERS: [&str; 4] = ["iTCO_wdt", "wdat_wdt", "sp5100_tco", "softdog"];

/// The watchdog that this stage has started, for `init`.
static WATCHDOG: OnceLock<Watchdog> = OnceLock::new();

/// The environment variable with the number of the watchdog's descriptor, from this stage to `init`.
pub const WATCHDOG_VARIABLE: &str = "ORLOP_WATCHDOG_FD";

/// The number of the started watchdog's descriptor, which the next program inherits.
pub(crate) fn watchdog_descriptor() -> Option<RawFd> {
    WATCHDOG.get()?.pass_on().ok()
}

/// How this machine was started from its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booted {
    /// The version that runs.
    pub version: Version,
    /// The file name of its entry, as it is after the try was counted.
    pub entry: String,
    /// The hash of its root.
    pub root_hash: String,
    /// The disk.
    pub disk: PathBuf,
    /// The EFI system partition.
    pub esp: PathBuf,
    /// Whether a loader chose it, rather than the boot stage.
    pub by_loader: bool,
    /// Whether the hardware says that its watchdog ended the last run.
    pub watchdog_reset: bool,
}

impl Booted {
    /// What the boot stage left; `None` on a machine that was not started from slots.
    #[must_use]
    pub fn read() -> Option<Self> {
        serde_json::from_slice(&std::fs::read(RECORD).ok()?).ok()
    }

    fn write(&self) -> io::Result<()> {
        std::fs::write(RECORD, serde_json::to_vec(self).map_err(io::Error::other)?)
    }

    /// Whether this start decides what becomes of the version.
    #[must_use]
    pub fn is_on_trial(&self) -> bool {
        Entry::parse(&self.entry).is_some_and(|entry| entry.standing() != Standing::Good)
    }
}

/// Why there is no slot to start.
#[derive(Debug, Error)]
pub(crate) enum SlotError {
    #[error("roothash= of the kernel command line")]
    RootHash(#[source] crate::verity::NotARootHash),
    #[error("{version} was given up: {reason}")]
    GivenUp { version: Version, reason: String },
    #[error("no entry of the EFI system partition {esp} can be started: {why}")]
    NoneLeft { esp: PathBuf, why: String },
    #[error(transparent)]
    Esp(#[from] EspError),
    #[error(transparent)]
    Partition(#[from] PartitionError),
    #[error("cannot load a module for the verified root")]
    Module(#[source] crate::modules::ModuleError),
    #[error("cannot read the hash tree on {0}")]
    ReadTree(PathBuf, #[source] io::Error),
    #[error("{0}")]
    Superblock(PathBuf, #[source] SuperblockError),
    #[error("cannot make the verified device ({step})")]
    DeviceMapper {
        step: &'static str,
        #[source]
        source: io::Error,
    },
}

/// The partitions of a root and its hash tree.
#[derive(Debug)]
pub(crate) struct Found {
    data: PathBuf,
    data_bytes: u64,
    tree: PathBuf,
    root_hash: RootHash,
}

/// The search for the slot, from one appearing disk to the next.
#[derive(Debug)]
pub(crate) struct Search {
    /// What the loader wants; nothing: the choice is ours.
    wanted: Option<RootHash>,
    /// Disks whose EFI system partition was looked at.
    seen: HashSet<PathBuf>,
    booted: Option<Booted>,
}

impl Search {
    /// Begins a search. `root_hash` is the command line's.
    pub(crate) fn new(root_hash: Option<&str>) -> Result<Self, SlotError> {
        let wanted = root_hash.map(str::parse).transpose();
        Ok(Self {
            wanted: wanted.map_err(SlotError::RootHash)?,
            seen: HashSet::new(),
            booted: None,
        })
    }

    /// Whether the loader has chosen.
    pub(crate) fn is_chosen(&self) -> bool {
        self.wanted.is_some()
    }

    /// Whether a disk of ours is there: what is missing on it will not appear.
    pub(crate) fn has_disk(&self) -> bool {
        self.booted.is_some()
    }

    /// Looks at the disks that are there now.
    pub(crate) fn look(&mut self, loader: &mut Loader) -> Result<Option<Found>, SlotError> {
        let disks = disks::with_tables();
        for disk in &disks {
            if self.booted.is_some() || !self.seen.insert(disk.node.clone()) {
                continue;
            }
            let Some(entry) = disk.by_type(ESP_TYPE) else {
                continue;
            };
            let device = disk.partition(entry)?;
            match self.look_at_esp(disk, &device, loader) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                // Somebody else's, or a damaged one: the root may be had without it when the loader has chosen.
                Err(SlotError::Esp(err)) => log::warn!("boot: {}", chain(&err)),
                Err(err) => return Err(err),
            }
        }
        let Some(root_hash) = self.wanted else {
            return Ok(None);
        };
        for disk in &disks {
            if let Some(found) = partitions(disk, root_hash)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn look_at_esp(
        &mut self,
        disk: &Disk,
        device: &Path,
        loader: &mut Loader,
    ) -> Result<Option<Found>, SlotError> {
        for module in ["vfat", "nls_cp437", "nls_ascii"] {
            loader.load(module).map_err(SlotError::Module)?;
        }
        let esp = Esp::mount(device)?;
        let entries = esp.entries()?;
        if entries.is_empty() {
            return Ok(None);
        }
        let mut start = Start {
            watchdog_reset: arm_watchdog(loader),
            disk,
            device,
            esp: &esp,
            entries,
        };
        let mut trials = Trials::load(&esp);
        trials.close(&last_words(start.watchdog_reset, loader));
        let result = match self.wanted {
            Some(root_hash) => {
                let of_hash = |entry: &&Entry| esp.root_hash(entry) == Some(root_hash);
                match start.entries.iter().find(of_hash).cloned() {
                    // The root of another disk's loader.
                    None => return Ok(None),
                    Some(entry) => {
                        start.give_up_damaged(&mut trials);
                        start
                            .begin(&entry, root_hash, true, &mut trials)
                            .map(|booted| (booted, None))
                    }
                }
            }
            None => start.choose(&mut trials).map(|(b, found)| (b, Some(found))),
        };
        if let Err(err) = trials.save(&esp) {
            log::warn!("boot: cannot keep what became of earlier starts: {err}");
        }
        let (booted, found) = result?;
        log::info!("boot: starting {} ({})", booted.version, booted.entry);
        if let Err(err) = booted.write() {
            log::warn!("boot: cannot write {RECORD}: {err}");
        }
        self.booted = Some(booted);
        Ok(found)
    }
}

/// Why a version is given up whose image is no image, or ends too soon.
const DAMAGED: &str = "its image on the EFI system partition is damaged";

/// What a start is chosen from.
struct Start<'a> {
    watchdog_reset: bool,
    disk: &'a Disk,
    device: &'a Path,
    esp: &'a Esp,
    entries: Vec<Entry>,
}

impl Start<'_> {
    /// Chooses as the loader would, and counts the try.
    fn choose(&mut self, trials: &mut Trials) -> Result<(Booted, Found), SlotError> {
        let mut why = String::new();
        loop {
            let Some(entry) = entries::choose(&self.entries).cloned() else {
                return Err(SlotError::NoneLeft {
                    esp: self.device.to_owned(),
                    why,
                });
            };
            match self.try_entry(&entry, trials) {
                Ok(started) => return Ok(started),
                Err(SlotError::GivenUp { version, reason }) => {
                    log::error!("boot: {version} cannot be started: {reason}");
                    why = format!("{version}: {reason}");
                    self.entries.retain(|other| other.version != version);
                }
                Err(err) => return Err(err),
            }
        }
    }

    /// Gives up the versions that the loader had to pass over, which it does without a word.
    fn give_up_damaged(&self, trials: &mut Trials) {
        let is_left = |entry: &&Entry| entry.standing() != Standing::Bad;
        for entry in self.entries.iter().filter(is_left) {
            if self.esp.root_hash(entry).is_none() {
                log::error!("boot: {}", chain(&self.give_up(entry, DAMAGED, trials)));
            }
        }
    }

    fn try_entry(&self, entry: &Entry, trials: &mut Trials) -> Result<(Booted, Found), SlotError> {
        let Some(root_hash) = self.esp.root_hash(entry) else {
            return Err(self.give_up(entry, DAMAGED, trials));
        };
        let Some(found) = partitions(self.disk, root_hash)? else {
            let reason = format!("{} has no partition of its root", self.disk.node.display());
            return Err(self.give_up(entry, &reason, trials));
        };
        let counted = entry.counted_down();
        self.esp.rename(entry, &counted)?;
        let booted = self.begin(&counted, root_hash, false, trials)?;
        Ok((booted, found))
    }

    /// Notes that a start begins, unless it is one too many.
    fn begin(
        &self,
        entry: &Entry,
        root_hash: RootHash,
        by_loader: bool,
        trials: &mut Trials,
    ) -> Result<Booted, SlotError> {
        let early_ends = trials
            .of(&entry.version)
            .filter(|trial| trial.stage == Stage::Boot)
            .map_or(0, |trial| trial.starts);
        let has_other = self
            .entries
            .iter()
            .any(|other| other.version != entry.version && other.standing() != Standing::Bad);
        if entry.standing() == Standing::Good && early_ends >= EARLY_ENDS && has_other {
            let reason = trials
                .of(&entry.version)
                .and_then(|trial| trial.reason.clone())
                .unwrap_or_default();
            let reason = format!("{early_ends} starts ended before its root was entered: {reason}");
            return Err(self.give_up(entry, &reason, trials));
        }
        trials.begin(&entry.version, now_s());
        Ok(Booted {
            version: entry.version.clone(),
            entry: entry.file_name(),
            root_hash: root_hash.to_string(),
            disk: self.disk.node.clone(),
            esp: self.device.to_owned(),
            by_loader,
            watchdog_reset: self.watchdog_reset,
        })
    }

    fn give_up(&self, entry: &Entry, reason: &str, trials: &mut Trials) -> SlotError {
        trials.end(&entry.version, reason);
        if let Err(err) = self.esp.rename(entry, &entry.condemned()) {
            log::error!("boot: {}", chain(&err));
        }
        SlotError::GivenUp {
            version: entry.version.clone(),
            reason: reason.to_owned(),
        }
    }
}

fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The partitions that belong to a root hash, when the disk has both.
fn partitions(disk: &Disk, root_hash: RootHash) -> Result<Option<Found>, SlotError> {
    let data = disk.by_uuid(root_hash.data_uuid());
    let tree = disk.by_uuid(root_hash.tree_uuid());
    let (Some(data), Some(tree)) = (data, tree) else {
        return Ok(None);
    };
    if disk.is_backup {
        log::warn!(
            "boot: the primary partition table of {} is damaged; its backup is used",
            disk.node.display()
        );
    }
    Ok(Some(Found {
        data: disk.partition(data)?,
        data_bytes: disk.bytes_of(data),
        tree: disk.partition(tree)?,
        root_hash,
    }))
}

/// Starts the watchdog, which `init` takes over, and tells whether it was the one that ended the last run. Where the hardware
/// has none the kernel's own is used, which at least sees that nobody feeds it.
fn arm_watchdog(loader: &mut Loader) -> bool {
    let device = Path::new(watchdog::DEVICE);
    for driver in WATCHDOG_DRIVERS {
        if !device.exists() {
            // Few are in an image, and most machines have none of them.
            let _ = loader.load(driver);
        }
    }
    match Watchdog::open(device) {
        Ok(watchdog) => {
            if let Err(err) = watchdog.set_timeout(crate::WATCHDOG_TIMEOUT_S) {
                log::warn!("boot: the watchdog keeps its own time: {err}");
            }
            let has_reset = watchdog.has_reset();
            let _ = WATCHDOG.set(watchdog);
            has_reset
        }
        Err(err) => {
            log::warn!("boot: cannot open {}: {err}", device.display());
            false
        }
    }
}

/// What is known of the end of the last run when the run itself has not told.
fn last_words(watchdog_reset: bool, loader: &mut Loader) -> String {
    if let Some(words) = crate::pstore::take(loader) {
        return words;
    }
    if watchdog_reset {
        return "the watchdog reset the machine, which hung".to_owned();
    }
    "it ended without a word: a crash, a reset or a power cut".to_owned()
}

/// Makes the verified device, and gives its node. What of it does not verify is found when it is read.
pub(crate) fn open_verified(found: &Found, loader: &mut Loader) -> Result<PathBuf, SlotError> {
    loader.load("dm_verity").map_err(SlotError::Module)?;
    let mut bytes = [0; SUPERBLOCK_BYTES];
    File::open(&found.tree)
        .and_then(|file| file.read_exact_at(&mut bytes, 0))
        .map_err(|err| SlotError::ReadTree(found.tree.clone(), err))?;
    let superblock = Superblock::decode(&bytes, found.data_bytes)
        .map_err(|err| SlotError::Superblock(found.tree.clone(), err))?;
    let parameters = superblock.parameters(
        &found.data.to_string_lossy(),
        &found.tree.to_string_lossy(),
        &found.root_hash,
    );
    let failed = |step| move |source| SlotError::DeviceMapper { step, source };
    let mapper = DeviceMapper::open().map_err(failed("open"))?;
    let device = mapper
        .create(
            DEVICE,
            &format!("CRYPT-VERITY-{}-{DEVICE}", superblock.uuid.simple()),
        )
        .map_err(failed("create"))?;
    let target = Target {
        start_sector: 0,
        sectors: superblock.sectors(),
        kind: "verity",
        parameters: &parameters,
    };
    mapper
        .load_table(DEVICE, true, &[target])
        .map_err(failed("table"))?;
    mapper.resume(DEVICE).map_err(failed("resume"))?;
    Ok(device)
}

/// Keeps why this start ends, where it is one of a slot.
pub(crate) fn record_end(reason: &str) {
    if let Some(booted) = Booted::read()
        && let Err(err) = note(&booted, |trials| trials.end(&booted.version, reason))
    {
        log::error!("boot: the reason is not kept: {err}");
    }
}

/// Changes what is remembered of starts.
///
/// # Errors
/// The EFI system partition can not be mounted or written.
pub fn note(booted: &Booted, change: impl FnOnce(&mut Trials)) -> Result<(), String> {
    let esp = Esp::mount(&booted.esp).map_err(|err| chain(&err))?;
    let mut trials = Trials::load(&esp);
    change(&mut trials);
    trials
        .save(&esp)
        .map_err(|err| format!("cannot write {}: {err}", crate::trials::PATH))
}

/// The root hash of a command line, as [`Search::new`] takes it.
#[must_use]
pub(crate) fn root_hash(line: &crate::cmdline::CommandLine) -> Option<String> {
    line.value("roothash").map(ToOwned::to_owned)
}

/// The entries of a machine that was started from slots.
///
/// # Errors
/// The EFI system partition can not be mounted or read.
pub fn with_esp<T>(
    booted: &Booted,
    work: impl FnOnce(&Esp, Vec<Entry>) -> Result<T, EspError>,
) -> Result<T, EspError> {
    let esp = esp::Esp::mount(&booted.esp)?;
    let entries = esp.entries()?;
    work(&esp, entries)
}
