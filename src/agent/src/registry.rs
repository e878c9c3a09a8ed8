//! What this node knows of the cluster: the keys of the store, typed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use orlop_schedule::{
    Job, Machine, MachineId, Placement, Presence, Scheduler, Target, UnitFile, UnitName,
};

use crate::keys::Key;
use crate::records::{MachineRecord, UnitRecord, UnitState};

/// How long a machine's lease lives without being kept alive.
pub const PRESENCE_TTL: Duration = Duration::from_secs(10);
/// Where the clock of [`Registry::now`] begins, so that what was silent before can be written as a time.
const CLOCK_START: Duration = Duration::from_secs(1 << 20);

/// A unit's content, or why it cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitEntry {
    /// What was stored.
    pub record: UnitRecord,
    /// What it means.
    pub file: Result<Arc<UnitFile>, String>,
}

/// What a key's change means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A unit's content or target.
    Unit(UnitName),
    /// What a machine has, or whether it is heard.
    Machine(MachineId),
    /// A placement.
    Placement(UnitName, MachineId),
    /// A report.
    State(UnitName, MachineId),
    /// The leader.
    Leader,
    /// The highest fencing number.
    Fence,
}

/// The keys, typed.
#[derive(Debug)]
pub struct Registry {
    /// Contents of units.
    pub units: BTreeMap<UnitName, UnitEntry>,
    /// What is wanted of them.
    pub targets: BTreeMap<UnitName, Target>,
    /// Machines that have ever registered and were not forgotten.
    pub machines: BTreeMap<MachineId, MachineRecord>,
    /// Later changes to their metadata.
    pub metadata: BTreeMap<MachineId, BTreeMap<String, String>>,
    /// Machines whose lease lives.
    pub present: BTreeSet<MachineId>,
    /// Placements with their fencing numbers.
    pub placements: BTreeMap<UnitName, BTreeMap<MachineId, u64>>,
    /// Reports.
    pub states: BTreeMap<UnitName, BTreeMap<MachineId, UnitState>>,
    /// The machine that leads.
    pub leader: Option<String>,
    /// The highest fencing number.
    pub fence: u64,
    silent_since: BTreeMap<MachineId, Duration>,
    now: Duration,
    presence_ttl: Duration,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            units: BTreeMap::new(),
            targets: BTreeMap::new(),
            machines: BTreeMap::new(),
            metadata: BTreeMap::new(),
            present: BTreeSet::new(),
            placements: BTreeMap::new(),
            states: BTreeMap::new(),
            leader: None,
            fence: 0,
            silent_since: BTreeMap::new(),
            now: CLOCK_START,
            presence_ttl: PRESENCE_TTL,
        }
    }
}

impl Registry {
    /// A registry of machines whose leases live `presence_ttl`: that long was one silent when its presence goes.
    #[must_use]
    pub fn new(presence_ttl: Duration) -> Self {
        Self {
            presence_ttl,
            ..Self::default()
        }
    }

    /// The time of the store's clock.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Sets the store's clock: what [`orlop_schedule::StoreClock`] has counted.
    pub fn set_clock(&mut self, elapsed: Duration) {
        self.now = CLOCK_START.saturating_add(elapsed);
    }

    /// Forgets every key, as before all are read anew. When machines were heard last is kept.
    pub fn clear(&mut self) {
        *self = Self {
            silent_since: std::mem::take(&mut self.silent_since),
            now: self.now,
            presence_ttl: self.presence_ttl,
            ..Self::default()
        };
    }

    /// Takes in a key that was written (`value`) or deleted. `None` for keys and values that mean nothing.
    pub fn apply(&mut self, key: &str, value: Option<&[u8]>) -> Option<Change> {
        let key = Key::parse(key)?;
        let text = || value.map(|v| std::str::from_utf8(v).unwrap_or_default());
        match key {
            Key::Unit(unit) => {
                let entry = value.map(|value| UnitEntry::read(&unit, value));
                set(&mut self.units, &unit, entry);
                Some(Change::Unit(unit))
            }
            Key::Target(unit) => {
                let target = text().map(|word| Target::from_word(word).unwrap_or_default());
                set(&mut self.targets, &unit, target);
                Some(Change::Unit(unit))
            }
            Key::Machine(id) => {
                let record = value.and_then(|v| serde_json::from_slice(v).ok());
                set(&mut self.machines, &id, record);
                self.hear(&id);
                Some(Change::Machine(id))
            }
            Key::Metadata(id) => {
                let changes = value.and_then(|v| serde_json::from_slice(v).ok());
                set(&mut self.metadata, &id, changes);
                Some(Change::Machine(id))
            }
            Key::Presence(id) => {
                if value.is_some() {
                    self.present.insert(id.clone());
                } else {
                    self.present.remove(&id);
                }
                self.hear(&id);
                Some(Change::Machine(id))
            }
            Key::Placement(unit, id) => {
                let fence = text().and_then(|t| t.parse().ok());
                set_inner(&mut self.placements, &unit, &id, fence);
                Some(Change::Placement(unit, id))
            }
            Key::State(unit, id) => {
                let state = value.and_then(|v| serde_json::from_slice(v).ok());
                set_inner(&mut self.states, &unit, &id, state);
                Some(Change::State(unit, id))
            }
            Key::Leader => {
                self.leader = text().map(str::to_owned);
                Some(Change::Leader)
            }
            Key::Fence => {
                self.fence = text().and_then(|t| t.parse().ok()).unwrap_or_default();
                Some(Change::Fence)
            }
        }
    }

    /// All keys have been read: machines that are not present now and were not known before have been silent for as long
    /// as a lease lives.
    pub fn complete(&mut self) {
        let ids: Vec<MachineId> = self.machines.keys().cloned().collect();
        for id in ids {
            self.hear(&id);
        }
        let machines = &self.machines;
        self.silent_since.retain(|id, _| machines.contains_key(id));
    }

    /// Notes when a machine fell silent, or that it did not.
    fn hear(&mut self, id: &MachineId) {
        if self.present.contains(id) || !self.machines.contains_key(id) {
            self.silent_since.remove(id);
        } else {
            let since = self.now.saturating_sub(self.presence_ttl);
            self.silent_since.entry(id.clone()).or_insert(since);
        }
    }

    /// How long a machine has been silent; `None` for one that is heard.
    #[must_use]
    pub fn silence(&self, id: &MachineId) -> Option<Duration> {
        let since = self.silent_since.get(id)?;
        Some(self.now.saturating_sub(*since))
    }

    /// A machine as the scheduler sees it.
    #[must_use]
    pub fn machine(&self, id: &MachineId) -> Option<Machine> {
        let record = self.machines.get(id)?;
        let mut machine = record.machine(id, self.metadata.get(id));
        if let Some(since) = self.silent_since.get(id) {
            machine.presence = Presence::SilentSince(*since);
        }
        Some(machine)
    }

    /// A unit as the scheduler sees it; one that cannot be used is wanted nowhere.
    #[must_use]
    pub fn job(&self, unit: &UnitName) -> Option<Job> {
        let entry = self.units.get(unit)?;
        Some(Job {
            name: unit.clone(),
            file: Arc::clone(entry.file.as_ref().ok()?),
            target: self.target(unit),
        })
    }

    /// What is wanted of a unit.
    #[must_use]
    pub fn target(&self, unit: &UnitName) -> Target {
        self.targets.get(unit).copied().unwrap_or_default()
    }

    /// A scheduler that knows what is known here.
    #[must_use]
    pub fn scheduler(&self) -> Scheduler {
        let mut scheduler = Scheduler::new();
        for id in self.machines.keys() {
            self.machine(id)
                .into_iter()
                .for_each(|m| scheduler.set_machine(m));
        }
        for (unit, machines) in &self.placements {
            for (machine, fence) in machines {
                scheduler.set_placement(&Placement {
                    unit: unit.clone(),
                    machine: machine.clone(),
                    fence: *fence,
                });
            }
        }
        for unit in self.units.keys() {
            self.job(unit)
                .into_iter()
                .for_each(|j| scheduler.set_unit(j));
        }
        scheduler.set_last_fence(self.fence);
        scheduler
    }

    /// Where a unit is, with the fencing number.
    pub fn placed(&self, unit: &UnitName) -> impl Iterator<Item = (&MachineId, u64)> {
        let machines = self.placements.get(unit).into_iter().flatten();
        machines.map(|(machine, fence)| (machine, *fence))
    }

    /// What a machine says of a unit that is placed there.
    #[must_use]
    pub fn state(&self, unit: &UnitName, machine: &MachineId) -> Option<&UnitState> {
        self.states.get(unit)?.get(machine)
    }
}

impl UnitEntry {
    fn read(unit: &UnitName, value: &[u8]) -> Self {
        match serde_json::from_slice::<UnitRecord>(value) {
            Ok(record) => {
                let options = record.options.iter().cloned().map(Into::into).collect();
                let file = UnitFile::from_options(unit, options);
                Self {
                    record,
                    file: file.map(Arc::new).map_err(|err| err.to_string()),
                }
            }
            Err(err) => Self {
                record: UnitRecord::default(),
                file: Err(format!("the stored unit cannot be read: {err}")),
            },
        }
    }
}

fn set<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, key: &K, value: Option<V>) {
    match value {
        Some(value) => {
            map.insert(key.clone(), value);
        }
        None => {
            map.remove(key);
        }
    }
}

fn set_inner<V>(
    map: &mut BTreeMap<UnitName, BTreeMap<MachineId, V>>,
    unit: &UnitName,
    machine: &MachineId,
    value: Option<V>,
) {
    match value {
        Some(value) => {
            let inner = map.entry(unit.clone()).or_default();
            inner.insert(machine.clone(), value);
        }
        None => {
            if let Some(inner) = map.get_mut(unit) {
                inner.remove(machine);
                if inner.is_empty() {
                    map.remove(unit);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_by_the_stores_clock_and_ends_when_a_machine_returns() {
        let mut registry = Registry::default();
        let id = MachineId::new("m1");
        let presence = Key::Presence(id.clone()).to_string();
        registry.apply(&Key::Machine(id.clone()).to_string(), Some(b"{}"));
        registry.apply(&presence, Some(b"1"));
        assert_eq!(registry.silence(&id), None);
        registry.set_clock(Duration::from_secs(100));
        registry.apply(&presence, None);
        assert_eq!(
            registry.silence(&id),
            Some(PRESENCE_TTL),
            "the lease has lived that long unheard"
        );
        registry.set_clock(Duration::from_secs(107));
        assert_eq!(
            registry.silence(&id),
            Some(PRESENCE_TTL + Duration::from_secs(7))
        );
        registry.clear();
        registry.apply(&Key::Machine(id.clone()).to_string(), Some(b"{}"));
        registry.complete();
        assert_eq!(
            registry.silence(&id),
            Some(PRESENCE_TTL + Duration::from_secs(7)),
            "reading all anew does not begin the count anew"
        );
        registry.apply(&presence, Some(b"1"));
        assert_eq!(registry.silence(&id), None);
    }

    #[test]
    fn a_broken_unit_harms_nobody_else() {
        let mut registry = Registry::default();
        for (name, value) in [
            ("a.service", &b"no json"[..]),
            (
                "b.service",
                br#"{"options":[{"section":"X-Fleet","name":"Memory","value":"lots"}]}"#,
            ),
            (
                "c.service",
                br#"{"options":[{"section":"Service","name":"ExecStart","value":"/bin/c"}]}"#,
            ),
        ] {
            let unit = UnitName::parse(name).unwrap();
            registry.apply(&Key::Unit(unit.clone()).to_string(), Some(value));
            registry.apply(&Key::Target(unit).to_string(), Some(b"launched"));
        }
        registry.apply(&Key::Machine(MachineId::new("m1")).to_string(), Some(b"{}"));
        registry.apply(&Key::Presence(MachineId::new("m1")).to_string(), Some(b"1"));
        let mut scheduler = registry.scheduler();
        assert_eq!(scheduler.decide(registry.now()).len(), 1);
        let unit = UnitName::parse("b.service").unwrap();
        assert!(
            registry.units[&unit]
                .file
                .as_ref()
                .unwrap_err()
                .contains("Memory")
        );
    }
}
