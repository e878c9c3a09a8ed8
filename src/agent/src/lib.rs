//! The node's part in the cluster: takes work from the store, reports truth, and may lead the scheduler.
//!
//! The store is reached by etcd's v3 API alone; the keys stand in `docs/fleet-keys.md` and in [`keys`]. The cores do no I/O:
//!
//! * [`registry`] is what the node knows of the cluster, kept by a watch.
//! * [`engine`] turns the registry into placements on the node that leads.
//! * [`hands`] turns placements into steps on this node.
//!
//! [`agent`] is the shell around them, [`api`] answers fleet's HTTP API from the registry.

pub mod agent;
pub mod api;
pub mod client;
pub mod connect;
pub mod engine;
pub mod facts;
pub mod hands;
pub mod keys;
mod metrics;
pub mod records;
pub mod registry;
pub mod services;
pub mod supervisor;
