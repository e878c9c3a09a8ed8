//! Doing what was planned.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use orlop_sys::blkdev;
use thiserror::Error;

use crate::find::{has_partitions, kernel_name, partition_node, poll};
use crate::inspect::{Disk, InspectError, Partition, examine, partition_of, tables};
use crate::layout::{self, LABEL, Patch};
use crate::plan::{Plan, Refusal, Request, Step, plan};

/// How long the device of a new partition may take to appear.
const NODE_WAIT: Duration = Duration::from_secs(10);

/// How long a disk may seem to be in use.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// Bytes of a program's output that an error carries.
const MOST_OUTPUT: usize = 2048;

/// Why the data volume is not there.
#[derive(Debug, Error)]
pub enum Error {
    /// The disk can not be looked at.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// The disk is left alone.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Something else uses the disk.
    #[error("{0} is in use")]
    InUse(PathBuf, #[source] io::Error),
    /// The disk can not be opened for writing.
    #[error("cannot write to {0}")]
    OpenForWriting(PathBuf, #[source] InspectError),
    /// A write failed.
    #[error("cannot write to {0} ({1:?})")]
    Write(PathBuf, Step, #[source] io::Error),
    /// The partition table could not be computed.
    #[error("cannot lay out a partition table for {0}")]
    Table(PathBuf, #[source] io::Error),
    /// The disk does not hold what it held a moment ago.
    #[error("{0} changed while it was prepared")]
    Changed(PathBuf),
    /// The kernel does not read the new partition table.
    #[error("the kernel does not read the partition table of {0}")]
    Reread(PathBuf, #[source] io::Error),
    /// The kernel does not take the partition.
    #[error("the kernel does not take partition {1} of {0}")]
    AddPartition(PathBuf, u32, #[source] io::Error),
    /// The partition's device did not appear.
    #[error("partition {1} of {0} did not appear in {seconds} s", seconds = NODE_WAIT.as_secs())]
    NoPartition(PathBuf, u32),
    /// A disk that the machine boots from has no data volume.
    #[error("the last partition of {0} is no data volume")]
    NoVolume(PathBuf),
    /// A partition of a disk that the machine boots from can not be had.
    #[error(transparent)]
    Partition(Box<orlop_boot::disks::PartitionError>),
    /// The data volume lost its filesystem.
    #[error("the data volume {0} has no ext4 superblock; it is left alone")]
    NoFilesystem(PathBuf),
    /// A program can not be run.
    #[error("cannot run {0}")]
    Run(PathBuf, #[source] io::Error),
    /// The filesystem could not be made.
    #[error("{program} failed on {device} ({status}): {output}")]
    Make {
        /// The program.
        program: PathBuf,
        /// The device.
        device: PathBuf,
        /// How it ended.
        status: String,
        /// The end of what it said.
        output: String,
    },
    /// The filesystem has errors that need a person (e2fsck(8), exit code 4 and above).
    #[error("the filesystem on {device} needs a repair by hand ({status}): {output}")]
    Check {
        /// The device.
        device: PathBuf,
        /// What the exit code means.
        status: String,
        /// The end of what the program said.
        output: String,
    },
    /// The mount failed.
    #[error("cannot mount {0} at {1}")]
    Mount(PathBuf, PathBuf, #[source] io::Error),
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// The superblock says that nothing is to be checked, or the volume is new.
    NotNeeded,
    /// Nothing wrong.
    Clean,
    /// Errors that were repaired.
    Repaired,
}

/// The data volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// The device of its filesystem.
    pub device: PathBuf,
    /// Where it is mounted.
    pub target: PathBuf,
    /// Whether it was made just now.
    pub is_new: bool,
    /// What a check found.
    pub checked: Checked,
    /// One line for the log: what was found on the disk and what followed.
    pub why: String,
}

/// Looks at the disk, decides and does what has to be done, so that the data volume is mounted. Does nothing when it is.
pub fn ensure_data_volume(request: &Request) -> Result<Mounted, Error> {
    if let Some(device) = already_mounted(request) {
        return Ok(Mounted {
            why: format!("{} is already mounted", device.display()),
            device,
            target: request.target.clone(),
            is_new: false,
            checked: Checked::NotNeeded,
        });
    }
    let disk = Disk::open(&request.device, OpenOptions::new().read(true))?;
    let found = examine(&disk)?;
    let plan = plan(&found, disk.size_bytes, request)?;
    drop(disk);
    log::info!("{}", plan.why);
    apply(&plan)
}

/// Does what `plan` says. Each write is on the disk before the next begins.
pub fn apply(plan: &Plan) -> Result<Mounted, Error> {
    let request = &plan.request;
    let device = &request.device;
    let mut partition = plan.partition;
    let mut node = plan.is_whole_disk.then(|| device.clone());
    let mut checked = Checked::NotNeeded;
    if plan
        .steps
        .iter()
        .any(|step| *step != Step::Mount && *step != Step::ReadTable)
    {
        refuse_if_in_use(device)?;
    }
    for step in &plan.steps {
        let volume = || node.clone().ok_or_else(|| Error::Changed(device.clone()));
        match step {
            Step::Wipe
            | Step::Claim
            | Step::WriteTable
            | Step::Finish
            | Step::Unclaim
            | Step::RepairTable => {
                let disk = writable(device)?;
                write(&disk, *step, &patches(&disk, *step)?)?;
                partition = partition.or_else(|| {
                    tables(&disk)
                        .0
                        .ours(&disk)
                        .and_then(|t| partition_of(t, &disk))
                });
            }
            Step::ReadTable => {
                let partition = partition.ok_or_else(|| Error::Changed(device.clone()))?;
                node = Some(read_table(device, partition)?);
            }
            Step::MakeFilesystem => make_filesystem(&request.mke2fs, &volume()?)?,
            Step::Check => checked = check(&request.e2fsck, &volume()?)?,
            Step::Mount => mount_volume(&volume()?, &request.target)?,
        }
    }
    Ok(Mounted {
        device: node.ok_or_else(|| Error::Changed(device.clone()))?,
        target: request.target.clone(),
        is_new: plan.steps.contains(&Step::MakeFilesystem),
        checked,
        why: plan.why.clone(),
    })
}

/// Opens the disk for writing.
pub(crate) fn writable(device: &Path) -> Result<Disk, Error> {
    Disk::open(device, OpenOptions::new().read(true).write(true))
        .map_err(|e| Error::OpenForWriting(device.to_owned(), e))
}

/// Refuses a disk that something else uses: `O_EXCL` on a block device fails while it or a partition is mounted or held
/// (open(2)).
///
/// The descriptor is not kept. Any child that another thread starts has it from fork to exec, and the disk would seem to be
/// in use to mke2fs and mount; for the same reason `EBUSY` counts only when it lasts.
fn refuse_if_in_use(device: &Path) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(nix::libc::O_EXCL);
    while_busy(|| options.open(device))
        .map(drop)
        .map_err(|e| Error::InUse(device.to_owned(), e))
}

/// Tries anew while the answer is `EBUSY`, for [`BUSY_WAIT`] at most.
fn while_busy<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let done = poll(BUSY_WAIT, || match attempt() {
        Err(e) if e.raw_os_error() == Some(nix::libc::EBUSY) => None,
        other => Some(other),
    });
    done.unwrap_or_else(|| Err(io::Error::from_raw_os_error(nix::libc::EBUSY)))
}

/// The writes of a step.
fn patches(disk: &Disk, step: Step) -> Result<Vec<Patch>, Error> {
    let (size, sector) = (disk.size_bytes, disk.sector_bytes);
    let table_error = |e| Error::Table(disk.path.clone(), e);
    let rewritten = |name: &str| {
        let (tables, _) = tables(disk);
        let table = tables
            .ours(disk)
            .ok_or_else(|| Error::Changed(disk.path.clone()))?;
        layout::rewrite(table, name, size, sector).map_err(table_error)
    };
    match step {
        Step::Wipe => Ok(layout::wipe(size)),
        Step::Claim => Ok(layout::write_claim(size)),
        Step::Unclaim => Ok(layout::remove_claim()),
        Step::WriteTable => layout::new_table(size, sector).map_err(table_error),
        // Only a finished volume's table is repaired.
        Step::Finish | Step::RepairTable => rewritten(LABEL),
        Step::ReadTable | Step::MakeFilesystem | Step::Check | Step::Mount => Ok(Vec::new()),
    }
}

pub(crate) fn write(disk: &Disk, step: Step, patches: &[Patch]) -> Result<(), Error> {
    for patch in patches {
        disk.file
            .write_all_at(&patch.bytes, patch.at)
            .and_then(|()| disk.file.sync_all())
            .map_err(|e| Error::Write(disk.path.clone(), step, e))?;
    }
    Ok(())
}

/// Has the kernel know the partition, and waits for its device.
fn read_table(device: &Path, partition: Partition) -> Result<PathBuf, Error> {
    let missing = || Error::NoPartition(device.to_owned(), partition.number);
    let name = kernel_name(device).ok_or_else(missing)?;
    if let Some(node) = partition_node(&name, &partition) {
        return Ok(node);
    }
    let disk = writable(device)?;
    while_busy(|| blkdev::reread_partitions(&disk.file))
        .map_err(|e| Error::Reread(device.to_owned(), e))?;
    if !has_partitions(&name) {
        // A kernel without GPT support has to be told.
        let (start, size) = (partition.start_bytes, partition.size_bytes);
        blkdev::add_partition(&disk.file, partition.number, start, size)
            .map_err(|e| Error::AddPartition(device.to_owned(), partition.number, e))?;
    }
    drop(disk);
    poll(NODE_WAIT, || partition_node(&name, &partition)).ok_or_else(missing)
}

pub(crate) fn make_filesystem(program: &Path, device: &Path) -> Result<(), Error> {
    let (status, output) = run(
        program,
        // The tables of inodes are zeroed by the kernel after the first mount; -F, since there is nobody to ask.
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-L",
            LABEL,
            "-m",
            "1",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1",
        ],
        device,
    )?;
    if status.success() {
        let synced = File::open(device).and_then(|file| file.sync_all());
        synced.map_err(|e| Error::Write(device.to_owned(), Step::MakeFilesystem, e))
    } else {
        Err(Error::Make {
            program: program.to_owned(),
            device: device.to_owned(),
            status: status.to_string(),
            output,
        })
    }
}

/// Runs e2fsck(8) without questions. Its exit code is a sum: 1 errors corrected, 2 corrected and a reboot is wanted when it was mounted
/// (it is not), 4 errors left, 8 operational error, 16 usage, 32 cancelled, 128 library error.
pub(crate) fn check(program: &Path, device: &Path) -> Result<Checked, Error> {
    let (status, output) = run(program, &["-p"], device)?;
    let meaning = match status.code() {
        Some(0) => return Ok(Checked::Clean),
        Some(1..=3) => return Ok(Checked::Repaired),
        Some(code) if code & 4 != 0 => "errors are left".to_owned(),
        Some(code) if code & 8 != 0 => "the check could not be done".to_owned(),
        _ => status.to_string(),
    };
    Err(Error::Check {
        device: device.to_owned(),
        status: meaning,
        output,
    })
}

/// Runs a program on a device and gives how it ended and the end of what it said.
fn run(
    program: &Path,
    arguments: &[&str],
    device: &Path,
) -> Result<(std::process::ExitStatus, String), Error> {
    let output = Command::new(program)
        .args(arguments)
        .arg(device)
        .stdin(Stdio::null())
        .env_clear()
        .output()
        .map_err(|e| Error::Run(program.to_owned(), e))?;
    let said: String = [output.stdout, output.stderr]
        .iter()
        .map(|b| String::from_utf8_lossy(b))
        .collect();
    let words: Vec<&str> = said.split_whitespace().collect();
    let said = words.join(" ");
    let from = said
        .char_indices()
        .map(|(at, _)| at)
        .find(|at| said.len() - at <= MOST_OUTPUT);
    Ok((
        output.status,
        said.get(from.unwrap_or(0)..).unwrap_or_default().to_owned(),
    ))
}

pub(crate) fn mount_volume(device: &Path, target: &Path) -> Result<(), Error> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    while_busy(|| {
        Ok(mount(
            Some(device),
            target,
            Some("ext4"),
            flags,
            None::<&str>,
        )?)
    })
    .map_err(|e| Error::Mount(device.to_owned(), target.to_owned(), e))
}

/// The kernel's number, `253:1`, of the device that is mounted at `target` (proc_pid_mountinfo(5)).
fn mounted_at(target: &Path) -> Option<String> {
    let target = fs::canonicalize(target).ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // The last line for a place is what is on top there.
    mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let device = fields.next()?;
        let place = fields.nth(1)?;
        (Path::new(&unescape(place)) == target).then(|| device.to_owned())
    })
}

/// The device that is mounted at the target, when it is the disk or a partition of it.
pub(crate) fn already_mounted(request: &Request) -> Option<PathBuf> {
    let number = mounted_at(&request.target)?;
    let disk = kernel_name(&request.device)?;
    let path = fs::canonicalize(Path::new("/sys/dev/block").join(number)).ok()?;
    let is_disk = path.file_name()? == disk.as_str();
    let is_partition = path.parent()?.file_name()? == disk.as_str();
    (is_disk || is_partition).then(|| Path::new("/dev").join(path.file_name().unwrap_or_default()))
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(place: &str) -> String {
    place
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}
