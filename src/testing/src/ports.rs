//! Ports of loopback for servers that are told where to listen.
//!
//! A port that the kernel has just chosen and that is free again by the time the server takes it is anybody's meanwhile:
//! another test's, the near end of any connection, or of the very connection that waits for the server, which then
//! reaches itself. So ports come from below the range that the kernel chooses from (`ip(7)`, `ip_local_port_range`), and
//! each is held by name for as long as the process that asked for it lives.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::sync::Mutex;

/// Below are the ports of well-known servers.
const FIRST: u16 = 10_000;
/// The kernel's own beginning of the range it chooses from.
const DEFAULT_END: u16 = 32_768;

/// The names of the ports that this process was given.
static HELD: Mutex<Vec<UnixDatagram>> = Mutex::new(Vec::new());

/// A port of 127.0.0.1 that no other caller is given, in this process or another of this network namespace, while this
/// process lives.
///
/// # Errors
///
/// If all are in use.
pub fn free_port() -> io::Result<u16> {
    let end = end_of_range();
    let count = u32::from(end - FIRST);
    // Processes begin at different places; most of them find their first port free.
    let start = std::process::id().wrapping_mul(61) % count;
    for i in 0..count {
        let offset = u16::try_from((start + i) % count).unwrap_or_default();
        let port = FIRST + offset;
        let Ok(name) = UnixAddr::from_abstract_name(format!("orlop-test-port-{port}")) else {
            continue;
        };
        let Ok(held) = UnixDatagram::bind_addr(&name) else {
            continue;
        };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            let mut all = HELD.lock().unwrap_or_else(|err| err.into_inner());
            all.push(held);
            return Ok(port);
        }
    }
    let all = format!("the ports of loopback from {FIRST} to {end} are all in use");
    Err(io::Error::new(io::ErrorKind::AddrInUse, all))
}

/// The same as an address.
///
/// # Panics
///
/// If every port is in use.
#[must_use]
pub fn free_address() -> SocketAddr {
    let port = free_port().expect("loopback has a free port");
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Where the kernel's own choices begin.
fn end_of_range() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let begin = range
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok());
    // Machines exist that let the kernel choose from everything: then there is nothing to avoid.
    begin
        .filter(|begin| *begin > FIRST + 1000)
        .unwrap_or(DEFAULT_END)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn threads_are_given_different_ports_that_can_be_listened_at() {
        let ports = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| (0..50).filter_map(|_| free_port().ok()).collect::<Vec<_>>())
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().expect("it ends"))
                .collect::<Vec<_>>()
        });
        let different: BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!(different.len(), 200);
        for port in different {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("nobody has taken it");
        }
    }
}
