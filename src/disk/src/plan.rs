//! What has to be done with a disk to have the data volume mounted.

use std::path::PathBuf;

use thiserror::Error;

use crate::inspect::{Found, Partition, State};
use crate::layout::{LABEL, SMALLEST};

/// What the configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The whole disk.
    pub device: PathBuf,
    /// Whether what others made may be destroyed.
    ///
    /// A data volume of Orlop's is never destroyed by it, so that `wipe: true` may stay in the configuration of a machine
    /// after its first start.
    pub wipe: bool,
    /// Where the volume is mounted.
    pub target: PathBuf,
    /// The program that makes the filesystem.
    pub mke2fs: PathBuf,
    /// The program that checks it.
    pub e2fsck: PathBuf,
}

impl Request {
    /// A request for `device` at `/var`, that destroys nothing, with the programs where the image has them.
    #[must_use]
    pub fn new(device: impl Into<PathBuf>) -> Self {
        Self {
            device: device.into(),
            wipe: false,
            target: PathBuf::from("/var"),
            mke2fs: PathBuf::from("/sbin/mke2fs"),
            e2fsck: PathBuf::from("/sbin/e2fsck"),
        }
    }
}

/// One step. Each leaves a disk that [`crate::inspect`] recognises, also when it is cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Zeros over both ends of the disk.
    Wipe,
    /// The mark that the disk is Orlop's from here on.
    Claim,
    /// A partition table whose one partition has the name of an unfinished one.
    WriteTable,
    /// The kernel learns of the partition, and its device appears.
    ReadTable,
    /// The filesystem.
    MakeFilesystem,
    /// The partition gets its final name.
    Finish,
    /// The claim is removed.
    Unclaim,
    /// Both copies of the partition table are written again from the one that is whole.
    RepairTable,
    /// The filesystem is checked, and what is safe to repair is repaired.
    Check,
    /// The filesystem is mounted.
    Mount,
}

/// Steps in their order, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What is asked for.
    pub request: Request,
    /// Where the volume is, when it is already there; `None` for one on the whole disk or still to be made.
    pub partition: Option<Partition>,
    /// Whether the filesystem is on the disk itself, without a partition.
    pub is_whole_disk: bool,
    /// What is done.
    pub steps: Vec<Step>,
    /// One line for the log: what was found and what follows.
    pub why: String,
}

/// Why nothing is done with a disk.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Somebody else's data.
    #[error(
        "{device} holds {what}, which Orlop did not make; set `wipe: true` under `data` to overwrite it"
    )]
    Foreign {
        /// The disk.
        device: PathBuf,
        /// What it holds.
        what: String,
    },
    /// Too small for a data volume.
    #[error("{device} has {size_bytes} bytes, fewer than the {SMALLEST} that a data volume needs")]
    TooSmall {
        /// The disk.
        device: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// A data volume that lost its filesystem. Also `wipe: true` leaves it alone, for whoever wants to rescue it.
    #[error(
        "{device} has Orlop's data volume (partition {number}) but {what}; repair it, or erase the disk by hand to start anew"
    )]
    Damaged {
        /// The disk.
        device: PathBuf,
        /// The partition's number.
        number: u32,
        /// What is wrong.
        what: String,
    },
}

/// Decides what to do. `disk_bytes` is the disk's size.
pub fn plan(found: &Found, disk_bytes: u64, request: &Request) -> Result<Plan, Refusal> {
    let device = &request.device;
    let make = [
        Step::Claim,
        Step::WriteTable,
        Step::ReadTable,
        Step::MakeFilesystem,
        Step::Finish,
        Step::Unclaim,
        Step::Mount,
    ];
    let planned = |steps: Vec<Step>, why: String| Plan {
        request: request.clone(),
        partition: None,
        is_whole_disk: false,
        steps,
        why: format!("{}: {why}", device.display()),
    };
    if disk_bytes < SMALLEST && !matches!(found, Found::Orlop(State::Complete { .. })) {
        return Err(Refusal::TooSmall {
            device: device.clone(),
            size_bytes: disk_bytes,
        });
    }
    match found {
        Found::Blank => Ok(planned(
            make.to_vec(),
            "blank; the data volume is made".to_owned(),
        )),
        Found::Orlop(State::Unfinished) => Ok(planned(
            make.to_vec(),
            "an earlier start was interrupted while it made the data volume; it is made anew"
                .to_owned(),
        )),
        Found::Foreign { what } if request.wipe => {
            let steps = [Step::Wipe].into_iter().chain(make).collect();
            Ok(planned(
                steps,
                format!("holds {what}; `wipe: true` lets the data volume replace it"),
            ))
        }
        Found::Foreign { what } => Err(Refusal::Foreign {
            device: device.clone(),
            what: what.clone(),
        }),
        Found::Orlop(State::Damaged { partition, what }) => Err(Refusal::Damaged {
            device: device.clone(),
            number: partition.number,
            what: what.clone(),
        }),
        Found::Orlop(State::Complete {
            partition,
            table_is_damaged,
            claim_is_left,
            superblock,
        }) => {
            let mut steps = Vec::new();
            let mut why = vec![format!("holds the data volume {LABEL}")];
            if *claim_is_left {
                steps.push(Step::Unclaim);
            }
            if *table_is_damaged && partition.is_some() {
                steps.push(Step::RepairTable);
                why.push("a copy of its partition table is damaged and written again".to_owned());
            }
            if partition.is_some() {
                steps.push(Step::ReadTable);
            }
            if let Some(suspicion) = superblock.suspicion {
                steps.push(Step::Check);
                why.push(format!("it is checked, for {suspicion}"));
            }
            steps.push(Step::Mount);
            Ok(Plan {
                partition: *partition,
                is_whole_disk: partition.is_none(),
                ..planned(steps, why.join("; "))
            })
        }
    }
}
