//! Safe, thin wrappers for the kernel interfaces that no good crate covers.
#![allow(unsafe_code)]

pub mod blkdev;
pub mod cgroup;
pub mod clone;
pub mod crash;
pub mod detach;
pub mod dm;
pub mod fork;
pub mod inherited;
pub mod ipc;
pub mod kmsg;
pub mod loopback;
pub mod loopdev;
pub mod memory;
pub mod mount_api;
pub mod mountinfo;
pub mod netlink;
pub mod notify;
pub mod packet;
pub mod pidfd;
pub mod process;
pub mod random;
pub mod schedule;
pub mod seccomp;
pub mod signal;
pub mod uevent;
pub mod watchdog;
