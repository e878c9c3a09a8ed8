//! The clustered store: Raft, log, keyspace, leases, watches, and etcd's v3 face.
//!
//! One member is a deterministic machine, [`node::Node`]: requests, messages, time and a [`disk::Disk`] go in; answers,
//! changes and messages come out. [`server`] is the thin shell around it: one thread steps the machine, one serves gRPC.
//! What is written to disk stands in `docs/store-format.md`.

mod bytes;
pub mod command;
pub mod consensus;
pub mod disk;
pub mod lease;
pub mod mvcc;
pub mod node;
pub mod peer;
pub mod proto;
pub mod refused;
pub mod roster;
pub mod server;
pub mod snapshot;
pub mod state;
pub mod v2;
pub mod wal;
pub mod watch;
