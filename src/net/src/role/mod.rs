//! `orlop net`: keeps the machine's links as the configuration wants them.
//!
//! One thread and one `poll`: link events, DHCP packets, and the nearest deadline. What fails on one link is a log line and does not stop the others.

pub mod online;
mod plan;
mod port;
mod resolver;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use orlop_config::Machine;
use thiserror::Error;

use crate::dhcp::client::{Action, Input};
use crate::dhcp::lease::Lease;
use crate::dhcp::message::Identity;
use crate::netlink;
use crate::netlink::route::{self, Link, LinkEvent, LinkEvents, Rtnetlink};
use orlop_sys::notify::Supervisor;
use plan::plan;
use port::Port;

/// How long the network may take before the log says what it lacks.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one link is asked alone when nobody named one; then every link with a carrier is.
const ALONE: Duration = Duration::from_secs(8);
/// How often the reasons for having no network are looked at again.
const REPORT_PAUSE: Duration = Duration::from_secs(30);

/// Why the role cannot work.
#[derive(Debug, Error)]
pub enum Error {
    /// The directory for leases could not be made.
    #[error("cannot make {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        err: io::Error,
    },
    /// The kernel's source of chance could not be read.
    #[error("cannot read /dev/urandom")]
    Random(#[source] io::Error),
    /// The kernel's links could not be reached.
    #[error("cannot reach the kernel's links")]
    Netlink(#[source] netlink::Error),
    /// Waiting failed.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
    /// The clock could not be read.
    #[error("cannot read the clock")]
    Clock(#[source] io::Error),
}

/// Runs the role; returns only when it cannot go on.
///
/// `run` is the directory of `machine.json`, `resolv.conf` and `net/`: `/run/orlop`. `supervisor` is told when the links are set up, and how the network is.
pub fn run(run: &Path, supervisor: Supervisor) -> Result<Infallible, Error> {
    let directory = run.join("net");
    fs::create_dir_all(&directory).map_err(|err| Error::Directory {
        path: directory.clone(),
        err,
    })?;
    let mut role = Role {
        machine: read_machine(&run.join("machine.json")),
        directory,
        resolver_path: run.join("resolv.conf"),
        resolver_text: String::new(),
        events: LinkEvents::subscribe().map_err(Error::Netlink)?,
        kernel: Rtnetlink::open().map_err(Error::Netlink)?,
        chance: File::open("/dev/urandom").map_err(Error::Random)?,
        supervisor,
        links: BTreeMap::new(),
        ports: BTreeMap::new(),
        online: false,
        was_ready: false,
        status: String::new(),
        reported: String::new(),
        report_at: None,
        widen_at: None,
        now: Duration::ZERO,
    };
    role.now = boot_time()?;
    role.report_at = Some(role.now + PATIENCE);
    role.widen_at = Some(role.now + ALONE);
    role.write_resolver();
    role.read_links()?;
    loop {
        role.settle();
        role.wait()?;
    }
}

/// The compiled configuration; without a readable one the machine still gets a network by the defaults.
fn read_machine(path: &Path) -> Machine {
    let read = fs::read(path).map_err(|err| err.to_string());
    match read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|err| err.to_string())) {
        Ok(machine) => machine,
        Err(err) => {
            log::error!(
                "{}: {err}; using DHCP on the first link with a carrier",
                path.display()
            );
            Machine::default()
        }
    }
}

fn boot_time() -> Result<Duration, Error> {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .map_err(|err| Error::Clock(err.into()))
}

/// All that the role knows.
struct Role {
    machine: Machine,
    directory: PathBuf,
    resolver_path: PathBuf,
    resolver_text: String,
    events: LinkEvents,
    kernel: Rtnetlink,
    chance: File,
    supervisor: Supervisor,
    /// Every link of the machine, by index.
    links: BTreeMap<u32, Link>,
    /// Those that the configuration wants something of.
    ports: BTreeMap<u32, Port>,
    online: bool,
    was_ready: bool,
    status: String,
    reported: String,
    report_at: Option<Duration>,
    widen_at: Option<Duration>,
    now: Duration,
}

impl Role {
    /// Lists the links anew: at the start, and when events were lost.
    fn read_links(&mut self) -> Result<(), Error> {
        let links = route::links(&self.kernel).map_err(Error::Netlink)?;
        let gone: Vec<u32> = self
            .links
            .keys()
            .copied()
            .filter(|index| links.iter().all(|l| l.index != *index))
            .collect();
        for index in gone {
            self.link_gone(index);
        }
        for link in links {
            self.link_present(link);
        }
        Ok(())
    }

    fn link_gone(&mut self, index: u32) {
        self.links.remove(&index);
        if let Some(port) = self.ports.remove(&index) {
            log::info!("{}: the link is gone", port.link.name);
        }
    }

    fn link_present(&mut self, link: Link) {
        let index = link.index;
        self.links.insert(index, link.clone());
        let plan = plan(&self.machine.network, &link);
        match (self.ports.get_mut(&index), plan) {
            // Another program's cable, which has become a bridge's port: only now is it seen that it is not ours.
            (Some(port), None) if port.plan.is_candidate && !port.has_address() => {
                self.ports.remove(&index);
            }
            (Some(port), _) => port.update(link, &self.kernel),
            (None, None) => return,
            (None, Some(plan)) => {
                let mut port = Port::new(link, plan);
                port.prepare(&self.kernel);
                self.ports.insert(index, port);
            }
        }
        self.follow_carrier(index);
    }

    /// Starts and stops the link's client as its carrier comes and goes.
    fn follow_carrier(&mut self, index: u32) {
        let Some(port) = self.ports.get(&index) else {
            return;
        };
        match (port.link.carrier, port.is_asking) {
            (true, false) if port.plan.dhcp && !port.plan.is_candidate => self.start_asking(index),
            (false, true) => {
                log::info!("{}: no carrier", port.link.name);
                if let Some(port) = self.ports.get_mut(&index) {
                    port.is_asking = false;
                }
                self.step(index, Input::NoCarrier);
            }
            _ => {}
        }
    }

    fn start_asking(&mut self, index: u32) {
        let Some(port) = self.ports.get_mut(&index) else {
            return;
        };
        if let Err(err) = port.open_socket() {
            log::error!("{}: cannot open a socket for DHCP: {err}", port.link.name);
            return;
        }
        port.is_asking = true;
        let known = fs::read(self.lease_path(index))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Lease>(&bytes).ok());
        self.step(index, Input::Carrier { known });
    }

    /// When nobody named a link: one with a carrier is asked on, and all of them when that brings nothing.
    fn elect(&mut self) {
        let candidates = || {
            self.ports
                .values()
                .filter(|port| port.plan.is_candidate && port.link.carrier)
        };
        if candidates().any(|port| port.client.lease().is_some()) {
            return;
        }
        let everyone = self.widen_at.is_some_and(|at| at <= self.now);
        let idle: Vec<u32> = candidates()
            .filter(|port| !port.is_asking)
            .map(|port| port.link.index)
            .collect();
        let some_asks = candidates().any(|port| port.is_asking);
        let limit = match (everyone, some_asks) {
            (true, _) => idle.len(),
            (false, true) => 0,
            (false, false) => 1,
        };
        for index in idle.into_iter().take(limit) {
            self.start_asking(index);
        }
    }

    /// Feeds a link's client, and does what it says.
    fn step(&mut self, index: u32, input: Input<'_>) {
        let Some(port) = self.ports.get_mut(&index) else {
            return;
        };
        let chance = &mut self.chance;
        let mut random = || {
            let mut bytes = [0; 4];
            // Opened and read before: a failing read would only make the numbers equal, which retries survive.
            let _ = chance.read_exact(&mut bytes);
            u32::from_ne_bytes(bytes)
        };
        let actions = port.client.step(input, self.now, &mut random);
        let name = port.link.name.clone();
        for action in actions {
            let Some(port) = self.ports.get_mut(&index) else {
                return;
            };
            match action {
                Action::Broadcast(request) => {
                    let identity = identity(&self.machine, &port.link);
                    port.send(&request.encode(&identity), None);
                }
                Action::Unicast { request, from, to } => {
                    let identity = identity(&self.machine, &port.link);
                    port.send(&request.encode(&identity), Some((from, to)));
                }
                Action::Use(lease) => {
                    port.use_lease(*lease, self.now, &self.kernel);
                    self.keep_lease(index);
                    self.take_hostname(index);
                }
                Action::Drop(lease) => {
                    log::warn!("{name}: the address {} is no longer ours", lease.address);
                    port.drop_lease(&self.kernel);
                    let _ = fs::remove_file(self.lease_path(index));
                }
                Action::Refused { server, text } => {
                    let server = server.map_or_else(
                        || "a DHCP server".to_owned(),
                        |ip| format!("the DHCP server {ip}"),
                    );
                    log::warn!(
                        "{name}: {server} refused: {}",
                        text.as_deref().unwrap_or("no reason given")
                    );
                }
            }
        }
    }

    fn lease_path(&self, index: u32) -> PathBuf {
        let name = self.links.get(&index).map_or("", |link| link.name.as_str());
        self.directory.join(format!("lease-{name}.json"))
    }

    fn keep_lease(&self, index: u32) {
        let path = self.lease_path(index);
        let text = self
            .ports
            .get(&index)
            .and_then(|port| port.client.lease())
            .map(serde_json::to_vec_pretty);
        if let Some(Ok(text)) = text
            && let Err(err) = resolver::replace(&path, &text)
        {
            log::error!("cannot write {}: {err}", path.display());
        }
    }

    /// A machine without a name takes the one that the DHCP server has for it.
    fn take_hostname(&self, index: u32) {
        let lease = self.ports.get(&index).and_then(|port| port.client.lease());
        let Some(name) = lease.and_then(|lease| lease.hostname.as_deref()) else {
            return;
        };
        let now = nix::unistd::gethostname().unwrap_or_default();
        if self.machine.hostname.is_none()
            && (now.is_empty() || now == "localhost" || now == "(none)")
        {
            match nix::unistd::sethostname(name) {
                Ok(()) => log::info!("the host name is {name}, from DHCP"),
                Err(err) => log::warn!("cannot set the host name to {name}: {err}"),
            }
        }
    }

    fn write_resolver(&mut self) {
        let leases = self.ports.values().filter_map(|port| port.client.lease());
        let text = resolver::text(&self.machine.network, leases);
        if text == self.resolver_text {
            return;
        }
        match resolver::replace(&self.resolver_path, text.as_bytes()) {
            Ok(()) => self.resolver_text = text,
            Err(err) => log::error!("cannot write {}: {err}", self.resolver_path.display()),
        }
    }

    /// After anything happened: elects, writes, tells.
    fn settle(&mut self) {
        self.elect();
        self.write_resolver();
        self.tell();
    }

    fn tell(&mut self) {
        let online = self.ports.values().any(Port::has_address);
        if online != self.online {
            self.online = online;
            self.report_at = (!online).then(|| self.now + PATIENCE);
            self.widen_at = (!online).then(|| self.now + ALONE);
            self.reported.clear();
        }
        let states: Vec<String> = self.ports.values().map(Port::state).collect();
        let status = match (online, states.is_empty()) {
            (_, true) => "no link to use".to_owned(),
            (true, false) => states.join("; "),
            (false, false) => format!("no network: {}", states.join("; ")),
        };
        if status != self.status {
            online::publish(&self.directory, online.then_some(&status));
            // Ready is the role, with or without a network: a machine that hangs on a missing cable could not be looked into.
            let ready = if self.was_ready { "" } else { "READY=1\n" };
            // Nobody listening is no error: the network works without.
            if let Err(err) = self.supervisor.tell(&format!("{ready}STATUS={status}")) {
                log::debug!("cannot tell the supervisor: {err}");
            }
            self.was_ready = true;
            self.status = status;
        }
        if self.report_at.is_some_and(|at| at <= self.now) {
            self.report_at = Some(self.now + REPORT_PAUSE);
            let reasons = self.reasons();
            if reasons != self.reported {
                log::warn!("no network: {reasons}");
                self.reported = reasons;
            }
        }
        if self.widen_at.is_some_and(|at| at <= self.now) {
            self.elect();
            // Whatever links come later are asked on at once.
            self.widen_at = Some(Duration::ZERO);
        }
    }

    /// Every link and what it lacks.
    fn reasons(&self) -> String {
        let mut reasons: Vec<String> = self.ports.values().map(Port::state).collect();
        let missing = plan::missing(&self.machine.network, self.links.values());
        reasons.extend(missing.iter().map(|name| format!("{name}: no such link")));
        if reasons.is_empty() {
            return "the machine has no Ethernet link".to_owned();
        }
        reasons.join("; ")
    }

    /// Waits for the next thing to happen, and takes it.
    fn wait(&mut self) -> Result<(), Error> {
        let widen = self.widen_at.filter(|at| !at.is_zero());
        let ports = self.ports.values().filter_map(Port::deadline);
        let next = ports.chain(self.report_at).chain(widen).min();
        let timeout = next.map_or(PollTimeout::NONE, |at| {
            // Rounded up: waking too early would spin.
            let left_ms = at
                .saturating_sub(boot_time().unwrap_or(self.now))
                .as_micros()
                .div_ceil(1000);
            PollTimeout::try_from(left_ms.min(i32::MAX as u128)).unwrap_or(PollTimeout::MAX)
        });
        let mut owners = Vec::new();
        let mut wanted = vec![PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
        for (index, port) in &self.ports {
            for fd in port.descriptors() {
                owners.push(*index);
                wanted.push(PollFd::new(fd, PollFlags::POLLIN));
            }
        }
        match poll(&mut wanted, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(err) => return Err(Error::Wait(err.into())),
        }
        let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let links_changed = wanted.first().is_some_and(is_ready);
        let readable: Vec<u32> = owners
            .into_iter()
            .zip(wanted.iter().skip(1))
            .filter(|(_, fd)| is_ready(fd))
            .map(|(index, _)| index)
            .collect();
        self.now = boot_time()?;

        if links_changed {
            self.take_link_events()?;
        }
        for index in readable {
            self.take_packets(index);
            self.take_conflict(index);
        }
        for port in self.ports.values_mut() {
            port.end_watch(self.now);
        }
        let due: Vec<u32> = self
            .ports
            .iter()
            .filter(|(_, port)| port.client.deadline().is_some_and(|at| at <= self.now))
            .map(|(index, _)| *index)
            .collect();
        for index in due {
            self.step(index, Input::Deadline);
        }
        Ok(())
    }

    fn take_link_events(&mut self) -> Result<(), Error> {
        let mut events = Vec::new();
        let complete = self.events.take(&mut events).map_err(Error::Netlink)?;
        for event in events {
            match event {
                LinkEvent::Present(link) => self.link_present(link),
                LinkEvent::Gone(index) => self.link_gone(index),
            }
        }
        if complete { Ok(()) } else { self.read_links() }
    }

    fn take_conflict(&mut self, index: u32) {
        let found = self
            .ports
            .get_mut(&index)
            .and_then(|port| Some((port.link.name.clone(), port.claimant()?)));
        if let Some((name, other)) = found {
            let other: Vec<String> = other.iter().map(|byte| format!("{byte:02x}")).collect();
            log::warn!(
                "{name}: the address is in use by {}; declining it",
                other.join(":")
            );
            self.step(index, Input::AddressInUse);
        }
    }

    fn take_packets(&mut self, index: u32) {
        /// Packets taken before others get their turn.
        const AT_ONCE: usize = 32;
        for _ in 0..AT_ONCE {
            let Some(port) = self.ports.get_mut(&index) else {
                return;
            };
            match port.receive() {
                Some(reply) => self.step(index, Input::Reply(&reply)),
                None => return,
            }
        }
    }
}

fn identity(machine: &Machine, link: &Link) -> Identity {
    Identity {
        mac: link.mac.unwrap_or_default(),
        hostname: machine
            .hostname
            .as_ref()
            .map(|name| name.value.as_str().to_owned()),
    }
}
