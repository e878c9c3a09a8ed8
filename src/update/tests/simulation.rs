//! A disk and an EFI system partition whose power can be cut at any write: what was not synced is there, or not, or in parts.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use orlop_boot::entries::{self, Entry};
use orlop_disk::PartitionTable;
use orlop_update::apply::read_table;
use orlop_update::slots::Slot;
use orlop_update::storage::{Disk, Esp, read_files};

use crate::world::Release;

const SECTOR: usize = 512;

/// Operations that are left before the power is cut.
#[derive(Debug, Clone)]
pub(crate) struct Power(Rc<Cell<u64>>);

impl Power {
    pub(crate) fn new(operations: u64) -> Self {
        Self(Rc::new(Cell::new(operations)))
    }

    pub(crate) fn left(&self) -> u64 {
        self.0.get()
    }

    fn spend(&self) -> io::Result<()> {
        match self.0.get().checked_sub(1) {
            Some(left) => {
                self.0.set(left);
                Ok(())
            }
            None => Err(io::Error::other("the power is off")),
        }
    }
}

/// A small generator (SplitMix64), so that a failing seed can be run again.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn coin(&mut self) -> bool {
        self.next() >> 40 & 1 == 1
    }
}

#[derive(Debug, Clone)]
pub(crate) struct SimDisk {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Written and not synced.
    pending: Vec<(usize, Vec<u8>)>,
    pub(crate) power: Power,
}

impl SimDisk {
    pub(crate) fn new(bytes: u64) -> Self {
        let live = vec![0; bytes as usize];
        Self {
            durable: live.clone(),
            live,
            pending: Vec::new(),
            power: Power::new(u64::MAX),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.live
    }

    pub(crate) fn flip(&mut self, at: u64) {
        self.live[at as usize] ^= 1;
        self.durable[at as usize] ^= 1;
    }

    /// What the medium holds after the cut: each sector that was not synced is the old or the new one.
    pub(crate) fn cut(&self, random: &mut Random) -> Self {
        let mut left = self.durable.clone();
        for (at, bytes) in &self.pending {
            for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                let at = at + number * SECTOR;
                if random.coin() {
                    left[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Self {
            live: left.clone(),
            durable: left,
            pending: Vec::new(),
            power: Power::new(u64::MAX),
        }
    }
}

impl Disk for SimDisk {
    fn size_bytes(&self) -> u64 {
        self.live.len() as u64
    }

    fn sector_bytes(&self) -> u64 {
        SECTOR as u64
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        let at = at as usize;
        into.copy_from_slice(
            self.live
                .get(at..at + into.len())
                .ok_or(io::ErrorKind::UnexpectedEof)?,
        );
        Ok(())
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.power.spend()?;
        let start = at as usize;
        self.live
            .get_mut(start..start + bytes.len())
            .ok_or(io::ErrorKind::InvalidInput)?
            .copy_from_slice(bytes);
        self.pending.push((start, bytes.to_vec()));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.power.spend()?;
        for (at, bytes) in self.pending.drain(..) {
            self.durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write {
        name: String,
        at: usize,
        bytes: Vec<u8>,
    },
    Remove(String),
}

type Files = BTreeMap<String, Vec<u8>>;

#[derive(Debug, Clone)]
pub(crate) struct SimEsp {
    size_bytes: u64,
    live: Files,
    durable: Files,
    pending: Vec<Change>,
    pub(crate) power: Power,
}

impl SimEsp {
    pub(crate) fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            live: Files::new(),
            durable: Files::new(),
            pending: Vec::new(),
            power: Power::new(u64::MAX),
        }
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.live.keys().map(String::as_str).collect()
    }

    pub(crate) fn contents(&self) -> &Files {
        &self.live
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        let bytes = self.live.remove(from).unwrap();
        self.live.insert(to.to_owned(), bytes);
        self.durable.clone_from(&self.live);
    }

    /// Each change is there or not, whatever became of the others; of a file that grew, any part of the new length, and in it any of its
    /// sectors: others' old bytes where none was written.
    pub(crate) fn cut(&self, random: &mut Random) -> Self {
        let mut left = self.durable.clone();
        for change in &self.pending {
            if random.coin() {
                continue;
            }
            match change {
                Change::Remove(name) => drop(left.remove(name)),
                Change::Write { name, at, bytes } => {
                    let file = left.entry(name.clone()).or_default();
                    let length = if random.coin() {
                        bytes.len()
                    } else {
                        random.next() as usize % (bytes.len() + 1)
                    };
                    if file.len() < at + length {
                        file.resize(at + length, 0xa5);
                    }
                    for (number, sector) in bytes[..length].chunks(SECTOR).enumerate() {
                        let at = at + number * SECTOR;
                        if random.coin() {
                            file[at..at + sector.len()].copy_from_slice(sector);
                        }
                    }
                }
            }
        }
        Self {
            live: left.clone(),
            durable: left,
            pending: Vec::new(),
            power: Power::new(u64::MAX),
            ..*self
        }
    }
}

impl Esp for SimEsp {
    fn files(&self) -> io::Result<Vec<(String, u64)>> {
        Ok(self
            .live
            .iter()
            .map(|(name, bytes)| (name.clone(), bytes.len() as u64))
            .collect())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let used: usize = self.live.values().map(Vec::len).sum();
        Ok(self.size_bytes.saturating_sub(used as u64))
    }

    fn read_at(&self, name: &str, into: &mut [u8], at: u64) -> io::Result<()> {
        let at = at as usize;
        let file = self.live.get(name).ok_or(io::ErrorKind::NotFound)?;
        into.copy_from_slice(
            file.get(at..at + into.len())
                .ok_or(io::ErrorKind::UnexpectedEof)?,
        );
        Ok(())
    }

    fn write_at(&mut self, name: &str, bytes: &[u8], at: u64) -> io::Result<()> {
        self.power.spend()?;
        let at = at as usize;
        let file = self.live.entry(name.to_owned()).or_default();
        if file.len() < at + bytes.len() {
            file.resize(at + bytes.len(), 0);
        }
        file[at..at + bytes.len()].copy_from_slice(bytes);
        self.pending.push(Change::Write {
            name: name.to_owned(),
            at,
            bytes: bytes.to_vec(),
        });
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.power.spend()?;
        self.live.remove(name).ok_or(io::ErrorKind::NotFound)?;
        self.pending.push(Change::Remove(name.to_owned()));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.power.spend()?;
        self.durable.clone_from(&self.live);
        self.pending.clear();
        Ok(())
    }
}

/// What a start takes: the first entry in the loader's order that is an image, and the root that its command line names.
/// Gives the version, or what is wrong with what was taken.
pub(crate) fn boots(disk: &SimDisk, esp: &SimEsp, releases: &[&Release]) -> Result<String, String> {
    let files: Vec<(Entry, String, _)> = read_files(esp)
        .unwrap()
        .into_iter()
        .filter_map(|file| Some((Entry::parse(&file.name)?, file.name, file.root_hash?)))
        .collect();
    let names: Vec<Entry> = files.iter().map(|(entry, ..)| entry.clone()).collect();
    let chosen = entries::choose(&names).ok_or("no entry boots")?;
    let chosen = files.iter().find(|(entry, ..)| entry == chosen);
    let (_, name, hash) = chosen.ok_or("no entry boots")?;
    let release = releases
        .iter()
        .find(|release| release.root_hash == *hash)
        .ok_or("an unknown root")?;
    if esp.contents()[name] != release.uki {
        return Err(format!("the image {name} is damaged"));
    }
    let table: PartitionTable = read_table(disk).ok_or("no partition table")?;
    let slots = Slot::both(&table).map_err(|e| e.to_string())?;
    let slot = slots
        .iter()
        .find(|slot| slot.holds(hash))
        .ok_or_else(|| format!("no slot has the root of {name}"))?;
    for (place, bytes) in [(&slot.root, &release.root), (&slot.verity, &release.verity)] {
        let at = place.start_bytes as usize;
        if &disk.live[at..at + bytes.len()] != bytes.as_slice() {
            return Err(format!("{} is damaged", place.name));
        }
    }
    Ok(release.version.clone())
}
