//! Links, addresses, DHCP, the resolver file, bridges and port publishing.

pub mod container;
pub mod netlink;
