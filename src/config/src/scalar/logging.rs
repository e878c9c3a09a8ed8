//! Where the log goes, and how much of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::text;
use crate::field::{Scalar, Wrong};
use crate::node::Scalar as Written;
use crate::problem::quoted;

/// What is spoken to a [`LogTarget`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogScheme {
    /// Syslog in datagrams.
    Udp,
    /// Syslog over a stream.
    Tcp,
    /// Syslog over TLS.
    Tls,
    /// Loki's push API.
    Http,
    /// The same over TLS.
    Https,
}

impl LogScheme {
    /// Whether there are certificates.
    #[must_use]
    pub fn is_secure(self) -> bool {
        matches!(self, Self::Tls | Self::Https)
    }
}

/// The schemes, with the port of each where none is given (RFC 5426, RFC 6587, RFC 5425, Loki, RFC 9110).
const SCHEMES: [(&str, LogScheme, u16); 5] = [
    ("udp", LogScheme::Udp, 514),
    ("tcp", LogScheme::Tcp, 601),
    ("tls", LogScheme::Tls, 6514),
    ("http", LogScheme::Http, 3100),
    ("https", LogScheme::Https, 443),
];

/// What is to be written where there is none of them.
const WRITE: &str = "write udp://, tcp://, tls://, http:// or https://";

/// Where the log goes: `udp://10.0.0.1:514`, `tls://logs.example:6514`, `http://loki.example:3100`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogTarget {
    /// What is spoken.
    pub scheme: LogScheme,
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What follows the port; empty, or from a slash on.
    pub path: String,
}

impl FromStr for LogTarget {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{} {why}", quoted(url));
        let (name, rest) = url
            .split_once("://")
            .ok_or_else(|| wrong(&format!("has no scheme: {WRITE}")))?;
        let known = SCHEMES.iter().find(|(known, _, _)| *known == name);
        let Some((_, scheme, usual_port)) = known else {
            return Err(wrong(&format!("has an unknown scheme: {WRITE}")));
        };
        let (place, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match place.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest
                    .split_once(']')
                    .ok_or_else(|| wrong("has no bracket after its address"))?;
                (
                    host,
                    port.strip_prefix(':').or((!port.is_empty()).then_some("")),
                )
            }
            None => place
                .split_once(':')
                .map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if host.is_empty() || host.len() > 253 || !host.chars().all(is_host) {
            return Err(wrong("names no host"));
        }
        let port = match port {
            None => *usual_port,
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| wrong("has a port that is none"))?,
        };
        let has_paths = matches!(scheme, LogScheme::Http | LogScheme::Https);
        if !path.trim_matches('/').is_empty() && !has_paths {
            return Err(wrong("has a path, which syslog does not"));
        }
        if !path.chars().all(|c| c.is_ascii_graphic()) {
            return Err(wrong("has a path with characters that must be escaped"));
        }
        Ok(Self {
            scheme: *scheme,
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = SCHEMES.iter().find(|(_, scheme, _)| *scheme == self.scheme);
        let scheme = scheme.map_or("", |(name, _, _)| name);
        let Self {
            host, port, path, ..
        } = self;
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}{path}")
        } else {
            write!(f, "{scheme}://{host}:{port}{path}")
        }
    }
}

text_value!(
    LogTarget,
    "a URL such as udp://10.0.0.1:514, tls://HOST:6514 or http://HOST:3100"
);

/// A priority of syslog(3): 0, `emerg`, to 7, `debug`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogPriority(pub u8);

const PRIORITIES: [&str; 8] = [
    "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug",
];

impl FromStr for LogPriority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = PRIORITIES.iter().position(|name| *name == text);
        found
            .and_then(|number| u8::try_from(number).ok())
            .map(Self)
            .ok_or_else(|| format!("{} is none of {}", quoted(text), PRIORITIES.join(", ")))
    }
}

impl fmt::Display for LogPriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PRIORITIES.get(usize::from(self.0)).unwrap_or(&"debug"))
    }
}

text_value!(LogPriority, "a priority from emerg to debug");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn targets_have_a_host_and_their_usual_ports() {
        for (url, shown) in [
            ("udp://10.0.0.1", "udp://10.0.0.1:514"),
            ("tcp://logs.example:6514/", "tcp://logs.example:6514/"),
            (
                "http://[fd00::1]/loki/x?y=1",
                "http://[fd00::1]:3100/loki/x?y=1",
            ),
            ("tcp://[::1]:1", "tcp://[::1]:1"),
            ("tls://logs", "tls://logs:6514"),
            ("https://loki/push", "https://loki:443/push"),
        ] {
            assert_eq!(url.parse::<LogTarget>().unwrap().to_string(), shown);
        }
        for (url, told) in [
            ("10.0.0.1:514", "has no scheme"),
            ("tls://logs/x", "path"),
            ("ftp://x", "unknown scheme"),
            ("udp://", "names no host"),
            ("udp://a b", "names no host"),
            ("udp://x:0", "port"),
            ("udp://x:", "port"),
            ("udp://[::1]514", "port"),
            ("udp://[::1", "bracket"),
            ("tcp://x/y", "path"),
            ("http://x/y z", "path"),
        ] {
            let err = url.parse::<LogTarget>().unwrap_err();
            assert!(err.contains(told), "{err}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_means_the_same(url in "(udp|tcp|https?|tls)://(\\[[0-9a-f:]{1,9}\\]|[a-z.]{0,8})(:[0-9]{1,6})?(/[a-z]{0,4})?") {
            if let Ok(target) = url.parse::<LogTarget>() {
                prop_assert_eq!(target.to_string().parse::<LogTarget>(), Ok(target));
            }
        }
    }
}
