//! DHCP for IPv4, the client's side: RFC 2131, options of RFC 2132, 3397 and 3442.
//!
//! [`client`] decides and does no I/O; [`message`] and [`frame`] are what goes over the cable; [`lease`] is what comes out.

pub(crate) mod arp;
pub mod client;
pub mod frame;
pub mod lease;
pub mod message;
pub(crate) mod socket;
