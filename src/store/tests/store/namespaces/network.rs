//! Network namespaces on a bridge, and ways between them that can be cut. None has a name: all are gone with the
//! process that made them, however it ends.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd as _;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

/// The namespace of this thread.
const OWN: &str = "/proc/thread-self/ns/net";
/// Where the bridge is, and with it the clients.
const BRIDGE: &str = "10.77.0.1/24";

/// Drops what comes from the addresses in the set `away`.
const RULES: &str = "table inet cut {
    set away { type ipv4_addr; }
    chain input { type filter hook input priority 0; ip saddr @away drop; }
}";

/// A bridge, and hosts at it.
#[derive(Debug)]
pub(super) struct Network {
    bridge: File,
    hosts: Vec<File>,
}

/// Leads the thread back.
struct Back(File);

impl Drop for Back {
    fn drop(&mut self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).expect("go back to a namespace");
    }
}

fn own() -> File {
    File::open(OWN).expect("the thread's namespace")
}

fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.unwrap_or_else(|err| panic!("{words:?}: {err}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
}

fn ip(words: &str) {
    let words: Vec<&str> = ["ip"].into_iter().chain(words.split(' ')).collect();
    run(&words);
}

/// The address of a host.
pub(super) fn address(host: usize) -> IpAddr {
    let last = u8::try_from(host + 10).expect("there are few hosts");
    Ipv4Addr::new(10, 77, 0, last).into()
}

impl Network {
    /// Why there can be none on this machine.
    pub(super) fn missing() -> Option<&'static str> {
        if !nix::unistd::Uid::effective().is_root() {
            return Some("namespaces need root");
        }
        // On a thread of its own, which takes the namespace along when it ends.
        let attempt = || {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                return Some("namespaces cannot be made here");
            }
            let works = |program: &str, words: &[&str]| {
                let output = Command::new(program).args(words).output();
                output.is_ok_and(|output| output.status.success())
            };
            if !works("ip", &["link"]) || !works("nft", &["list", "tables"]) {
                return Some("ip and nft are needed (packages iproute2, nftables)");
            }
            None
        };
        std::thread::spawn(attempt).join().expect("no panic")
    }

    pub(super) fn new(count: usize) -> Self {
        let _back = Back(own());
        let fresh = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("make a namespace");
            ip("link set lo up");
            own()
        };
        let hosts: Vec<File> = (0..count).map(|_| fresh()).collect();
        let bridge = fresh();
        ip("link add bridge type bridge");
        ip(&format!("address add {BRIDGE} dev bridge"));
        ip("link set bridge up");
        let process = std::process::id();
        for (number, host) in hosts.iter().enumerate() {
            let there = format!("/proc/{process}/fd/{}", host.as_raw_fd());
            ip(&format!(
                "link add port{number} type veth peer name eth0 netns {there}"
            ));
            ip(&format!("link set port{number} master bridge up"));
        }
        let network = Self { bridge, hosts };
        for host in 0..count {
            network.at(host, || {
                ip(&format!("address add {}/24 dev eth0", address(host)));
                ip("link set eth0 up");
                run(&["nft", RULES]);
            });
        }
        network
    }

    /// Does something on a host: what is started there stays there.
    pub(super) fn at<T>(&self, host: usize, work: impl FnOnce() -> T) -> T {
        let _back = Back(own());
        setns(&self.hosts[host], CloneFlags::CLONE_NEWNET).expect("enter a namespace");
        work()
    }

    /// Does something where the clients are.
    pub(super) fn at_the_bridge<T>(&self, work: impl FnOnce() -> T) -> T {
        let _back = Back(own());
        setns(&self.bridge, CloneFlags::CLONE_NEWNET).expect("enter a namespace");
        work()
    }

    /// What one host sends does not reach the other one; the way back stays as it is.
    pub(super) fn cut(&self, from: usize, to: usize) {
        let from = address(from);
        self.at(to, || {
            run(&["nft", &format!("add element inet cut away {{ {from} }}")]);
        });
    }

    /// All ways are open again.
    pub(super) fn mend(&self) {
        for host in 0..self.hosts.len() {
            self.at(host, || run(&["nft", "flush set inet cut away"]));
        }
    }
}
