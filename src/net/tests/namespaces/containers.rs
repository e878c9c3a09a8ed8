//! Containers on the bridge.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::Mutex;

use orlop_net::container::{Attach, Attached, Error, Network, Publish};
use tempfile::TempDir;

use crate::world::{PATIENCE, SILENCE, World, move_link};

/// A machine with one neighbour on a cable: the machine is 192.0.2.1, the neighbour 192.0.2.2.
struct Site {
    machine: World,
    neighbour: World,
    network: Network,
    _directory: TempDir,
}

impl Site {
    fn new() -> Option<Self> {
        let (machine, neighbour) = (World::new()?, World::new()?);
        machine.ip("link add outside type veth peer name cable");
        move_link(&machine, "cable", &neighbour);
        machine.ip("addr add 192.0.2.1/24 dev outside");
        machine.ip("link set outside up");
        neighbour.ip("addr add 192.0.2.2/24 dev cable");
        neighbour.ip("link set cable up");
        let directory = tempfile::tempdir().expect("a directory");
        let network = Network {
            directory: directory.path().to_path_buf(),
            ..Network::default()
        };
        Some(Self {
            machine,
            neighbour,
            network,
            _directory: directory,
        })
    }

    fn attach(&self, name: &str, world: &World, publish: &[&str]) -> Result<Attached, Error> {
        let publish: Vec<Publish> = publish
            .iter()
            .flat_map(|text| Publish::parse(text).expect("a port"))
            .collect();
        self.machine.run(|| {
            self.network.attach(&Attach {
                name,
                netns: world.fd(),
                publish: &publish,
            })
        })
    }

    fn detach(&self, name: &str) {
        self.machine
            .run(|| self.network.detach(name))
            .expect("detaching works");
    }

    fn rules(&self) -> String {
        self.machine.command("nft", &["list", "ruleset"])
    }
}

fn container() -> World {
    World::new().expect("the first one could be made")
}

#[test]
fn a_container_reaches_out_and_is_reached_by_its_published_ports() {
    let Some(site) = Site::new() else { return };
    let web = container();
    let attached = site
        .attach("web", &web, &["8080:80", "5353:53/udp"])
        .expect("attaching works");
    assert_eq!(attached.address.to_string(), "172.30.0.2");
    assert_eq!(
        (attached.gateway.to_string().as_str(), attached.prefix),
        ("172.30.0.1", 16)
    );
    web.serve_tcp("0.0.0.0:80");
    web.serve_udp("0.0.0.0:53");
    site.neighbour.serve_tcp("0.0.0.0:7000");

    // The neighbour sees the machine, not the container; the container sees the neighbour itself.
    assert_eq!(
        web.call_tcp("192.0.2.2:7000", PATIENCE).as_deref(),
        Ok("you are 192.0.2.1")
    );
    assert_eq!(
        site.neighbour
            .call_tcp("192.0.2.1:8080", PATIENCE)
            .as_deref(),
        Ok("you are 192.0.2.2")
    );
    assert_eq!(
        site.neighbour
            .call_udp("192.0.2.1:5353", PATIENCE)
            .as_deref(),
        Ok("you are 192.0.2.2")
    );
    // The machine itself, by each of its addresses.
    assert_eq!(
        site.machine.call_tcp("192.0.2.1:8080", PATIENCE).as_deref(),
        Ok("you are 192.0.2.1")
    );
    assert_eq!(
        site.machine.call_tcp("127.0.0.1:8080", PATIENCE).as_deref(),
        Ok("you are 172.30.0.1")
    );
    assert_eq!(
        site.machine.call_udp("127.0.0.1:5353", PATIENCE).as_deref(),
        Ok("you are 172.30.0.1")
    );
    assert_eq!(
        site.machine.call_tcp("172.30.0.2:80", PATIENCE).as_deref(),
        Ok("you are 172.30.0.1")
    );
    // The container itself and another one, through the machine's address.
    assert_eq!(
        web.call_tcp("192.0.2.1:8080", PATIENCE).as_deref(),
        Ok("you are 172.30.0.1")
    );
    let other = container();
    site.attach("other", &other, &[]).expect("attaching works");
    assert_eq!(
        other.call_tcp("192.0.2.1:8080", PATIENCE).as_deref(),
        Ok("you are 172.30.0.1")
    );
    assert_eq!(
        other.call_tcp("172.30.0.1:8080", PATIENCE).as_deref(),
        Ok("you are 172.30.0.1")
    );
    assert_eq!(
        other.call_tcp("172.30.0.2:80", PATIENCE).as_deref(),
        Ok("you are 172.30.0.3")
    );
    assert_eq!(
        other
            .call_tcp("127.0.0.1:8080", PATIENCE)
            .map_err(|e| e.contains("refused")),
        Err(true)
    );
}

#[test]
fn what_was_not_published_is_closed_to_neighbours() {
    let Some(site) = Site::new() else { return };
    let web = container();
    site.attach("web", &web, &["127.0.0.1:8081:80", "192.0.2.1:8082:80"])
        .expect("attaching works");
    web.serve_tcp("0.0.0.0:80");
    site.neighbour.ip("route add 172.30.0.0/16 via 192.0.2.1");
    assert!(site.neighbour.call_tcp("172.30.0.2:80", SILENCE).is_err());
    assert!(site.neighbour.call_tcp("192.0.2.1:8081", SILENCE).is_err());
    assert!(site.machine.call_tcp("127.0.0.1:8081", PATIENCE).is_ok());
    assert!(site.machine.call_tcp("192.0.2.1:8081", SILENCE).is_err());
    assert!(site.neighbour.call_tcp("192.0.2.1:8082", PATIENCE).is_ok());
    assert!(site.machine.call_tcp("127.0.0.1:8082", SILENCE).is_err());
}

#[test]
fn a_container_does_not_reach_the_machines_loopback() {
    let Some(site) = Site::new() else { return };
    let evil = container();
    site.attach("evil", &evil, &[]).expect("attaching works");
    evil.ip("route del local 127.0.0.1 dev lo table local");
    evil.ip("route del local 127.0.0.0/8 dev lo table local");
    evil.ip("route add 127.0.0.1 via 172.30.0.1 src 172.30.0.2");
    let loopback = site
        .machine
        .run(|| UdpSocket::bind("127.0.0.1:9000").expect("the port is free"));
    let hears = |patience| {
        loopback
            .set_read_timeout(Some(patience))
            .expect("a timeout");
        evil.udp_client("127.0.0.1:9000").tell();
        loopback.recv(&mut [0; 8]).is_ok()
    };
    assert!(!hears(SILENCE));
    // It is the guard that holds it off, nothing else about this test.
    site.machine
        .command("nft", &["flush", "chain", "ip", "orlop", "guard"]);
    assert!(hears(PATIENCE));
}

#[test]
fn a_port_that_is_taken_is_refused_with_its_holder_and_nothing_stays() {
    let Some(site) = Site::new() else { return };
    let (first, second) = (container(), container());
    site.attach("first", &first, &["8080:80"])
        .expect("attaching works");
    let (rules, links) = (site.rules(), site.machine.ip("-o link"));
    let err = site
        .attach("second", &second, &["9090:90", "192.0.2.1:8080:80"])
        .expect_err("the port is taken");
    assert_eq!(
        err.to_string(),
        "container second: port 192.0.2.1:8080/tcp is already published by container first"
    );
    site.machine.serve_tcp("127.0.0.1:7777");
    let err = site
        .attach("second", &second, &["7777:80"])
        .expect_err("the machine uses it");
    assert_eq!(
        err.to_string(),
        "container second: port 7777/tcp cannot be published: the machine itself uses it"
    );
    assert_eq!((site.rules(), site.machine.ip("-o link")), (rules, links));

    site.attach("second", &second, &["8080:80/udp"])
        .expect("another protocol is free");
    site.detach("first");
    let third = container();
    site.attach("third", &third, &["8080:80"])
        .expect("the port is free again");
    third.serve_tcp("0.0.0.0:80");
    assert!(site.neighbour.call_tcp("192.0.2.1:8080", PATIENCE).is_ok());
}

#[test]
fn detaching_takes_exactly_what_attaching_gave() {
    let Some(site) = Site::new() else { return };
    let (first, second) = (container(), container());
    site.attach("first", &first, &["8080:80", "127.0.0.1:53:53/udp"])
        .expect("attaching works");
    let before = (site.rules(), site.machine.ip("-o link show type veth"));
    site.attach(
        "second",
        &second,
        &["8000-8020:9000-9020", "192.0.2.1:53:53/udp"],
    )
    .expect("attaching works");
    assert!(
        site.rules()
            .contains("tcp . 8020 comment \"second\" : 172.30.0.3 . 9020"),
        "{}",
        site.rules()
    );
    site.detach("second");
    site.detach("second");
    site.detach("never-was");
    assert_eq!(
        (site.rules(), site.machine.ip("-o link show type veth")),
        before
    );
    assert!(!second.ip("link").contains("eth0"));
    site.detach("first");
    assert!(!site.rules().contains("elements"), "{}", site.rules());
}

#[test]
fn attaching_again_changes_nothing_or_replaces() {
    let Some(site) = Site::new() else { return };
    let (old, new) = (container(), container());
    let first = site
        .attach("web", &old, &["8080:80"])
        .expect("attaching works");
    let rules = site.rules();
    assert_eq!(
        site.attach("web", &old, &["8080:80"])
            .expect("attaching works"),
        first
    );
    assert_eq!(site.rules(), rules);
    // Restarted: another namespace, and the port is its own again.
    let second = site
        .attach("web", &new, &["8080:80"])
        .expect("attaching works");
    assert_ne!(second.address, first.address);
    new.serve_tcp("0.0.0.0:80");
    assert!(site.neighbour.call_tcp("192.0.2.1:8080", PATIENCE).is_ok());
    assert!(!old.ip("link").contains("eth0"));
}

#[test]
fn what_the_dead_left_is_taken_back() {
    let Some(site) = Site::new() else { return };
    let (dead, alive) = (container(), container());
    site.attach("dead", &dead, &["8080:80"])
        .expect("attaching works");
    site.attach("alive", &alive, &["9090:80"])
        .expect("attaching works");
    // What the end of its namespace does.
    site.machine.ip("link del orlop-2");
    let cleaned = site
        .machine
        .run(|| site.network.cleanup_stale())
        .expect("cleaning works");
    assert_eq!(cleaned, ["dead"]);
    assert!(
        !site.rules().contains("8080") && site.rules().contains("9090"),
        "{}",
        site.rules()
    );
    // And without a cleaner, by whoever comes next.
    site.machine.ip("link del orlop-3");
    let next = container();
    site.attach("next", &next, &["9090:80"])
        .expect("a dead container's port is free");
}

#[test]
fn rules_that_someone_flushed_come_back_for_everyone() {
    let Some(site) = Site::new() else { return };
    let (web, other) = (container(), container());
    site.attach("web", &web, &["8080:80"])
        .expect("attaching works");
    web.serve_tcp("0.0.0.0:80");
    let before = site.rules();
    site.machine.command("nft", &["flush", "ruleset"]);
    site.attach("other", &other, &[]).expect("attaching works");
    assert_eq!(site.rules(), before);
    site.machine.command("nft", &["flush", "ruleset"]);
    site.detach("web");
}

#[test]
fn many_at_once_get_an_address_each() {
    let Some(site) = Site::new() else { return };
    let worlds: Vec<World> = (0..8).map(|_| container()).collect();
    let given = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for (at, world) in worlds.iter().enumerate() {
            let (site, given) = (&site, &given);
            scope.spawn(move || {
                let port = format!("{}:80", 8000 + at);
                let attached = site
                    .attach(&format!("c{at}"), world, &[&port])
                    .expect("attaching works");
                given
                    .lock()
                    .expect("no thread panicked")
                    .insert(attached.address);
            });
        }
    });
    assert_eq!(given.into_inner().expect("no thread panicked").len(), 8);
    assert_eq!(site.rules().matches(" : 172.30.0.").count(), 8);
}

#[test]
fn a_server_of_datagrams_that_comes_later_gets_those_of_a_client_that_went_on_asking() {
    let Some(site) = Site::new() else { return };
    let (old, new) = (container(), container());
    site.attach("dns", &old, &["5353:53/udp"])
        .expect("attaching works");
    old.serve_udp("0.0.0.0:53");
    let client = site.neighbour.udp_client("192.0.2.1:5353");
    client.ask(PATIENCE).expect("the first one answers");
    site.attach("dns", &new, &["5353:53/udp"])
        .expect("attaching works");
    new.serve_udp("0.0.0.0:53");
    // The same port of the client: the kernel still knows the connection.
    client.ask(PATIENCE).expect("the second one answers");
}
