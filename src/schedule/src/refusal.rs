//! Why a machine does not take a unit, and why a placement ends.

use std::fmt;
use std::time::Duration;

use orlop_unit::UnitName;

use crate::machine::MachineId;
use crate::needs::Port;

/// The first reason for which a machine does not take a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The machine is not heard.
    Silent {
        /// For how long, by the store's clock.
        span: Duration,
    },
    /// The machine takes nothing new.
    Cordoned,
    /// `MachineID` names another.
    MachineId {
        /// What it names.
        required: String,
    },
    /// `MachineMetadata` asks for something else.
    Metadata {
        /// The key.
        key: String,
        /// Any of these would do.
        required: Vec<String>,
        /// What the machine has.
        has: Option<String>,
    },
    /// The machine has a unit of that name that is not the cluster's.
    OwnUnit,
    /// `MachineOf` names a unit that is not there.
    Peer {
        /// The unit.
        peer: UnitName,
        /// Where it is.
        on: Option<MachineId>,
    },
    /// The unit conflicts with one that is there, or the other way round.
    Conflict {
        /// The unit that is there.
        with: UnitName,
        /// The pattern that says so.
        rule: String,
        /// Whether it is the rule of the unit that is there.
        theirs: bool,
    },
    /// A unit that replaces this one is there.
    Replaced {
        /// That unit.
        by: UnitName,
    },
    /// Too little is free.
    Insufficient {
        /// Of what.
        what: Quantity,
        /// What the unit asks for.
        asked: u64,
        /// What is free.
        free: u64,
        /// What the machine has.
        total: u64,
    },
    /// A port is taken.
    Port {
        /// Which.
        port: Port,
        /// By which unit; by the machine itself when there is none.
        by: Option<UnitName>,
    },
}

/// What can run short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Bytes of memory.
    Memory,
    /// Thousandths of a CPU.
    Cpu,
    /// Bytes on the data volume.
    Disk,
}

/// A number as units of its kind are written.
struct Shown(Quantity, u64);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.1;
        if self.0 == Quantity::Cpu {
            return match value % 1000 {
                0 => write!(f, "{}", value / 1000),
                rest => {
                    let decimals = format!("{rest:03}");
                    write!(f, "{}.{}", value / 1000, decimals.trim_end_matches('0'))
                }
            };
        }
        for (shift, suffix) in [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')] {
            let unit = 1_u64 << shift;
            if value >= unit {
                // Rounded down: what is free must not look like more than it is.
                return match value % unit * 10 / unit {
                    0 => write!(f, "{}{suffix}", value / unit),
                    tenths => write!(f, "{}.{tenths}{suffix}", value / unit),
                };
            }
        }
        write!(f, "{value}")
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent { span } => write!(f, "agent not seen for {} s", span.as_secs()),
            Self::Cordoned => f.write_str("machine cordoned"),
            Self::MachineId { required } => {
                write!(f, "machine id does not match the required {required:?}")
            }
            Self::Metadata { key, required, has } => {
                write!(f, "metadata {key}={} not present", required.join("|"))?;
                match has {
                    Some(value) => write!(f, " (has {key}={value})"),
                    None => write!(f, " (has no {key})"),
                }
            }
            Self::OwnUnit => f.write_str("machine has a unit of that name itself"),
            Self::Peer { peer, on: Some(on) } => {
                write!(f, "needs peer {peer}, which is on {}", on.short())
            }
            Self::Peer { peer, on: None } => write!(f, "needs peer {peer}, which is not placed"),
            Self::Conflict { with, rule, theirs } => {
                let whose = if *theirs { "its" } else { "own" };
                write!(
                    f,
                    "conflicts with resident unit {with} ({whose} rule {rule:?})"
                )
            }
            Self::Replaced { by } => write!(f, "replaced by resident unit {by}"),
            Self::Insufficient {
                what,
                asked,
                free,
                total,
            } => {
                let name = match what {
                    Quantity::Memory => "memory",
                    Quantity::Cpu => "cpu",
                    Quantity::Disk => "disk",
                };
                write!(
                    f,
                    "insufficient {name}: asks {}, free {} of {}",
                    Shown(*what, *asked),
                    Shown(*what, *free),
                    Shown(*what, *total)
                )
            }
            Self::Port { port, by: Some(by) } => write!(f, "port {port} already taken by {by}"),
            Self::Port { port, by: None } => {
                write!(f, "port {port} already taken by the machine itself")
            }
        }
    }
}

/// Why a placement ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The unit was destroyed.
    Destroyed,
    /// The unit is wanted nowhere any more: its target state is inactive, or it is a template.
    NotWanted,
    /// The machine is not known any more.
    MachineGone,
    /// The machine was silent for the unit's `LostAfter`.
    MachineLost {
        /// For how long, by the store's clock.
        span: Duration,
    },
    /// The machine can take the unit no longer.
    Refused(Refusal),
    /// A unit that replaces it has landed there.
    Replaced(UnitName),
    /// The unit was placed twice; one of the two goes.
    Doubled,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Destroyed => f.write_str("the unit was destroyed"),
            Self::NotWanted => f.write_str("target state inactive"),
            Self::MachineGone => f.write_str("the machine is not known any more"),
            Self::MachineLost { span } => {
                write!(f, "the machine was not seen for {} s", span.as_secs())
            }
            Self::Refused(refusal) => write!(f, "the machine cannot run it any more: {refusal}"),
            Self::Replaced(by) => write!(f, "replaced by {by}"),
            Self::Doubled => f.write_str("the unit has a newer placement elsewhere"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_a_unit_file_writes_them() {
        let refusal = |what, asked, free, total| {
            Refusal::Insufficient {
                what,
                asked,
                free,
                total,
            }
            .to_string()
        };
        assert_eq!(
            refusal(Quantity::Memory, 512 << 20, 300 << 20, 2 << 30),
            "insufficient memory: asks 512M, free 300M of 2G"
        );
        assert_eq!(
            refusal(Quantity::Cpu, 1500, 250, 4000),
            "insufficient cpu: asks 1.5, free 0.25 of 4"
        );
        assert_eq!(
            refusal(Quantity::Disk, (3 << 30) + (1 << 29), 1023, 0),
            "insufficient disk: asks 3.5G, free 1023 of 0"
        );
    }
}
