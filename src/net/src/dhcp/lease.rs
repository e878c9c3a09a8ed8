//! What a server granted: an address for a time, and what goes with it.
//!
//! Kept as JSON at `/run/orlop/net/lease-LINK.json`, so that the role, restarted, asks for the same address; other roles read name and time servers there.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::message::{Reply, option as o};

/// The longest lists that are kept of anything a server sends.
const LONGEST_LIST: usize = 16;
/// The smallest MTU that IPv4 hosts must take (RFC 791 §3.2 "every destination must be able to receive 576 octets").
const LEAST_MTU: u16 = 576;
/// A lease of "infinity" (RFC 2131 §3.3).
const INFINITE: u32 = u32::MAX;

/// A route that the server named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRoute {
    /// The network that it leads to.
    pub destination: Ipv4Addr,
    /// Bits of the network.
    pub prefix: u8,
    /// The router; `None` when the network is on the link.
    pub via: Option<Ipv4Addr>,
}

/// What a server granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Our address.
    pub address: Ipv4Addr,
    /// Bits of it that are the network's.
    pub prefix: u8,
    /// The server.
    pub server: Ipv4Addr,
    /// Routes, the default route among them.
    pub routes: Vec<LeaseRoute>,
    /// Name servers, the preferred first.
    pub nameservers: Vec<Ipv4Addr>,
    /// Domains in which short names are looked up, the machine's own first.
    pub search: Vec<String>,
    /// Time servers.
    pub time_servers: Vec<Ipv4Addr>,
    /// The name that the server knows us by.
    pub hostname: Option<String>,
    /// MTU of the link in bytes.
    pub mtu: Option<u16>,
    /// When we asked, as `CLOCK_BOOTTIME`; the times below count from here (RFC 2131 §4.4.1).
    pub obtained: Duration,
    /// How long the address is ours; `None` for ever.
    pub lease_seconds: Option<u32>,
    /// When to ask the server for more time (T1).
    pub renew_seconds: Option<u32>,
    /// When to ask any server (T2).
    pub rebind_seconds: Option<u32>,
}

impl Lease {
    /// Reads a server's ACK to a request that was sent at `obtained`; `None` when what it grants cannot be used.
    #[must_use]
    pub fn from_ack(reply: &Reply, obtained: Duration) -> Option<Self> {
        let address = reply.address;
        if !is_host(address) {
            return None;
        }
        let seconds = reply.number(o::LEASE_TIME).filter(|s| *s > 0)?;
        let prefix = reply
            .address(o::SUBNET_MASK)
            .and_then(prefix_of)
            .unwrap_or_else(|| class_prefix(address));
        let lease_seconds = (seconds != INFINITE).then_some(seconds);
        let (renew_seconds, rebind_seconds) =
            lease_seconds.map(|lease| times(reply, lease)).unzip();
        Some(Self {
            address,
            prefix,
            server: reply.address(o::SERVER).filter(|a| is_host(*a))?,
            routes: routes(reply),
            nameservers: hosts(reply, o::NAME_SERVERS),
            search: search(reply),
            time_servers: hosts(reply, o::NTP_SERVERS),
            hostname: reply.text(o::HOST_NAME).filter(|name| is_domain(name)),
            mtu: reply
                .options
                .get(&o::MTU)
                .and_then(|v| Some(u16::from_be_bytes(v.as_slice().try_into().ok()?)))
                .filter(|mtu| *mtu >= LEAST_MTU),
            obtained,
            lease_seconds,
            renew_seconds,
            rebind_seconds,
        })
    }

    /// When it ends; `None` for never.
    #[must_use]
    pub fn ends(&self) -> Option<Duration> {
        self.after(self.lease_seconds)
    }

    /// When to ask the server for more time.
    #[must_use]
    pub fn renews(&self) -> Option<Duration> {
        self.after(self.renew_seconds)
    }

    /// When to ask any server.
    #[must_use]
    pub fn rebinds(&self) -> Option<Duration> {
        self.after(self.rebind_seconds)
    }

    fn after(&self, seconds: Option<u32>) -> Option<Duration> {
        self.obtained
            .checked_add(Duration::from_secs(seconds?.into()))
    }
}

/// T1 and T2 (RFC 2131 §4.4.5: half and seven eighths of the lease by default; T1 MUST be earlier than T2, which MUST be earlier than the end).
fn times(reply: &Reply, lease: u32) -> (u32, u32) {
    let rebind = reply
        .number(o::REBINDING_TIME)
        .filter(|t2| (1..lease).contains(t2))
        .unwrap_or(lease - lease / 8);
    let renew = reply
        .number(o::RENEWAL_TIME)
        .filter(|t1| (1..rebind).contains(t1))
        .unwrap_or((lease / 2).min(rebind));
    (renew, rebind)
}

/// Whether an address can be one host's.
fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.octets()[0] >= 240
        || address.octets()[0] == 0)
}

fn hosts(reply: &Reply, code: u8) -> Vec<Ipv4Addr> {
    reply
        .addresses(code)
        .into_iter()
        .filter(|a| is_host(*a))
        .take(LONGEST_LIST)
        .collect()
}

/// The length of a mask whose bits are all at the start.
fn prefix_of(mask: Ipv4Addr) -> Option<u8> {
    let mask = u32::from(mask);
    let ones = mask.leading_ones();
    (ones > 0 && ones + mask.trailing_zeros() >= 32).then_some(ones as u8)
}

/// The network's bits of an address before masks were sent (RFC 791 §2.3).
fn class_prefix(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        ..128 => 8,
        128..192 => 16,
        _ => 24,
    }
}

/// Routes of option 121; without it those to the first router. RFC 3442: a client that has option 121 MUST ignore option 3.
fn routes(reply: &Reply) -> Vec<LeaseRoute> {
    let default = |via| LeaseRoute {
        destination: Ipv4Addr::UNSPECIFIED,
        prefix: 0,
        via: Some(via),
    };
    match reply
        .options
        .get(&o::ROUTES)
        .and_then(|bytes| classless_routes(bytes))
    {
        Some(routes) => routes,
        None => hosts(reply, o::ROUTERS)
            .first()
            .copied()
            .map(default)
            .into_iter()
            .collect(),
    }
}

/// Option 121: each a prefix length, as many octets of the network as that needs, and a router; 0.0.0.0 is the link itself.
/// A list that is broken anywhere is none at all.
fn classless_routes(mut bytes: &[u8]) -> Option<Vec<LeaseRoute>> {
    let mut routes = Vec::new();
    while let [prefix @ 0..=32, rest @ ..] = bytes {
        let (network, rest) = rest.split_at_checked(usize::from(*prefix).div_ceil(8))?;
        let (router, rest) = rest.split_at_checked(4)?;
        let mut octets = [0; 4];
        octets[..network.len()].copy_from_slice(network);
        let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
        let via = Ipv4Addr::from(<[u8; 4]>::try_from(router).ok()?);
        routes.push(LeaseRoute {
            destination: Ipv4Addr::from(u32::from_be_bytes(octets) & mask),
            prefix: *prefix,
            via: (!via.is_unspecified()).then_some(via),
        });
        if routes.len() > LONGEST_LIST {
            return None;
        }
        bytes = rest;
    }
    (bytes.is_empty() && !routes.is_empty()).then_some(routes)
}

/// The domains of option 15 and 119, each once.
fn search(reply: &Reply) -> Vec<String> {
    // Some servers put several domains, separated by spaces, into option 15.
    let own = reply.text(o::DOMAIN).unwrap_or_default();
    let mut all: Vec<String> = Vec::new();
    let listed = reply
        .options
        .get(&o::SEARCH)
        .map(|bytes| compressed_names(bytes))
        .unwrap_or_default();
    for name in own.split_whitespace().map(str::to_owned).chain(listed) {
        let name = name.trim_end_matches('.').to_owned();
        if is_domain(&name) && !all.contains(&name) && all.len() < LONGEST_LIST {
            all.push(name);
        }
    }
    all
}

/// Whether a text is a domain's name and nothing else: it goes into resolv.conf.
fn is_domain(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// Names as in DNS messages (RFC 1035 §4.1.4), pointers counted from the start of the option; reading ends at the first broken one.
fn compressed_names(bytes: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut at = 0;
    while at < bytes.len() && names.len() < LONGEST_LIST {
        let Some((name, next)) = compressed_name(bytes, at) else {
            break;
        };
        names.push(name);
        at = next;
    }
    names
}

/// The name at an offset, and the offset after it.
fn compressed_name(bytes: &[u8], start: usize) -> Option<(String, usize)> {
    let mut labels: Vec<String> = Vec::new();
    let mut at = start;
    let mut next = None;
    // A name has at most 127 labels; the same bound ends loops of pointers.
    for _ in 0..128 {
        let len = *bytes.get(at)?;
        match len {
            0 => return Some((labels.join("."), next.unwrap_or(at + 1))),
            1..=63 => {
                let label = bytes.get(at + 1..at + 1 + usize::from(len))?;
                labels.push(String::from_utf8(label.to_vec()).ok()?);
                at += 1 + usize::from(len);
            }
            192..=255 => {
                let target = usize::from(len & 0x3f) << 8 | usize::from(*bytes.get(at + 1)?);
                next = next.or(Some(at + 2));
                at = target;
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::message::MessageType;
    use super::*;
    use proptest::prelude::*;

    fn ack(options: &[(u8, &[u8])]) -> Reply {
        let base: [(u8, &[u8]); 3] = [
            (o::LEASE_TIME, &[0, 0, 14, 16]),
            (o::SERVER, &[10, 0, 0, 1]),
            (o::SUBNET_MASK, &[255, 255, 255, 0]),
        ];
        Reply {
            kind: MessageType::Ack,
            xid: 1,
            address: Ipv4Addr::new(10, 0, 0, 9),
            mac: [0; 6],
            options: base
                .iter()
                .chain(options)
                .map(|(c, v)| (*c, v.to_vec()))
                .collect(),
        }
    }

    fn lease(options: &[(u8, &[u8])]) -> Lease {
        Lease::from_ack(&ack(options), Duration::from_secs(100)).expect("a lease")
    }

    #[test]
    fn classless_routes_replace_the_routers() {
        let routers: (u8, &[u8]) = (o::ROUTERS, &[10, 0, 0, 254]);
        let routes = lease(&[routers]).routes;
        assert_eq!(
            routes,
            [LeaseRoute {
                destination: Ipv4Addr::UNSPECIFIED,
                prefix: 0,
                via: Some(Ipv4Addr::new(10, 0, 0, 254))
            }]
        );
        // 0.0.0.0/0 via 10.0.0.1; 169.254.169.254/32 on the link; 10.17.0.0/17 via 10.0.0.2 with a bit beyond the prefix.
        let bytes = [
            0, 10, 0, 0, 1, 32, 169, 254, 169, 254, 0, 0, 0, 0, 17, 10, 17, 1, 10, 0, 0, 2,
        ];
        let routes = lease(&[routers, (o::ROUTES, &bytes)]).routes;
        assert_eq!(routes.len(), 3);
        assert_eq!(routes[0].via, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(
            (routes[1].destination, routes[1].prefix, routes[1].via),
            (Ipv4Addr::new(169, 254, 169, 254), 32, None)
        );
        assert_eq!(
            (routes[2].destination, routes[2].prefix),
            (Ipv4Addr::new(10, 17, 0, 0), 17)
        );
        // A broken list counts as none.
        assert_eq!(lease(&[routers, (o::ROUTES, &bytes[..20])]).routes.len(), 1);
        assert_eq!(
            lease(&[routers, (o::ROUTES, &[33, 1, 1, 1, 1, 1, 1, 1, 1, 1])]).routes[0].via,
            Some(Ipv4Addr::new(10, 0, 0, 254))
        );
    }

    #[test]
    fn search_domains_are_read_with_their_pointers() {
        // The example of RFC 3397 §2: eng.apple.com. and marketing.apple.com.
        let bytes = b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04";
        assert_eq!(
            lease(&[(o::DOMAIN, b"home.arpa"), (o::SEARCH, bytes)]).search,
            ["home.arpa", "eng.apple.com", "marketing.apple.com"]
        );
        // A pointer to itself, and a name that would add a line to resolv.conf.
        assert_eq!(
            lease(&[(o::SEARCH, b"\xc0\x00")]).search,
            Vec::<String>::new()
        );
        assert_eq!(
            lease(&[(o::DOMAIN, b"a.example\nnameserver 6.6.6.6")]).search,
            Vec::<String>::new()
        );
    }

    #[test]
    fn times_are_ordered_whatever_the_server_says() {
        let l = lease(&[]);
        assert_eq!(
            (l.lease_seconds, l.renew_seconds, l.rebind_seconds),
            (Some(3600), Some(1800), Some(3150))
        );
        assert_eq!(l.ends(), Some(Duration::from_secs(3700)));
        let l = lease(&[
            (o::RENEWAL_TIME, &[0, 0, 0, 10]),
            (o::REBINDING_TIME, &[0, 0, 0, 20]),
        ]);
        assert_eq!((l.renew_seconds, l.rebind_seconds), (Some(10), Some(20)));
        let l = lease(&[
            (o::RENEWAL_TIME, &[0, 0, 255, 0]),
            (o::REBINDING_TIME, &[255, 0, 0, 0]),
        ]);
        assert_eq!(
            (l.renew_seconds, l.rebind_seconds),
            (Some(1800), Some(3150))
        );
        let l = lease(&[(o::LEASE_TIME, &[255; 4])]);
        assert_eq!((l.ends(), l.renews(), l.rebinds()), (None, None, None));
    }

    #[test]
    fn what_cannot_be_used_is_no_lease() {
        let mut reply = ack(&[]);
        reply.address = Ipv4Addr::LOCALHOST;
        assert_eq!(Lease::from_ack(&reply, Duration::ZERO), None);
        let mut reply = ack(&[]);
        reply.options.remove(&o::LEASE_TIME);
        assert_eq!(Lease::from_ack(&reply, Duration::ZERO), None);
        assert_eq!(lease(&[(o::SUBNET_MASK, &[255, 0, 255, 0])]).prefix, 8);
        assert_eq!(lease(&[(o::MTU, &[0, 68])]).mtu, None);
        assert_eq!(lease(&[(o::MTU, &[5, 0])]).mtu, Some(1280));
    }

    proptest! {
        #[test]
        fn no_options_make_the_reader_panic_and_times_stay_ordered(
            options in proptest::collection::btree_map(prop_oneof![Just(1u8), Just(3), Just(15), Just(26), Just(51), Just(58), Just(59), Just(119), Just(121)],
                proptest::collection::vec(any::<u8>(), 0..64), 0..9),
        ) {
            let mut reply = ack(&[]);
            reply.options.extend(options);
            if let Some(lease) = Lease::from_ack(&reply, Duration::from_secs(5)) {
                if let Some(end) = lease.ends() {
                    prop_assert!(lease.renews().unwrap() <= lease.rebinds().unwrap() && lease.rebinds().unwrap() <= end);
                }
                prop_assert!(lease.search.iter().all(|name| is_domain(name)));
            }
        }
    }
}
