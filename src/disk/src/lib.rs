//! Partitions and filesystems of the data volume: look, plan, apply.
//!
//! [`inspect`] says what a disk holds, [`plan`] what has to be done with it, [`apply`] does it, and
//! [`ensure_data_volume`] does all three. Nothing is destroyed that Orlop did not make, unless the configuration says
//! `wipe: true`; and a data volume that Orlop made is not destroyed even then, so that the setting may stay where it is.
//!
//! `docs/data-volume.md` has the layout, and why a power cut at any moment leaves a disk that the next start finishes.

mod apply;
mod ext4;
mod find;
mod inspect;
mod layout;
mod plan;
mod signature;
mod system;
mod table;
#[cfg(test)]
mod tests;

pub use apply::{Checked, Error, Mounted, apply, ensure_data_volume};
pub use ext4::Superblock;
pub use find::{FindError, is_disk_name, resolve};
pub use inspect::{Found, InspectError, Partition, State, inspect};
pub use layout::{LABEL, VAR_TYPE};
pub use plan::{Plan, Refusal, Request, Step, plan};
pub use system::ensure_system_volume;
pub use table::{PartitionTable, TableEntry, TableWrite, claim, unclaim};
