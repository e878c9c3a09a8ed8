//! The container runtime: namespaces, mounts, cgroups, capabilities, seccomp, exec.
//!
//! Input is an OCI runtime specification and the unpacked layers of an image. One process of ours makes the container's
//! first process by `clone3`; that process builds the container around itself and then is the payload. Nothing of ours
//! stays in between.

mod capabilities;
mod compose;
mod confine;
mod container;
mod devices;
mod exec;
mod fill;
mod ipc;
mod limits;
mod paths;
mod plan;
mod process;
mod report;
mod rootfs;
mod seccomp;
mod state;
mod syscalls;
mod user;

pub use capabilities::{
    ALL_CAPABILITIES, DEFAULT_CAPABILITIES, adjust_capabilities, capability_names, parse_capability,
};
pub use compose::{Device, MountRequest, MountSource, Request, compose};
pub use confine::confine;
pub use container::{Cgroup, Container, Created, Error, Options, Running};
pub use exec::{Exec, exec};
pub use fill::Fill;
pub use ipc::remove_ipc;
pub use limits::{LimitsError, remove_cgroup};
pub use plan::Unsupported;
pub use report::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, EXIT_RUNTIME, Failure};
pub use seccomp::{Filter, Seccomp};
pub use state::{Port, Record, Records, StateError};
