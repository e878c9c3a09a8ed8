//! What the configuration wants of a link. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use orlop_config::{Interface, Network, RouteTarget};

use crate::dhcp::lease::Lease;
use crate::netlink::route::{Address, Link, PROTOCOL_DHCP, PROTOCOL_STATIC, Route};

/// The metric of a DHCP route is this plus the link's index: fixed routes come first, and two links do not take each other's.
const DHCP_METRIC: u32 = 1024;

/// What a link is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LinkPlan {
    /// Ask for an address.
    pub(super) dhcp: bool,
    /// Nobody named this link: it is asked on only while no other such link is.
    pub(super) is_candidate: bool,
    /// Addresses that it has in any case.
    pub(super) addresses: Vec<Address>,
    /// Routes that it has in any case, nearest networks first.
    pub(super) routes: Vec<Route>,
    /// MTU in bytes.
    pub(super) mtu: Option<u32>,
}

/// What the configuration wants of a link; `None` to leave it alone.
pub(super) fn plan(network: &Network, link: &Link) -> Option<LinkPlan> {
    if network.interfaces.is_empty() {
        return is_ours_by_default(link).then(|| LinkPlan {
            dhcp: true,
            is_candidate: true,
            ..LinkPlan::default()
        });
    }
    network
        .interfaces
        .iter()
        .rfind(|interface| names(interface, link))
        .map(of_interface)
}

/// Hardware, and the cable of a container that we run in; never what containers on this machine hang on.
fn is_ours_by_default(link: &Link) -> bool {
    let is_hardware = link.kind.is_none();
    let is_own_cable = link.kind.as_deref() == Some("veth") && link.master.is_none();
    link.is_ethernet() && (is_hardware || is_own_cable)
}

fn names(interface: &Interface, link: &Link) -> bool {
    let by_name = interface.name.as_ref().map(|name| name.value == link.name);
    let by_mac = interface
        .mac
        .as_ref()
        .map(|mac| Some(mac.value.0) == link.mac);
    (by_name.is_some() || by_mac.is_some()) && by_name.unwrap_or(true) && by_mac.unwrap_or(true)
}

/// What a person calls an interface of the configuration.
pub(super) fn label(interface: &Interface) -> String {
    match (&interface.name, &interface.mac) {
        (Some(name), _) => name.value.clone(),
        (None, Some(mac)) => mac.value.to_string(),
        (None, None) => "an interface without a name".to_owned(),
    }
}

/// The configured interfaces that no link fits.
pub(super) fn missing<'a>(
    network: &Network,
    links: impl Iterator<Item = &'a Link> + Clone,
) -> Vec<String> {
    network
        .interfaces
        .iter()
        .filter(|interface| !links.clone().any(|link| names(interface, link)))
        .map(label)
        .collect()
}

fn anywhere(like: IpAddr) -> (IpAddr, u8) {
    let address = if like.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    (address, 0)
}

fn of_interface(interface: &Interface) -> LinkPlan {
    let fixed = |destination, gateway, metric| Route {
        destination,
        gateway,
        metric,
        source: None,
        protocol: PROTOCOL_STATIC,
    };
    let mut routes: Vec<Route> = interface
        .routes
        .iter()
        .filter_map(|route| {
            let via = route.via.as_ref().map(|via| via.value);
            let destination = match route.to.as_ref()?.value {
                RouteTarget::Network(network) => {
                    (network_of(network.address, network.prefix), network.prefix)
                }
                RouteTarget::Default => anywhere(via.unwrap_or(Ipv4Addr::UNSPECIFIED.into())),
            };
            Some(fixed(
                destination,
                via,
                route.metric.as_ref().map_or(0, |metric| metric.value),
            ))
        })
        .collect();
    if let Some(gateway) = &interface.gateway {
        routes.push(fixed(anywhere(gateway.value), Some(gateway.value), 0));
    }
    nearest_first(&mut routes);
    let addresses: Vec<Address> = interface
        .addresses
        .iter()
        .map(|cidr| Address {
            ip: cidr.value.address,
            prefix: cidr.value.prefix,
            lifetime_seconds: None,
        })
        .collect();
    LinkPlan {
        dhcp: interface
            .dhcp
            .as_ref()
            .map_or(addresses.is_empty(), |dhcp| dhcp.value),
        is_candidate: false,
        addresses,
        routes,
        mtu: interface.mtu.as_ref().map(|mtu| mtu.value),
    }
}

/// The routes of a lease.
pub(super) fn lease_routes(lease: &Lease, index: u32) -> Vec<Route> {
    let mut routes: Vec<Route> = lease
        .routes
        .iter()
        .map(|route| Route {
            destination: (route.destination.into(), route.prefix),
            gateway: route.via.map(IpAddr::from),
            metric: DHCP_METRIC.saturating_add(index),
            source: Some(lease.address),
            protocol: PROTOCOL_DHCP,
        })
        .collect();
    nearest_first(&mut routes);
    routes
}

/// The order in which a gateway can be reached by a route made before it.
fn nearest_first(routes: &mut [Route]) {
    routes.sort_by_key(|route| {
        (
            route.gateway.is_some(),
            std::cmp::Reverse(route.destination.1),
        )
    });
}

/// An address with the host's bits cleared: the kernel refuses a route with some set.
fn network_of(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX
                .checked_shl(32u32.saturating_sub(prefix.into()))
                .unwrap_or(0);
            Ipv4Addr::from(u32::from(ip) & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX
                .checked_shl(128u32.saturating_sub(prefix.into()))
                .unwrap_or(0);
            Ipv6Addr::from(u128::from(ip) & mask).into()
        }
    }
}
