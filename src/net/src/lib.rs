//! Links, addresses, DHCP, the resolver file, bridges and port publishing.

pub mod container;
pub mod dhcp;
pub mod netlink;
pub mod role;
