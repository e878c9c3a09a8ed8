//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use orlop_container::{MountRequest, MountSource};

use super::flags::{Network, RunFlags};

/// Where the network role writes what it learned of name servers.
const MACHINE_RESOLV_CONF: [&str; 2] = ["/run/orlop/resolv.conf", "/etc/resolv.conf"];

/// Makes the files in `directory`, and says how to mount them; [`write_hosts`] comes again when the address is known.
pub(crate) fn prepare(
    directory: &Path,
    flags: &RunFlags,
    hostname: &str,
    network: Network,
) -> Result<Vec<MountRequest>> {
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    write(directory, "hostname", &format!("{hostname}\n"))?;
    write(directory, "resolv.conf", &resolv_conf(flags, network))?;
    write_hosts(directory, flags, hostname, network, None)?;
    let mount = |name: &str| MountRequest {
        source: MountSource::Bind(directory.join(name)),
        destination: Path::new("/etc").join(name),
        read_only: false,
        options: Vec::new(),
    };
    Ok(["hosts", "hostname", "resolv.conf"].map(mount).into())
}

/// Writes the hosts file, with the container's address and the bridge's once they are known.
pub(crate) fn write_hosts(
    directory: &Path,
    flags: &RunFlags,
    hostname: &str,
    network: Network,
    addresses: Option<(Ipv4Addr, Ipv4Addr)>,
) -> Result<()> {
    let mut text = match network {
        Network::Host => std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
        _ => "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
              ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
            .to_owned(),
    };
    for entry in &flags.add_host {
        let (name, address) = entry
            .split_once([':', '='])
            .ok_or_else(|| anyhow!("--add-host {entry:?} is not NAME:ADDRESS"))?;
        let address: IpAddr = match (address, addresses) {
            ("host-gateway", Some((_, gateway))) => gateway.into(),
            ("host-gateway", None) if network == Network::Host => Ipv4Addr::LOCALHOST.into(),
            // Known only when the network is there.
            ("host-gateway", None) => continue,
            (text, _) => text
                .trim_matches(['[', ']'])
                .parse()
                .map_err(|_| anyhow!("--add-host {entry:?}: no address"))?,
        };
        text.push_str(&format!("{address}\t{name}\n"));
    }
    if let Some((address, _)) = addresses {
        text.push_str(&format!("{address}\t{hostname}\n"));
    }
    write(directory, "hosts", &text)
}

fn write(directory: &Path, name: &str, text: &str) -> Result<()> {
    let path = directory.join(name);
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

fn resolv_conf(flags: &RunFlags, network: Network) -> String {
    let machine = MACHINE_RESOLV_CONF
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok())
        .unwrap_or_default();
    compose_resolv_conf(
        &machine,
        &flags.dns,
        &flags.dns_search,
        &flags.dns_option,
        network != Network::Host,
    )
}

/// The machine's file with what the flags replace; a server on the machine's loopback is out of a container's reach.
fn compose_resolv_conf(
    machine: &str,
    dns: &[String],
    search: &[String],
    options: &[String],
    own_network: bool,
) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in machine.lines() {
        let mut words = line.split_ascii_whitespace();
        let (key, value) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        let keep = match key {
            "nameserver" => {
                let loopback = value.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
                dns.is_empty() && !(own_network && loopback)
            }
            "search" | "domain" => search.is_empty(),
            "options" => options.is_empty(),
            _ => false,
        };
        if keep {
            lines.push(line.to_owned());
        }
    }
    lines.extend(dns.iter().map(|server| format!("nameserver {server}")));
    if !search.is_empty() && search != ["."] {
        lines.push(format!("search {}", search.join(" ")));
    }
    if !options.is_empty() {
        lines.push(format!("options {}", options.join(" ")));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str =
        "# made by orlop\nnameserver 127.0.0.53\nnameserver 10.0.2.3\nsearch lan\noptions edns0\n";

    #[test]
    fn a_server_on_the_machines_loopback_is_left_out() {
        let text = compose_resolv_conf(MACHINE, &[], &[], &[], true);
        assert_eq!(text, "nameserver 10.0.2.3\nsearch lan\noptions edns0\n");
        assert!(compose_resolv_conf(MACHINE, &[], &[], &[], false).contains("127.0.0.53"));
    }

    #[test]
    fn flags_replace_what_they_name() {
        let text = compose_resolv_conf(
            MACHINE,
            &["1.1.1.1".into()],
            &["a".into(), "b".into()],
            &[],
            true,
        );
        assert_eq!(text, "options edns0\nnameserver 1.1.1.1\nsearch a b\n");
    }
}
