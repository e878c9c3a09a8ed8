//! Placement: a pure function from machines, units and time to decisions with reasons.
//!
//! * [`UnitFile`] reads a unit as fleet did: its options, its canonical text and hash, its `[X-Fleet]` section
//!   ([`Constraints`]), and what it asks of a machine ([`Needs`]).
//! * [`Scheduler`] holds the cluster as far as placement goes. [`Scheduler::decide`] gives the [`Decision`]s that the state
//!   calls for; what changed since the last call is all that it looks at, and the answer is the one that a scheduler made
//!   anew from the same facts gives. [`Scheduler::why`] says for every machine why it does not take a unit.
//! * [`StoreClock`] is the time by which machines are declared lost: it stands still while the store has no leader.
//!
//! The rules, in their order:
//!
//! 1. A placement ends when its unit is gone or no longer wanted, when its machine is gone or has been silent for the
//!    unit's `LostAfter`, or when the machine can no longer take the unit. Of several that no longer fit together the
//!    oldest placements stay. Nothing else ends a placement but a unit that `Replaces` it.
//! 2. As long as some waiting unit fits on some machine, the first such unit (global units first, then by name) is placed
//!    on the best such machine: the one with the fewest instances of the same template, then the least (`Strategy=pack`:
//!    the most) loaded, then the first by id.
//! 3. Whatever fits nowhere waits.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use orlop_schedule::{Decision, Job, Machine, Scheduler, Target, UnitFile, UnitName};
//!
//! let mut scheduler = Scheduler::new();
//! scheduler.set_machine(Machine::new("113f16a7"));
//! let name = UnitName::parse("web.service")?;
//! let file = UnitFile::parse(&name, "[Service]\nExecStart=/bin/httpd\nMemoryMax=64M\n")?;
//! scheduler.set_unit(Job { name: name.clone(), file: Arc::new(file), target: Target::Launched });
//! let refused = scheduler.why(&name, Duration::ZERO);
//! assert_eq!(refused.machines[0].1.as_ref().unwrap().to_string(), "insufficient memory: asks 64M, free 0 of 0");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod clock;
mod constraints;
mod glob;
mod machine;
mod needs;
mod options;
mod refusal;
mod scheduler;
mod unit_file;

pub use clock::StoreClock;
pub use constraints::{Constraints, Finding, LostAfter, Publish, Strategy};
pub use glob::Pattern;
pub use machine::{Capacity, Machine, MachineId, Presence};
pub use needs::{Amount, Needs, Port, Protocol};
pub use options::{ParseError, UnitOption, canonical, hash, parse};
pub use orlop_unit::UnitName;
pub use refusal::{Cause, Quantity, Refusal};
pub use scheduler::{Decision, Job, Placement, Scheduler, Target, Why};
pub use unit_file::{FileError, UnitFile};
