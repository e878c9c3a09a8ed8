//! A disk that forgets: a crash loses or tears what was not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use orlop_store::disk::{Disk, DiskFile};

use crate::random::Random;

/// The unit that a disk writes whole.
const SECTOR: usize = 512;
/// The unit that a file system allocates.
const BLOCK: usize = 4096;

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug, Clone, Default)]
struct File {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Since the last sync.
    changes: Vec<Change>,
    /// Blocks that have room of their own, by number.
    allocated: BTreeSet<usize>,
}

#[derive(Debug, Default)]
struct Inner {
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// What the names were after each change since the last sync of names.
    past_names: Vec<BTreeMap<String, usize>>,
    /// Changes and syncs until everything fails.
    left: Option<u64>,
    dead: bool,
    /// Nothing more can be allocated.
    full: bool,
    /// What is synced of the log is not made durable: a store that answers before its sync.
    forgets: bool,
    /// It is full, but does not say so when it is asked.
    lies: bool,
    writes: u64,
}

/// A directory in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimulatedDisk(Arc<Mutex<Inner>>);

impl SimulatedDisk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no one panics with it")
    }

    /// After so many more changes and syncs the power goes.
    pub(crate) fn crash_after(&self, operations: u64) {
        self.lock().left = Some(operations);
    }

    /// The power does not go after all.
    pub(crate) fn stay_alive(&self) {
        self.lock().left = None;
    }

    /// Whether the power is gone.
    pub(crate) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// How often something was written, named or synced.
    pub(crate) fn operations(&self) -> u64 {
        self.lock().writes
    }

    /// From now on what is synced of the log is not durable.
    pub(crate) fn forget_syncs(&self) {
        self.lock().forgets = true;
    }

    /// Fills the disk, or empties it. One that lies says that there is room.
    pub(crate) fn set_full(&self, full: bool, lies: bool) {
        let mut inner = self.lock();
        inner.full = full;
        inner.lies = lies;
    }

    /// What is found after the crash: each change that was not synced is there, not there, or there in some sectors.
    pub(crate) fn after_crash(&self, random: &mut Random) -> Self {
        let mut inner = self.lock();
        inner.dead = true;
        let mut choices = vec![inner.durable_names.clone()];
        choices.append(&mut inner.past_names);
        let names = choices.swap_remove(random.below(choices.len() as u64) as usize);
        let files = inner
            .files
            .iter()
            .map(|file| survive(file, random))
            .collect();
        Self(Arc::new(Mutex::new(Inner {
            files,
            durable_names: names.clone(),
            names,
            forgets: inner.forgets,
            ..Inner::default()
        })))
    }

    /// All names.
    pub(crate) fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// The bytes of a file.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let inner = self.lock();
        inner.files[inner.names[name]].live.clone()
    }

    /// Makes a file of these bytes, durable.
    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut inner = self.lock();
        inner.files.push(File {
            live: bytes.clone(),
            durable: bytes,
            ..File::default()
        });
        let id = inner.files.len() - 1;
        inner.names.insert(name.into(), id);
        inner.durable_names.insert(name.into(), id);
    }
}

fn survive(file: &File, random: &mut Random) -> File {
    let mut bytes = file.durable.clone();
    for change in &file.changes {
        match change {
            Change::Length(length) => {
                if random.once_in(2) {
                    resize(&mut bytes, *length);
                }
            }
            Change::Write(offset, data) => match random.below(3) {
                0 => {}
                1 => write(&mut bytes, *offset, data),
                _ => {
                    let mut at = 0;
                    while at < data.len() {
                        let end = (at + SECTOR - (offset + at) % SECTOR).min(data.len());
                        if random.once_in(2) {
                            write(&mut bytes, offset + at, &data[at..end]);
                        }
                        at = end;
                    }
                }
            },
        }
    }
    File {
        live: bytes.clone(),
        durable: bytes,
        ..File::default()
    }
}

/// `Vec::resize`, quick without optimisation too.
fn resize(bytes: &mut Vec<u8>, length: usize) {
    match length.checked_sub(bytes.len()) {
        Some(missing) => bytes.extend_from_slice(&vec![0; missing]),
        None => bytes.truncate(length),
    }
}

fn write(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        resize(bytes, offset + data.len());
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

impl Inner {
    /// One more change or sync.
    fn operate(&mut self) -> io::Result<()> {
        self.writes += 1;
        if let Some(left) = &mut self.left {
            match left.checked_sub(1) {
                Some(rest) => *left = rest,
                None => self.dead = true,
            }
        }
        if self.dead {
            Err(io::Error::other("the power is gone"))
        } else {
            Ok(())
        }
    }

    fn rename(&mut self, change: impl FnOnce(&mut BTreeMap<String, usize>)) {
        change(&mut self.names);
        self.past_names.push(self.names.clone());
    }
}

#[derive(Debug)]
struct Handle {
    disk: SimulatedDisk,
    id: usize,
}

impl DiskFile for Handle {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.lock().files[self.id].live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.disk.lock();
        let bytes = inner.files[self.id]
            .live
            .get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.disk.lock();
        let full = inner.full;
        let file = &mut inner.files[self.id];
        let (start, end) = (offset as usize, offset as usize + data.len());
        let blocks = start / BLOCK..=(end.max(1) - 1) / BLOCK;
        if full && blocks.clone().any(|block| !file.allocated.contains(&block)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.allocated.extend(blocks);
        write(&mut file.live, start, data);
        file.changes.push(Change::Write(start, data.to_vec()));
        inner.operate()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.lock();
        let file = &mut inner.files[self.id];
        resize(&mut file.live, len as usize);
        file.changes.push(Change::Length(len as usize));
        inner.operate()
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.lock();
        inner.operate()?;
        let named = |(name, id): (&String, &usize)| *id == self.id && name.starts_with("wal-");
        if inner.forgets && inner.names.iter().any(named) {
            return Ok(());
        }
        let file = &mut inner.files[self.id];
        for change in std::mem::take(&mut file.changes) {
            match change {
                Change::Write(offset, data) => write(&mut file.durable, offset, &data),
                Change::Length(length) => resize(&mut file.durable, length),
            }
        }
        Ok(())
    }
}

impl Disk for SimulatedDisk {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.lock();
        let id = match inner.names.get(name) {
            Some(id) => *id,
            None if create => {
                inner.files.push(File::default());
                let id = inner.files.len() - 1;
                inner.rename(|names| {
                    names.insert(name.into(), id);
                });
                inner.operate()?;
                id
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(Handle {
            disk: self.clone(),
            id,
        }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.lock();
        let id = *inner.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        inner.rename(|names| {
            names.remove(from);
            names.insert(to.into(), id);
        });
        inner.operate()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.rename(|names| {
            names.remove(name);
        });
        inner.operate()
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.operate()?;
        inner.durable_names = inner.names.clone();
        inner.past_names.clear();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok({
            let inner = self.lock();
            if inner.full && !inner.lies {
                0
            } else {
                1 << 40
            }
        })
    }
}
