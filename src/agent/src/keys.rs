//! The keys of the cluster in the store (`docs/fleet-keys.md`).

use orlop_schedule::{MachineId, UnitName};

/// All keys of this crate but the services begin with this.
pub const PREFIX: &str = "/orlop/fleet/";
/// What runs where, for those who look for a service.
pub const SERVICES: &str = "/services/";
/// The machine that leads the scheduler; there is one while its lease lives.
pub const LEADER: &str = "/orlop/fleet/engine/leader";
/// The highest fencing number that was given, in decimal digits.
pub const FENCE: &str = "/orlop/fleet/engine/fence";

/// A key, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// `unit/NAME`: a unit's content.
    Unit(UnitName),
    /// `target/NAME`: what is wanted of it.
    Target(UnitName),
    /// `machine/ID`: what a machine has.
    Machine(MachineId),
    /// `metadata/ID`: what was said of a machine's metadata afterwards.
    Metadata(MachineId),
    /// `presence/ID`: there while the machine's lease lives.
    Presence(MachineId),
    /// `placement/NAME/ID`: the unit belongs on the machine; the value is the fencing number.
    Placement(UnitName, MachineId),
    /// `state/NAME/ID`: what has become of it there; goes with the machine's lease.
    State(UnitName, MachineId),
    /// [`LEADER`].
    Leader,
    /// [`FENCE`].
    Fence,
}

impl Key {
    /// Takes a key apart; `None` for one that is not of this version.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.strip_prefix(PREFIX)?.split_once('/')?;
        let unit = |text: &str| UnitName::parse(text).ok().filter(|n| n.as_str() == text);
        let machine =
            |text: &str| (!text.is_empty() && !text.contains('/')).then(|| MachineId::new(text));
        let both = || {
            let (name, id) = rest.split_once('/')?;
            Some((unit(name)?, machine(id)?))
        };
        Some(match kind {
            "unit" => Self::Unit(unit(rest)?),
            "target" => Self::Target(unit(rest)?),
            "machine" => Self::Machine(machine(rest)?),
            "metadata" => Self::Metadata(machine(rest)?),
            "presence" => Self::Presence(machine(rest)?),
            "placement" => both().map(|(unit, id)| Self::Placement(unit, id))?,
            "state" => both().map(|(unit, id)| Self::State(unit, id))?,
            "engine" => match rest {
                "leader" => Self::Leader,
                "fence" => Self::Fence,
                _ => return None,
            },
            _ => return None,
        })
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unit(unit) => write!(f, "{PREFIX}unit/{unit}"),
            Self::Target(unit) => write!(f, "{PREFIX}target/{unit}"),
            Self::Machine(id) => write!(f, "{PREFIX}machine/{id}"),
            Self::Metadata(id) => write!(f, "{PREFIX}metadata/{id}"),
            Self::Presence(id) => write!(f, "{PREFIX}presence/{id}"),
            Self::Placement(unit, id) => write!(f, "{PREFIX}placement/{unit}/{id}"),
            Self::State(unit, id) => write!(f, "{PREFIX}state/{unit}/{id}"),
            Self::Leader => f.write_str(LEADER),
            Self::Fence => f.write_str(FENCE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let unit = UnitName::parse("web@1.service").unwrap();
        let id = MachineId::new("0123456789abcdef");
        for key in [
            Key::Unit(unit.clone()),
            Key::Target(unit.clone()),
            Key::Machine(id.clone()),
            Key::Metadata(id.clone()),
            Key::Presence(id.clone()),
            Key::Placement(unit.clone(), id.clone()),
            Key::State(unit, id),
            Key::Leader,
            Key::Fence,
        ] {
            assert_eq!(Key::parse(&key.to_string()), Some(key));
        }
    }

    #[test]
    fn what_is_no_key_is_none() {
        for text in [
            "",
            "/orlop/fleet/",
            "/orlop/fleet/unit/",
            "/orlop/fleet/unit/x",
            "/orlop/fleet/unit/web.container",
            "/orlop/fleet/machine/a/b",
            "/orlop/fleet/placement/web.service",
            "/orlop/fleet/engine/other",
            "/other/unit/web.service",
        ] {
            assert_eq!(Key::parse(text), None, "{text}");
        }
    }
}
