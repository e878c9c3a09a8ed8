//! The values of the keys, and what this node keeps on its disk.

use std::collections::BTreeMap;

use orlop_schedule::{Capacity, Machine, MachineId, Port, UnitName, UnitOption};
use serde::{Deserialize, Serialize};

/// One option of a unit, as fleet's API writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionRecord {
    /// The section.
    pub section: String,
    /// The key.
    pub name: String,
    /// The value.
    pub value: String,
}

impl From<&UnitOption> for OptionRecord {
    fn from(option: &UnitOption) -> Self {
        Self {
            section: option.section.clone(),
            name: option.name.clone(),
            value: option.value.clone(),
        }
    }
}

impl From<OptionRecord> for UnitOption {
    fn from(record: OptionRecord) -> Self {
        Self {
            section: record.section,
            name: record.name,
            value: record.value,
        }
    }
}

/// The value of `unit/NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitRecord {
    /// The content.
    pub options: Vec<OptionRecord>,
}

/// The value of `machine/ID`. Fields that a reader does not know are ignored, missing ones are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineRecord {
    /// The address at which the machine is reached.
    pub ip: String,
    /// From its configuration.
    pub metadata: BTreeMap<String, String>,
    /// CPU for units, in thousandths.
    pub cpu_milli: u64,
    /// Memory for units.
    pub memory_bytes: u64,
    /// Space on the data volume.
    pub disk_bytes: u64,
    /// Ports that the machine uses itself, `22/tcp`.
    pub ports: Vec<String>,
    /// Units that it has itself.
    pub units: Vec<String>,
    /// The version of the program.
    pub version: String,
}

impl MachineRecord {
    /// The machine for the scheduler, with what was said of its metadata afterwards.
    #[must_use]
    pub fn machine(&self, id: &MachineId, changes: Option<&BTreeMap<String, String>>) -> Machine {
        let mut machine = Machine::new(id.as_str());
        machine.metadata = self.merged_metadata(changes);
        machine.capacity = Capacity {
            cpu_milli: self.cpu_milli,
            memory_bytes: self.memory_bytes,
            disk_bytes: self.disk_bytes,
        };
        let ports = self.ports.iter().filter_map(|p| p.parse::<Port>().ok());
        machine.ports = ports.collect();
        let units = self.units.iter().filter_map(|u| UnitName::parse(u).ok());
        machine.units = units.collect();
        machine
    }

    /// The metadata with later changes; an empty value takes a key away.
    #[must_use]
    pub fn merged_metadata(
        &self,
        changes: Option<&BTreeMap<String, String>>,
    ) -> BTreeMap<String, String> {
        let mut metadata = self.metadata.clone();
        for (key, value) in changes.into_iter().flatten() {
            if value.is_empty() {
                metadata.remove(key);
            } else {
                metadata.insert(key.clone(), value.clone());
            }
        }
        metadata
    }
}

/// The value of `state/NAME/ID`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnitState {
    /// systemd's `LOAD`.
    pub load: String,
    /// systemd's `ACTIVE`.
    pub active: String,
    /// systemd's `SUB`.
    pub sub: String,
    /// The hash of the content that is there.
    pub hash: String,
    /// The fencing number of the placement that it belongs to.
    pub fence: u64,
    /// Whether it was started for this placement.
    pub launched: bool,
    /// What went wrong with the last start or stop, or why it has failed since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The last lines of its log, when it has failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

impl UnitState {
    /// Whether processes of the unit may still be there.
    #[must_use]
    pub fn may_run(&self) -> bool {
        matches!(
            self.active.as_str(),
            "active" | "activating" | "deactivating" | "reloading"
        )
    }
}

/// What this node was told last: kept on its disk, so that a restart of the agent without the store changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Assignment {
    /// The boot in which it was written: a unit that was started in another one does not run.
    pub boot_id: String,
    /// The units of this node.
    pub units: BTreeMap<String, Assigned>,
}

/// One unit of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Assigned {
    /// The placement's fencing number.
    pub fence: u64,
    /// The hash of the content that was written.
    pub hash: String,
    /// The name of the file below the units' directory.
    pub file: String,
    /// Whether it was started for this placement and content.
    pub launched: bool,
    /// What went wrong last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
