//! IPv4 and UDP around a DHCP message: what a packet socket sends and receives while there is no address (RFC 791, RFC 768).

use std::net::Ipv4Addr;

use orlop_sys::packet::Instruction;

/// The port that clients listen on (RFC 2131 §4.1).
pub const CLIENT_PORT: u16 = 68;
/// The port that servers listen on.
pub const SERVER_PORT: u16 = 67;
/// Bytes of an IPv4 header without options.
const IP_BYTES: usize = 20;
/// Bytes of a UDP header.
const UDP_BYTES: usize = 8;
/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// A packet filter for a socket that hands over packets from their IPv4 header on: UDP to the client's port, unfragmented.
///
/// The program that `tcpdump -d 'udp dst port 68'` prints, less the Ethernet header. Operation codes are those of
/// `include/uapi/linux/{filter,bpf_common}.h`.
pub const FILTER: [Instruction; 9] = {
    const fn step(code: u16, jump_true: u8, jump_false: u8, operand: u32) -> Instruction {
        Instruction {
            code,
            jump_true,
            jump_false,
            operand,
        }
    }
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_HALF_INDEXED: u16 = 0x48;
    const LOAD_HEADER_LENGTH: u16 = 0xb1;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    [
        step(LOAD_BYTE, 0, 0, 9),
        step(JUMP_EQUAL, 0, 6, UDP as u32),
        step(LOAD_HALF, 0, 0, 6),
        step(JUMP_ANY_BIT, 4, 0, 0x1fff),
        step(LOAD_HEADER_LENGTH, 0, 0, 0),
        step(LOAD_HALF_INDEXED, 0, 0, 2),
        step(JUMP_EQUAL, 0, 1, CLIENT_PORT as u32),
        step(RETURN, 0, 0, 0xffff),
        step(RETURN, 0, 0, 0),
    ]
};

/// The Internet checksum (RFC 1071) over some parts, each but the last of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        let (pairs, last) = part.as_chunks::<2>();
        for pair in pairs {
            sum += u32::from(u16::from_be_bytes(*pair));
        }
        if let [last] = last {
            sum += u32::from(*last) << 8;
        }
        // Parts are packets of under 64 KiB: 32 bits hold the sum of one and the carry of those before.
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum = (sum >> 16) + (sum & 0xffff);
    !(sum as u16)
}

fn pseudo_header(from: &[u8], to: &[u8], len: u16) -> [u8; 12] {
    let mut header = [0; 12];
    header[..4].copy_from_slice(from);
    header[4..8].copy_from_slice(to);
    header[9] = UDP;
    header[10..].copy_from_slice(&len.to_be_bytes());
    header
}

/// The IPv4 packet of a client's message.
#[must_use]
pub fn encode(payload: &[u8], from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let udp_len = (UDP_BYTES + payload.len()) as u16;
    let total_len = IP_BYTES as u16 + udp_len;
    let mut ip = [0u8; IP_BYTES];
    // Version 4 and 5 words; TOS low delay (RFC 1349 §appendix); do not fragment; TTL 64.
    ip[..2].copy_from_slice(&[0x45, 0x10]);
    ip[2..4].copy_from_slice(&total_len.to_be_bytes());
    ip[6] = 0x40;
    ip[8..10].copy_from_slice(&[64, UDP]);
    ip[12..16].copy_from_slice(&from.octets());
    ip[16..].copy_from_slice(&to.octets());
    let ip_sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&ip_sum.to_be_bytes());

    let mut udp = [0u8; UDP_BYTES];
    udp[..2].copy_from_slice(&CLIENT_PORT.to_be_bytes());
    udp[2..4].copy_from_slice(&SERVER_PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
    let pseudo = pseudo_header(&ip[12..16], &ip[16..], udp_len);
    // RFC 768: a sum of zero is sent as all ones.
    let udp_sum = match checksum(&[&pseudo, &udp, payload]) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..].copy_from_slice(&udp_sum.to_be_bytes());
    [&ip[..], &udp, payload].concat()
}

/// The UDP payload of a received IPv4 packet to the client's port; `None` for anything else or what was damaged on the way.
///
/// `checksum_missing` says that the sender is on this machine and left the UDP checksum to hardware that was not reached.
#[must_use]
pub fn decode(packet: &[u8], checksum_missing: bool) -> Option<&[u8]> {
    let word = |bytes: &[u8], at: usize| -> Option<u16> {
        Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
    };
    let first = *packet.first()?;
    let header_len = usize::from(first & 0x0f) * 4;
    let total_len = usize::from(word(packet, 2)?);
    // RFC 791: fragments (offset or "more") are no whole message.
    if first >> 4 != 4
        || header_len < IP_BYTES
        || *packet.get(9)? != UDP
        || word(packet, 6)? & 0x3fff != 0
    {
        return None;
    }
    let header = packet.get(..header_len)?;
    let datagram = packet.get(header_len..total_len)?;
    let udp_len = word(datagram, 4)?;
    let datagram = datagram.get(..usize::from(udp_len))?;
    if checksum(&[header]) != 0 || word(datagram, 2)? != CLIENT_PORT {
        return None;
    }
    let pseudo = pseudo_header(&header[12..16], &header[16..20], udp_len);
    let is_intact =
        checksum_missing || word(datagram, 6)? == 0 || checksum(&[&pseudo, datagram]) == 0;
    datagram.get(UDP_BYTES..).filter(|_| is_intact)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A client's packet with the ports the other way round: what a server would send; swapping them leaves both sums as they are.
    fn from_server(payload: &[u8]) -> Vec<u8> {
        let mut packet = encode(payload, Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::BROADCAST);
        packet[20..24].copy_from_slice(&[0, 67, 0, 68]);
        packet
    }

    #[test]
    fn a_known_header_has_its_known_checksum() {
        // The example of RFC 1071 §3.
        assert_eq!(
            checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]),
            !0xddf2
        );
    }

    #[test]
    fn a_damaged_packet_is_dropped_unless_its_sum_was_never_made() {
        let mut packet = from_server(b"hello");
        assert_eq!(decode(&packet, false), Some(&b"hello"[..]));
        packet[30] ^= 1;
        assert_eq!(decode(&packet, false), None);
        assert!(decode(&packet, true).is_some());
        packet[12] ^= 1;
        assert_eq!(decode(&packet, true), None);
    }

    proptest! {
        #[test]
        fn every_payload_survives(payload in proptest::collection::vec(any::<u8>(), 0..1400), trailer in 0usize..20) {
            let mut packet = from_server(&payload);
            // Ethernet pads short frames.
            packet.resize(packet.len() + trailer, 0xaa);
            prop_assert_eq!(decode(&packet, false), Some(&payload[..]));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(mut packet in proptest::collection::vec(any::<u8>(), 0..80), missing in any::<bool>()) {
            let _ = decode(&packet, missing);
            if packet.len() > 10 {
                packet[0] = 0x45;
                packet[6] = 0;
                packet[7] = 0;
                packet[9] = UDP;
                let _ = decode(&packet, missing);
            }
        }
    }
}
