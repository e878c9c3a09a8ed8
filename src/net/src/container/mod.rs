//! Containers' network: a bridge, a virtual cable each, an address each, and their published ports.
//!
//! For short-lived processes that prepare or clean up a container. All calls are synchronous and leave no thread; they exclude each other by a file
//! lock. What was given to a container is recorded under `/run/orlop/net/containers` before it is made, so that whatever a crash leaves behind
//! is found and taken back ([`Network::cleanup_stale`], or the next attach).

mod publish;
mod record;

pub use publish::{ParsePublishError, Protocol, Publish};

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use netlink_packet_route::route::RouteProtocol;
use nix::errno::Errno;
use thiserror::Error;

use crate::netlink::route::{self, Rtnetlink};
use crate::netlink::{self, Socket, rules};
use record::{Namespace, Record, Records};

/// The container's end of its cable.
const CONTAINER_LINK: &str = "eth0";
/// How the machine's ends of all cables are called; a number follows.
pub(crate) const LINK_PREFIX: &str = "orlop-";
/// Ethernet's payload in bytes.
const MTU: u32 = 1500;

/// Why a container's network could not be made or taken away.
#[derive(Debug, Error)]
pub enum Error {
    /// The name cannot be a file's name.
    #[error(
        "a container cannot be called {0:?}: letters, digits, `_`, `.` and `-` only, at most 128, not starting with a sign"
    )]
    Name(String),
    /// A file under `/run/orlop/net` could not be used.
    #[error("cannot use {path}")]
    State {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        err: io::Error,
    },
    /// The container's namespace could not be looked at.
    #[error("container {name}: its network namespace cannot be used")]
    Namespace {
        /// The container.
        name: String,
        /// What the kernel said.
        #[source]
        err: io::Error,
    },
    /// Every address of the bridge's network is given.
    #[error("container {name}: no address is free in {network}")]
    Exhausted {
        /// The container.
        name: String,
        /// The network, as `address/prefix`.
        network: String,
    },
    /// Another container has the port.
    #[error("container {name}: port {publish} is already published by container {holder}")]
    PortPublished {
        /// The container that asked.
        name: String,
        /// The port that it asked for.
        publish: Publish,
        /// The container that has it.
        holder: String,
    },
    /// A program of the machine itself listens on the port.
    #[error("container {name}: port {publish} cannot be published: the machine itself uses it")]
    PortInUse {
        /// The container that asked.
        name: String,
        /// The port that it asked for.
        publish: Publish,
        /// What the kernel said.
        #[source]
        err: io::Error,
    },
    /// A kernel setting could not be written.
    #[error("cannot write {value} to {path}")]
    Setting {
        /// The file under `/proc/sys`.
        path: String,
        /// What should be in it.
        value: &'static str,
        /// What the kernel said.
        #[source]
        err: io::Error,
    },
    /// A link of the bridge's name exists and is no bridge.
    #[error("link {0} exists and is not a bridge")]
    NotABridge(String),
    /// The kernel refused something.
    #[error("container network: cannot {operation}")]
    Netlink {
        /// What was tried, with its object.
        operation: String,
        /// What the kernel said.
        #[source]
        err: netlink::Error,
    },
}

/// What a container asks for.
#[derive(Debug, Clone)]
pub struct Attach<'a> {
    /// The container's name, unique on the machine.
    pub name: &'a str,
    /// Its network namespace, which needs no process in it yet.
    pub netns: BorrowedFd<'a>,
    /// Ports of the machine that lead to it.
    pub publish: &'a [Publish],
}

/// What a container got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// Its address, on its link `eth0`.
    pub address: Ipv4Addr,
    /// Bits of the address that are the network's.
    pub prefix: u8,
    /// Its default route: the bridge's address.
    pub gateway: Ipv4Addr,
    /// The Ethernet address of its `eth0`.
    pub mac: [u8; 6],
}

/// The bridge that containers hang on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Link name, at most 15 bytes.
    pub name: String,
    /// The machine's address on it; containers' gateway.
    pub address: Ipv4Addr,
    /// Bits of the address that are the network's, 8 to 30.
    pub prefix: u8,
}

impl Bridge {
    fn number(&self) -> u32 {
        u32::from(self.address) & self.mask()
    }

    fn mask(&self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0)
    }

    /// How many addresses follow the network's own, the broadcast address included.
    fn size(&self) -> u32 {
        !self.mask()
    }
}

impl fmt::Display for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.number()), self.prefix)
    }
}

/// The containers' network of this machine.
#[derive(Debug, Clone)]
pub struct Network {
    /// Where records are kept; must not outlive a reboot.
    pub directory: PathBuf,
    /// The bridge.
    pub bridge: Bridge,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("/run/orlop/net"),
            bridge: Bridge {
                name: "orlop0".into(),
                address: Ipv4Addr::new(172, 30, 0, 1),
                prefix: 16,
            },
        }
    }
}

/// Gives a container its network on the machine's default bridge; see [`Network::attach`].
pub fn attach(request: &Attach<'_>) -> Result<Attached, Error> {
    Network::default().attach(request)
}

/// Takes a container's network away; see [`Network::detach`].
pub fn detach(name: &str) -> Result<(), Error> {
    Network::default().detach(name)
}

/// Takes away what containers left that are no more; see [`Network::cleanup_stale`].
pub fn cleanup_stale() -> Result<Vec<String>, Error> {
    Network::default().cleanup_stale()
}

fn refused(operation: impl Into<String>) -> impl FnOnce(netlink::Error) -> Error {
    move |err| Error::Netlink {
        operation: operation.into(),
        err,
    }
}

impl Network {
    /// Gives a container its link, address, default route and published ports.
    ///
    /// The same request for the same namespace again changes nothing and returns the same; another request under a known name replaces it. On an error
    /// nothing of the container's remains.
    pub fn attach(&self, request: &Attach<'_>) -> Result<Attached, Error> {
        record::check_name(request.name)?;
        let mut kernel = Kernel::open()?;
        let mut records = Records::lock(&self.directory)?;
        let namespace = Namespace::of(request.netns).map_err(|err| Error::Namespace {
            name: request.name.into(),
            err,
        })?;

        let links = route::links(&kernel.route).map_err(refused("list links"))?;
        let alive = |record: &Record| links.iter().any(|link| link.name == record.link);
        if let Some(known) = records.get(request.name) {
            if known.namespace == namespace && known.publish == request.publish && alive(known) {
                let known = known.clone();
                self.publish(&mut kernel, &records, &known)?;
                return Ok(self.attached(&known));
            }
            self.remove(&mut kernel, &mut records, request.name)?;
        }
        let dead: Vec<String> = records
            .all()
            .filter(|record| !alive(record))
            .map(|record| record.name.clone())
            .collect();
        for name in dead {
            self.remove(&mut kernel, &mut records, &name)?;
        }
        check_ports(request, &records)?;

        let address = records
            .free_address(&self.bridge)
            .ok_or_else(|| Error::Exhausted {
                name: request.name.into(),
                network: self.bridge.to_string(),
            })?;
        let record = Record {
            name: request.name.into(),
            address,
            link: format!("{LINK_PREFIX}{}", u32::from(address) - self.bridge.number()),
            namespace,
            publish: request.publish.to_vec(),
        };
        records.put(record.clone())?;
        match self.make(&mut kernel, &records, &record, request.netns) {
            Ok(()) => Ok(self.attached(&record)),
            Err(err) => {
                // The first error is the one to report; what this leaves is found as stale later.
                let _ = self.remove(&mut kernel, &mut records, &record.name);
                Err(err)
            }
        }
    }

    /// Takes away all that [`Network::attach`] gave; nothing to do for an unknown name.
    pub fn detach(&self, name: &str) -> Result<(), Error> {
        record::check_name(name)?;
        let mut records = Records::lock(&self.directory)?;
        if records.get(name).is_none() {
            return Ok(());
        }
        self.remove(&mut Kernel::open()?, &mut records, name)
    }

    /// Takes away what containers left whose namespace, and so their link, is gone; returns their names.
    pub fn cleanup_stale(&self) -> Result<Vec<String>, Error> {
        let mut records = Records::lock(&self.directory)?;
        if records.all().next().is_none() {
            return Ok(Vec::new());
        }
        let mut kernel = Kernel::open()?;
        let links = route::links(&kernel.route).map_err(refused("list links"))?;
        let dead: Vec<String> = records
            .all()
            .filter(|record| !links.iter().any(|link| link.name == record.link))
            .map(|record| record.name.clone())
            .collect();
        for name in &dead {
            self.remove(&mut kernel, &mut records, name)?;
        }
        Ok(dead)
    }

    fn attached(&self, record: &Record) -> Attached {
        Attached {
            address: record.address,
            prefix: self.bridge.prefix,
            gateway: self.bridge.address,
            mac: mac_of(record.address),
        }
    }

    fn make(
        &self,
        kernel: &mut Kernel,
        records: &Records,
        record: &Record,
        netns: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let bridge_index = self.ensure_bridge(&kernel.route)?;
        let pair = route::VethPair {
            host: &record.link,
            alias: &record.name,
            bridge_index,
            peer: CONTAINER_LINK,
            peer_mac: mac_of(record.address),
            peer_namespace: netns,
            mtu: MTU,
        };
        let make = |kernel: &mut Kernel| route::add_veth(&kernel.route, &pair);
        match make(kernel) {
            // A link of a record that was lost: the address is not given to anyone, so neither is the link.
            Err(err) if err.is(Errno::EEXIST) => {
                self.delete_link(kernel, &record.link)?;
                make(kernel)
            }
            other => other,
        }
        .map_err(refused(format!(
            "make the link of container {}",
            record.name
        )))?;
        if !record.publish.is_empty() {
            // With br_netfilter in the kernel, a container that calls its own published port is redirected inside the bridge.
            route::allow_hairpin(&kernel.route, &record.link)
                .map_err(refused(format!("set up the port {}", record.link)))?;
        }
        self.configure_inside(record, netns)?;
        self.publish(kernel, records, record)
    }

    /// The container's own side: loopback, address, default route.
    fn configure_inside(&self, record: &Record, netns: BorrowedFd<'_>) -> Result<(), Error> {
        let name = &record.name;
        let inside = Rtnetlink::open_in(netns)
            .map_err(refused(format!("enter the network of container {name}")))?;
        let all = route::links(&inside)
            .map_err(refused(format!("list the links of container {name}")))?;
        for link in &all {
            let ours = link.name == CONTAINER_LINK;
            if !ours && !link.is_loopback() {
                continue;
            }
            if ours {
                let address = route::Address {
                    ip: record.address.into(),
                    prefix: self.bridge.prefix,
                    lifetime_seconds: None,
                };
                route::set_address(&inside, link.index, &address).map_err(refused(format!(
                    "give container {name} the address {}",
                    record.address
                )))?;
            }
            route::set_up(&inside, link.index).map_err(refused(format!(
                "switch on {} of container {name}",
                link.name
            )))?;
            if ours {
                let default = route::Route {
                    destination: (Ipv4Addr::UNSPECIFIED.into(), 0),
                    gateway: Some(self.bridge.address.into()),
                    metric: 0,
                    source: None,
                    protocol: RouteProtocol::Static,
                };
                route::set_route(&inside, link.index, &default)
                    .map_err(refused(format!("give container {name} its default route")))?;
            }
        }
        Ok(())
    }

    fn publish(
        &self,
        kernel: &mut Kernel,
        records: &Records,
        record: &Record,
    ) -> Result<(), Error> {
        let everyone: Vec<rules::Published<'_>> = records.all().map(Record::published).collect();
        rules::publish(
            &mut kernel.netfilter,
            &self.bridge,
            record.published(),
            &everyone,
        )
        .map_err(refused(format!(
            "write the packet rules for container {}",
            record.name
        )))
    }

    fn remove(&self, kernel: &mut Kernel, records: &mut Records, name: &str) -> Result<(), Error> {
        let Some(record) = records.get(name).cloned() else {
            return Ok(());
        };
        rules::withdraw(&mut kernel.netfilter, record.published())
            .map_err(refused(format!("withdraw the ports of container {name}")))?;
        self.delete_link(kernel, &record.link)?;
        records.remove(name)
    }

    fn delete_link(&self, kernel: &mut Kernel, link: &str) -> Result<(), Error> {
        let operation = || format!("take away link {link}");
        let Some(found) = route::link_named(&kernel.route, link).map_err(refused(operation()))?
        else {
            return Ok(());
        };
        match route::delete_link(&kernel.route, found.index) {
            // It went with its namespace in between.
            Err(err) if err.is(Errno::ENODEV) => Ok(()),
            other => other.map_err(refused(operation())),
        }
    }

    /// The bridge's index; makes it, with its address and the kernel settings that it needs.
    fn ensure_bridge(&self, kernel: &Rtnetlink) -> Result<u32, Error> {
        let name = &self.bridge.name;
        let find =
            || route::link_named(kernel, name).map_err(refused(format!("look for bridge {name}")));
        let link = match find()? {
            Some(link) => link,
            None => {
                // A fixed Ethernet address: without one the bridge takes that of a port, and changes it as containers come and go.
                match route::add_bridge(kernel, name, mac_of(self.bridge.address)) {
                    Err(err) if !err.is(Errno::EEXIST) => {
                        return Err(refused(format!("make bridge {name}"))(err));
                    }
                    _ => find()?.ok_or_else(|| Error::NotABridge(name.clone()))?,
                }
            }
        };
        if link.kind.as_deref() != Some("bridge") {
            return Err(Error::NotABridge(name.clone()));
        }
        let ip = IpAddr::from(self.bridge.address);
        let known = route::addresses(kernel, link.index)
            .map_err(refused(format!("list the addresses of {name}")))?;
        if !known
            .iter()
            .any(|a| a.ip == ip && a.prefix == self.bridge.prefix)
        {
            // Router advertisements from a container must not become the machine's routes, so IPv6 stays off on the bridge.
            set(
                &format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"),
                "1",
                true,
            )?;
            let address = route::Address {
                ip,
                prefix: self.bridge.prefix,
                lifetime_seconds: None,
            };
            route::set_address(kernel, link.index, &address)
                .map_err(refused(format!("give {name} the address {ip}")))?;
        }
        if !link.up {
            route::set_up(kernel, link.index).map_err(refused(format!("switch on {name}")))?;
        }
        // The machine's own 127.0.0.1:PORT is redirected to a container by way of the bridge.
        set(
            &format!("/proc/sys/net/ipv4/conf/{name}/route_localnet"),
            "1",
            false,
        )?;
        set("/proc/sys/net/ipv4/ip_forward", "1", false)?;
        Ok(link.index)
    }
}

/// The two kernel sockets that the work needs.
struct Kernel {
    route: Rtnetlink,
    netfilter: Socket,
}

impl Kernel {
    fn open() -> Result<Self, Error> {
        Ok(Self {
            route: Rtnetlink::open().map_err(refused("reach the kernel"))?,
            netfilter: Socket::open().map_err(refused("reach the kernel"))?,
        })
    }
}

/// Writes a kernel setting unless it is already so.
fn set(path: &str, value: &'static str, may_be_missing: bool) -> Result<(), Error> {
    let fail = |err| Error::Setting {
        path: path.into(),
        value,
        err,
    };
    match fs::read_to_string(path) {
        Ok(now) if now.trim() == value => Ok(()),
        Ok(_) => fs::write(path, value).map_err(fail),
        Err(err) if may_be_missing && err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(fail(err)),
    }
}

/// A locally administered Ethernet address that belongs to an IPv4 address: who reuses the one has the other too, and no neighbour's table is stale.
fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// Refuses ports that a container or the machine itself has.
fn check_ports(request: &Attach<'_>, records: &Records) -> Result<(), Error> {
    for (at, publish) in request.publish.iter().enumerate() {
        let own = request.publish[..at]
            .iter()
            .any(|other| other.overlaps(publish))
            .then_some(request.name);
        let other = records
            .all()
            .find(|r| r.publish.iter().any(|p| p.overlaps(publish)))
            .map(|r| r.name.as_str());
        if let Some(holder) = own.or(other) {
            return Err(Error::PortPublished {
                name: request.name.into(),
                publish: *publish,
                holder: holder.into(),
            });
        }
        let address = (
            publish.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
            publish.host_port,
        );
        let bound = match publish.protocol {
            Protocol::Tcp => TcpListener::bind(address).map(drop),
            Protocol::Udp => UdpSocket::bind(address).map(drop),
        };
        // Only a port in use is our business: an address that the machine does not have yet may come with the next lease.
        if let Err(err) = bound
            && err.kind() == io::ErrorKind::AddrInUse
        {
            return Err(Error::PortInUse {
                name: request.name.into(),
                publish: *publish,
                err,
            });
        }
    }
    Ok(())
}

fn state_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |err| Error::State {
        path: path.to_path_buf(),
        err,
    }
}
