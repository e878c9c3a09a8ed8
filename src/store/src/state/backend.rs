//! The file under the database, whose syncs end after they have begun.
//!
//! A commit of the database writes, syncs, writes its header and syncs again, and whoever asked for it would wait for the disk each time.
//! But what is applied is durable in the log already: the state need not be durable at once, only ever whole. So a sync here draws a
//! line. What was written before it is made durable beside all else, and what is written after it is kept in memory, where reads find
//! it, and gets to the file only then. After a crash the file is what it would be had the crash come sooner.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::disk::{DiskFile, is_damage};

/// What is held is kept in blocks of this size. The database's pages are of one or several.
const BLOCK_BYTES: usize = 4096;

type Block = Arc<[u8; BLOCK_BYTES]>;

/// Who carries a sync out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Syncs {
    /// Whoever syncs.
    #[default]
    AtOnce,
    /// Whoever asks whether it is done ([`State::saved`](super::State::saved)), a step at a time.
    WhenAsked,
    /// A thread.
    Beside,
}

/// An error for all that comes later; the disk's own cannot be copied.
#[derive(Debug, Clone)]
enum Failure {
    System(i32),
    Other(io::ErrorKind, String),
}

impl Failure {
    fn error(&self) -> io::Error {
        match self {
            Self::System(number) => io::Error::from_raw_os_error(*number),
            Self::Other(kind, text) => io::Error::new(*kind, text.clone()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(err: io::Error) -> Self {
        match err.raw_os_error() {
            Some(number) => Self::System(number),
            None => Self::Other(err.kind(), err.to_string()),
        }
    }
}

#[derive(Debug, Default)]
struct Lines {
    syncs: Syncs,
    /// Lines drawn.
    drawn: u64,
    /// Lines up to which all is durable.
    reached: u64,
    /// What was written after each line that is not reached, oldest first: by its place in the file, in blocks.
    held: VecDeque<BTreeMap<u64, Block>>,
    failed: Option<Failure>,
    /// Nothing is written any more.
    retired: bool,
    /// A line is being reached: only whoever does that touches the file.
    busy: bool,
    /// The database is closed: the thread has to end.
    closed: bool,
}

impl Lines {
    fn check(&self) -> io::Result<()> {
        if self.retired {
            return Err(io::Error::other("the database has been opened anew"));
        }
        self.failed.as_ref().map_or(Ok(()), |f| Err(f.error()))
    }

    /// The block as it was last written, if it is not in the file yet.
    fn held_block(&self, number: u64) -> Option<&Block> {
        self.held.iter().rev().find_map(|held| held.get(&number))
    }
}

/// The file, for the database and for whoever reaches the lines.
#[derive(Debug)]
pub(super) struct Ordered {
    file: Arc<dyn DiskFile>,
    lines: Mutex<Lines>,
    /// A line was drawn or reached, or the end has come.
    changed: Condvar,
}

impl Ordered {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> Arc<Self> {
        Arc::new(Self {
            file,
            lines: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, lines: MutexGuard<'a, Lines>) -> MutexGuard<'a, Lines> {
        self.changed
            .wait(lines)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on syncs are carried out so.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn set_syncs(self: &Arc<Self>, syncs: Syncs) -> io::Result<()> {
        if syncs == Syncs::Beside {
            let file = Arc::clone(self);
            std::thread::Builder::new()
                .name("state".into())
                .spawn(move || file.run())?;
        }
        self.lock().syncs = syncs;
        Ok(())
    }

    /// How many lines were drawn.
    pub(super) fn drawn(&self) -> u64 {
        self.lock().drawn
    }

    /// Whether all before a line is durable.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn has_reached(&self, line: u64) -> io::Result<bool> {
        let mut lines = self.lock();
        if lines.syncs == Syncs::WhenAsked && lines.reached < line {
            lines = self.reach(lines);
        }
        lines.check()?;
        Ok(lines.reached >= line)
    }

    /// Returns when all lines are reached.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn settle(&self) -> io::Result<()> {
        self.settled().map(drop)
    }

    fn settled(&self) -> io::Result<MutexGuard<'_, Lines>> {
        let mut lines = self.lock();
        loop {
            lines.check()?;
            if lines.reached == lines.drawn && !lines.busy {
                return Ok(lines);
            }
            lines = if lines.syncs == Syncs::Beside {
                self.wait(lines)
            } else {
                self.reach(lines)
            };
        }
    }

    /// Gives the file up: nothing is written to it once this returns.
    pub(super) fn retire(&self) {
        let mut lines = self.lock();
        lines.retired = true;
        self.changed.notify_all();
        while lines.busy {
            lines = self.wait(lines);
        }
    }

    /// Reaches the next line, if there is one, and gives the file what was held for it.
    fn reach<'a>(&'a self, mut lines: MutexGuard<'a, Lines>) -> MutexGuard<'a, Lines> {
        if lines.busy || lines.reached == lines.drawn || lines.check().is_err() {
            return lines;
        }
        lines.busy = true;
        drop(lines);
        let mut done = self.file.sync();
        lines = self.lock();
        if done.is_ok() && !lines.retired {
            if lines.held.len() > 1 {
                // Nothing is added to it any more, since a later line is drawn.
                let held = lines.held.front().cloned().unwrap_or_default();
                drop(lines);
                done = self.write_blocks(&held);
                lines = self.lock();
            } else {
                done = lines.held.front().map_or(Ok(()), |h| self.write_blocks(h));
            }
        }
        match done {
            Ok(()) => {
                lines.held.pop_front();
                lines.reached += 1;
            }
            Err(err) => lines.failed = Some(err.into()),
        }
        lines.busy = false;
        self.changed.notify_all();
        lines
    }

    fn write_blocks(&self, blocks: &BTreeMap<u64, Block>) -> io::Result<()> {
        blocks.iter().try_for_each(|(number, block)| {
            self.file
                .write(number * BLOCK_BYTES as u64, block.as_slice())
        })
    }

    /// Reaches lines as they are drawn, until the database is closed or given up.
    fn run(&self) {
        let mut lines = self.lock();
        while lines.check().is_ok() {
            if lines.reached < lines.drawn {
                lines = self.reach(lines);
            } else if lines.closed {
                return;
            } else {
                lines = self.wait(lines);
            }
        }
    }

    /// Keeps what is written until the last line is reached.
    fn hold(&self, lines: &mut Lines, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let (number, from) = (at / BLOCK_BYTES as u64, at as usize % BLOCK_BYTES);
            let (piece, others) = rest.split_at(rest.len().min(BLOCK_BYTES - from));
            let mut block = [0; BLOCK_BYTES];
            if piece.len() < BLOCK_BYTES {
                match lines.held_block(number) {
                    Some(held) => block = **held,
                    None => self.file.read(number * BLOCK_BYTES as u64, &mut block)?,
                }
            }
            block[from..from + piece.len()].copy_from_slice(piece);
            if let Some(held) = lines.held.back_mut() {
                held.insert(number, Arc::new(block));
            }
            at += piece.len() as u64;
            rest = others;
        }
        Ok(())
    }
}

/// The file as the database sees it.
#[derive(Debug)]
pub(super) struct Backend(pub(super) Arc<Ordered>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.file.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let first = offset / BLOCK_BYTES as u64;
        let end = (offset + out.len() as u64).div_ceil(BLOCK_BYTES as u64);
        let held: Vec<(u64, Block)> = {
            let lines = self.0.lock();
            let block = |n| lines.held_block(n).map(|block| (n, Arc::clone(block)));
            if lines.held.iter().all(BTreeMap::is_empty) {
                Vec::new()
            } else {
                (first..end).filter_map(block).collect()
            }
        };
        // No page is written while somebody reads it: what goes from memory to the file meanwhile is the same in both.
        self.0.file.read(offset, out).map_err(|err| {
            if is_damage(&err) {
                io::Error::new(io::ErrorKind::InvalidData, err)
            } else {
                err
            }
        })?;
        for (number, block) in held {
            let begins = number * BLOCK_BYTES as u64;
            let from = offset.max(begins);
            let to = (offset + out.len() as u64).min(begins + BLOCK_BYTES as u64);
            let place = (from - offset) as usize..(to - offset) as usize;
            out[place].copy_from_slice(&block[(from - begins) as usize..(to - begins) as usize]);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        // It is rare, and what is held has a place in the file as it was.
        let lines = self.0.settled()?;
        let done = self.0.file.set_len(len);
        drop(lines);
        done
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut lines = self.0.lock();
        lines.check()?;
        lines.drawn += 1;
        lines.held.push_back(BTreeMap::new());
        match lines.syncs {
            Syncs::AtOnce => {
                lines = self.0.reach(lines);
                lines.check()
            }
            Syncs::WhenAsked => Ok(()),
            Syncs::Beside => {
                self.0.changed.notify_all();
                Ok(())
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut lines = self.0.lock();
        lines.check()?;
        if lines.reached == lines.drawn {
            return self.0.file.write(offset, data);
        }
        self.0.hold(&mut lines, offset, data)
    }

    fn close(&self) -> io::Result<()> {
        let settled = match self.0.settle() {
            // It was given up, or has failed and said so.
            Err(_) => Ok(()),
            settled => settled,
        };
        self.0.lock().closed = true;
        self.0.changed.notify_all();
        settled
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE_BYTES: usize = 6 * BLOCK_BYTES;

    /// A file in memory that remembers what it was at each sync.
    #[derive(Debug, Default)]
    struct Memory(Mutex<Contents>);

    #[derive(Debug, Default)]
    struct Contents {
        bytes: Vec<u8>,
        at_syncs: Vec<Vec<u8>>,
        fails: bool,
    }

    impl Memory {
        fn lock(&self) -> MutexGuard<'_, Contents> {
            self.0.lock().expect("no one panics with it")
        }
    }

    impl DiskFile for Memory {
        fn size(&self) -> io::Result<u64> {
            Ok(self.lock().bytes.len() as u64)
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            out.copy_from_slice(&self.lock().bytes[offset as usize..][..out.len()]);
            Ok(())
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.lock().bytes[offset as usize..][..data.len()].copy_from_slice(data);
            Ok(())
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.lock().bytes.resize(len as usize, 0);
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            let mut contents = self.lock();
            if contents.fails {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let now = contents.bytes.clone();
            contents.at_syncs.push(now);
            Ok(())
        }
    }

    #[derive(Debug, Clone)]
    enum Act {
        Write(usize, Vec<u8>),
        Sync,
        Read(usize, usize),
        Grow,
        Ask,
    }

    fn act() -> impl Strategy<Value = Act> {
        let place = 0..FILE_BYTES - 2 * BLOCK_BYTES;
        prop_oneof![
            4 => (place.clone(), prop::collection::vec(any::<u8>(), 1..2 * BLOCK_BYTES)).prop_map(|(at, data)| Act::Write(at, data)),
            // As the database writes its pages.
            4 => (0_usize..4, any::<u8>()).prop_map(|(n, byte)| Act::Write(n * BLOCK_BYTES, vec![byte; BLOCK_BYTES])),
            4 => Just(Act::Sync),
            4 => (place, 1..2 * BLOCK_BYTES).prop_map(|(at, length)| Act::Read(at, length)),
            1 => Just(Act::Grow),
            3 => Just(Act::Ask),
        ]
    }

    /// Does as it is told, and compares each read, and what was in the file at each sync, with what a file without this would have.
    fn compare(syncs: Syncs, acts: Vec<Act>) {
        let memory = Arc::new(Memory::default());
        let ordered = Ordered::new(Arc::clone(&memory) as Arc<dyn DiskFile>);
        let backend = Backend(Arc::clone(&ordered));
        let mut plain = vec![0; FILE_BYTES];
        backend.set_len(FILE_BYTES as u64).expect("there is room");
        ordered.set_syncs(syncs).expect("a thread starts");
        let mut at_lines = Vec::new();
        for act in acts {
            match act {
                Act::Write(at, data) => {
                    backend.write(at as u64, &data).expect("it is written");
                    plain[at..at + data.len()].copy_from_slice(&data);
                }
                Act::Sync => {
                    backend.sync_data().expect("it is synced");
                    at_lines.push(plain.clone());
                }
                Act::Read(at, length) => {
                    let mut out = vec![0; length];
                    backend.read(at as u64, &mut out).expect("it is read");
                    assert_eq!(out, plain[at..at + length]);
                }
                Act::Grow => {
                    plain.resize(plain.len() + BLOCK_BYTES, 0);
                    backend.set_len(plain.len() as u64).expect("there is room");
                }
                Act::Ask => drop(ordered.has_reached(ordered.drawn()).expect("no error")),
            }
        }
        backend.close().expect("it is closed");
        let contents = memory.lock();
        assert_eq!(contents.bytes, plain);
        assert_eq!(contents.at_syncs, at_lines);
    }

    proptest! {
        #[test]
        fn each_sync_finds_what_was_written_before_it_and_no_more(
            acts in prop::collection::vec(act(), 1..60),
            syncs in prop_oneof![Just(Syncs::AtOnce), Just(Syncs::WhenAsked), Just(Syncs::Beside)],
        ) {
            compare(syncs, acts);
        }
    }

    #[test]
    fn what_follows_a_failed_sync_fails_as_it_did_and_is_not_written() {
        for syncs in [Syncs::WhenAsked, Syncs::Beside] {
            let memory = Arc::new(Memory::default());
            let ordered = Ordered::new(Arc::clone(&memory) as Arc<dyn DiskFile>);
            let backend = Backend(Arc::clone(&ordered));
            backend.set_len(FILE_BYTES as u64).expect("there is room");
            ordered.set_syncs(syncs).expect("a thread starts");
            memory.lock().fails = true;
            backend.sync_data().expect("it begins");
            let err = ordered.settle().expect_err("the disk failed");
            assert_eq!(err.kind(), io::ErrorKind::StorageFull);
            let err = backend.write(0, &[1]).expect_err("the disk failed");
            assert_eq!(err.kind(), io::ErrorKind::StorageFull);
            assert_eq!(memory.lock().bytes, vec![0; FILE_BYTES]);
        }
    }
}
