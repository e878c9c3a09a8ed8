//! The resolver's file, resolv.conf(5).

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use orlop_config::Network;

use crate::dhcp::lease::Lease;

/// What C libraries read of it: `MAXNS` and, in older ones, `MAXDNSRCH` (resolv.conf(5)).
const NAME_SERVERS: usize = 3;
const SEARCH_DOMAINS: usize = 6;

/// The file's text: the configuration's servers and domains, then the leases', each once.
pub(super) fn text<'a>(
    network: &Network,
    leases: impl Iterator<Item = &'a Lease> + Clone,
) -> String {
    let mut servers: Vec<IpAddr> = network
        .nameservers
        .iter()
        .map(|server| server.value)
        .collect();
    servers.extend(
        leases
            .clone()
            .flat_map(|lease| lease.nameservers.iter().map(|ip| IpAddr::from(*ip))),
    );
    let mut domains: Vec<&str> = network
        .search
        .iter()
        .map(|domain| domain.value.as_str())
        .collect();
    domains.extend(leases.flat_map(|lease| lease.search.iter().map(String::as_str)));

    let mut text =
        String::from("# Written by orlop net: `network` of the configuration first, then DHCP.\n");
    for server in distinct(servers, NAME_SERVERS) {
        let _ = writeln!(text, "nameserver {server}");
    }
    let domains = distinct(domains, SEARCH_DOMAINS);
    if !domains.is_empty() {
        let _ = writeln!(text, "search {}", domains.join(" "));
    }
    text
}

fn distinct<T: PartialEq>(all: Vec<T>, most: usize) -> Vec<T> {
    let mut kept = Vec::new();
    for one in all {
        if kept.len() < most && !kept.contains(&one) {
            kept.push(one);
        }
    }
    kept
}

/// Replaces a file of `/run` in one step: whoever reads it sees the old or the new one whole. It is memory, so nothing is synced.
pub(super) fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("new");
    // A leftover may have another mode.
    match fs::remove_file(&aside) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&aside)?;
    file.write_all(text)?;
    fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn lease(servers: &[[u8; 4]], search: &[&str]) -> Lease {
        Lease {
            address: [10, 0, 0, 9].into(),
            prefix: 24,
            server: [10, 0, 0, 1].into(),
            routes: Vec::new(),
            nameservers: servers.iter().map(|octets| (*octets).into()).collect(),
            search: search.iter().map(|domain| (*domain).to_owned()).collect(),
            time_servers: Vec::new(),
            hostname: None,
            mtu: None,
            obtained: Duration::ZERO,
            lease_seconds: None,
            renew_seconds: None,
            rebind_seconds: None,
        }
    }

    #[test]
    fn each_server_and_domain_is_named_once_and_not_more_than_are_read() {
        let leases = [
            lease(&[[10, 0, 0, 1], [10, 0, 0, 2]], &["a.example", "b.example"]),
            lease(
                &[[10, 0, 0, 1], [10, 0, 0, 3], [10, 0, 0, 4]],
                &["a.example"],
            ),
        ];
        let text = text(&Network::default(), leases.iter());
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "nameserver 10.0.0.1",
                "nameserver 10.0.0.2",
                "nameserver 10.0.0.3",
                "search a.example b.example"
            ]
        );
    }

    #[test]
    fn without_any_the_file_has_only_its_comment() {
        assert_eq!(text(&Network::default(), [].iter()).lines().count(), 1);
    }

    #[test]
    fn a_leftover_of_a_crash_does_not_stop_the_next_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(path.with_extension("new"), "half").unwrap();
        replace(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert!(!path.with_extension("new").exists());
    }
}
