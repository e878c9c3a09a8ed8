//! What this machine has for units.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use nix::sys::statvfs::statvfs;
use orlop_schedule::UnitName;

use crate::records::MachineRecord;

/// What a machine keeps for itself: PID 1, the store, the agent, the page cache of what it boots from.
const OWN_MEMORY_BYTES: u64 = 96 << 20;
/// Of the data volume a twentieth stays free.
const OWN_DISK_SHARE: u64 = 20;
/// What the machine's own roles listen on: SSH, the store and its old names, the agent, the overlay.
const OWN_PORTS: &[&str] = &[
    "22/tcp",
    "2379/tcp",
    "2380/tcp",
    "4001/tcp",
    "7001/tcp",
    "49153/tcp",
    "8472/udp",
];
/// An address in TEST-NET-1 (RFC 5737): the route to it is the default route; nothing is sent.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// Where the agent learns what the machine has. It looks again from time to time: addresses come late, disks grow.
#[derive(Clone)]
pub struct Facts(Arc<dyn Fn() -> MachineRecord + Send + Sync>);

impl Facts {
    /// What `look` finds each time.
    pub fn new(look: impl Fn() -> MachineRecord + Send + Sync + 'static) -> Self {
        Self(Arc::new(look))
    }

    /// What is found now.
    #[must_use]
    pub fn look(&self) -> MachineRecord {
        (self.0)()
    }
}

impl From<MachineRecord> for Facts {
    fn from(record: MachineRecord) -> Self {
        Self::new(move || record.clone())
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Facts").field(&self.look()).finish()
    }
}

/// What the machine has. `data` is on the data volume, `unit_directories` are those of the machine's own units.
#[must_use]
pub fn gather(
    data: &Path,
    unit_directories: &[&str],
    metadata: &BTreeMap<String, String>,
    ip: Option<IpAddr>,
) -> MachineRecord {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let disk = statvfs(data).map_or(0, |fs| fs.fragment_size() * fs.blocks());
    MachineRecord {
        ip: ip
            .or_else(default_address)
            .map_or_else(String::new, |ip| ip.to_string()),
        metadata: metadata.clone(),
        cpu_milli: u64::try_from(cpus).unwrap_or(1) * 1000,
        memory_bytes: memory_bytes().saturating_sub(OWN_MEMORY_BYTES),
        disk_bytes: disk - disk / OWN_DISK_SHARE,
        ports: OWN_PORTS.iter().map(|port| (*port).to_owned()).collect(),
        units: own_units(unit_directories),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// The names of units in directories, each once.
fn own_units(directories: &[&str]) -> Vec<String> {
    let entries = directories
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flatten()
        .flatten();
    let names: BTreeSet<String> = entries
        .filter_map(|entry| UnitName::parse(entry.file_name().to_str()?).ok())
        .map(|unit| unit.as_str().to_owned())
        .collect();
    names.into_iter().collect()
}

/// `MemTotal` of /proc/meminfo (proc_meminfo(5)).
fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or_default() << 10
}

/// The machine's address towards the default route.
fn default_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(ELSEWHERE).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then_some(address)
}

/// The machine's id (machine-id(5)).
#[must_use]
pub fn machine_id() -> Option<String> {
    let text = fs::read_to_string("/etc/machine-id").ok()?;
    let id = text.trim();
    let valid = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| id.to_ascii_lowercase())
}

/// The id of this boot.
#[must_use]
pub fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.unwrap_or_default().trim().to_owned()
}
