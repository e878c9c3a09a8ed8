//! Containers on the bridge.

use std::fs;

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
