//! Ports of the machine that lead to a container.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most ports that one range may have.
const LONGEST_RANGE: u16 = 1000;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The number in an IP header (`IPPROTO_*`).
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One port of the machine that leads to one port of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Publish {
    /// The machine's address on which it is; `None` for all of them.
    pub host_ip: Option<Ipv4Addr>,
    /// The machine's port, not 0.
    pub host_port: u16,
    /// The container's port, not 0.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl Publish {
    /// Whether both claim a common address and port of the machine.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && (self.host_ip.is_none() || other.host_ip.is_none() || self.host_ip == other.host_ip)
    }

    /// Reads Docker's `[HOST_IP:]HOST_PORT[-END]:CONTAINER_PORT[-END][/tcp|/udp]`; a range is as many ports.
    pub fn parse(text: &str) -> Result<Vec<Self>, ParsePublishError> {
        let wrong = |what| ParsePublishError {
            text: text.chars().take(100).collect(),
            what,
        };
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, protocol)) if protocol.eq_ignore_ascii_case("tcp") => {
                (ports, Protocol::Tcp)
            }
            Some((ports, protocol)) if protocol.eq_ignore_ascii_case("udp") => {
                (ports, Protocol::Udp)
            }
            Some(_) => return Err(wrong("the protocol must be tcp or udp")),
        };
        let (rest, container) = ports.rsplit_once(':').ok_or_else(|| {
            wrong("a port of the machine must be named: HOST_PORT:CONTAINER_PORT")
        })?;
        let (host_ip, host) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some(("", host)) => (None, host),
            Some((ip, host)) => (
                Some(
                    ip.parse::<Ipv4Addr>()
                        .map_err(|_| wrong("the machine's address must be an IPv4 address"))?,
                ),
                host,
            ),
        };
        let range = |text: &str| -> Option<(u16, u16)> {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
            (first > 0 && last >= first).then(|| (first, last - first))
        };
        let (host_first, host_more) = range(host)
            .ok_or_else(|| wrong("the machine's port must be 1 to 65535, or a range"))?;
        let (container_first, container_more) = range(container)
            .ok_or_else(|| wrong("the container's port must be 1 to 65535, or a range"))?;
        if host_more != container_more {
            return Err(wrong("both ranges must be of the same length"));
        }
        if host_more >= LONGEST_RANGE {
            return Err(wrong("a range may have 1000 ports at most"));
        }
        Ok((0..=host_more)
            .map(|at| Self {
                host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
                host_port: host_first + at,
                container_port: container_first + at,
                protocol,
            })
            .collect())
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ip) = self.host_ip {
            write!(f, "{ip}:")?;
        }
        write!(f, "{}/{}", self.host_port, self.protocol)
    }
}

/// What is wrong with the text of a published port.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("published port {text:?}: {what}")]
pub struct ParsePublishError {
    text: String,
    what: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(
        host_ip: Option<[u8; 4]>,
        host_port: u16,
        container_port: u16,
        protocol: Protocol,
    ) -> Publish {
        Publish {
            host_ip: host_ip.map(Ipv4Addr::from),
            host_port,
            container_port,
            protocol,
        }
    }

    #[test]
    fn dockers_forms_are_read() {
        assert_eq!(
            Publish::parse("80:8080").unwrap(),
            [one(None, 80, 8080, Protocol::Tcp)]
        );
        assert_eq!(
            Publish::parse("53:53/udp").unwrap(),
            [one(None, 53, 53, Protocol::Udp)]
        );
        assert_eq!(
            Publish::parse("127.0.0.1:80:8080/tcp").unwrap(),
            [one(Some([127, 0, 0, 1]), 80, 8080, Protocol::Tcp)]
        );
        assert_eq!(
            Publish::parse("0.0.0.0:80:80").unwrap(),
            [one(None, 80, 80, Protocol::Tcp)]
        );
        assert_eq!(
            Publish::parse("8000-8001:90-91").unwrap(),
            [
                one(None, 8000, 90, Protocol::Tcp),
                one(None, 8001, 91, Protocol::Tcp)
            ]
        );
        for bad in [
            "",
            "80",
            ":80",
            "0:80",
            "80:0",
            "80:80/sctp",
            "65536:1",
            "1-2:1-3",
            "x:80:80",
            "1-60000:1-60000",
            "5-4:5-4",
        ] {
            assert!(Publish::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_on_all_addresses_overlaps_with_one_on_a_single_address() {
        let any = one(None, 80, 1, Protocol::Tcp);
        let local = one(Some([127, 0, 0, 1]), 80, 2, Protocol::Tcp);
        let other = one(Some([10, 0, 0, 1]), 80, 3, Protocol::Tcp);
        assert!(any.overlaps(&local) && local.overlaps(&any) && any.overlaps(&any));
        assert!(!local.overlaps(&other));
        assert!(!any.overlaps(&one(None, 80, 1, Protocol::Udp)));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[0-9:./a-z-]{0,40}") {
            let _ = Publish::parse(&text);
        }
    }
}
