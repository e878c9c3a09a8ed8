//! Agents with made-up supervisors on a store that is a process: ours, and Debian's etcd.

mod machines;
mod scenes;
mod store;
