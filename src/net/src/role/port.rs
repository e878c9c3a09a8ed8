//! One link that the configuration wants something of.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use super::plan::{LinkPlan, lease_routes};
use crate::dhcp::arp::ConflictWatch;
use crate::dhcp::client::Client;
use crate::dhcp::lease::Lease;
use crate::dhcp::message::Reply;
use crate::dhcp::socket::DhcpSocket;
use crate::netlink::Error;
use crate::netlink::route::{self, Address, Link, Route, Rtnetlink};

/// A link, what it is to have, and what it was given.
#[derive(Debug)]
pub(super) struct Port {
    /// As the kernel last described it.
    pub(super) link: Link,
    /// What it is to have.
    pub(super) plan: LinkPlan,
    /// Its DHCP client; waits for ever where the plan wants none.
    pub(super) client: Client,
    /// The client's socket, once it was started.
    pub(super) socket: Option<DhcpSocket>,
    /// The client was told of a carrier.
    pub(super) is_asking: bool,
    /// The fixed addresses are set.
    is_fixed: bool,
    /// What the lease in use put on the link.
    used: Option<Used>,
    /// Whether somebody else has a new address is not known yet.
    watch: Option<ConflictWatch>,
}

#[derive(Debug)]
struct Used {
    address: Ipv4Addr,
    prefix: u8,
    routes: Vec<Route>,
    server: Ipv4Addr,
}

/// Logs what the kernel refused; the link's other settings go on.
fn or_log(result: Result<(), Error>, link: &Link, operation: impl FnOnce() -> String) -> bool {
    if let Err(err) = &result {
        log::error!("{}: cannot {}: {err}", link.name, operation());
    }
    result.is_ok()
}

impl Port {
    pub(super) fn new(link: Link, plan: LinkPlan) -> Self {
        Self {
            link,
            plan,
            client: Client::new(),
            socket: None,
            is_asking: false,
            is_fixed: false,
            used: None,
            watch: None,
        }
    }

    /// Switches the link on and gives it what needs no carrier.
    pub(super) fn prepare(&mut self, kernel: &Rtnetlink) {
        let link = &self.link;
        if let Some(mtu) = self.plan.mtu.filter(|mtu| *mtu != link.mtu) {
            or_log(route::set_mtu(kernel, link.index, mtu), link, || {
                format!("set its MTU to {mtu}")
            });
        }
        if !link.up {
            or_log(route::set_up(kernel, link.index), link, || {
                "switch it on".into()
            });
        }
        self.set_fixed(kernel);
    }

    /// Takes a new description; a link that was switched off has lost its routes.
    pub(super) fn update(&mut self, link: Link, kernel: &Rtnetlink) {
        let came_up = link.up && !self.link.up;
        self.link = link;
        if came_up {
            self.set_fixed(kernel);
            if let (Some(used), Some(lease)) = (&self.used, self.client.lease()) {
                set_routes(
                    kernel,
                    &self.link,
                    &lease_routes(lease, self.link.index),
                    &used.routes,
                );
            }
        }
    }

    fn set_fixed(&mut self, kernel: &Rtnetlink) {
        let link = &self.link;
        let mut all_set = !self.plan.addresses.is_empty();
        for address in &self.plan.addresses {
            all_set &= or_log(
                route::set_address(kernel, link.index, address),
                link,
                || format!("set the address {}/{}", address.ip, address.prefix),
            );
        }
        set_routes(kernel, link, &self.plan.routes, &[]);
        if all_set && !self.is_fixed {
            log::info!("{}: fixed addresses {}", link.name, self.fixed_text());
        }
        self.is_fixed = all_set;
    }

    fn fixed_text(&self) -> String {
        let all: Vec<String> = self
            .plan
            .addresses
            .iter()
            .map(|a| format!("{}/{}", a.ip, a.prefix))
            .collect();
        all.join(", ")
    }

    /// Opens the client's socket, once.
    pub(super) fn open_socket(&mut self) -> io::Result<()> {
        if self.socket.is_none() {
            self.socket = Some(DhcpSocket::open(self.link.index, &self.link.name)?);
        }
        Ok(())
    }

    /// Sends a client's message, to everybody or from one address to another. What is lost is sent again by the client.
    pub(super) fn send(&mut self, payload: &[u8], between: Option<(Ipv4Addr, Ipv4Addr)>) {
        let Some(socket) = &mut self.socket else {
            return;
        };
        let sent = match between {
            None => socket.broadcast(payload),
            Some((from, to)) => socket.unicast(payload, from, to),
        };
        if let Err(err) = sent {
            log::warn!("{}: cannot send to a DHCP server: {err}", self.link.name);
        }
    }

    /// The next server's message for this link's address.
    pub(super) fn receive(&mut self) -> Option<Reply> {
        loop {
            match self.socket.as_ref()?.receive() {
                Ok(Some(reply)) if Some(reply.mac) == self.link.mac => return Some(reply),
                Ok(Some(_)) => {}
                Ok(None) => return None,
                // A link that is switched off says so once by its socket.
                Err(err) => {
                    log::debug!(
                        "{}: cannot receive from a DHCP server: {err}",
                        self.link.name
                    );
                    return None;
                }
            }
        }
    }

    /// Puts on the link what a lease says, and takes off what an earlier one said.
    pub(super) fn use_lease(&mut self, lease: Lease, now: Duration, kernel: &Rtnetlink) {
        let link = &self.link;
        if let Some(socket) = &mut self.socket {
            socket.end_unicast();
        }
        let mtu = self.plan.mtu.or(lease.mtu.map(u32::from));
        if let Some(mtu) = mtu.filter(|mtu| *mtu != link.mtu) {
            or_log(route::set_mtu(kernel, link.index, mtu), link, || {
                format!("set its MTU to {mtu}")
            });
        }
        // The kernel drops the address by itself should this role not live to do it.
        let left = lease.ends().map(|end| {
            end.saturating_sub(now)
                .as_secs()
                .clamp(1, u32::MAX as u64 - 1) as u32
        });
        let address = Address {
            ip: lease.address.into(),
            prefix: lease.prefix,
            lifetime_seconds: left,
        };
        let is_set = or_log(
            route::set_address(kernel, link.index, &address),
            link,
            || format!("set the address {}", lease.address),
        );
        let routes = lease_routes(&lease, link.index);
        let before = self.used.take();
        set_routes(
            kernel,
            link,
            &routes,
            before.as_ref().map_or(&[], |used| &used.routes),
        );
        let is_new = before
            .as_ref()
            .is_none_or(|used| (used.address, used.prefix) != (lease.address, lease.prefix));
        if let Some(used) = before.filter(|_| is_new) {
            or_log(
                route::delete_address(kernel, link.index, used.address.into(), used.prefix),
                link,
                || format!("take away the address {}", used.address),
            );
        }
        let time = lease
            .lease_seconds
            .map_or_else(|| "for ever".to_owned(), |s| format!("for {s} s"));
        let line = format!(
            "{}: {}/{} from the DHCP server {} {time}",
            link.name, lease.address, lease.prefix, lease.server
        );
        if is_new {
            let watch = link
                .mac
                .map(|mac| ConflictWatch::start(link.index, mac, lease.address, now));
            self.watch = watch.and_then(|started| {
                started
                    .inspect_err(|err| {
                        log::warn!("{}: cannot ask who else has the address: {err}", link.name)
                    })
                    .ok()
            });
            log::info!("{line}");
        } else {
            log::debug!("{line}, again");
        }
        if is_set {
            self.used = Some(Used {
                address: lease.address,
                prefix: lease.prefix,
                routes,
                server: lease.server,
            });
        }
    }

    /// Takes off what the lease put on.
    pub(super) fn drop_lease(&mut self, kernel: &Rtnetlink) {
        if let Some(socket) = &mut self.socket {
            socket.end_unicast();
        }
        self.watch = None;
        let Some(used) = self.used.take() else {
            return;
        };
        set_routes(kernel, &self.link, &[], &used.routes);
        // The kernel may have dropped it in the same second.
        if let Err(err) =
            route::delete_address(kernel, self.link.index, used.address.into(), used.prefix)
            && !err.is(nix::errno::Errno::EADDRNOTAVAIL)
        {
            log::error!(
                "{}: cannot take away the address {}: {err}",
                self.link.name,
                used.address
            );
        }
    }

    /// What the role waits for on its behalf.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let socket = self.socket.as_ref().map(|socket| socket.as_fd());
        socket
            .into_iter()
            .chain(self.watch.as_ref().map(|watch| watch.as_fd()))
    }

    /// When it has something to do by itself.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let watch = self.watch.as_ref().map(ConflictWatch::until);
        self.client.deadline().into_iter().chain(watch).min()
    }

    /// Another host that has our new address; says so once.
    pub(super) fn claimant(&mut self) -> Option<[u8; 6]> {
        let other = self.watch.as_ref()?.claimant();
        if other.is_some() {
            self.watch = None;
        }
        other
    }

    /// Nobody else has the address.
    pub(super) fn end_watch(&mut self, now: Duration) {
        self.watch = self.watch.take().filter(|watch| watch.until() > now);
    }

    /// Whether it has an address that the configuration wants.
    pub(super) fn has_address(&self) -> bool {
        self.is_fixed || self.used.is_some()
    }

    /// What it has, or what it lacks, for people.
    pub(super) fn state(&self) -> String {
        let name = &self.link.name;
        let mut has = Vec::new();
        if self.is_fixed {
            has.push(self.fixed_text());
        }
        if let Some(used) = &self.used {
            has.push(format!(
                "{}/{} from DHCP server {}",
                used.address, used.prefix, used.server
            ));
        }
        if !self.link.carrier {
            has.push("no carrier".into());
        } else if self.plan.dhcp && self.used.is_none() {
            has.push(if self.is_asking {
                "no answer from a DHCP server".into()
            } else {
                "not asked yet".into()
            });
        }
        format!("{name}: {}", has.join(", "))
    }
}

/// Makes routes, and takes away those of `before` that are not among them.
fn set_routes(kernel: &Rtnetlink, link: &Link, routes: &[Route], before: &[Route]) {
    let text = |route: &Route| {
        let via = route
            .gateway
            .map(|gateway| format!(" via {gateway}"))
            .unwrap_or_default();
        format!("{}/{}{via}", route.destination.0, route.destination.1)
    };
    for route in routes {
        or_log(route::set_route(kernel, link.index, route), link, || {
            format!("make the route to {}", text(route))
        });
    }
    let key = |route: &Route| (route.destination, route.metric);
    for old in before
        .iter()
        .filter(|old| routes.iter().all(|route| key(route) != key(old)))
    {
        match route::delete_route(kernel, link.index, old) {
            // It went with its address.
            Err(err) if err.is(nix::errno::Errno::ESRCH) => {}
            other => {
                or_log(other, link, || {
                    format!("take away the route to {}", text(old))
                });
            }
        }
    }
}
