//! Links, addresses, DHCP, the resolver file, bridges and port publishing.
