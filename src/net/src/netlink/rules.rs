//! The packet rules for containers: the table `ip orlop`.
//!
//! Rules are written once; what comes and goes with a container are elements of two maps, so that taking one container's ports away can neither
//! touch another's nor leave anything behind.

use std::net::Ipv4Addr;

use nix::errno::Errno;

use super::nft::{
    Element, Hook, Key, Rule, add_elements, delete_elements, delete_table, has_table, new_chain,
    new_map, new_table, words,
};
use super::wire::Message;
use super::{Error, Socket, conntrack};
use crate::container::{Bridge, Protocol, Publish};

/// Our own table; no other program's is touched.
const TABLE: &str = "orlop";
/// Published on every address: protocol, port → address, port.
const ANY_ADDRESS: &str = "publish_any";
/// Published on one address: address, protocol, port → address, port.
const ONE_ADDRESS: &str = "publish_address";
/// The chain that looks into both maps.
const PUBLISH: &str = "publish";

/// `NF_INET_*` hook numbers and `NF_IP_PRI_*` priorities.
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
const RAW: i32 = -300;
const DSTNAT: i32 = -100;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

const LOOPBACK: (Ipv4Addr, u8) = (Ipv4Addr::new(127, 0, 0, 0), 8);

/// The table's comment: which rules it holds. A table with another one is replaced.
fn note(bridge: &Bridge) -> String {
    format!(
        "containers on {} {}/{}, rules 1",
        bridge.name, bridge.address, bridge.prefix
    )
}

/// The rules, in the order in which they are made; nft's words for each are beside it.
fn rules(bridge: &Bridge) -> Vec<Message> {
    let name = bridge.name.as_str();
    let (network, prefix) = (bridge.address, bridge.prefix);
    let base = |chain: &str, chain_type, number, priority| {
        new_chain(
            TABLE,
            chain,
            Some(Hook {
                chain_type,
                number,
                priority,
            }),
        )
    };
    let rule = |chain: &str, rule: Rule| rule.in_chain(TABLE, chain);
    vec![
        new_map(TABLE, ANY_ADDRESS, 1, Key::Port),
        new_map(TABLE, ONE_ADDRESS, 2, Key::AddressAndPort),
        new_chain(TABLE, PUBLISH, None),
        // dnat ip to ip daddr . meta l4proto . th dport map @publish_address
        rule(
            PUBLISH,
            Rule::new().redirect_by(ONE_ADDRESS, Key::AddressAndPort),
        ),
        // dnat ip to meta l4proto . th dport map @publish_any
        rule(PUBLISH, Rule::new().redirect_by(ANY_ADDRESS, Key::Port)),
        // The bridge takes 127.0.0.0/8 as an address (route_localnet), for the machine's own connections to published ports. No container may
        // use that to reach what listens on the machine's loopback (CVE-2020-8558), or to speak in its name.
        base("guard", "filter", PREROUTING, RAW),
        rule(
            "guard",
            Rule::new()
                .comes_in_by(name)
                .to(LOOPBACK.0, LOOPBACK.1)
                .discard(),
        ),
        rule(
            "guard",
            Rule::new()
                .comes_in_by(name)
                .from(LOOPBACK.0, LOOPBACK.1)
                .discard(),
        ),
        base("prerouting", "nat", PREROUTING, DSTNAT),
        // fib daddr type local jump publish
        rule("prerouting", Rule::new().for_this_machine().jump(PUBLISH)),
        // The machine's own packets do not pass prerouting.
        base("output", "nat", OUTPUT, DSTNAT),
        rule("output", Rule::new().for_this_machine().jump(PUBLISH)),
        base("forward", "filter", FORWARD, FILTER),
        // oifname BRIDGE ct state established,related accept
        rule(
            "forward",
            Rule::new().goes_out_by(name).established().accept(),
        ),
        // iifname BRIDGE accept
        rule("forward", Rule::new().comes_in_by(name).accept()),
        // oifname BRIDGE ct status dnat accept
        rule(
            "forward",
            Rule::new().goes_out_by(name).was_redirected().accept(),
        ),
        // Whoever routes to the containers' network by way of us gets only what was published.
        rule("forward", Rule::new().goes_out_by(name).discard()),
        base("postrouting", "nat", POSTROUTING, SRCNAT),
        // oifname != BRIDGE ip saddr NETWORK masquerade
        rule(
            "postrouting",
            Rule::new()
                .goes_out_elsewhere_than(name)
                .from(network, prefix)
                .masquerade(),
        ),
        // A container that calls a published port: the answer must come back through us, not over the bridge behind our back.
        rule(
            "postrouting",
            Rule::new()
                .goes_out_by(name)
                .was_redirected()
                .from(network, prefix)
                .masquerade(),
        ),
        // The machine that calls a published port on 127.0.0.1: a container could not answer to that address.
        rule(
            "postrouting",
            Rule::new()
                .goes_out_by(name)
                .from(LOOPBACK.0, LOOPBACK.1)
                .masquerade(),
        ),
    ]
}

/// A container's ports, with where they lead.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Published<'a> {
    /// The container's name, shown beside each element.
    pub(crate) name: &'a str,
    /// Its address.
    pub(crate) address: Ipv4Addr,
    /// Its ports.
    pub(crate) ports: &'a [Publish],
}

/// The elements of each map for some containers.
fn elements(all: &[Published<'_>]) -> [(&'static str, Vec<Element>); 2] {
    let of = |on_any: bool| {
        all.iter()
            .flat_map(|published| published.ports.iter().map(move |port| (published, port)))
            .filter(|(_, port)| port.host_ip.is_none() == on_any)
            .map(|(published, port)| {
                let protocol = [port.protocol.number()];
                let host_port = port.host_port.to_be_bytes();
                let host_ip = port.host_ip.map(|ip| ip.octets());
                let mut key: Vec<&[u8]> = vec![&protocol, &host_port];
                if let Some(ip) = &host_ip {
                    key.insert(0, ip);
                }
                Element {
                    key: words(&key),
                    value: words(&[
                        &published.address.octets(),
                        &port.container_port.to_be_bytes(),
                    ]),
                    note: published.name.to_owned(),
                }
            })
            .collect()
    };
    [(ANY_ADDRESS, of(true)), (ONE_ADDRESS, of(false))]
}

/// Elements in one message: each takes under 200 bytes with its note, and the list's length must fit in 16 bits.
const ELEMENTS_A_MESSAGE: usize = 256;

fn messages(all: &[Published<'_>], make: fn(&str, &str, &[Element]) -> Message) -> Vec<Message> {
    elements(all)
        .iter()
        .flat_map(|(map, elements)| {
            elements
                .chunks(ELEMENTS_A_MESSAGE)
                .map(|chunk| make(TABLE, map, chunk))
        })
        .collect()
}

/// Adds one container's ports; makes the table first, with everyone's ports, when it is missing (or not as we make it).
pub(crate) fn publish(
    socket: &mut Socket,
    bridge: &Bridge,
    new: Published<'_>,
    everyone: &[Published<'_>],
) -> Result<(), Error> {
    let note = note(bridge);
    if has_table(socket, TABLE, &note)? {
        let batch = messages(&[new], add_elements);
        return if batch.is_empty() {
            Ok(())
        } else {
            socket.batch(batch)
        };
    }
    // Add and delete, so that the batch succeeds with and without an old table.
    let mut batch = vec![
        new_table(TABLE, &note),
        delete_table(TABLE),
        new_table(TABLE, &note),
    ];
    batch.extend(rules(bridge));
    batch.extend(messages(everyone, add_elements));
    socket.batch(batch)
}

/// Takes one container's ports away, those that are there, and what the kernel remembers of their use.
pub(crate) fn withdraw(socket: &mut Socket, old: Published<'_>) -> Result<(), Error> {
    take_elements(socket, old)?;
    if old.ports.iter().any(|port| port.protocol == Protocol::Udp) {
        match conntrack::forget_datagrams_answered_by(socket, old.address) {
            // A kernel without nf_conntrack_netlink: the flows end by their own time-outs.
            Err(err) if err.is(Errno::EINVAL) || err.is(Errno::EOPNOTSUPP) => {}
            other => other?,
        }
    }
    Ok(())
}

fn take_elements(socket: &mut Socket, old: Published<'_>) -> Result<(), Error> {
    let batch = messages(&[old], delete_elements);
    if batch.is_empty() {
        return Ok(());
    }
    match socket.batch(batch) {
        // Someone flushed the table, or an attach was cut short: take each by itself.
        Err(err) if err.is(Errno::ENOENT) => {
            for port in old.ports {
                let one = Published {
                    ports: std::slice::from_ref(port),
                    ..old
                };
                match socket.batch(messages(&[one], delete_elements)) {
                    Err(err) if !err.is(Errno::ENOENT) => return Err(err),
                    _ => {}
                }
            }
            Ok(())
        }
        other => other,
    }
}
