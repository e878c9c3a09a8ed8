//! Safe, thin wrappers for the kernel interfaces that no good crate covers.
#![allow(unsafe_code)]

pub mod netlink;
pub mod packet;
