//! The writing end of a journal's directory: appends, rotates, removes the oldest, and outlives a full disk.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::clock::Moment;
use crate::entry::{Entry, Id, Transport};
use crate::format::{self, HEADER_BYTES, Header, RECORD_HEAD_BYTES};
use crate::recover::recover;
use crate::segments;

/// The unit under which the journal files what it has to say itself.
pub const OWN_UNIT: &str = "orlop-journal.service";
/// Its identifier.
pub const OWN_IDENTIFIER: &str = "orlop-journal";

/// The most that all segments take, whatever the filesystem's size.
const BUDGET_MAX_BYTES: u64 = 256 << 20;
/// The least that a budget is, so that a small filesystem has a log, too.
const BUDGET_MIN_BYTES: u64 = 512 << 10;
const SEGMENT_MAX_BYTES: u64 = 8 << 20;
const SEGMENT_MIN_BYTES: u64 = 64 << 10;
const SEGMENTS_MAX: usize = 1024;
/// What a record takes beside its message: the head, two names, and the small fields.
const RECORD_OVERHEAD_MAX_BYTES: usize = RECORD_HEAD_BYTES + 2 * format::NAME_MAX_BYTES + 128;
/// Records wait in memory up to this many bytes before they are written.
const BUFFER_BYTES: usize = 64 * 1024;
/// What waits in memory for a directory that cannot be opened yet takes at most this.
const HELD_MAX_BYTES: usize = 1 << 20;
/// The longest that a record stays unsynced.
const SYNC_INTERVAL_US: u64 = 1_000_000;
/// How long after a failed write the next is tried.
const RETRY_INTERVAL_US: u64 = 250_000;
/// Records up to this priority (`crit`) are synced at once.
const URGENT_PRIORITY: u8 = 2;

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory could not be made.
    #[error("make directory {0}")]
    MakeDirectory(PathBuf, #[source] io::Error),
    /// The directory could not be opened.
    #[error("open directory {0}")]
    OpenDirectory(PathBuf, #[source] io::Error),
    /// Another writer is at work.
    #[error("{0} is in use by another journal")]
    Locked(PathBuf),
    /// The directory could not be read.
    #[error("list {0}")]
    List(PathBuf, #[source] io::Error),
    /// An earlier segment could not be read.
    #[error("read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// A torn tail could not be cut.
    #[error("cut {0}")]
    Cut(PathBuf, #[source] io::Error),
    /// A segment could not be begun.
    #[error("begin segment {0}")]
    Begin(PathBuf, #[source] io::Error),
    /// A segment could not be removed.
    #[error("remove {0}")]
    Remove(PathBuf, #[source] io::Error),
    /// Records could not be appended.
    #[error("append to {0}")]
    Append(PathBuf, #[source] io::Error),
    /// What was appended could not be synced.
    #[error("sync {0}")]
    Sync(PathBuf, #[source] io::Error),
    /// The filesystem's size could not be asked.
    #[error("ask for the size of the filesystem of {0}")]
    FilesystemSize(PathBuf, #[source] io::Error),
}

/// Where and under which ids to write.
#[derive(Clone, Debug)]
pub struct Options {
    /// The journal's directory; made when it is not there.
    pub directory: PathBuf,
    /// The most that all segments take; a tenth of the filesystem, at most 256 MiB, when not given.
    pub budget_bytes: Option<u64>,
    /// This machine.
    pub machine: Id,
    /// This boot.
    pub boot: Id,
}

/// The segment that is being written.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) mark: [u8; 4],
    /// Up to here it holds whole records.
    pub(crate) length_bytes: u64,
}

/// What the directory has told; there from the first successful opening on.
#[derive(Debug)]
struct Open {
    /// Holds the lock that keeps a second writer out.
    directory: OwnedFd,
    journal: Id,
    segment_bytes: u64,
    active: Option<Active>,
}

/// Appends entries to a journal. No failure of the disk ends it: what cannot be written is counted, and told when
/// it can be.
#[derive(Debug)]
pub struct Store {
    options: Options,
    open: Option<Open>,
    next_sequence: u64,
    kernel_sequence: Option<u64>,
    /// Entries that came before the directory could be opened for the first time, such as while its volume is not
    /// there. The oldest are kept: what they tell of the start is told nowhere else.
    held: VecDeque<Entry>,
    held_bytes: usize,
    /// Whole records for the active segment that are not written yet.
    buffer: Vec<u8>,
    dropped: u64,
    /// Set while writing fails: when to try again, `CLOCK_BOOTTIME` µs.
    retry_at_us: Option<u64>,
    failure: Option<Error>,
    /// Set while something is unsynced: when to sync, `CLOCK_BOOTTIME` µs.
    sync_at_us: Option<u64>,
    directory_is_unsynced: bool,
    holds_urgent: bool,
}

impl Store {
    /// A store that has not touched the disk yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            options,
            open: None,
            next_sequence: 1,
            kernel_sequence: None,
            held: VecDeque::new(),
            held_bytes: 0,
            buffer: Vec::new(),
            dropped: 0,
            retry_at_us: None,
            failure: None,
            sync_at_us: None,
            directory_is_unsynced: false,
            holds_urgent: false,
        }
    }

    /// Opens the directory and takes up where the last writer left off. [`Store::push`] does it when needed.
    ///
    /// # Errors
    /// What kept it from being opened; it may be tried again.
    pub fn open(&mut self) -> Result<(), Error> {
        if self.open.is_some() {
            return Ok(());
        }
        let path = &self.options.directory;
        make_directory(path).map_err(|err| Error::MakeDirectory(path.clone(), err))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|err| Error::OpenDirectory(path.clone(), err.into()))?;
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Locked(path.clone())),
            Err(err) => return Err(Error::OpenDirectory(path.clone(), err.into())),
        }
        let files = segments::list(path).map_err(|err| Error::List(path.clone(), err))?;
        let found = recover(files, self.options.boot)?;
        self.next_sequence = self.next_sequence.max(found.next_sequence);
        self.kernel_sequence = self.kernel_sequence.max(found.kernel_sequence);
        self.open = Some(Open {
            directory,
            journal: found.journal.unwrap_or_else(segments::random_id),
            segment_bytes: SEGMENT_MIN_BYTES,
            active: found.active,
        });
        self.vacuum()
    }

    /// The highest kernel sequence that was recorded in this boot.
    #[must_use]
    pub fn kernel_sequence(&self) -> Option<u64> {
        self.kernel_sequence
    }

    /// How many entries were dropped and not told of yet.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether the last attempt to write failed.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.retry_at_us.is_some()
    }

    /// The failure since the last call, for the one log that is left.
    pub fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// When [`Store::tick`] has something to do, µs of `CLOCK_BOOTTIME`.
    #[must_use]
    pub fn deadline_us(&self) -> Option<u64> {
        let waits = self.dropped > 0 || !self.held.is_empty();
        let retry = self.retry_at_us.filter(|_| waits);
        [retry, self.sync_at_us].into_iter().flatten().min()
    }

    /// Takes an entry; gives it its sequence number. It reaches the file with the next [`Store::flush`].
    pub fn push(&mut self, mut entry: Entry, now: Moment) {
        if !self.may_write(now) {
            self.hold(entry);
            return;
        }
        if self.open.is_none()
            && let Err(err) = self.open()
        {
            self.hold(entry);
            self.fail(err, now);
            return;
        }
        self.move_held(now);
        self.tell_dropped(now);
        if let Err(err) = self.append(&mut entry, now) {
            self.dropped += 1;
            self.fail(err, now);
        }
    }

    /// Writes what was pushed; syncs when a record is urgent.
    pub fn flush(&mut self, now: Moment) {
        if let Err(err) = self.write_buffer(now) {
            self.fail(err, now);
        }
        if std::mem::take(&mut self.holds_urgent) {
            self.sync(now);
        }
    }

    /// Does what is due by now: tries to write again, syncs.
    pub fn tick(&mut self, now: Moment) {
        let waits = self.dropped > 0 || !self.held.is_empty();
        if waits && self.may_write(now) {
            match self.open() {
                Ok(()) => {
                    self.move_held(now);
                    self.tell_dropped(now);
                    self.flush(now);
                }
                Err(err) => self.fail(err, now),
            }
        }
        if self.sync_at_us.is_some_and(|at| at <= now.monotonic_us) {
            self.sync(now);
        }
    }

    /// Brings everything written to the disk.
    pub fn sync(&mut self, now: Moment) {
        self.flush_quietly(now);
        self.sync_at_us = None;
        let Some(open) = &self.open else { return };
        let mut failure = None;
        if let Some(active) = &open.active
            && let Err(err) = active.file.sync_data()
        {
            failure = Some(Error::Sync(active.path.clone(), err));
        }
        if std::mem::take(&mut self.directory_is_unsynced)
            && let Err(err) = rustix::fs::fsync(&open.directory)
        {
            failure = Some(Error::Sync(self.options.directory.clone(), err.into()));
        }
        // The kernel has forgotten which pages it could not write: to try again would tell nothing. The reader will see.
        self.failure = failure.or(self.failure.take());
    }

    fn flush_quietly(&mut self, now: Moment) {
        if let Err(err) = self.write_buffer(now) {
            self.fail(err, now);
        }
    }

    fn may_write(&self, now: Moment) -> bool {
        self.retry_at_us.is_none_or(|at| at <= now.monotonic_us)
    }

    /// Keeps an entry in memory until the directory is there for the first time; later it is dropped and counted.
    fn hold(&mut self, entry: Entry) {
        let bytes = size_of::<Entry>() + entry.message.len() + RECORD_OVERHEAD_MAX_BYTES;
        if self.open.is_some() || self.dropped > 0 || self.held_bytes + bytes > HELD_MAX_BYTES {
            self.dropped += 1;
            return;
        }
        self.held_bytes += bytes;
        self.held.push_back(entry);
    }

    /// Moves what was held in memory over, now that the directory is open.
    fn move_held(&mut self, now: Moment) {
        self.held_bytes = 0;
        for mut entry in std::mem::take(&mut self.held) {
            if let Err(err) = self.append(&mut entry, now) {
                self.dropped += 1;
                self.fail(err, now);
            }
        }
    }

    fn fail(&mut self, err: Error, now: Moment) {
        self.retry_at_us = Some(now.monotonic_us.saturating_add(RETRY_INTERVAL_US));
        self.failure = Some(err);
    }

    /// Puts the entry that tells of the drops before what comes next.
    fn tell_dropped(&mut self, now: Moment) {
        if self.dropped == 0 {
            return;
        }
        let count = self.dropped;
        let noun = if count == 1 { "message" } else { "messages" };
        let text = format!("{count} {noun} dropped: the journal could not be written");
        let mut entry = own_entry(4, text, now);
        entry.dropped = Some(count);
        match self.append(&mut entry, now) {
            // If the write fails after all, the count comes back out of the buffer.
            Ok(()) => self.dropped -= count,
            Err(err) => self.fail(err, now),
        }
    }

    fn append(&mut self, entry: &mut Entry, now: Moment) -> Result<(), Error> {
        if self.buffer.len() >= BUFFER_BYTES {
            self.write_buffer(now)?;
        }
        let mark = self.writable_segment(entry.message.len(), now)?;
        entry.sequence = self.next_sequence;
        format::encode_record(entry, mark, &mut self.buffer);
        self.next_sequence += 1;
        self.holds_urgent |= entry.priority <= URGENT_PRIORITY;
        self.kernel_sequence = self.kernel_sequence.max(entry.kernel_sequence);
        Ok(())
    }

    /// The mark of an active segment with room for one more record with a message of that length.
    fn writable_segment(&mut self, message_bytes: usize, now: Moment) -> Result<[u8; 4], Error> {
        self.open()?;
        if let Some(open) = &self.open
            && let Some(active) = &open.active
        {
            let used = active.length_bytes + self.buffer.len() as u64;
            let needed = (message_bytes + RECORD_OVERHEAD_MAX_BYTES) as u64;
            if used + needed <= open.segment_bytes || used == HEADER_BYTES as u64 {
                return Ok(active.mark);
            }
        }
        self.write_buffer(now)?;
        self.begin_segment(now)
    }

    fn begin_segment(&mut self, now: Moment) -> Result<[u8; 4], Error> {
        self.vacuum()?;
        let path = self
            .options
            .directory
            .join(segments::file_name(self.next_sequence));
        let Some(open) = &mut self.open else {
            return Err(Error::Begin(path, io::ErrorKind::NotFound.into()));
        };
        if let Some(active) = open.active.take() {
            active
                .file
                .sync_data()
                .map_err(|err| Error::Sync(active.path, err))?;
        }
        let mut mark = [0; 4];
        mark.copy_from_slice(&segments::random_id().0[..4]);
        if mark == [0; 4] {
            mark = [1; 4];
        }
        let header = Header {
            mark,
            journal: open.journal,
            machine: self.options.machine,
            boot: self.options.boot,
            first_sequence: self.next_sequence,
            realtime_us: now.realtime_us,
            monotonic_us: now.monotonic_us,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o640)
            .open(&path)
            .map_err(|err| Error::Begin(path.clone(), err))?;
        if let Err(err) = file.write_all_at(&header.encode(), 0) {
            // Half a header would only be reported as damage; if it stays, the next start removes it.
            let _ = std::fs::remove_file(&path);
            return Err(Error::Begin(path, err));
        }
        open.active = Some(Active {
            path,
            file,
            mark,
            length_bytes: HEADER_BYTES as u64,
        });
        self.directory_is_unsynced = true;
        Ok(mark)
    }

    /// Appends the buffer to the active segment. On failure the records that did not fit are counted as dropped.
    fn write_buffer(&mut self, now: Moment) -> Result<(), Error> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let active = self.open.as_mut().and_then(|open| open.active.as_mut());
        let Some(active) = active else {
            self.count_lost(0);
            return Ok(());
        };
        let (written, result) = write_at(&active.file, &self.buffer, active.length_bytes);
        let Err(err) = result else {
            active.length_bytes += self.buffer.len() as u64;
            self.buffer.clear();
            self.retry_at_us = None;
            self.sync_at_us
                .get_or_insert(now.monotonic_us.saturating_add(SYNC_INTERVAL_US));
            return Ok(());
        };
        let kept = whole_records(&self.buffer[..written]);
        active.length_bytes += kept as u64;
        let path = active.path.clone();
        if active.file.set_len(active.length_bytes).is_err() {
            // A piece of a record stays at its end: leave the segment, readers know torn tails.
            if let Some(open) = &mut self.open {
                open.active = None;
            }
        }
        self.sync_at_us
            .get_or_insert(now.monotonic_us.saturating_add(SYNC_INTERVAL_US));
        self.count_lost(kept);
        Err(Error::Append(path, err))
    }

    /// Counts the records from `offset` in the buffer as dropped and forgets them.
    fn count_lost(&mut self, offset: usize) {
        let mut rest = &self.buffer[offset.min(self.buffer.len())..];
        while let Some(length) = record_length(rest) {
            let record = &rest[..length.min(rest.len())];
            self.dropped += format::decode_record(record).dropped.unwrap_or(1);
            rest = &rest[format::padded(length).min(rest.len())..];
        }
        self.buffer.clear();
    }

    /// Removes the oldest segments until one more fits the budget.
    fn vacuum(&mut self) -> Result<(), Error> {
        let directory = &self.options.directory;
        let budget = match self.options.budget_bytes {
            Some(bytes) => bytes,
            None => default_budget_bytes(directory)?,
        };
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        open.segment_bytes = (budget / 8).clamp(SEGMENT_MIN_BYTES, SEGMENT_MAX_BYTES);
        let files = segments::list(directory).map_err(|err| Error::List(directory.clone(), err))?;
        let mut total: u64 = files.iter().map(|file| file.bytes).sum();
        let mut count = files.len();
        for file in files {
            let fits = total.saturating_add(open.segment_bytes) <= budget && count < SEGMENTS_MAX;
            if fits
                || open
                    .active
                    .as_ref()
                    .is_some_and(|active| active.path == file.path)
            {
                break;
            }
            segments::remove(&file.path).map_err(|err| Error::Remove(file.path, err))?;
            total -= file.bytes;
            count -= 1;
        }
        Ok(())
    }
}

/// An entry in which the journal speaks itself.
#[must_use]
pub fn own_entry(priority: u8, text: String, now: Moment) -> Entry {
    let mut entry = Entry::new(priority, Transport::Orlop, text.into_bytes());
    entry.unit = Some(OWN_UNIT.to_owned());
    entry.identifier = Some(OWN_IDENTIFIER.to_owned());
    entry.pid = Some(std::process::id());
    entry.realtime_us = now.realtime_us;
    entry.monotonic_us = now.monotonic_us;
    entry
}

fn make_directory(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o750).create(path) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => Err(err),
        _ => Ok(()),
    }
}

/// A tenth of the filesystem, within bounds.
fn default_budget_bytes(directory: &Path) -> Result<u64, Error> {
    let size = rustix::fs::statvfs(directory)
        .map_err(|err| Error::FilesystemSize(directory.to_owned(), err.into()))?;
    let total = size.f_blocks.saturating_mul(size.f_frsize);
    Ok((total / 10).clamp(BUDGET_MIN_BYTES, BUDGET_MAX_BYTES))
}

/// Writes all of `bytes`; how many were written, also on failure.
fn write_at(file: &File, bytes: &[u8], offset: u64) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write_at(&bytes[written..], offset + written as u64) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return (written, Err(err)),
        }
    }
    (written, Ok(()))
}

/// The length that the record at the start of `bytes` claims.
fn record_length(bytes: &[u8]) -> Option<usize> {
    let length: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
    Some((u32::from_le_bytes(length) as usize).max(RECORD_HEAD_BYTES))
}

/// How many of the first bytes are whole records with their padding.
fn whole_records(bytes: &[u8]) -> usize {
    let mut end = 0;
    while let Some(length) = record_length(&bytes[end..]) {
        let next = end + format::padded(length);
        if next > bytes.len() {
            break;
        }
        end = next;
    }
    end
}
