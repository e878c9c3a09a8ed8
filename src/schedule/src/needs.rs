//! What a unit asks of a machine.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use orlop_unit::value::{Limit, parse_bytes, parse_memory_limit};
use orlop_unit::{Command, Service};

/// The most ports that one range may name: as many as there are.
const PORTS: usize = 65536;

/// Memory, in bytes or as a share of the machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// In 1/10000 of what the machine has.
    Share(u32),
}

impl Amount {
    /// The bytes, on a machine that has `total`.
    #[must_use]
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(permyriad) => Limit::Share { permyriad }
                .resolve(total)
                .unwrap_or_default(),
        }
    }
}

impl Default for Amount {
    fn default() -> Self {
        Self::Bytes(0)
    }
}

/// A transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the machine: `80`, `53/udp`, `10.0.0.1:80/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// The number, from 1.
    pub number: u16,
    /// The transport.
    pub protocol: Protocol,
    /// The address on which it is used; all when there is none.
    pub address: Option<IpAddr>,
}

impl Port {
    /// Whether the two cannot both be used on one machine.
    #[must_use]
    pub fn clashes(&self, other: &Self) -> bool {
        self.number == other.number
            && self.protocol == other.protocol
            && match (self.address, other.address) {
                (Some(one), Some(two)) => one == two,
                _ => true,
            }
    }
}

impl FromStr for Port {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (text, protocol) = protocol(text)?;
        let (address, number) = match text.rsplit_once(':') {
            Some((address, number)) => (parse_address(address)?, number),
            None => (None, text),
        };
        match number.parse() {
            Ok(number) if number > 0 => Ok(Self {
                number,
                protocol,
                address,
            }),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(address) => write!(f, "{address}:")?,
            None => {}
        }
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{}/{protocol}", self.number)
    }
}

fn protocol(text: &str) -> Result<(&str, Protocol), ()> {
    match text.rsplit_once('/') {
        None => Ok((text, Protocol::Tcp)),
        Some((rest, "tcp")) => Ok((rest, Protocol::Tcp)),
        Some((rest, "udp")) => Ok((rest, Protocol::Udp)),
        Some(_) => Err(()),
    }
}

/// `None` for the addresses that stand for all.
fn parse_address(text: &str) -> Result<Option<IpAddr>, ()> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if bare.is_empty() {
        return Ok(None);
    }
    let address: IpAddr = bare.parse().map_err(|_| ())?;
    Ok((!address.is_unspecified()).then_some(address))
}

/// CPUs with up to three decimals, in thousandths.
pub(crate) fn parse_cpus(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !plain(whole) || !plain(fraction) || fraction.len() > 9 {
        return None;
    }
    let thousandths: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    // What is smaller than a thousandth is still something.
    let rest = fraction
        .get(3..)
        .is_some_and(|rest| rest.bytes().any(|b| b != b'0'));
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(1000)?
        .checked_add(thousandths)?
        .checked_add(u64::from(rest))
}

/// Bytes or a share; a unit cannot ask for all that there is.
pub(crate) fn parse_memory(text: &str) -> Option<Amount> {
    match parse_memory_limit(text)? {
        Limit::Value(bytes) => Some(Amount::Bytes(bytes)),
        Limit::Share { permyriad } => Some(Amount::Share(permyriad)),
        Limit::Infinity => None,
    }
}

/// What the section `[X-Fleet]` asks for; what it does not say is read from the unit itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) cpu_milli: Option<u64>,
    pub(crate) memory: Option<Amount>,
    pub(crate) disk_bytes: Option<u64>,
    pub(crate) ports: Option<Vec<Port>>,
}

/// What a unit takes of a machine while it is placed there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// CPU in thousandths.
    pub cpu_milli: u64,
    /// Memory.
    pub memory: Amount,
    /// Space on the data volume in bytes.
    pub disk_bytes: u64,
    /// Ports, sorted, each once.
    pub ports: Vec<Port>,
}

impl Needs {
    /// What `asked` says, and for the rest what the service's limits and the container's flags say.
    pub(crate) fn derive(asked: &Asked, service: Option<&Service>) -> Self {
        let flags = service.map(container_flags).unwrap_or_default();
        let resources = service.map(|s| s.resources).unwrap_or_default();
        let limit = resources.memory_max.and_then(|limit| match limit {
            Limit::Value(bytes) => Some(Amount::Bytes(bytes)),
            Limit::Share { permyriad } => Some(Amount::Share(permyriad)),
            Limit::Infinity => None,
        });
        let mut ports = asked.ports.clone().unwrap_or(flags.ports);
        ports.sort_unstable();
        ports.dedup();
        Self {
            cpu_milli: asked
                .cpu_milli
                .or_else(|| resources.cpu_quota_permyriad.map(|q| q.div_ceil(10)))
                .or(flags.cpu_milli)
                .unwrap_or_default(),
            memory: asked.memory.or(limit).or(flags.memory).unwrap_or_default(),
            disk_bytes: asked.disk_bytes.unwrap_or_default(),
            ports,
        }
    }
}

/// Flags of `docker run` that take no value; every other one that has no `=` takes the next word.
const SWITCHES: &[&str] = &[
    "--detach",
    "--help",
    "--init",
    "--interactive",
    "--no-healthcheck",
    "--oom-kill-disable",
    "--privileged",
    "--publish-all",
    "--quiet",
    "--read-only",
    "--replace",
    "--rm",
    "--rootfs",
    "--sig-proxy",
    "--tty",
];
/// The same, one letter.
const SHORT_SWITCHES: &str = "ditqP";

#[derive(Default)]
struct ContainerFlags {
    cpu_milli: Option<u64>,
    memory: Option<Amount>,
    ports: Vec<Port>,
}

/// What the service's containers are started with, as far as it counts here.
fn container_flags(service: &Service) -> ContainerFlags {
    let mut flags = ContainerFlags::default();
    let environment: BTreeMap<String, String> = BTreeMap::new();
    for command in &service.exec_start {
        let words = command.expand(&environment);
        let program = command.program.rsplit('/').next().unwrap_or_default();
        if let Some(run) = run_words(command, program, &words) {
            flags.read(run);
        }
    }
    flags
}

fn run_words<'a>(_: &Command, program: &str, words: &'a [String]) -> Option<&'a [String]> {
    let rest = words.get(1..)?;
    match program {
        "docker" | "podman" => match rest.split_first()? {
            (word, rest) if word == "run" => Some(rest),
            (word, rest) if word == "container" && rest.first()? == "run" => rest.get(1..),
            _ => None,
        },
        "orlop" => {
            (rest.first()? == "container" && rest.get(1)? == "run").then(|| rest.get(2..))?
        }
        _ => None,
    }
}

impl ContainerFlags {
    fn read(&mut self, words: &[String]) {
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            if let Some(long) = word.strip_prefix("--") {
                let (name, value) = match word.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None if long.is_empty() => return,
                    None if SWITCHES.contains(&word) => continue,
                    None => (word, words.next()),
                };
                self.flag(name, value.unwrap_or_default());
            } else if let Some(letters) = word.strip_prefix('-') {
                let plain = letters.trim_start_matches(|c| SHORT_SWITCHES.contains(c));
                let mut chars = plain.chars();
                let Some(letter) = chars.next() else {
                    continue;
                };
                let joined = chars.as_str().trim_start_matches('=');
                let value = if joined.is_empty() {
                    words.next().unwrap_or_default()
                } else {
                    joined
                };
                match letter {
                    'p' => self.flag("--publish", value),
                    'm' => self.flag("--memory", value),
                    _ => {}
                }
            } else {
                // The image: what follows is the container's.
                return;
            }
        }
    }

    fn flag(&mut self, name: &str, value: &str) {
        match name {
            "--publish" => self.ports.extend(published(value)),
            "--memory" => {
                self.memory = parse_bytes(&value.to_ascii_uppercase()).map(Amount::Bytes);
            }
            "--cpus" => self.cpu_milli = parse_cpus(value),
            _ => {}
        }
    }
}

/// The machine's ports of `[IP:]HOST_PORT[-LAST]:CONTAINER_PORT[-LAST][/PROTOCOL]`; nothing where the machine chooses.
fn published(text: &str) -> Vec<Port> {
    let Ok((text, protocol)) = protocol(text) else {
        return Vec::new();
    };
    let Some((front, _container)) = text.rsplit_once(':') else {
        return Vec::new();
    };
    let (address, range) = match front.rsplit_once(':') {
        Some((address, range)) => (parse_address(address), range),
        None => (Ok(None), front),
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (Ok(address), Ok(first), Ok(last)) = (address, first.parse::<u16>(), last.parse::<u16>())
    else {
        return Vec::new();
    };
    (first..=last)
        .filter(|number| *number > 0)
        .take(PORTS)
        .map(|number| Port {
            number,
            protocol,
            address,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(list: &[&str]) -> Vec<Port> {
        list.iter().map(|p| p.parse().unwrap()).collect()
    }

    #[test]
    fn cpus_are_counted_in_thousandths_and_never_rounded_to_nothing() {
        assert_eq!(parse_cpus("0.5"), Some(500));
        assert_eq!(parse_cpus("2"), Some(2000));
        assert_eq!(parse_cpus("0.0001"), Some(1));
        assert_eq!(parse_cpus(""), None);
        assert_eq!(parse_cpus("-1"), None);
        assert_eq!(parse_cpus("1e3"), None);
    }

    #[test]
    fn ports_clash_where_their_addresses_meet() {
        let clash = |a: &str, b: &str| {
            a.parse::<Port>()
                .unwrap()
                .clashes(&b.parse::<Port>().unwrap())
        };
        assert!(clash("80", "80/tcp"));
        assert!(clash("0.0.0.0:80", "10.0.0.1:80"));
        assert!(!clash("10.0.0.2:80", "10.0.0.1:80"));
        assert!(!clash("53/udp", "53"));
        assert!("0".parse::<Port>().is_err());
        assert!("80/sctp".parse::<Port>().is_err());
    }

    #[test]
    fn the_flags_of_docker_run_are_read_up_to_the_image() {
        let mut flags = ContainerFlags::default();
        let words = "--rm -it --name web -p 8080:80 -p127.0.0.1:53:53/udp --publish=9000-9001:1-2 -m 64m --cpus 1.5 \
                     -p 7000 nginx -p 1:1";
        flags.read(
            &words
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        );
        assert_eq!(
            flags.ports,
            ports(&["8080", "127.0.0.1:53/udp", "9000", "9001"])
        );
        assert_eq!(flags.memory, Some(Amount::Bytes(64 << 20)));
        assert_eq!(flags.cpu_milli, Some(1500));
    }
}
