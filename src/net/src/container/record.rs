//! What was given to which container: one JSON file each, under a lock.
//!
//! `containers/NAME.json` holds a [`Record`]; `containers.lock` is locked by whoever reads or changes them and holds the address given last, so that
//! addresses go round: a peer that still talks to a dead container does not reach its successor.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use super::{Bridge, Error, Publish, state_error};
use crate::netlink::rules::Published;

/// Identifies a namespace as long as something holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Namespace {
    device: u64,
    inode: u64,
}

impl Namespace {
    pub(super) fn of(fd: BorrowedFd<'_>) -> std::io::Result<Self> {
        let status = fstat(fd)?;
        Ok(Self {
            device: status.st_dev,
            inode: status.st_ino,
        })
    }
}

/// What one container has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its name.
    pub(super) name: String,
    /// Its address.
    pub(super) address: Ipv4Addr,
    /// The machine's end of its cable; goes by itself when the namespace does.
    pub(super) link: String,
    /// Its namespace.
    pub(super) namespace: Namespace,
    /// Its ports.
    pub(super) publish: Vec<Publish>,
}

impl Record {
    pub(super) fn published(&self) -> Published<'_> {
        Published {
            name: &self.name,
            address: self.address,
            ports: &self.publish,
        }
    }
}

/// Refuses names that cannot be a file's.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let fits = name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if fits {
        Ok(())
    } else {
        Err(Error::Name(name.chars().take(200).collect()))
    }
}

/// All records, while nobody else may change them.
#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
    lock: Flock<File>,
    lock_path: PathBuf,
    all: BTreeMap<String, Record>,
}

impl Records {
    /// Waits for the lock, and reads what is there. A file that cannot be read as a record counts as none: its writer died, and `put` comes before
    /// anything is made.
    pub(super) fn lock(directory: &Path) -> Result<Self, Error> {
        let containers = directory.join("containers");
        fs::create_dir_all(&containers).map_err(state_error(&containers))?;
        let lock_path = directory.join("containers.lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(state_error(&lock_path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, err)| state_error(&lock_path)(err.into()))?;
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(&containers).map_err(state_error(&containers))? {
            let path = entry.map_err(state_error(&containers))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let bytes = fs::read(&path).map_err(state_error(&path))?;
            if let Ok(record) = serde_json::from_slice::<Record>(&bytes)
                && path
                    .file_stem()
                    .is_some_and(|stem| stem == record.name.as_str())
            {
                all.insert(record.name.clone(), record);
            }
        }
        Ok(Self {
            directory: containers,
            lock,
            lock_path,
            all,
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<&Record> {
        self.all.get(name)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Record> {
        self.all.values()
    }

    /// Keeps a record, and its address as the last one given.
    pub(super) fn put(&mut self, record: Record) -> Result<(), Error> {
        let path = self.path(&record.name);
        let aside = path.with_extension("new");
        let text = serde_json::to_vec(&record).map_err(|err| state_error(&path)(err.into()))?;
        // Memory, not a disk: there is nothing to sync.
        fs::write(&aside, text).map_err(state_error(&aside))?;
        fs::rename(&aside, &path).map_err(state_error(&path))?;
        self.lock
            .set_len(0)
            .and_then(|()| self.lock.rewind())
            .and_then(|()| writeln!(self.lock, "{}", record.address))
            .map_err(state_error(&self.lock_path))?;
        self.all.insert(record.name.clone(), record);
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) -> Result<(), Error> {
        let path = self.path(name);
        fs::remove_file(&path).map_err(state_error(&path))?;
        self.all.remove(name);
        Ok(())
    }

    /// The next address after the one given last that nobody has.
    pub(super) fn free_address(&mut self, bridge: &Bridge) -> Option<Ipv4Addr> {
        let mut text = String::new();
        // An empty or damaged file only means that counting starts from the beginning.
        let _ = self
            .lock
            .rewind()
            .and_then(|()| (&*self.lock).take(64).read_to_string(&mut text));
        let last = text
            .trim()
            .parse::<Ipv4Addr>()
            .map_or(0, u32::from)
            .wrapping_sub(bridge.number());
        next_free(bridge, last, |address| {
            self.all.values().any(|r| r.address == address)
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }
}

/// The first address after the `last` one, as an offset into the network, that is neither the bridge's nor `taken`.
fn next_free(bridge: &Bridge, last: u32, taken: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
    // Offsets 1 to size - 1: neither the network's own address nor the broadcast address.
    let count = bridge.size().checked_sub(1)?;
    let start = if last < bridge.size() { last } else { 0 };
    (0..count)
        .map(|step| Ipv4Addr::from(bridge.number() + 1 + (start + step) % count))
        .find(|address| *address != bridge.address && !taken(*address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn small() -> Bridge {
        Bridge {
            name: "b".into(),
            address: Ipv4Addr::new(10, 1, 2, 1),
            prefix: 29,
        }
    }

    #[test]
    fn addresses_go_round_and_end_when_all_are_given() {
        let mut given = BTreeSet::new();
        let mut last = 0;
        while let Some(address) = next_free(&small(), last, |a| given.contains(&a)) {
            assert!(given.insert(address));
            last = u32::from(address) - small().number();
        }
        let expected: BTreeSet<_> = (2..=6).map(|n| Ipv4Addr::new(10, 1, 2, n)).collect();
        assert_eq!(given, expected);
        given.remove(&Ipv4Addr::new(10, 1, 2, 2));
        given.remove(&Ipv4Addr::new(10, 1, 2, 5));
        assert_eq!(
            next_free(&small(), 3, |a| given.contains(&a)),
            Some(Ipv4Addr::new(10, 1, 2, 5))
        );
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        for bad in ["", ".", "..", "a/b", "-x", ".hidden", "ü", &"x".repeat(129)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        for good in ["web", "systemd-web_1.2", "9"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_damaged_record_and_a_damaged_lock_file_are_survived() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("containers")).unwrap();
        fs::write(directory.path().join("containers/web.json"), "{\"name\":").unwrap();
        fs::write(directory.path().join("containers.lock"), [0xff; 200]).unwrap();
        let mut records = Records::lock(directory.path()).unwrap();
        assert_eq!(records.all().count(), 0);
        assert_eq!(
            records.free_address(&small()),
            Some(Ipv4Addr::new(10, 1, 2, 2))
        );
    }

    proptest! {
        #[test]
        fn an_address_is_inside_the_network_and_free(last in any::<u32>(), prefix in 8u8..=30, taken in proptest::collection::btree_set(2u32..6, 0..4)) {
            let bridge = Bridge { name: "b".into(), address: Ipv4Addr::new(10, 0, 0, 1), prefix };
            if let Some(address) = next_free(&bridge, last, |a| taken.contains(&(u32::from(a) & 0xff))) {
                let offset = u32::from(address) - bridge.number();
                prop_assert!(offset > 1 && offset < bridge.size());
            }
        }
    }
}
