//! Every configuration source to one [`Machine`] value, and its compilation to files and units.
//!
//! [`load`] reads cloud-config YAML, the native TOML, NoCloud's meta-data and the kernel command line. Each value
//! remembers where it was written, and each problem says where it is; nothing that is wrong in an input ends the start
//! of the machine. [`compile`] turns the result into what has to be written, without writing it.
//!
//! The keys are the lines of `machine.rs`: a line declares a key's name, its documentation and its type, and with the type how
//! it is read, merged and shown.

mod compile;
mod elsewhere;
mod encoding;
mod field;
mod input;
mod kernel;
mod machine;
mod native;
mod node;
mod problem;
mod scalar;
mod yaml;

pub use compile::{
    Base, Owner, Plan, PlannedDirectory, PlannedFile, PlannedLink, PlannedSysctl, compile,
};
pub use field::{Collected, Key, Setting, Settings, Shown};
pub use input::{Input, Kind, load};
pub use machine::{
    Conntrack, Data, DropIn, Fleet, Forward, Install, Interface, Journal, Machine, Network, Route,
    Store, Unit, Update, User, WriteFile,
};
pub use problem::{Problem, Severity, Source, Sourced};
pub use scalar::{
    Cidr, Content, DiskName, Encoding, Filesystem, Hostname, LogPriority, LogScheme, LogTarget,
    Mac, Mode, RouteTarget, Secret, SshKey, UnitCommand,
};
