//! A machine, as far as placement goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use orlop_unit::UnitName;

use crate::needs::Port;

/// How many characters `fleetctl` shows of a machine's id, and accepts for all of it.
const SHORT: usize = 8;

/// A machine's id: 32 hexadecimal digits as in /etc/machine-id, or whatever the cluster uses instead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineId(Arc<str>);

impl MachineId {
    /// Takes any text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The whole id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first eight characters.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0
            .char_indices()
            .nth(SHORT)
            .and_then(|(end, _)| self.0.get(..end))
            .unwrap_or(&self.0)
    }

    /// Whether `text` is this id, whole or short.
    #[must_use]
    pub fn is_named(&self, text: &str) -> bool {
        text == self.as_str() || text == self.short()
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a machine has for units, its own use subtracted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// CPU in thousandths.
    pub cpu_milli: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Space on the data volume in bytes.
    pub disk_bytes: u64,
}

/// Whether the store hears a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// It does.
    #[default]
    Here,
    /// It was heard last at this time of the [`crate::StoreClock`].
    SilentSince(Duration),
}

/// A machine that units can be placed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its id.
    pub id: MachineId,
    /// What `MachineMetadata` is compared with.
    pub metadata: BTreeMap<String, String>,
    /// What it has.
    pub capacity: Capacity,
    /// Ports that it uses itself.
    pub ports: BTreeSet<Port>,
    /// Units that it has itself: a unit of the same name cannot be placed there.
    pub units: BTreeSet<UnitName>,
    /// Takes nothing new; what is there stays.
    pub cordoned: bool,
    /// Whether it is heard.
    pub presence: Presence,
}

impl Machine {
    /// A machine that is heard and has nothing.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self {
            id: MachineId::new(id),
            metadata: BTreeMap::new(),
            capacity: Capacity::default(),
            ports: BTreeSet::new(),
            units: BTreeSet::new(),
            cordoned: false,
            presence: Presence::Here,
        }
    }
}
