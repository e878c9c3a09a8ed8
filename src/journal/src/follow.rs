//! Reads a journal on and on, as it is written.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify;

use crate::filter::Filter;
use crate::reader::{self, Damage, DamageKind, Item, Segment};
use crate::scan::{Scanner, Step};
use crate::segments::{self, SegmentFile};

/// What ends following.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Changes of the directory cannot be seen.
    #[error("watch {0}")]
    Watch(PathBuf, #[source] io::Error),
    /// Waiting for a change failed.
    #[error("wait for a change of {0}")]
    Wait(PathBuf, #[source] io::Error),
    /// The directory cannot be read.
    #[error("list {0}")]
    List(PathBuf, #[source] io::Error),
    /// A segment cannot be opened or read.
    #[error(transparent)]
    Read(#[from] reader::Error),
}

/// A place in a journal that moves on with its writer.
#[derive(Debug)]
pub struct Follower {
    directory: PathBuf,
    inotify: OwnedFd,
    filter: Filter,
    after_sequence: u64,
    current: Option<Current>,
    /// Segments up to the one with this first sequence number are done with.
    done_through: Option<u64>,
}

#[derive(Debug)]
struct Current {
    segment: Segment,
    /// By its name.
    first_sequence: u64,
    scanner: Scanner<File>,
    /// There is a newer one, so nothing is appended to this one any more.
    is_complete: bool,
}

impl Follower {
    /// Begins to watch the directory. Entries come from [`Follower::start_after`]'s place, or from the start.
    ///
    /// # Errors
    /// When the directory is not there or may not be watched.
    pub fn new(directory: &Path, filter: Filter) -> Result<Self, Error> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|err| Error::Watch(directory.to_owned(), err.into()))?;
        let events = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::ONLYDIR;
        inotify::add_watch(&inotify, directory, events)
            .map_err(|err| Error::Watch(directory.to_owned(), err.into()))?;
        Ok(Self {
            directory: directory.to_owned(),
            inotify,
            filter,
            after_sequence: 0,
            current: None,
            done_through: None,
        })
    }

    /// Sets which entries are wanted from now on.
    pub fn set_filter(&mut self, filter: Filter) {
        self.filter = filter;
    }

    /// Leaves out all entries up to that number.
    pub fn start_after(&mut self, sequence: u64) {
        self.after_sequence = sequence;
    }

    /// Waits for the next wanted entry or damage. `None` when the other end of `output` is closed meanwhile.
    ///
    /// # Errors
    /// Those of the files.
    pub fn next(&mut self, output: Option<BorrowedFd<'_>>) -> Result<Option<Item>, Error> {
        loop {
            if let Some(item) = self.try_next()? {
                return Ok(Some(item));
            }
            if !self.wait(output)? {
                return Ok(None);
            }
        }
    }

    /// The next wanted entry or damage, if there is one by now.
    ///
    /// # Errors
    /// Those of the files.
    pub fn try_next(&mut self) -> Result<Option<Item>, Error> {
        loop {
            let Some(current) = &mut self.current else {
                match self.open_next()? {
                    Opened::Segment => continue,
                    Opened::Damage(damage) => return Ok(Some(Item::Damage(damage))),
                    Opened::Nothing => return Ok(None),
                }
            };
            let path = &current.segment.path;
            let torn = match current
                .scanner
                .step()
                .map_err(|err| reader::Error::Read(path.clone(), err))?
            {
                Step::Record { record, .. } => {
                    let record = current.segment.record(record);
                    if record.entry.sequence > self.after_sequence
                        && self.filter.wants(record.boot, &record.entry)
                    {
                        return Ok(Some(Item::Entry(record)));
                    }
                    continue;
                }
                Step::Damage { offset, length } => {
                    let kind = DamageKind::Records { offset, length };
                    return Ok(Some(current.segment.damage(kind)));
                }
                Step::Torn { offset, length } => Some(DamageKind::Torn { offset, length }),
                Step::End(_) => None,
            };
            let (first_sequence, is_complete) = (current.first_sequence, current.is_complete);
            if !is_complete {
                let files = self.list()?;
                if files
                    .iter()
                    .all(|file| file.first_sequence <= first_sequence)
                {
                    return Ok(None);
                }
                // Between our reading of its end and now something may have been appended: look once more.
                if let Some(current) = &mut self.current {
                    current.is_complete = true;
                }
                continue;
            }
            self.done_through = Some(first_sequence);
            let left = self.current.take();
            if let (Some(kind), Some(left)) = (torn, left) {
                return Ok(Some(left.segment.damage(kind)));
            }
        }
    }

    fn list(&self) -> Result<Vec<SegmentFile>, Error> {
        segments::list(&self.directory).map_err(|err| Error::List(self.directory.clone(), err))
    }

    fn open_next(&mut self) -> Result<Opened, Error> {
        let files = self.list()?;
        let newest = files.last().map(|file| file.first_sequence);
        let start = match self.done_through {
            Some(done) => files.iter().position(|file| file.first_sequence > done),
            None => {
                // The last one that can hold the entry after the place where to start.
                let after = self.after_sequence.saturating_add(1);
                files
                    .iter()
                    .rposition(|file| file.first_sequence <= after)
                    .or((!files.is_empty()).then_some(0))
            }
        };
        let Some(file) = start.and_then(|index| files.get(index)) else {
            return Ok(Opened::Nothing);
        };
        match reader::open_segment(file)? {
            reader::Opened::Segment(segment, opened) => {
                let scanner = segment.scanner(opened);
                self.current = Some(Current {
                    segment,
                    first_sequence: file.first_sequence,
                    scanner,
                    is_complete: false,
                });
                Ok(Opened::Segment)
            }
            // It is being begun at this moment; its header's writing wakes us.
            reader::Opened::Damaged(damage)
                if newest == Some(file.first_sequence) && damage.is_short_header() =>
            {
                Ok(Opened::Nothing)
            }
            reader::Opened::Damaged(damage) => {
                self.done_through = Some(file.first_sequence);
                Ok(Opened::Damage(damage))
            }
            reader::Opened::Gone => {
                self.done_through = Some(file.first_sequence);
                Ok(Opened::Segment)
            }
        }
    }

    /// Waits until the directory changes; false when the other end of `output` is closed.
    fn wait(&self, output: Option<BorrowedFd<'_>>) -> Result<bool, Error> {
        let failed = |err: rustix::io::Errno| Error::Wait(self.directory.clone(), err.into());
        let inotify = self.inotify.as_fd();
        // With no events asked for, only errors and hang-ups are told.
        let mut fds = [
            PollFd::from_borrowed_fd(inotify, PollFlags::IN),
            PollFd::from_borrowed_fd(output.unwrap_or(inotify), PollFlags::empty()),
        ];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(err) => return Err(failed(err)),
        }
        if fds[1].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            return Ok(false);
        }
        // All that has happened leads to one look.
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        loop {
            match rustix::io::read(&self.inotify, &mut buffer) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(true),
                Err(err) => return Err(failed(err)),
            }
        }
    }
}

/// What became of looking for the next segment.
enum Opened {
    /// There is one, or the one that there was has been removed meanwhile: look again.
    Segment,
    /// It cannot be read.
    Damage(Damage),
    /// There is none yet.
    Nothing,
}
