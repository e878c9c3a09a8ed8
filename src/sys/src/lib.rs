//! Safe, thin wrappers for the kernel interfaces that no good crate covers.
#![allow(unsafe_code)]

pub mod cgroup;
pub mod clone;
pub mod mount_api;
pub mod netlink;
pub mod packet;
pub mod pidfd;
pub mod seccomp;
