//! The role against a DHCP server of Debian's, and fixed addresses.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use orlop_config::{Input, Kind};
use orlop_net::role::{self, online};
use orlop_sys::notify::Supervisor;
use tempfile::TempDir;

use crate::world::{World, move_link};

/// Longer than the client's first pause and the log's patience, for a machine that is busy.
const LONG: Duration = Duration::from_secs(30);

/// A machine on one cable, `eth0`, to a namespace where a server can be; the role runs in it from [`Machine::start`] on, until the process ends.
struct Machine {
    world: World,
    network: World,
    run: TempDir,
    supervisor: UnixDatagram,
}

impl Machine {
    fn new() -> Option<Self> {
        let (world, network) = (World::new()?, World::new()?);
        world.ip("link add eth0 address 02:00:00:00:00:01 type veth peer name server");
        move_link(&world, "server", &network);
        network.ip("addr add 192.0.2.1/24 dev server");
        let run = tempfile::tempdir().expect("a directory");
        let supervisor = UnixDatagram::bind(run.path().join("notify")).expect("a socket");
        supervisor.set_read_timeout(Some(LONG)).expect("a timeout");
        Some(Self {
            world,
            network,
            run,
            supervisor,
        })
    }

    /// Plugs or pulls the cable at the network's end.
    fn cable(&self, plugged: bool) {
        self.network.ip(&format!(
            "link set server {}",
            if plugged { "up" } else { "down" }
        ));
    }

    fn start(&self, network: &str) {
        let text = format!("#cloud-config\nhostname: node\n{network}");
        let (machine, problems) = orlop_config::load(vec![Input {
            name: "test".into(),
            kind: Kind::CloudConfig,
            text: text.into(),
        }]);
        assert!(problems.is_empty(), "{problems:?}");
        fs::write(
            self.path("machine.json"),
            serde_json::to_vec(&machine).expect("JSON"),
        )
        .expect("a file");
        let run = self.run.path().to_path_buf();
        let notify = run.join("notify");
        self.world.run(|| {
            std::thread::spawn(move || {
                let supervisor = Supervisor::at(Some(notify.as_os_str())).expect("a socket");
                let Err(err) = role::run(&run, supervisor);
                eprintln!("the role ended: {err}");
            });
        });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.run.path().join(name)
    }

    /// Waits for a message to the supervisor that has `text` in it; returns all that came until then.
    fn told(&self, text: &str) -> Vec<String> {
        let deadline = Instant::now() + LONG;
        let mut all = Vec::new();
        let mut buffer = [0; 1024];
        while Instant::now() < deadline {
            let len = self
                .supervisor
                .recv(&mut buffer)
                .unwrap_or_else(|err| panic!("waiting for {text:?} after {all:?}: {err}"));
            all.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
            if all.last().is_some_and(|message| message.contains(text)) {
                return all;
            }
        }
        panic!("no {text:?} in {all:?}");
    }
}

/// A DHCP server that ends with this value.
struct Server(Child, Receiver<String>);

impl Server {
    /// Debian's dnsmasq on the network's end of the cable; `None`, with a line, where it is not installed.
    fn start(machine: &Machine, options: &[&str]) -> Option<Self> {
        let leases = machine.path("dnsmasq.leases");
        let child = machine.network.run(|| {
            Command::new("dnsmasq")
                .args([
                    "--no-daemon",
                    "--conf-file=/dev/null",
                    "--port=0",
                    "--interface=server",
                    "--bind-interfaces",
                    "--no-ping",
                ])
                .args(["--user=root", "--dhcp-authoritative", "--log-dhcp"])
                .arg(format!("--dhcp-leasefile={}", leases.display()))
                .args(options)
                .stderr(Stdio::piped())
                .spawn()
        });
        let mut child = match child {
            Ok(child) => child,
            Err(err) => {
                eprintln!("SKIPPED: no DHCP server to test against (dnsmasq: {err})");
                return None;
            }
        };
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let said: Vec<String> = lines
            .by_ref()
            .map_while(Result::ok)
            .take_while(|line| !line.contains("sockets bound"))
            .collect();
        assert!(
            child.try_wait().expect("a child").is_none(),
            "dnsmasq ended: {said:?}"
        );
        // It must not block on a full pipe.
        let (sender, lines_read) = channel();
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .for_each(|line| drop(sender.send(line)));
        });
        Some(Self(child, lines_read))
    }
}

impl Server {
    /// Waits until it logs a line with `text` in it.
    fn says(&self, text: &str) {
        while !self
            .1
            .recv_timeout(LONG)
            .unwrap_or_else(|err| panic!("waiting for {text:?}: {err}"))
            .contains(text)
        {}
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_lease_gives_address_routes_resolver_and_mtu() {
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.cable(true);
    let options = [
        "--dhcp-range=192.0.2.50,192.0.2.50,2m",
        "--dhcp-option=option:router,192.0.2.1",
        "--dhcp-option=option:dns-server,192.0.2.53,192.0.2.54",
        "--dhcp-option=option:domain-name,lab.example",
        "--dhcp-option=option:domain-search,a.example,b.lab.example",
        "--dhcp-option=option:mtu,1400",
        "--dhcp-option=option:ntp-server,192.0.2.123",
        "--dhcp-option=option:classless-static-route,0.0.0.0/0,192.0.2.1,198.51.100.0/24,192.0.2.2",
    ];
    let Some(_server) = Server::start(&machine, &options) else {
        return;
    };
    machine.start("");
    machine.told("STATUS=eth0: 192.0.2.50/24 from DHCP server 192.0.2.1");
    let online = online::wait(&machine.path(""), LONG).expect("a network");
    assert!(online.starts_with("eth0: 192.0.2.50/24"), "{online}");

    let address = machine.world.ip("-4 addr show dev eth0");
    assert!(
        address.contains("inet 192.0.2.50/24 brd 192.0.2.255") && address.contains("valid_lft 1"),
        "{address}"
    );
    assert!(address.contains("mtu 1400"), "{address}");
    let routes = machine.world.ip("route");
    assert!(
        routes.contains("default via 192.0.2.1 dev eth0 proto dhcp src 192.0.2.50"),
        "{routes}"
    );
    assert!(
        routes.contains("198.51.100.0/24 via 192.0.2.2 dev eth0 proto dhcp"),
        "{routes}"
    );
    let resolver = fs::read_to_string(machine.path("resolv.conf")).expect("a file");
    assert!(resolver.ends_with("nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch lab.example a.example b.lab.example\n"), "{resolver}");
    let lease = fs::read_to_string(machine.path("net/lease-eth0.json")).expect("a file");
    assert!(lease.contains("192.0.2.123"), "{lease}");
    let leases = fs::read_to_string(machine.path("dnsmasq.leases")).expect("the server's file");
    assert!(leases.contains(" 192.0.2.50 node "), "{leases}");
}

#[test]
fn a_cable_that_is_plugged_in_later_brings_the_network() {
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.start("");
    machine.told("READY=1\nSTATUS=no network: eth0: no carrier");
    let error = online::wait(&machine.path(""), Duration::ZERO).expect_err("no network");
    assert!(
        error.to_string().starts_with("no network after 0 s"),
        "{error}"
    );
    // Binding needs the link, so plug it in for the server first; the client hears of the carrier at the same moment and keeps asking.
    machine.cable(true);
    let Some(_server) = Server::start(&machine, &["--dhcp-range=192.0.2.60,192.0.2.60,1h"]) else {
        return;
    };
    online::wait(&machine.path(""), LONG).expect("a network");
    assert!(
        machine
            .world
            .ip("-4 addr show dev eth0")
            .contains("192.0.2.60/24")
    );

    machine.cable(false);
    machine.told("192.0.2.60/24 from DHCP server 192.0.2.1, no carrier");
    machine.cable(true);
    machine.told("STATUS=eth0: 192.0.2.60/24 from DHCP server 192.0.2.1");
}

#[test]
fn fixed_addresses_and_routes_need_no_server() {
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.cable(true);
    machine.start(
        "network:
  interfaces:
    - name: eth0
      addresses: [192.0.2.7/24, '2001:db8::7/64']
      gateway: 192.0.2.1
      mtu: 1420
      routes:
        - {to: 198.51.100.9/24, via: 192.0.2.9, metric: 50}
  nameservers: [192.0.2.53]
  search: [lab.example]
",
    );
    machine.told("STATUS=eth0: 192.0.2.7/24, 2001:db8::7/64");
    let routes = machine.world.ip("route");
    assert!(
        routes.contains("default via 192.0.2.1 dev eth0 proto static"),
        "{routes}"
    );
    assert!(
        routes.contains("198.51.100.0/24 via 192.0.2.9 dev eth0 proto static metric 50"),
        "{routes}"
    );
    assert!(machine.world.ip("addr show dev eth0").contains("mtu 1420"));
    assert!(
        machine
            .world
            .ip("-6 addr show dev eth0")
            .contains("2001:db8::7/64")
    );
    let resolver = fs::read_to_string(machine.path("resolv.conf")).expect("a file");
    assert!(
        resolver.ends_with("nameserver 192.0.2.53\nsearch lab.example\n"),
        "{resolver}"
    );
}

#[test]
fn an_address_that_a_neighbour_has_is_declined_for_another() {
    let Some(machine) = Machine::new() else {
        return;
    };
    // The neighbour is on a switch with the server and the machine.
    let neighbour = World::new().expect("the first ones could be made");
    for line in [
        "addr del 192.0.2.1/24 dev server",
        "link set server name wire",
        "link add name server type bridge",
        "addr add 192.0.2.1/24 dev server",
        "link set wire master server up",
        "link add port master server type veth peer name cable",
        "link set port up",
    ] {
        machine.network.ip(line);
    }
    move_link(&machine.network, "cable", &neighbour);
    neighbour.ip("addr add 192.0.2.70/24 dev cable");
    neighbour.ip("link set cable up");
    machine.cable(true);
    let options = [
        "--dhcp-range=192.0.2.70,192.0.2.71,1h",
        "--dhcp-host=02:00:00:00:00:01,192.0.2.70",
    ];
    let Some(server) = Server::start(&machine, &options) else {
        return;
    };
    machine.start("");
    server.says("DHCPDECLINE(server) 192.0.2.70");
    machine.told("192.0.2.71/24 from DHCP server");
    let addresses = machine.world.ip("-4 addr show dev eth0");
    assert!(!addresses.contains("192.0.2.70"), "{addresses}");
}

/// Every line that any role of this process logged.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static MORE: Condvar = Condvar::new();

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut lines = LINES.lock().expect("no thread panicked");
        lines.push(format!("{}: {}", record.level(), record.args()));
        MORE.notify_all();
    }

    fn flush(&self) {}
}

#[test]
fn without_a_network_the_log_says_what_each_link_lacks() {
    let Some(machine) = Machine::new() else {
        return;
    };
    log::set_logger(&Lines).expect("only this test sets one");
    log::set_max_level(log::LevelFilter::Warn);
    machine.start("network: {interfaces: [{name: eth0}, {name: missing7}]}\n");
    let is_ours = |line: &&String| line.contains("missing7");
    let none_yet = |lines: &mut Vec<String>| !lines.iter().any(|line| is_ours(&line));
    let lines = LINES.lock().expect("no thread panicked");
    let (lines, timeout) = MORE
        .wait_timeout_while(lines, LONG, none_yet)
        .expect("no thread panicked");
    assert!(!timeout.timed_out(), "{lines:?}");
    let ours: Vec<&String> = lines.iter().filter(is_ours).collect();
    assert_eq!(
        ours,
        ["WARN: no network: eth0: no carrier; missing7: no such link"]
    );
    drop(lines);
    let error = online::wait(&machine.path(""), Duration::ZERO).expect_err("no network");
    assert!(matches!(error, online::Error::TimedOut(_)), "{error}");
}
