//! Links, addresses and routes: rtnetlink(7), by the crates rtnetlink and netlink-packet-route.
//!
//! rtnetlink works in futures; its connection runs on a runtime of the calling thread, and only while a call waits. So there is no thread to be left
//! behind, and callers need not know.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::time::Duration;

use futures_util::stream::TryStreamExt as _;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, CacheInfo};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::packet_core::{ErrorMessage, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket as _, SocketAddr};
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth,
    MulticastGroup,
};
use tokio::runtime::{Builder, Runtime};

use super::wire::array;
use super::{ANSWER_TIMEOUT_SECONDS, BUFFER_BYTES, Error, inside, words_of_the_kernel};

/// `ARPHRD_ETHER` of `include/uapi/linux/if_arp.h`.
const ETHERNET: u16 = 1;
/// `ARPHRD_LOOPBACK`.
const LOOPBACK: u16 = 772;

/// A connection to the links, addresses and routes of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Rtnetlink {
    handle: Handle,
    runtime: Runtime,
}

impl Rtnetlink {
    /// Opens a connection in the caller's namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::Open)?;
        let context = runtime.enter();
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
        connection
            .socket_mut()
            .socket_mut()
            .set_ext_ack(true)
            .map_err(Error::Open)?;
        drop(context);
        runtime.spawn(connection);
        Ok(Self { handle, runtime })
    }

    /// Opens a connection inside another network namespace, by a thread that enters it and ends.
    pub(crate) fn open_in(namespace: BorrowedFd<'_>) -> Result<Self, Error> {
        inside(namespace, Self::open)?
    }

    /// Waits for the kernel's answer.
    fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, Error> {
        let patience = Duration::from_secs(ANSWER_TIMEOUT_SECONDS.into());
        match self
            .runtime
            .block_on(async { tokio::time::timeout(patience, question).await })
        {
            Ok(answer) => answer.map_err(error),
            Err(_) => Err(Error::Receive(io::ErrorKind::TimedOut.into())),
        }
    }
}

fn error(err: rtnetlink::Error) -> Error {
    match err {
        rtnetlink::Error::NetlinkError(answer) => refusal(&answer),
        rtnetlink::Error::RequestFailed => {
            Error::Send(io::Error::other("the connection has ended"))
        }
        other => Error::Receive(io::Error::other(other)),
    }
}

fn refusal(answer: &ErrorMessage) -> Error {
    // Our request comes back whole, for we do not set NETLINK_CAP_ACK; then the attributes.
    let echoed = array(&answer.header, 0).map_or(0, u32::from_ne_bytes) as usize;
    Error::Refused {
        errno: answer.raw_code().saturating_neg(),
        reason: answer
            .header
            .get(echoed.next_multiple_of(4)..)
            .and_then(words_of_the_kernel),
        index: 0,
    }
}

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

/// A subscription to link events.
///
/// A plain socket with the crates' messages: a connection of rtnetlink would hold events in a queue without a bound, and offers no descriptor for the
/// role's one `poll`.
pub(crate) struct LinkEvents(rtnetlink::sys::Socket);

impl LinkEvents {
    /// Subscribes to what happens to links of the caller's namespace from now on.
    pub(crate) fn subscribe() -> Result<Self, Error> {
        /// `RTMGRP_LINK`.
        const LINKS: u32 = 1 << (MulticastGroup::Link as u32 - 1);
        let mut socket = rtnetlink::sys::Socket::new(NETLINK_ROUTE).map_err(Error::Open)?;
        socket
            .bind(&SocketAddr::new(0, LINKS))
            .map_err(Error::Open)?;
        Ok(Self(socket))
    }

    /// Takes the events that wait, without blocking; `false` when some were lost, and the links must be listed anew.
    pub(crate) fn take(&mut self, events: &mut Vec<LinkEvent>) -> Result<bool, Error> {
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        loop {
            buffer.clear();
            match self.0.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) if read_events(&buffer, events) => {}
                Ok(_) => return Ok(false),
                Err(err) => match err.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => return Ok(true),
                    Some(Errno::EINTR) => {}
                    Some(Errno::ENOBUFS) => return Ok(false),
                    _ => return Err(Error::Receive(err)),
                },
            }
        }
    }
}

impl AsFd for LinkEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reads a datagram; `false` when something in it cannot be read.
fn read_events(mut rest: &[u8], events: &mut Vec<LinkEvent>) -> bool {
    while !rest.is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) else {
            return false;
        };
        let len = message.header.length as usize;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        events.extend(link_event(message.payload));
    }
    true
}

fn link_event(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<LinkEvent> {
    // The bridge's own notices about its ports come by the same message, under AF_BRIDGE: not a link coming or going.
    let is_link = |link: &LinkMessage| link.header.interface_family == AddressFamily::Unspec;
    match payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) if is_link(&link) => {
            Some(LinkEvent::Present(described(link)))
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) if is_link(&link) => {
            Some(LinkEvent::Gone(link.header.index))
        }
        _ => None,
    }
}

fn described(message: LinkMessage) -> Link {
    let header = message.header;
    let up = header.flags.contains(LinkFlags::Up);
    let mut link = Link {
        index: header.index,
        name: String::new(),
        mac: None,
        kind: None,
        hardware_type: header.link_layer_type.into(),
        mtu: 0,
        up,
        carrier: up && header.flags.contains(LinkFlags::LowerUp),
        master: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::LinkInfo(info) => {
                link.kind = info.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

/// All links of the connection's namespace.
pub(crate) fn links(kernel: &Rtnetlink) -> Result<Vec<Link>, Error> {
    let answers = kernel.handle.link().get().execute();
    kernel.ask(answers.map_ok(described).try_collect())
}

/// The link with a name, if there is one.
pub(crate) fn link_named(kernel: &Rtnetlink, name: &str) -> Result<Option<Link>, Error> {
    let mut answers = Box::pin(kernel.handle.link().get().match_name(name).execute());
    match kernel.ask(answers.try_next()) {
        Err(err) if err.is(Errno::ENODEV) => Ok(None),
        other => Ok(other?.map(described)),
    }
}

fn change(kernel: &Rtnetlink, link: LinkMessageBuilder<LinkUnspec>) -> Result<(), Error> {
    kernel.ask(kernel.handle.link().change(link.build()).execute())
}

/// Switches a link on.
pub(crate) fn set_up(kernel: &Rtnetlink, index: u32) -> Result<(), Error> {
    change(kernel, LinkUnspec::new_with_index(index).up())
}

/// Sets a link's MTU in bytes.
pub(crate) fn set_mtu(kernel: &Rtnetlink, index: u32, mtu: u32) -> Result<(), Error> {
    change(kernel, LinkUnspec::new_with_index(index).mtu(mtu))
}

/// Makes a bridge, switched on, without a spanning tree: ports forward at once.
pub(crate) fn add_bridge(kernel: &Rtnetlink, name: &str, mac: [u8; 6]) -> Result<(), Error> {
    let bridge = LinkBridge::new(name).address(mac.to_vec());
    kernel.ask(kernel.handle.link().add(bridge.build()).execute())
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
pub(crate) fn add_veth(kernel: &Rtnetlink, pair: &VethPair<'_>) -> Result<(), Error> {
    let peer = LinkUnspec::new_with_name(pair.peer)
        .address(pair.peer_mac.to_vec())
        .mtu(pair.mtu)
        .setns_by_fd(pair.peer_namespace.as_raw_fd());
    let host = LinkVeth::new(pair.host, pair.peer)
        .up()
        .mtu(pair.mtu)
        .controller(pair.bridge_index)
        .alias(pair.alias)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
    kernel.ask(kernel.handle.link().add(host.build()).execute())
}

/// Lets a bridge send a frame back out of the port by which it came.
pub(crate) fn allow_hairpin(kernel: &Rtnetlink, name: &str) -> Result<(), Error> {
    let port = LinkUnspec::new_with_name(name)
        .set_port_kind(InfoPortKind::Bridge)
        .set_port_data(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(
            true,
        )]));
    kernel.ask(kernel.handle.link().set_port(port.build()).execute())
}

/// Takes a link away; a veth's other end goes with it.
pub(crate) fn delete_link(kernel: &Rtnetlink, index: u32) -> Result<(), Error> {
    kernel.ask(kernel.handle.link().del(index).execute())
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

/// Gives a link an address, or a new lifetime to one that it has.
pub(crate) fn set_address(kernel: &Rtnetlink, index: u32, address: &Address) -> Result<(), Error> {
    let addresses = kernel.handle.address();
    let mut request = addresses.add(index, address.ip, address.prefix).replace();
    let mut lifetime = CacheInfo::default();
    lifetime.ifa_preferred = address.lifetime_seconds.unwrap_or(u32::MAX);
    lifetime.ifa_valid = lifetime.ifa_preferred;
    let attributes = &mut request.message_mut().attributes;
    attributes.push(AddressAttribute::CacheInfo(lifetime));
    kernel.ask(request.execute())
}

/// Takes an address from a link.
pub(crate) fn delete_address(
    kernel: &Rtnetlink,
    index: u32,
    ip: IpAddr,
    prefix: u8,
) -> Result<(), Error> {
    let address = match ip {
        IpAddr::V4(ip) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(ip, prefix)
            .build(),
        IpAddr::V6(ip) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(index)
            .address(ip, prefix)
            .build(),
    };
    kernel.ask(kernel.handle.address().del(address).execute())
}

/// The addresses of a link, with no lifetimes.
pub(crate) fn addresses(kernel: &Rtnetlink, index: u32) -> Result<Vec<Address>, Error> {
    let answers = kernel
        .handle
        .address()
        .get()
        .set_link_index_filter(index)
        .execute();
    let all: Vec<AddressMessage> = kernel.ask(answers.try_collect())?;
    let read = |message: &AddressMessage| {
        let all = &message.attributes;
        // IPv4 has both, and IFA_LOCAL is ours; IPv6 has IFA_ADDRESS alone.
        let local = all.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        let any = || {
            all.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            })
        };
        Some(Address {
            ip: local.or_else(any)?,
            prefix: message.header.prefix_len,
            lifetime_seconds: None,
        })
    };
    Ok(all.iter().filter_map(read).collect())
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    /// Where to; `0.0.0.0/0` or `::/0` for anywhere.
    pub(crate) destination: (IpAddr, u8),
    /// The next hop; `None` when the destination is on the link itself.
    pub(crate) gateway: Option<IpAddr>,
    /// The lower one wins.
    pub(crate) metric: u32,
    /// Our address that packets leave with.
    pub(crate) source: Option<Ipv4Addr>,
    /// Who made it.
    pub(crate) protocol: RouteProtocol,
}

fn route_message(index: u32, route: &Route) -> RouteMessage {
    let (destination, prefix) = route.destination;
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: if destination.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        },
        destination_prefix_length: prefix,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: route.protocol,
        scope: RouteScope::Link,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Oif(index));
    attributes.push(RouteAttribute::Priority(route.metric));
    if prefix > 0 {
        attributes.push(RouteAttribute::Destination(destination.into()));
    }
    if let Some(gateway) = route.gateway {
        message.header.scope = RouteScope::Universe;
        // The gateway is on this link even when no address says so, as DHCP servers of clouds have it.
        message.header.flags = RouteFlags::Onlink;
        attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    if let Some(source) = route.source {
        attributes.push(RouteAttribute::PrefSource(IpAddr::from(source).into()));
    }
    message
}

/// Makes a route, or changes the one with the same destination and metric.
pub(crate) fn set_route(kernel: &Rtnetlink, index: u32, route: &Route) -> Result<(), Error> {
    let request = kernel.handle.route().add(route_message(index, route));
    kernel.ask(request.replace().execute())
}

/// Takes a route away.
pub(crate) fn delete_route(kernel: &Rtnetlink, index: u32, route: &Route) -> Result<(), Error> {
    let request = kernel.handle.route().del(route_message(index, route));
    kernel.ask(request.execute())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};
    use proptest::prelude::*;

    #[test]
    fn a_refusal_has_the_kernels_number_and_words() {
        let work = || {
            if let Err(err) = unshare(CloneFlags::CLONE_NEWNET) {
                eprintln!("SKIPPED: no network namespace to test in ({err})");
                return;
            }
            let kernel = Rtnetlink::open().expect("a connection");
            assert_eq!(link_named(&kernel, "missing7").expect("an answer"), None);
            let loopback = links(&kernel)
                .expect("a list")
                .into_iter()
                .find(Link::is_loopback)
                .expect("lo");
            let err = set_mtu(&kernel, loopback.index, u32::MAX).expect_err("too large");
            assert!(err.is(Errno::EINVAL), "{err:?}");
            assert!(err.to_string().contains("(mtu "), "{err}");
        };
        std::thread::spawn(work).join().expect("no panic");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_event_reader_panic(
            kind in 16u16..18,
            body in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut bytes = (body.len() as u32 + 16).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(&body);
            let mut events = Vec::new();
            read_events(&bytes, &mut events);
            prop_assert!(events.len() <= 1);
            read_events(&body, &mut events);
        }
    }
}
