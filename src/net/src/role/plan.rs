//! What the configuration wants of a link. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::route::RouteProtocol;
use orlop_config::{Interface, Network, RouteTarget};

use crate::container::LINK_PREFIX;
use crate::dhcp::lease::Lease;
use crate::netlink::route::{Address, Link, Route};

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
    // A container's cable is announced before it is in its bridge.
    let is_containers = link.master.is_some() || link.name.starts_with(LINK_PREFIX);
    let is_own_cable = link.kind.as_deref() == Some("veth") && !is_containers;
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
        protocol: RouteProtocol::Static,
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
            protocol: RouteProtocol::Dhcp,
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

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_config::{Input, Kind};

    fn network(text: &str) -> Network {
        let text = format!("#cloud-config\n{text}").into_bytes();
        let (machine, problems) = orlop_config::load(vec![Input {
            name: "test".into(),
            kind: Kind::CloudConfig,
            text,
        }]);
        assert!(problems.is_empty(), "{problems:?}");
        machine.network
    }

    fn link(name: &str, kind: Option<&str>) -> Link {
        Link {
            index: 2,
            name: name.into(),
            mac: Some([0x52, 0x54, 0, 0, 0, 1]),
            kind: kind.map(str::to_owned),
            hardware_type: 1,
            mtu: 1500,
            up: false,
            carrier: false,
            master: None,
        }
    }

    #[test]
    fn without_configuration_hardware_is_asked_on_and_what_containers_hang_on_is_not() {
        let nothing = Network::default();
        assert!(
            plan(&nothing, &link("eth0", None)).is_some_and(|plan| plan.dhcp && plan.is_candidate)
        );
        assert!(plan(&nothing, &link("eth0", Some("veth"))).is_some());
        assert_eq!(plan(&nothing, &link("orlop-2", Some("veth"))), None);
        let mut port = link("veth12ab", Some("veth"));
        port.master = Some(7);
        assert_eq!(plan(&nothing, &port), None);
        for kind in ["bridge", "dummy", "vxlan", "wireguard", "tun"] {
            assert_eq!(plan(&nothing, &link("x", Some(kind))), None, "{kind}");
        }
        let mut loopback = link("lo", None);
        loopback.hardware_type = 772;
        assert_eq!(plan(&nothing, &loopback), None);
    }

    #[test]
    fn a_configured_link_is_found_by_name_or_address_and_others_are_left_alone() {
        let named = network(
            "network: {interfaces: [{name: eth1}, {mac: '52:54:00:00:00:01', dhcp: false, mtu: 9000}]}",
        );
        let plan_of = |name: &str| plan(&named, &link(name, None)).expect("a plan");
        assert_eq!(
            (plan_of("eth0").dhcp, plan_of("eth0").mtu),
            (false, Some(9000))
        );
        let mut other = link("eth1", None);
        other.mac = Some([1; 6]);
        assert!(plan(&named, &other).is_some_and(|plan| plan.dhcp && !plan.is_candidate));
        other.name = "eth2".into();
        assert_eq!(plan(&named, &other), None);
        let links = [other];
        assert_eq!(missing(&named, links.iter()), ["eth1", "52:54:00:00:00:01"]);
    }

    #[test]
    fn fixed_addresses_turn_dhcp_off_unless_it_is_asked_for() {
        let of = |more: &str| {
            let network = network(&format!(
                "network: {{interfaces: [{{name: eth0, addresses: [10.0.0.5/24]{more}}}]}}"
            ));
            plan(&network, &link("eth0", None)).expect("a plan")
        };
        assert!(!of("").dhcp);
        assert!(of(", dhcp: true").dhcp);
        let routes = of(", gateway: 10.0.0.1, routes: [{to: default, via: 10.0.0.2, metric: 9}, {to: 10.9.8.7/8}, {to: 10.0.1.0/24, via: 10.9.0.1}]").routes;
        let text: Vec<String> = routes
            .iter()
            .map(|r| {
                format!(
                    "{}/{} {:?} {}",
                    r.destination.0,
                    r.destination.1,
                    r.gateway.map(|g| g.to_string()),
                    r.metric
                )
            })
            .collect();
        // On the link first, then what those make reachable; the host's bits are cleared.
        assert_eq!(
            text,
            [
                "10.0.0.0/8 None 0",
                "10.0.1.0/24 Some(\"10.9.0.1\") 0",
                "0.0.0.0/0 Some(\"10.0.0.2\") 9",
                "0.0.0.0/0 Some(\"10.0.0.1\") 0",
            ]
        );
    }
}
