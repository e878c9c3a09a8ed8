//! Links, addresses and routes: rtnetlink(7).
//!
//! Structures and numbers are those of `include/uapi/linux/{rtnetlink,if_link,if_addr}.h`.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::wire::{Message, Received, array, attributes, text};
use super::{Error, Socket};

/// The multicast group of link events (`RTMGRP_LINK`).
pub(crate) const LINK_EVENTS: u32 = 1;
/// `RTPROT_STATIC`: set by an administrator.
pub(crate) const PROTOCOL_STATIC: u8 = 4;
/// `RTPROT_DHCP`.
pub(crate) const PROTOCOL_DHCP: u8 = 16;
/// `ARPHRD_ETHER` of `include/uapi/linux/if_arp.h`.
const ETHERNET: u16 = 1;
/// `ARPHRD_LOOPBACK`.
const LOOPBACK: u16 = 772;

const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
const REPLACE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;

/// A network link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// The kernel's number for it.
    pub(crate) index: u32,
    /// `eth0`.
    pub(crate) name: String,
    /// Its Ethernet address.
    pub(crate) mac: Option<[u8; 6]>,
    /// What made it (`veth`, `bridge`, …); nothing for hardware.
    pub(crate) kind: Option<String>,
    /// `ARPHRD_*`.
    pub(crate) hardware_type: u16,
    /// Bytes of payload in a frame.
    pub(crate) mtu: u32,
    /// It was switched on.
    pub(crate) up: bool,
    /// It is on, and the other end answers.
    pub(crate) carrier: bool,
    /// The index of the bridge that it is a port of.
    pub(crate) master: Option<u32>,
}

impl Link {
    /// Whether frames on it are Ethernet's.
    pub(crate) fn is_ethernet(&self) -> bool {
        self.hardware_type == ETHERNET && self.mac.is_some()
    }

    /// Whether it is `lo`.
    pub(crate) fn is_loopback(&self) -> bool {
        self.hardware_type == LOOPBACK
    }
}

/// What happened to a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    /// It is there, as it is now.
    Present(Link),
    /// It is gone.
    Gone(u32),
}

/// Reads a link event or one part of a dump; anything else is nothing.
pub(crate) fn link_event(message: Received<'_>) -> Option<LinkEvent> {
    // struct ifinfomsg { family: u8, pad: u8, type: u16, index: i32, flags: u32, change: u32 }
    let payload = message.payload;
    let index = u32::from_ne_bytes(array(payload, 4)?);
    // The bridge's own notices about its ports come by the same message, under AF_BRIDGE: not a link coming or going.
    if *payload.first()? != libc::AF_UNSPEC as u8 {
        return None;
    }
    match message.kind {
        libc::RTM_DELLINK => Some(LinkEvent::Gone(index)),
        libc::RTM_NEWLINK => {
            let flags = u32::from_ne_bytes(array(payload, 8)?);
            let mut link = Link {
                index,
                name: String::new(),
                mac: None,
                kind: None,
                hardware_type: u16::from_ne_bytes(array(payload, 2)?),
                mtu: 0,
                up: flags & libc::IFF_UP as u32 != 0,
                carrier: flags & libc::IFF_UP as u32 != 0 && flags & libc::IFF_LOWER_UP as u32 != 0,
                master: None,
            };
            for (kind, value) in attributes(payload.get(16..)?) {
                match kind {
                    IFLA_IFNAME => link.name = text(value),
                    IFLA_ADDRESS => link.mac = value.try_into().ok(),
                    IFLA_MTU => link.mtu = array(value, 0).map_or(0, u32::from_ne_bytes),
                    IFLA_MASTER => link.master = array(value, 0).map(u32::from_ne_bytes),
                    IFLA_LINKINFO => {
                        link.kind = attributes(value)
                            .find(|(k, _)| *k == IFLA_INFO_KIND)
                            .map(|(_, v)| text(v));
                    }
                    _ => {}
                }
            }
            Some(LinkEvent::Present(link))
        }
        _ => None,
    }
}

fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// All links of the socket's namespace.
pub(crate) fn links(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    let mut all = Vec::new();
    socket.dump(
        Message::new(libc::RTM_GETLINK, 0).raw(&link_header(0, 0, 0)),
        |message| {
            if let Some(LinkEvent::Present(link)) = link_event(message) {
                all.push(link);
            }
        },
    )?;
    Ok(all)
}

/// The link with a name, if there is one.
pub(crate) fn link_named(socket: &mut Socket, name: &str) -> Result<Option<Link>, Error> {
    let question = Message::new(libc::RTM_GETLINK, 0)
        .raw(&link_header(0, 0, 0))
        .string(IFLA_IFNAME, name);
    let found = socket.get(question, |message| match link_event(message)? {
        LinkEvent::Present(link) => Some(link),
        LinkEvent::Gone(_) => None,
    });
    match found {
        Err(err) if err.is(Errno::ENODEV) => Ok(None),
        other => other,
    }
}

/// Switches a link on.
pub(crate) fn set_up(socket: &mut Socket, index: u32) -> Result<(), Error> {
    let up = libc::IFF_UP as u32;
    socket.request(Message::new(libc::RTM_NEWLINK, 0).raw(&link_header(index, up, up)))
}

/// Sets a link's MTU in bytes.
pub(crate) fn set_mtu(socket: &mut Socket, index: u32, mtu: u32) -> Result<(), Error> {
    socket.request(
        Message::new(libc::RTM_NEWLINK, 0)
            .raw(&link_header(index, 0, 0))
            .u32(IFLA_MTU, mtu),
    )
}

/// Makes a bridge, switched on, without a spanning tree: ports forward at once.
pub(crate) fn add_bridge(socket: &mut Socket, name: &str, mac: [u8; 6]) -> Result<(), Error> {
    let up = libc::IFF_UP as u32;
    socket.request(
        Message::new(libc::RTM_NEWLINK, CREATE)
            .raw(&link_header(0, up, up))
            .string(IFLA_IFNAME, name)
            .bytes(IFLA_ADDRESS, &mac)
            .nest(IFLA_LINKINFO, |m| m.string(IFLA_INFO_KIND, "bridge")),
    )
}

/// A pair of links that are each other's cable.
#[derive(Debug)]
pub(crate) struct VethPair<'a> {
    /// Name of the end in the socket's namespace.
    pub(crate) host: &'a str,
    /// A text that `ip link` shows for it, to tell whose it is.
    pub(crate) alias: &'a str,
    /// The bridge that the host's end becomes a port of.
    pub(crate) bridge_index: u32,
    /// Name of the other end.
    pub(crate) peer: &'a str,
    /// Ethernet address of the other end.
    pub(crate) peer_mac: [u8; 6],
    /// The namespace in which the other end appears.
    pub(crate) peer_namespace: BorrowedFd<'a>,
    /// MTU of both ends in bytes.
    pub(crate) mtu: u32,
}

/// Makes a veth pair, the host's end switched on and in the bridge, the other one off.
pub(crate) fn add_veth(socket: &mut Socket, pair: &VethPair<'_>) -> Result<(), Error> {
    let up = libc::IFF_UP as u32;
    socket.request(
        Message::new(libc::RTM_NEWLINK, CREATE)
            .raw(&link_header(0, up, up))
            .string(IFLA_IFNAME, pair.host)
            .u32(IFLA_MTU, pair.mtu)
            .u32(IFLA_MASTER, pair.bridge_index)
            .string(IFLA_IFALIAS, pair.alias)
            .nest(IFLA_LINKINFO, |m| {
                m.string(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |m| {
                    m.nest(VETH_INFO_PEER, |m| {
                        m.raw(&link_header(0, 0, 0))
                            .string(IFLA_IFNAME, pair.peer)
                            .bytes(IFLA_ADDRESS, &pair.peer_mac)
                            .u32(IFLA_MTU, pair.mtu)
                            .u32(
                                IFLA_NET_NS_FD,
                                pair.peer_namespace.as_raw_fd().cast_unsigned(),
                            )
                    })
                })
            }),
    )
}

/// Lets a bridge send a frame back out of the port by which it came.
pub(crate) fn allow_hairpin(socket: &mut Socket, name: &str) -> Result<(), Error> {
    const IFLA_INFO_SLAVE_KIND: u16 = 4;
    const IFLA_INFO_SLAVE_DATA: u16 = 5;
    const IFLA_BRPORT_MODE: u16 = 4;
    socket.request(
        Message::new(libc::RTM_NEWLINK, 0)
            .raw(&link_header(0, 0, 0))
            .string(IFLA_IFNAME, name)
            .nest(IFLA_LINKINFO, |m| {
                m.string(IFLA_INFO_SLAVE_KIND, "bridge")
                    .nest(IFLA_INFO_SLAVE_DATA, |m| m.bytes(IFLA_BRPORT_MODE, &[1]))
            }),
    )
}

/// Takes a link away; a veth's other end goes with it.
pub(crate) fn delete_link(socket: &mut Socket, index: u32) -> Result<(), Error> {
    socket.request(Message::new(libc::RTM_DELLINK, 0).raw(&link_header(index, 0, 0)))
}

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    /// The address.
    pub(crate) ip: IpAddr,
    /// Bits of it that are the network's.
    pub(crate) prefix: u8,
    /// Seconds after which the kernel drops it by itself; `None` for never.
    pub(crate) lifetime_seconds: Option<u32>,
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn family(ip: IpAddr) -> u8 {
    (if ip.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    }) as u8
}

fn address_message(kind: u16, flags: u16, index: u32, ip: IpAddr, prefix: u8) -> Message {
    // struct ifaddrmsg { family: u8, prefixlen: u8, flags: u8, scope: u8, index: u32 }
    let i = index.to_ne_bytes();
    let value = octets(ip);
    Message::new(kind, flags)
        .raw(&[family(ip), prefix, 0, 0, i[0], i[1], i[2], i[3]])
        .bytes(libc::IFA_LOCAL, &value)
        .bytes(libc::IFA_ADDRESS, &value)
}

/// Gives a link an address, or a new lifetime to one that it has.
pub(crate) fn set_address(socket: &mut Socket, index: u32, address: &Address) -> Result<(), Error> {
    let mut message = address_message(
        libc::RTM_NEWADDR,
        REPLACE,
        index,
        address.ip,
        address.prefix,
    );
    if let (IpAddr::V4(ip), true) = (address.ip, address.prefix < 31) {
        let host_bits = u32::MAX.checked_shr(u32::from(address.prefix)).unwrap_or(0);
        message = message.bytes(
            libc::IFA_BROADCAST,
            &(u32::from(ip) | host_bits).to_be_bytes(),
        );
    }
    // struct ifa_cacheinfo { prefered, valid, cstamp, tstamp }, all u32
    let lifetime = address.lifetime_seconds.unwrap_or(u32::MAX).to_ne_bytes();
    let mut cache_info = [0; 16];
    cache_info[..4].copy_from_slice(&lifetime);
    cache_info[4..8].copy_from_slice(&lifetime);
    socket.request(message.bytes(libc::IFA_CACHEINFO, &cache_info))
}

/// Takes an address from a link.
pub(crate) fn delete_address(
    socket: &mut Socket,
    index: u32,
    ip: IpAddr,
    prefix: u8,
) -> Result<(), Error> {
    socket.request(address_message(libc::RTM_DELADDR, 0, index, ip, prefix))
}

/// The addresses of a link, with no lifetimes.
pub(crate) fn addresses(socket: &mut Socket, index: u32) -> Result<Vec<Address>, Error> {
    let mut all = Vec::new();
    socket.dump(Message::new(libc::RTM_GETADDR, 0).raw(&[0; 8]), |message| {
        let read = || -> Option<Address> {
            if message.kind != libc::RTM_NEWADDR
                || u32::from_ne_bytes(array(message.payload, 4)?) != index
            {
                return None;
            }
            let mut ip = None;
            for (kind, value) in attributes(message.payload.get(8..)?) {
                // IPv4 has both, and IFA_LOCAL is ours; IPv6 has IFA_ADDRESS alone.
                if kind == libc::IFA_LOCAL || (kind == libc::IFA_ADDRESS && ip.is_none()) {
                    ip = match value.len() {
                        4 => array::<4>(value, 0).map(IpAddr::from),
                        16 => array::<16>(value, 0).map(IpAddr::from),
                        _ => None,
                    };
                }
            }
            Some(Address {
                ip: ip?,
                prefix: *message.payload.get(1)?,
                lifetime_seconds: None,
            })
        };
        all.extend(read());
    })?;
    Ok(all)
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    /// Where to; `0.0.0.0/0` or `::/0` for anywhere.
    pub(crate) destination: (IpAddr, u8),
    /// The next hop; `None` when the destination is on the link itself.
    pub(crate) gateway: Option<IpAddr>,
    /// The lower one wins.
    pub(crate) metric: u32,
    /// Our address that packets leave with.
    pub(crate) source: Option<Ipv4Addr>,
    /// Who made it (`RTPROT_*`).
    pub(crate) protocol: u8,
}

fn route_message(kind: u16, flags: u16, index: u32, route: &Route) -> Message {
    /// `RTNH_F_ONLINK`: the gateway is on this link even when no address says so, as DHCP servers of clouds have it.
    const ON_LINK: u32 = 4;
    let (destination, prefix) = route.destination;
    let scope = match route.gateway {
        Some(_) => libc::RT_SCOPE_UNIVERSE,
        None => libc::RT_SCOPE_LINK,
    };
    // struct rtmsg { family, dst_len, src_len, tos, table, protocol, scope, type: u8, flags: u32 }
    let mut header = [
        family(destination),
        prefix,
        0,
        0,
        libc::RT_TABLE_MAIN,
        route.protocol,
        scope,
        libc::RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    if route.gateway.is_some() {
        header[8..].copy_from_slice(&ON_LINK.to_ne_bytes());
    }
    let mut message = Message::new(kind, flags)
        .raw(&header)
        .u32(libc::RTA_OIF, index)
        .u32(libc::RTA_PRIORITY, route.metric);
    if prefix > 0 {
        message = message.bytes(libc::RTA_DST, &octets(destination));
    }
    message
        .maybe(route.gateway, |m, gateway| {
            m.bytes(libc::RTA_GATEWAY, &octets(gateway))
        })
        .maybe(route.source, |m, source| {
            m.bytes(libc::RTA_PREFSRC, &source.octets())
        })
}

/// Makes a route, or changes the one with the same destination and metric.
pub(crate) fn set_route(socket: &mut Socket, index: u32, route: &Route) -> Result<(), Error> {
    socket.request(route_message(libc::RTM_NEWROUTE, REPLACE, index, route))
}

/// Takes a route away.
pub(crate) fn delete_route(socket: &mut Socket, index: u32, route: &Route) -> Result<(), Error> {
    socket.request(route_message(libc::RTM_DELROUTE, 0, index, route))
}
