//! Addresses of a host: by itself, from `/etc/hosts`, or from a name server (RFC 1035). The C library's resolver is not in the
//! binary.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use thiserror::Error;

/// How long a server may take, and how often all are asked.
const PATIENCE: Duration = Duration::from_secs(2);
const ROUNDS: u32 = 2;

const PORT: u16 = 53;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// The most addresses that are tried.
const MOST_ADDRESSES: usize = 8;

/// Why a host has no address.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// No server is configured.
    #[error("there is no name server in /etc/resolv.conf to ask for {0}")]
    NoServer(String),
    /// No server answers.
    #[error("no name server answers for {0}")]
    NoAnswer(String, #[source] io::Error),
    /// The name does not exist.
    #[error("the name {0} has no address")]
    NoAddress(String),
    /// It can not be asked for.
    #[error("{0:?} is no name of a host")]
    Name(String),
}

/// The addresses of `host`.
pub fn resolve(host: &str) -> Result<Vec<IpAddr>, ResolveError> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let known = in_hosts(&text("/etc/hosts"), host);
    if !known.is_empty() {
        return Ok(known);
    }
    let (servers, search) = configuration(&text("/etc/resolv.conf"));
    if servers.is_empty() {
        return Err(ResolveError::NoServer(host.to_owned()));
    }
    let mut names = vec![host.trim_end_matches('.').to_owned()];
    if !host.contains('.') {
        names.extend(search.iter().map(|domain| format!("{host}.{domain}")));
    }
    for name in &names {
        let mut found = ask_all(&servers, name, TYPE_A)?;
        found.extend(ask_all(&servers, name, TYPE_AAAA).unwrap_or_default());
        found.truncate(MOST_ADDRESSES);
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(ResolveError::NoAddress(host.to_owned()))
}

/// The addresses of `host` in a text of the form of hosts(5).
fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words
                .any(|name| name.eq_ignore_ascii_case(host))
                .then_some(address)
        })
        .take(MOST_ADDRESSES)
        .collect()
}

/// Servers and search domains of a resolv.conf(5).
fn configuration(text: &str) -> (Vec<IpAddr>, Vec<String>) {
    let (mut servers, mut search) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(
                words
                    .next()
                    .and_then(|server| server.parse::<IpAddr>().ok()),
            ),
            Some("search") => search = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    servers.truncate(3);
    search.truncate(6);
    (servers, search)
}

/// Asks the servers in turn. A name without such an address has none; that is an answer.
fn ask_all(servers: &[IpAddr], name: &str, kind: u16) -> Result<Vec<IpAddr>, ResolveError> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for _ in 0..ROUNDS {
        for server in servers {
            match ask(SocketAddr::new(*server, PORT), name, kind) {
                Ok(answer) => return answer,
                Err(error) => last = error,
            }
        }
    }
    Err(ResolveError::NoAnswer(name.to_owned(), last))
}

fn ask(server: SocketAddr, name: &str, kind: u16) -> io::Result<Result<Vec<IpAddr>, ResolveError>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let mut id = [0; 2];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut id)?;
    let Some(query) = encode(u16::from_le_bytes(id), name, kind) else {
        return Ok(Err(ResolveError::Name(name.to_owned())));
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&query)?;
    let mut answer = [0; 1500];
    let length = socket.recv(&mut answer)?;
    match decode(answer.get(..length).unwrap_or_default(), &query, kind) {
        Some(addresses) => Ok(Ok(addresses)),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the answer is not understood, or the server failed",
        )),
    }
}

/// A query with one question, recursion desired (RFC 1035 §4.1).
fn encode(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..=63).contains(length))?;
        query.push(length);
        query.extend(label.bytes());
    }
    query.push(0);
    query.extend(kind.to_be_bytes());
    query.extend([0, 1]);
    (name.len() <= 253).then_some(query)
}

/// The addresses in an answer to `query`; none when the name does not exist (`NXDOMAIN`). Total.
fn decode(answer: &[u8], query: &[u8], kind: u16) -> Option<Vec<IpAddr>> {
    let number = |at: usize| Some(u16::from_be_bytes(*answer.get(at..)?.first_chunk()?));
    let flags = number(2)?;
    let is_reply = flags & 0x8000 != 0 && answer.get(..2) == query.get(..2);
    // Our question comes back as it was.
    if !is_reply || answer.get(12..query.len()) != query.get(12..) {
        return None;
    }
    match flags & 0xf {
        0 => {}
        3 => return Some(Vec::new()),
        _ => return None,
    }
    let mut at = query.len();
    let mut addresses = Vec::new();
    for _ in 0..number(6)?.min(64) {
        at = after_name(answer, at)?;
        let (is_kind, length) = (number(at)? == kind, usize::from(number(at + 8)?));
        let data = answer.get(at + 10..)?.get(..length)?;
        if is_kind {
            addresses.extend(<[u8; 4]>::try_from(data).map(IpAddr::from));
            addresses.extend(<[u8; 16]>::try_from(data).map(IpAddr::from));
        }
        at += 10 + length;
    }
    Some(addresses)
}

/// Where a name ends: behind its last label, or behind a pointer (RFC 1035 §4.1.4).
fn after_name(answer: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *answer.get(at)? {
            0 => return Some(at + 1),
            0xc0..=0xff => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_answer_with_an_alias_and_an_address_is_read() {
        let query = encode(7, "updates.example", TYPE_A).unwrap();
        let mut answer = query.clone();
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        answer[7] = 2;
        // CNAME to a pointer, then A.
        answer.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12]);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1]);
        assert_eq!(
            decode(&answer, &query, TYPE_A).unwrap(),
            [IpAddr::from([192, 0, 2, 1])]
        );
        let other = encode(8, "updates.example", TYPE_A).unwrap();
        assert_eq!(
            decode(&answer, &other, TYPE_A),
            None,
            "not the answer to this question"
        );
        answer[3] = 0x83;
        assert_eq!(
            decode(&answer, &query, TYPE_A).unwrap(),
            Vec::<IpAddr>::new()
        );
        answer[3] = 0x82;
        assert_eq!(decode(&answer, &query, TYPE_A), None, "the server failed");
    }

    #[test]
    fn hosts_and_resolv_conf_are_read() {
        let hosts = "127.0.0.1 localhost # home\n192.0.2.7\tupdates Updates.example\nx y\n";
        assert_eq!(
            in_hosts(hosts, "UPDATES.example"),
            [IpAddr::from([192, 0, 2, 7])]
        );
        assert!(in_hosts(hosts, "home").is_empty());
        let (servers, search) = configuration(
            "# x\nnameserver 192.0.2.1\nnameserver fd00::1\nsearch a.example b.example\n",
        );
        assert_eq!((servers.len(), search.len()), (2, 2));
        assert_eq!(resolve("::1").unwrap().len(), 1);
        assert!(encode(0, "a..b", TYPE_A).is_none());
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(mut answer in proptest::collection::vec(any::<u8>(), 0..200), is_ours in any::<bool>()) {
            let query = encode(7, "a.b", TYPE_AAAA).unwrap();
            if is_ours {
                for (to, from) in answer.iter_mut().zip(&query) { *to = *from; }
                if let Some(flags) = answer.get_mut(2..4) { flags.copy_from_slice(&[0x80, 0]); }
            }
            let _ = decode(&answer, &query, TYPE_AAAA);
        }
    }
}
