//! DHCP messages as bytes (RFC 2131 §2).
//!
//! Reading is total: what is cut off or contradicts itself makes the whole message or the single option invalid, never a panic. Options that are
//! split or spill into `file` and `sname` are put together again (RFC 3396, RFC 2131 §4.1).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The fixed fields, up to and with the magic cookie.
const FIXED_BYTES: usize = 240;
/// Relays may drop shorter ones (RFC 1542 §2.1: a BOOTP message is 300 bytes).
const LEAST_BYTES: usize = 300;
/// RFC 2131 §3.
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
/// The most that we tell servers we take (option 57): an Ethernet frame's worth of IP.
const LARGEST_MESSAGE: u16 = 1500;
/// Where the fields `sname` and `file` lie.
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;

/// Option codes (RFC 2132 unless said otherwise).
pub mod option {
    /// Subnet mask.
    pub const SUBNET_MASK: u8 = 1;
    /// Routers, the preferred first.
    pub const ROUTERS: u8 = 3;
    /// Name servers.
    pub const NAME_SERVERS: u8 = 6;
    /// Host name.
    pub const HOST_NAME: u8 = 12;
    /// Domain name.
    pub const DOMAIN: u8 = 15;
    /// MTU of the link.
    pub const MTU: u8 = 26;
    /// Time servers.
    pub const NTP_SERVERS: u8 = 42;
    /// The address that the client asks for.
    pub const REQUESTED_ADDRESS: u8 = 50;
    /// Lease time in seconds.
    pub const LEASE_TIME: u8 = 51;
    /// Which of `file` and `sname` hold options too.
    pub const OVERLOAD: u8 = 52;
    /// Type of the message.
    pub const MESSAGE_TYPE: u8 = 53;
    /// The server's address.
    pub const SERVER: u8 = 54;
    /// The options that the client wants.
    pub const PARAMETERS: u8 = 55;
    /// The server's or client's words.
    pub const TEXT: u8 = 56;
    /// The longest message that the client takes.
    pub const LARGEST_MESSAGE: u8 = 57;
    /// Seconds until the client asks its server to renew.
    pub const RENEWAL_TIME: u8 = 58;
    /// Seconds until the client asks any server.
    pub const REBINDING_TIME: u8 = 59;
    /// Client identifier.
    pub const CLIENT_ID: u8 = 61;
    /// Search domains (RFC 3397).
    pub const SEARCH: u8 = 119;
    /// Classless routes (RFC 3442).
    pub const ROUTES: u8 = 121;
}

use option as o;

/// What the client asks servers for.
const WANTED: [u8; 9] = [
    o::SUBNET_MASK,
    // RFC 3442: before the routers.
    o::ROUTES,
    o::ROUTERS,
    o::NAME_SERVERS,
    o::HOST_NAME,
    o::DOMAIN,
    o::MTU,
    o::NTP_SERVERS,
    o::SEARCH,
];

/// Message types (RFC 2132 §9.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageType {
    /// Client looks for servers.
    Discover,
    /// Server offers an address.
    Offer,
    /// Client asks for an address, or for more time.
    Request,
    /// Client found the address in use.
    Decline,
    /// Server grants.
    Ack,
    /// Server refuses.
    Nak,
    /// Client gives the address back.
    Release,
}

impl MessageType {
    fn number(self) -> u8 {
        match self {
            Self::Discover => 1,
            Self::Offer => 2,
            Self::Request => 3,
            Self::Decline => 4,
            Self::Ack => 5,
            Self::Nak => 6,
            Self::Release => 7,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        [
            Self::Discover,
            Self::Offer,
            Self::Request,
            Self::Decline,
            Self::Ack,
            Self::Nak,
            Self::Release,
        ]
        .into_iter()
        .find(|kind| kind.number() == number)
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The link's Ethernet address.
    pub mac: [u8; 6],
    /// The machine's name, told to servers.
    pub hostname: Option<String>,
}

/// A message from the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it is.
    pub kind: MessageType,
    /// Ties answers to it.
    pub xid: u32,
    /// Seconds since the client began.
    pub seconds: u16,
    /// `ciaddr`: the address that the client has and can answer for.
    pub client_address: Option<Ipv4Addr>,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 54: the server that is meant.
    pub server: Option<Ipv4Addr>,
}

impl Request {
    /// The bytes of the UDP payload.
    #[must_use]
    pub fn encode(&self, identity: &Identity) -> Vec<u8> {
        let mut bytes = vec![0; FIXED_BYTES];
        // op, htype Ethernet, hlen, hops; flags stay 0: we hear unicast before we have the address.
        bytes[..4].copy_from_slice(&[BOOT_REQUEST, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&self.xid.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.seconds.to_be_bytes());
        if let Some(address) = self.client_address {
            bytes[12..16].copy_from_slice(&address.octets());
        }
        bytes[28..34].copy_from_slice(&identity.mac);
        bytes[236..].copy_from_slice(&MAGIC_COOKIE);

        let mut put = |code: u8, value: &[u8]| {
            let value = &value[..value.len().min(255)];
            bytes.extend_from_slice(&[code, value.len() as u8]);
            bytes.extend_from_slice(value);
        };
        put(o::MESSAGE_TYPE, &[self.kind.number()]);
        let mut client_id = [1; 7];
        client_id[1..].copy_from_slice(&identity.mac);
        put(o::CLIENT_ID, &client_id);
        if let Some(address) = self.requested {
            put(o::REQUESTED_ADDRESS, &address.octets());
        }
        if let Some(address) = self.server {
            put(o::SERVER, &address.octets());
        }
        // RFC 2131 table 5: a DECLINE or RELEASE MUST NOT ask for anything.
        if matches!(self.kind, MessageType::Discover | MessageType::Request) {
            put(o::LARGEST_MESSAGE, &LARGEST_MESSAGE.to_be_bytes());
            if let Some(name) = identity.hostname.as_deref().filter(|name| !name.is_empty()) {
                put(o::HOST_NAME, name.as_bytes());
            }
            put(o::PARAMETERS, &WANTED);
        }
        bytes.push(255);
        bytes.resize(bytes.len().max(LEAST_BYTES), 0);
        bytes
    }
}

/// A message from a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What it is.
    pub kind: MessageType,
    /// The `xid` of the request that it answers.
    pub xid: u32,
    /// `yiaddr`: the client's address.
    pub address: Ipv4Addr,
    /// `chaddr`: whom it is for.
    pub mac: [u8; 6],
    /// Options by code, each put together from its parts.
    pub options: BTreeMap<u8, Vec<u8>>,
}

impl Reply {
    /// Reads the payload of a UDP packet; `None` for what is not a DHCP server's message for an Ethernet link.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let fixed: &[u8; FIXED_BYTES] = bytes.get(..FIXED_BYTES)?.try_into().ok()?;
        if fixed[..3] != [BOOT_REPLY, 1, 6] || fixed[236..] != MAGIC_COOKIE {
            return None;
        }
        let mut options = BTreeMap::new();
        read_options(&bytes[FIXED_BYTES..], &mut options);
        // RFC 2131 §4.1: `file` first, then `sname`.
        let overload = options
            .get(&o::OVERLOAD)
            .and_then(|v| v.first().copied())
            .unwrap_or(0);
        if overload & 1 != 0 {
            read_options(&fixed[FILE], &mut options);
        }
        if overload & 2 != 0 {
            read_options(&fixed[SNAME], &mut options);
        }
        let kind = match options.get(&o::MESSAGE_TYPE)?.as_slice() {
            [number] => MessageType::from_number(*number)?,
            _ => return None,
        };
        Some(Self {
            kind,
            xid: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            address: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]),
            mac: [
                fixed[28], fixed[29], fixed[30], fixed[31], fixed[32], fixed[33],
            ],
            options,
        })
    }

    /// An option that is one address.
    #[must_use]
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        Some(Ipv4Addr::from(
            <[u8; 4]>::try_from(self.options.get(&code)?.as_slice()).ok()?,
        ))
    }

    /// An option that is a list of addresses; an incomplete last one is left out.
    #[must_use]
    pub fn addresses(&self, code: u8) -> Vec<Ipv4Addr> {
        let bytes = self
            .options
            .get(&code)
            .map(Vec::as_slice)
            .unwrap_or_default();
        bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|octets| Ipv4Addr::from(*octets))
            .collect()
    }

    /// An option that is a number of four bytes.
    #[must_use]
    pub fn number(&self, code: u8) -> Option<u32> {
        Some(u32::from_be_bytes(
            self.options.get(&code)?.as_slice().try_into().ok()?,
        ))
    }

    /// An option that is a text; one with control characters in it is none. Some servers close texts with NUL.
    #[must_use]
    pub fn text(&self, code: u8) -> Option<String> {
        let text = String::from_utf8_lossy(self.options.get(&code)?);
        let text = text.trim_end_matches('\0');
        (!text.is_empty() && !text.contains(char::is_control)).then(|| text.to_owned())
    }
}

fn read_options(mut bytes: &[u8], options: &mut BTreeMap<u8, Vec<u8>>) {
    loop {
        match bytes {
            [0, rest @ ..] => bytes = rest,
            [255, ..] | [] | [_] => return,
            [code, len, rest @ ..] => {
                let Some((value, rest)) = rest.split_at_checked(usize::from(*len)) else {
                    return;
                };
                options.entry(*code).or_default().extend_from_slice(value);
                bytes = rest;
            }
        }
    }
}

/// A server's message as bytes, for simulated servers.
#[cfg(test)]
pub(super) fn encode_reply(reply: &Reply) -> Vec<u8> {
    let mut bytes = vec![0; FIXED_BYTES];
    bytes[..3].copy_from_slice(&[BOOT_REPLY, 1, 6]);
    bytes[4..8].copy_from_slice(&reply.xid.to_be_bytes());
    bytes[16..20].copy_from_slice(&reply.address.octets());
    bytes[28..34].copy_from_slice(&reply.mac);
    bytes[236..].copy_from_slice(&MAGIC_COOKIE);
    for (code, value) in &reply.options {
        for part in value.chunks(255) {
            bytes.extend_from_slice(&[*code, part.len() as u8]);
            bytes.extend_from_slice(part);
        }
    }
    bytes.push(255);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reply(options: &[(u8, &[u8])]) -> Reply {
        Reply {
            kind: MessageType::Ack,
            xid: 7,
            address: Ipv4Addr::new(10, 0, 0, 9),
            mac: [2, 0, 0, 0, 0, 1],
            options: options.iter().map(|(c, v)| (*c, v.to_vec())).collect(),
        }
    }

    #[test]
    fn a_request_has_the_fields_that_the_rfc_puts_there() {
        let identity = Identity {
            mac: [2, 0, 0, 0, 0, 1],
            hostname: Some("node".into()),
        };
        let request = Request {
            kind: MessageType::Request,
            xid: 0x0102_0304,
            seconds: 5,
            client_address: None,
            requested: Some(Ipv4Addr::new(10, 0, 0, 9)),
            server: Some(Ipv4Addr::new(10, 0, 0, 1)),
        };
        let bytes = request.encode(&identity);
        assert!(bytes.len() >= 300);
        assert_eq!(&bytes[..10], &[1, 1, 6, 0, 1, 2, 3, 4, 0, 5]);
        assert_eq!(&bytes[28..34], &identity.mac);
        let mut options = BTreeMap::new();
        read_options(&bytes[240..], &mut options);
        assert_eq!(options[&o::MESSAGE_TYPE], [3]);
        assert_eq!(options[&o::REQUESTED_ADDRESS], [10, 0, 0, 9]);
        assert_eq!(options[&o::SERVER], [10, 0, 0, 1]);
        assert_eq!(options[&o::HOST_NAME], b"node");
        assert_eq!(options[&o::CLIENT_ID], [1, 2, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_decline_asks_for_nothing() {
        let identity = Identity {
            mac: [2, 0, 0, 0, 0, 1],
            hostname: Some("node".into()),
        };
        let request = Request {
            kind: MessageType::Decline,
            xid: 1,
            seconds: 0,
            client_address: None,
            requested: None,
            server: None,
        };
        let mut options = BTreeMap::new();
        read_options(&request.encode(&identity)[240..], &mut options);
        assert!(!options.contains_key(&o::PARAMETERS) && !options.contains_key(&o::HOST_NAME));
    }

    #[test]
    fn options_in_file_and_sname_and_split_ones_are_put_together() {
        let mut bytes = encode_reply(&reply(&[
            (o::MESSAGE_TYPE, &[5]),
            (o::OVERLOAD, &[3]),
            (o::DOMAIN, b"exa"),
        ]));
        bytes[FILE][..9].copy_from_slice(b"\x0f\x04mple\x06\x00\xff");
        bytes[SNAME][..7].copy_from_slice(&[o::SERVER, 4, 10, 0, 0, 1, 255]);
        let read = Reply::decode(&bytes).unwrap();
        assert_eq!(read.options[&o::DOMAIN], b"example");
        assert_eq!(read.address(o::SERVER), Some(Ipv4Addr::new(10, 0, 0, 1)));
    }

    proptest! {
        #[test]
        fn what_a_server_wrote_is_read_back(
            options in proptest::collection::btree_map(60u8..250, proptest::collection::vec(any::<u8>(), 0..600), 0..5), xid in any::<u32>(),
        ) {
            let mut sent = reply(&[(o::MESSAGE_TYPE, &[5])]);
            sent.xid = xid;
            sent.options.extend(options.into_iter().filter(|(_, v)| !v.is_empty()));
            prop_assert_eq!(Reply::decode(&encode_reply(&sent)), Some(sent));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Reply::decode(&bytes);
            if bytes.len() >= FIXED_BYTES {
                bytes[..3].copy_from_slice(&[2, 1, 6]);
                bytes[236..240].copy_from_slice(&MAGIC_COOKIE);
                if let Some(reply) = Reply::decode(&bytes) {
                    for code in 0..=255 {
                        let _ = (reply.addresses(code), reply.address(code), reply.number(code), reply.text(code));
                    }
                    let _ = super::super::lease::Lease::from_ack(&reply, std::time::Duration::ZERO);
                }
            }
        }
    }
}
