//! Addresses, as URLs on the command line have them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use orlop_store::server::PEER_PORT;

/// A member's URL for peers; without a port it is the usual one. Members without TLS are asked for by `http://` alone.
pub(super) fn seed_url(seed: &str, tls: bool) -> Result<String, String> {
    let scheme = if tls { "https" } else { "http" };
    let bad = || format!("-join: members are reached at {scheme}://IP:PORT, not at {seed:?}");
    let (scheme, rest) = match seed.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        None if tls => (scheme, seed),
        _ => return Err(bad()),
    };
    if scheme == "https" && !tls {
        return Err("-join: https:// needs -peer-cert-file".into());
    }
    let rest = rest.trim_end_matches('/');
    let address = match rest.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, PEER_PORT),
        Err(_) => rest.parse().map_err(|_| bad())?,
    };
    Ok(format!("{scheme}://{address}"))
}

/// The addresses to listen on: without TLS, and with it.
pub(super) fn listening(
    flag: &str,
    urls: &[String],
) -> Result<(Vec<SocketAddr>, Vec<SocketAddr>), String> {
    let (mut plain, mut with) = (Vec::new(), Vec::new());
    for url in urls {
        match url.strip_prefix("https://") {
            Some(rest) => with.extend(addresses(&format!("http://{rest}"))?),
            None => plain.extend(addresses(url)?),
        }
    }
    if plain.is_empty() && with.is_empty() {
        return Err(format!("-{flag} names no address"));
    }
    Ok((plain, with))
}

/// The addresses of a URL to listen on. No name is resolved: `localhost` is the IPv4 loopback.
fn addresses(url: &str) -> Result<Option<SocketAddr>, String> {
    let Some(rest) = url.strip_prefix("http://") else {
        return Err(format!(
            "cannot listen on {url:?}: it must be http://IP:PORT"
        ));
    };
    let rest = rest.trim_end_matches('/');
    if let Some(port) = rest.strip_prefix("localhost:") {
        let port = port
            .parse()
            .map_err(|_| format!("cannot listen on {url:?}: no port"))?;
        return Ok(Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
    }
    rest.parse()
        .map(Some)
        .map_err(|_| format!("cannot listen on {url:?}: it must be http://IP:PORT"))
}
