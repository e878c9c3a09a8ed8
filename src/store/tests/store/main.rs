//! The store from outside: its log and state on a disk that fails, and a real member under real clients.

mod cluster;
mod election;
mod etcdctl;
mod generated;
mod historic;
mod hostile;
mod joining;
mod keyspace;
mod log;
mod model;
mod namespaces;
mod processes;
mod random;
mod room;
mod simulated_disk;
mod simulation;
mod turns;
mod v2;
