//! The keys of the configuration. This file is the table: to add a key, add its line.

use std::net::IpAddr;

use crate::field::{Collected, Item, Settings, record};
use crate::problem::Sourced;
use crate::scalar::{
    Cidr, Content, DiskName, Encoding, Filesystem, Hostname, LogPriority, LogTarget, Mac, Metadata,
    Mode, RouteTarget, Secret, SshKey, Token, UnitCommand,
};

record! {
    /// What one machine is to be.
    pub struct Machine {
        /// The machine's name.
        pub hostname: Option<Sourced<Hostname>>,
        /// The name that the data source gives this instance.
        pub instance_id: Option<Sourced<String>>,
        /// The data volume, mounted at /var.
        pub data: Data,
        /// Kernel parameters, `net.core.somaxconn: 4096`, set in the order of the text.
        pub sysctl: Settings,
        /// The table of tracked connections.
        pub conntrack: Conntrack,
        /// Links, addresses and the resolver.
        pub network: Network,
        /// The machine's member of the clustered store.
        pub store: Store,
        /// The machine's part in the cluster (also `coreos.fleet`).
        pub fleet: Fleet,
        /// The log: how much is kept, and where it is sent.
        pub journal: Journal,
        /// New versions: where they come from, and when one is good.
        pub update: Update,
        /// What happens on a machine that runs from memory and has a disk to live on.
        pub install: Install,
        /// What the boot menu has for a machine that does not come up.
        pub recovery: Recovery,
        /// Public SSH keys that may log in as core.
        pub ssh_authorized_keys: Collected<SshKey>,
        /// Users, made or added to at each start.
        pub users: Vec<User>,
        /// Files, written at each start before any unit.
        pub write_files: Vec<WriteFile>,
        /// Units (also `coreos.units`).
        pub units: Vec<Unit>,
    }
}

record! {
    /// The data volume.
    pub struct Data {
        /// The whole disk that becomes the data volume; without one /var is in memory.
        pub disk: Option<Sourced<DiskName>>,
        /// Whether a disk that holds something else may be overwritten; a data volume never is.
        pub wipe: Option<Sourced<bool>>,
        /// The filesystem that is made.
        pub filesystem: Option<Sourced<Filesystem>>,
    }
}

record! {
    /// The table of tracked connections (Documentation/networking/nf_conntrack-sysctl.rst).
    pub struct Conntrack {
        /// The most connections that are tracked.
        pub max: Option<Sourced<u32>>,
        /// Hash buckets; max/4 when not given.
        pub buckets: Option<Sourced<u32>>,
        /// Seconds until an idle connection of an unknown protocol is forgotten.
        pub generic_timeout: Option<Sourced<u32>>,
        /// Seconds until an idle established TCP connection is forgotten.
        pub tcp_timeout_established: Option<Sourced<u32>>,
    }
}

record! {
    /// Links, addresses and the resolver. Without any interface the first link with a carrier gets DHCP.
    pub struct Network {
        /// Links by name or hardware address; a later input's entry for the same link replaces the earlier one.
        pub interfaces: Vec<Interface>,
        /// Name servers, asked before those from DHCP.
        pub nameservers: Vec<Sourced<IpAddr>>,
        /// Domains that short names are tried in.
        pub search: Vec<Sourced<Hostname>>,
    }
}

record! {
    /// A link.
    pub struct Interface {
        /// The link's name, `eth0`.
        pub name: Option<Sourced<String>>,
        /// The link's hardware address, when it has no name here.
        pub mac: Option<Sourced<Mac>>,
        /// Whether it asks for an address; true when no addresses are given.
        pub dhcp: Option<Sourced<bool>>,
        /// Fixed addresses.
        pub addresses: Vec<Sourced<Cidr>>,
        /// The router for everything that has no route of its own.
        pub gateway: Option<Sourced<IpAddr>>,
        /// Further routes.
        pub routes: Vec<Route>,
        /// The longest packet in bytes.
        pub mtu: Option<Sourced<u32>>,
    }
}

impl Item for Interface {
    fn lacks(&self) -> Option<&'static str> {
        (self.name.is_none() && self.mac.is_none()).then_some("name or mac")
    }

    fn is_replaced_by(&self, later: &Self) -> bool {
        self.name == later.name && self.mac == later.mac
    }
}

record! {
    /// A route.
    pub struct Route {
        /// The network it leads to, or `default`.
        pub to: Option<Sourced<RouteTarget>>,
        /// The router; without one the network is on the link.
        pub via: Option<Sourced<IpAddr>>,
        /// Its rank among routes to the same network; the lowest is taken.
        pub metric: Option<Sourced<u32>>,
    }
}

impl Item for Route {
    fn lacks(&self) -> Option<&'static str> {
        self.to.is_none().then_some("to")
    }
}

record! {
    /// The machine's member of the clustered store.
    pub struct Store {
        /// Whether this machine runs one.
        pub enabled: Option<Sourced<bool>>,
        /// The member's name; the machine's when not given.
        pub name: Option<Sourced<String>>,
        /// The secret by which machines are let into the cluster.
        pub token: Option<Sourced<Token>>,
        /// Where any members are, `http://10.0.0.1`; the machine that has the first address makes the cluster.
        pub join: Vec<Sourced<String>>,
        /// Whether this machine makes the cluster when there is none, whatever address it has.
        pub bootstrap: Option<Sourced<bool>>,
        /// Where clients are served; http://127.0.0.1:2379 and http://127.0.0.1:4001 when not given.
        pub listen_client_urls: Vec<Sourced<String>>,
        /// Where clients are told to find this member.
        pub advertise_client_urls: Vec<Sourced<String>>,
        /// Where other members are listened to; all addresses when one of `join` is http://, else loopback.
        pub listen_peer_urls: Vec<Sourced<String>>,
        /// Where other members reach this one; with a token it finds that out.
        pub initial_advertise_peer_urls: Vec<Sourced<String>>,
        /// The first members as NAME=URL, instead of a token.
        pub initial_cluster: Vec<Sourced<String>>,
        /// `new`, or `existing` to join a cluster that the machine was added to, instead of a token.
        pub initial_cluster_state: Option<Sourced<String>>,
        /// The URL at which the first members find one another, instead of a token: keys of any etcd or Orlop store's v2 API.
        pub discovery: Option<Sourced<String>>,
        /// What a machine does that finds all places taken there: `proxy` (its clients are passed on to the members), or `exit`.
        pub discovery_fallback: Option<Sourced<String>>,
        /// Tells clusters of the same first members apart.
        pub initial_cluster_token: Option<Sourced<String>>,
        /// The certificate for clients at https:// URLs, a path.
        pub cert_file: Option<Sourced<String>>,
        /// Its private key, a path.
        pub key_file: Option<Sourced<String>>,
        /// The authority of the clients' certificates, a path; then they need one.
        pub trusted_ca_file: Option<Sourced<String>>,
        /// Whether clients need a certificate; true when not given and there is an authority.
        pub client_cert_auth: Option<Sourced<bool>>,
        /// The certificate for members, a path: they talk with TLS.
        pub peer_cert_file: Option<Sourced<String>>,
        /// Its private key, a path.
        pub peer_key_file: Option<Sourced<String>>,
        /// The authority of the members' certificates, a path.
        pub peer_trusted_ca_file: Option<Sourced<String>>,
        /// Members always need a certificate of their authority.
        pub peer_client_cert_auth: Option<Sourced<bool>>,
        /// Bytes of records above which writes are refused.
        pub quota_backend_bytes: Option<Sourced<String>>,
        /// `periodic` or `revision`: what auto_compaction_retention counts.
        pub auto_compaction_mode: Option<Sourced<String>>,
        /// How long, or how many, old revisions are kept.
        pub auto_compaction_retention: Option<Sourced<String>>,
    }
}

record! {
    /// The machine's part in the cluster that `fleetctl` speaks to; the names are fleet's.
    pub struct Fleet {
        /// Whether this machine has one; `command: start` for fleet.service says the same.
        pub enabled: Option<Sourced<bool>>,
        /// What MachineMetadata= of units is compared with: `KEY=VALUE`, with commas between.
        pub metadata: Option<Sourced<Metadata>>,
        /// The address at which other machines reach this one; the one towards the default route when not given.
        pub public_ip: Option<Sourced<IpAddr>>,
        /// The store's client URLs, with commas between; this machine's own member when not given.
        pub etcd_servers: Option<Sourced<String>>,
        /// The file of the certificates that the store's own is checked by.
        pub etcd_cafile: Option<Sourced<String>>,
        /// The file of the certificate that is shown to the store.
        pub etcd_certfile: Option<Sourced<String>>,
        /// The file of that certificate's key.
        pub etcd_keyfile: Option<Sourced<String>>,
        /// Whether this machine never leads the scheduler.
        pub disable_engine: Option<Sourced<bool>>,
    }
}

record! {
    /// The log: how much is kept, and where it is sent.
    pub struct Journal {
        /// The most that it takes of the data volume, in MiB; a tenth of the volume, at most 256, when not given.
        pub max_size_mib: Option<Sourced<u32>>,
        /// Seconds in which a unit may log as many lines as rate_limit_burst says; 30 when not given, 0 is no limit.
        pub rate_limit_interval: Option<Sourced<u32>>,
        /// Lines that a unit may log in one interval, unless it sets LogRateLimitBurst=; 10000 when not given, 0 is no limit.
        pub rate_limit_burst: Option<Sourced<u32>>,
        /// Other machines that get every line; a later input's entry for the same one replaces the earlier one.
        pub forward: Vec<Forward>,
    }
}

record! {
    /// A machine that gets the log.
    pub struct Forward {
        /// Where it is, and what it speaks: udp://, tcp:// or tls:// for syslog (RFC 5424), http:// or https:// for Loki.
        pub to: Option<Sourced<LogTarget>>,
        /// The file of the authorities that sign its certificate, where it speaks TLS; the public ones when not given.
        pub trusted_ca_file: Option<Sourced<String>>,
        /// The file of the certificate that is shown to it.
        pub cert_file: Option<Sourced<String>>,
        /// The file of that certificate's key.
        pub key_file: Option<Sourced<String>>,
        /// The least urgent priority that is sent; info when not given.
        pub priority: Option<Sourced<LogPriority>>,
    }
}

impl Item for Forward {
    fn lacks(&self) -> Option<&'static str> {
        let Some(to) = &self.to else {
            return Some("to");
        };
        let is_secure = to.value.scheme.is_secure();
        let files = [&self.trusted_ca_file, &self.cert_file, &self.key_file];
        match (&self.cert_file, &self.key_file) {
            _ if !is_secure && files.iter().any(|file| file.is_some()) => {
                Some("to: certificates need tls:// or https://")
            }
            (Some(_), None) => Some("key_file for its cert_file"),
            (None, Some(_)) => Some("cert_file for its key_file"),
            _ => None,
        }
    }

    fn is_replaced_by(&self, later: &Self) -> bool {
        self.to == later.to
    }
}

record! {
    /// New versions: where they come from, and when one is good.
    pub struct Update {
        /// The directory of `latest.json`, an http:// URL.
        pub url: Option<Sourced<String>>,
        /// The channel; stable when not given.
        pub channel: Option<Sourced<String>>,
        /// Units that have to be active before a new version counts as good; network-online.target when none is given.
        pub healthy: Vec<Sourced<String>>,
        /// Seconds for which they have to be, with no unit failed; 30 when not given.
        pub healthy_for: Option<Sourced<u32>>,
        /// Seconds after the kernel's start by which they have to be, or the machine reboots; 300 when not given.
        pub boot_deadline: Option<Sourced<u32>>,
    }
}

record! {
    /// What happens on a machine that runs from memory and has a disk to live on.
    pub struct Install {
        /// The whole disk that Orlop is installed on, once; then the machine reboots.
        pub disk: Option<Sourced<DiskName>>,
        /// Whether a disk that holds something else may be overwritten; an installation or a data volume of Orlop never is.
        pub wipe: Option<Sourced<bool>>,
        /// The payload that is installed, an http:// URL or a path; what update.url offers when not given.
        pub from: Option<Sourced<String>>,
    }
}

record! {
    /// What the boot menu has for a machine that does not come up.
    pub struct Recovery {
        /// Whether it offers a root shell, without a password, to whoever is at the machine's own console; false when not given.
        pub shell: Option<Sourced<bool>>,
    }
}

record! {
    /// A user. For one that the image has, only `passwd` and the keys count.
    pub struct User {
        /// The login name.
        pub name: Option<Sourced<String>>,
        /// The user's number; the next free one when not given.
        pub uid: Option<Sourced<u32>>,
        /// The hash of the password; logins over SSH take keys alone.
        pub passwd: Option<Sourced<Secret>>,
        /// Public SSH keys that may log in.
        pub ssh_authorized_keys: Collected<SshKey>,
        /// The full name.
        pub gecos: Option<Sourced<String>>,
        /// The home directory; /home/NAME when not given.
        pub homedir: Option<Sourced<String>>,
        /// Whether the home directory is left out.
        pub no_create_home: Option<Sourced<bool>>,
        /// The name of the first group; the user's own name when not given.
        pub primary_group: Option<Sourced<String>>,
        /// Further groups, made when they are not there; also one string with commas.
        pub groups: Vec<Sourced<String>>,
        /// Whether there is no group of the user's name.
        pub no_user_group: Option<Sourced<bool>>,
        /// Whether the number is taken from the range of system users, below 1000.
        pub system: Option<Sourced<bool>>,
        /// The login shell.
        pub shell: Option<Sourced<String>>,
    }
}

impl Item for User {
    fn lacks(&self) -> Option<&'static str> {
        self.name.is_none().then_some("name")
    }

    /// cloud-init's `- default`: the user that is always there.
    fn from_word(word: &str) -> Option<Self> {
        let name = if word == "default" { "core" } else { word };
        Some(Self {
            name: Some(Sourced {
                value: name.to_owned(),
                source: crate::Source::default(),
            }),
            ..Self::default()
        })
    }
}

record! {
    /// A file.
    pub struct WriteFile {
        /// The absolute path; not below /usr, /proc or /sys.
        pub path: Option<Sourced<String>>,
        /// What it holds; nothing when not given.
        pub content: Option<Sourced<Content>>,
        /// How the content is encoded.
        pub encoding: Option<Sourced<Encoding>>,
        /// USER or USER:GROUP, names or numbers; root when not given.
        pub owner: Option<Sourced<String>>,
        /// Octal permissions; 0644 when not given.
        pub permissions: Option<Sourced<Mode>>,
        /// Whether the content is added to the file's end.
        pub append: Option<Sourced<bool>>,
    }
}

impl Item for WriteFile {
    fn lacks(&self) -> Option<&'static str> {
        self.path.is_none().then_some("path")
    }

    /// Wrong permissions may have been meant to hide what the default shows.
    fn refused_whole() -> Option<&'static str> {
        Some("the file is not written")
    }
}

record! {
    /// A unit.
    pub struct Unit {
        /// The file's name, `web.service` or `web.container`.
        pub name: Option<Sourced<String>>,
        /// The unit file; a unit of the image when not given.
        pub content: Option<Sourced<Content>>,
        /// What is done with it at the start of the machine.
        pub command: Option<Sourced<UnitCommand>>,
        /// Whether the links that its `[Install]` section asks for are made.
        pub enable: Option<Sourced<bool>>,
        /// Whether it can not be started at all.
        pub mask: Option<Sourced<bool>>,
        /// Whether it goes to /run instead of /etc.
        pub runtime: Option<Sourced<bool>>,
        /// Files that add to it or override it.
        pub drop_ins: Vec<DropIn>,
    }
}

impl Item for Unit {
    fn lacks(&self) -> Option<&'static str> {
        self.name.is_none().then_some("name")
    }
}

record! {
    /// A file that adds to a unit or overrides a part of it.
    pub struct DropIn {
        /// The file's name, `10-limits.conf`.
        pub name: Option<Sourced<String>>,
        /// What it holds.
        pub content: Option<Sourced<Content>>,
    }
}

impl Item for DropIn {
    fn lacks(&self) -> Option<&'static str> {
        self.name.is_none().then_some("name")
    }
}
