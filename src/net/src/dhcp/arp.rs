//! Whether somebody else on the link has our address: address conflict detection (RFC 5227) beside the use of a new address.
//!
//! RFC 2131 §4.4.1 has the client check before it uses an address; that would cost every start of every machine the length of the wait. The address is
//! used at once and given back when somebody answers for it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use orlop_sys::packet;

/// `ETH_P_ARP` of `include/uapi/linux/if_ether.h`.
const ETHER_TYPE_ARP: u16 = 0x0806;
/// Bytes of an ARP packet for Ethernet and IPv4 (RFC 826).
const ARP_BYTES: usize = 28;
/// How long answers are waited for: `ANNOUNCE_WAIT` of RFC 5227 §1.1.
const WINDOW: Duration = Duration::from_secs(2);

/// The question who has `target`, asked from no address so that nobody's table changes (RFC 5227 §2.1.1).
fn probe(mac: [u8; 6], target: Ipv4Addr) -> [u8; ARP_BYTES] {
    let mut packet = [0; ARP_BYTES];
    // Hardware Ethernet, protocol IPv4, their lengths, operation request.
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    packet[8..14].copy_from_slice(&mac);
    packet[24..].copy_from_slice(&target.octets());
    packet
}

/// The Ethernet address of another host that uses `address`, or asks for it just as we do; `None` for what says nothing of that.
fn claimant(packet: &[u8], mac: [u8; 6], address: Ipv4Addr) -> Option<[u8; 6]> {
    let packet = packet.get(..ARP_BYTES)?;
    if packet[..6] != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let sender: [u8; 6] = packet[8..14].try_into().ok()?;
    let sender_ip = &packet[14..18];
    let asks_too = sender_ip == [0; 4] && packet[24..28] == address.octets() && packet[7] == 1;
    ((sender_ip == address.octets() || asks_too) && sender != mac).then_some(sender)
}

/// A watch over one new address, for two seconds.
#[derive(Debug)]
pub(crate) struct ConflictWatch {
    fd: OwnedFd,
    mac: [u8; 6],
    address: Ipv4Addr,
    until: Duration,
}

impl ConflictWatch {
    /// Asks for the address on a link, and listens from then on.
    pub(crate) fn start(
        interface_index: u32,
        mac: [u8; 6],
        address: Ipv4Addr,
        now: Duration,
    ) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Datagram, flags, None)?;
        packet::bind(fd.as_fd(), ETHER_TYPE_ARP, interface_index)?;
        packet::send(
            fd.as_fd(),
            &probe(mac, address),
            ETHER_TYPE_ARP,
            interface_index,
            [0xff; 6],
        )?;
        Ok(Self {
            fd,
            mac,
            address,
            until: now.saturating_add(WINDOW),
        })
    }

    /// When it ends.
    pub(crate) fn until(&self) -> Duration {
        self.until
    }

    /// The other host, if one has spoken up.
    pub(crate) fn claimant(&self) -> Option<[u8; 6]> {
        let mut buffer = [0; 64];
        loop {
            match packet::receive(self.fd.as_fd(), &mut buffer) {
                Ok(received) => {
                    let other = claimant(buffer.get(..received.len)?, self.mac, self.address);
                    if other.is_some() {
                        return other;
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }
}

impl AsFd for ConflictWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

    #[test]
    fn who_uses_or_probes_our_address_is_found_and_nobody_else() {
        let mut answer = probe(OTHER, Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(claimant(&answer, OURS, ADDRESS), None);
        answer[7] = 2;
        answer[14..18].copy_from_slice(&ADDRESS.octets());
        assert_eq!(claimant(&answer, OURS, ADDRESS), Some(OTHER));
        assert_eq!(claimant(&answer, OTHER, ADDRESS), None);
        assert_eq!(claimant(&probe(OTHER, ADDRESS), OURS, ADDRESS), Some(OTHER));
        assert_eq!(claimant(&probe(OURS, ADDRESS), OURS, ADDRESS), None);
        // Somebody who only wants to talk to us.
        let mut question = probe(OTHER, ADDRESS);
        question[14..18].copy_from_slice(&[10, 0, 0, 1]);
        assert_eq!(claimant(&question, OURS, ADDRESS), None);
        assert_eq!(claimant(&answer[..27], OURS, ADDRESS), None);
    }
}
