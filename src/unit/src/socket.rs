//! `[Socket]`: where a service is listened for (`systemd.socket(5)`).

use std::net::SocketAddr;
use std::time::Duration;

use crate::command::Command;
use crate::name::UnitName;
use crate::service::Service;

/// An address of `ListenStream=`, `ListenDatagram=` or `ListenSequentialPacket=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A port on every address; [`Socket::bind_ipv6_only`] says of which families.
    Port(u16),
    /// One address and a port.
    Inet(SocketAddr),
    /// A socket in the file system, absolute.
    Path(String),
    /// A socket in the abstract namespace, without the `@`.
    Abstract(String),
}

/// One `Listen…=` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `ListenStream=`
    Stream(Address),
    /// `ListenDatagram=`
    Datagram(Address),
    /// `ListenSequentialPacket=`
    SequentialPacket(Address),
    /// `ListenFIFO=`
    Fifo(String),
    /// `ListenSpecial=`: a character device or a file of `/proc` or `/sys`.
    Special(String),
    /// `ListenNetlink=`
    Netlink {
        /// The family's name, such as `kobject-uevent`.
        family: String,
        /// The multicast group.
        group: u32,
    },
}

impl Listen {
    /// Whether connections can be accepted.
    #[must_use]
    pub fn accepts(&self) -> bool {
        matches!(self, Self::Stream(_) | Self::SequentialPacket(_))
    }

    /// Its place in the file system, where it has one that is made for it.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Fifo(path)
            | Self::Stream(Address::Path(path))
            | Self::Datagram(Address::Path(path))
            | Self::SequentialPacket(Address::Path(path)) => Some(path),
            _ => None,
        }
    }
}

/// `BindIPv6Only=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BindIpv6Only {
    /// As `/proc/sys/net/ipv6/bindv6only` says.
    #[default]
    Default,
    /// IPv4 too.
    Both,
    /// IPv6 alone.
    Ipv6Only,
}

/// `SocketProtocol=`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketProtocol {
    /// UDP-Lite.
    UdpLite,
    /// SCTP.
    Sctp,
    /// Multipath TCP.
    Mptcp,
}

/// A socket unit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a directive")]
pub struct Socket {
    /// All `Listen…=` lines, in order: that of the passed descriptors.
    pub listen: Vec<Listen>,
    /// `Accept=`: an instance of the service for each connection.
    pub accept: bool,
    /// `Service=`, or the service of the same name; with `Accept=yes` the template `NAME@.service`.
    pub service: UnitName,
    /// `FileDescriptorName=`, or the unit's name.
    pub descriptor_name: String,
    /// `SocketUser=`: a name or a number.
    pub user: Option<String>,
    /// `SocketGroup=`: a name or a number.
    pub group: Option<String>,
    /// `SocketMode=`
    pub mode: u32,
    /// `DirectoryMode=`
    pub directory_mode: u32,
    /// `Symlinks=`: absolute paths.
    pub symlinks: Vec<String>,
    /// `RemoveOnStop=`
    pub remove_on_stop: bool,
    /// `SocketProtocol=`
    pub protocol: Option<SocketProtocol>,
    /// `BindIPv6Only=`
    pub bind_ipv6_only: BindIpv6Only,
    /// `Backlog=`
    pub backlog: u32,
    /// `BindToDevice=`
    pub bind_to_device: Option<String>,
    /// `MaxConnections=` for `Accept=yes`.
    pub max_connections: u32,
    /// `MaxConnectionsPerSource=`; `None` is no limit.
    pub max_connections_per_source: Option<u32>,
    /// `FlushPending=`
    pub flush_pending: bool,
    /// `Writable=` for `ListenSpecial=`.
    pub writable: bool,
    /// `FreeBind=`
    pub free_bind: bool,
    /// `Transparent=`
    pub transparent: bool,
    /// `Broadcast=`
    pub broadcast: bool,
    /// `ReusePort=`
    pub reuse_port: bool,
    /// `NoDelay=`
    pub no_delay: bool,
    /// `KeepAlive=`
    pub keep_alive: bool,
    /// `KeepAliveTimeSec=`
    pub keep_alive_time: Option<Duration>,
    /// `KeepAliveIntervalSec=`
    pub keep_alive_interval: Option<Duration>,
    /// `KeepAliveProbes=`
    pub keep_alive_probes: Option<u32>,
    /// `DeferAcceptSec=`
    pub defer_accept: Option<Duration>,
    /// `PassCredentials=`
    pub pass_credentials: bool,
    /// `PassSecurity=`
    pub pass_security: bool,
    /// `PassPacketInfo=`
    pub pass_packet_info: bool,
    /// `Priority=`
    pub priority: Option<i32>,
    /// `Mark=`
    pub mark: Option<u32>,
    /// `IPTOS=`
    pub ip_tos: Option<u8>,
    /// `IPTTL=`
    pub ip_ttl: Option<u8>,
    /// `ReceiveBuffer=`, bytes.
    pub receive_buffer: Option<u64>,
    /// `SendBuffer=`, bytes.
    pub send_buffer: Option<u64>,
    /// `PipeSize=`, bytes.
    pub pipe_size: Option<u64>,
    /// `TCPCongestion=`
    pub tcp_congestion: Option<String>,
    /// `TriggerLimitIntervalSec=`; zero turns the limit off.
    pub trigger_limit_interval: Duration,
    /// `TriggerLimitBurst=`: 20, or 200 with `Accept=yes`.
    pub trigger_limit_burst: u32,
    /// `TimeoutSec=` for the commands; `None` waits for ever.
    pub timeout: Option<Duration>,
    /// `ExecStopPre=`
    pub exec_stop_pre: Vec<Command>,
    /// What `[Socket]` shares with `[Service]`: the other commands, how they run, the cgroup.
    pub execution: Box<Service>,
}

impl Socket {
    /// A socket unit that listens nowhere.
    pub(crate) fn new(service: UnitName) -> Self {
        Self {
            listen: Vec::new(),
            accept: false,
            service,
            descriptor_name: String::new(),
            user: None,
            group: None,
            mode: 0o666,
            directory_mode: 0o755,
            symlinks: Vec::new(),
            remove_on_stop: false,
            protocol: None,
            bind_ipv6_only: BindIpv6Only::Default,
            backlog: DEFAULT_BACKLOG,
            bind_to_device: None,
            max_connections: 64,
            max_connections_per_source: None,
            flush_pending: false,
            writable: false,
            free_bind: false,
            transparent: false,
            broadcast: false,
            reuse_port: false,
            no_delay: false,
            keep_alive: false,
            keep_alive_time: None,
            keep_alive_interval: None,
            keep_alive_probes: None,
            defer_accept: None,
            pass_credentials: false,
            pass_security: false,
            pass_packet_info: false,
            priority: None,
            mark: None,
            ip_tos: None,
            ip_ttl: None,
            receive_buffer: None,
            send_buffer: None,
            pipe_size: None,
            tcp_congestion: None,
            trigger_limit_interval: Duration::from_secs(2),
            trigger_limit_burst: 20,
            timeout: Some(crate::service::DEFAULT_TIMEOUT),
            exec_stop_pre: Vec::new(),
            execution: Box::default(),
        }
    }
}

/// `Backlog=` where it is not written: the kernel cuts it down to `net.core.somaxconn`.
pub const DEFAULT_BACKLOG: u32 = 4096;

/// Reads an address of `ListenStream=` and sisters.
pub(crate) fn parse_address(text: &str) -> Option<Address> {
    // sockaddr_un holds 108 bytes, the end or the beginning being a zero (unix(7)).
    const MAX_UNIX: usize = 107;
    if let Some(name) = text.strip_prefix('@') {
        let fits = !name.is_empty() && name.len() <= MAX_UNIX;
        return fits.then(|| Address::Abstract(name.to_owned()));
    }
    if text.starts_with('/') {
        let fits = text.len() <= MAX_UNIX && text.len() > 1;
        return fits.then(|| Address::Path(text.to_owned()));
    }
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| digits && *port > 0)
    };
    if let Some(port) = port(text) {
        return Some(Address::Port(port));
    }
    let (_, digits) = text.rsplit_once(':')?;
    port(digits)?;
    text.parse().ok().map(Address::Inet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_ports_sockets_and_paths() {
        for (text, address) in [
            ("80", Address::Port(80)),
            (
                "127.0.0.1:53",
                Address::Inet("127.0.0.1:53".parse().unwrap()),
            ),
            ("[::1]:53", Address::Inet("[::1]:53".parse().unwrap())),
            ("/run/a.sock", Address::Path("/run/a.sock".into())),
            ("@a/b", Address::Abstract("a/b".into())),
        ] {
            assert_eq!(parse_address(text), Some(address), "{text}");
        }
        let long = format!("/{}", "a".repeat(107));
        for bad in [
            "0",
            "99999",
            "+80",
            "1.2.3.4",
            "1.2.3.4:0",
            "::1:53",
            "host:1",
            "@",
            "/",
            "",
            &long,
        ] {
            assert_eq!(parse_address(bad), None, "{bad}");
        }
    }
}
