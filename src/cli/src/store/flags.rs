//! etcd's flags, as data: what each does here.

use std::ffi::OsString;

/// What a flag does here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// It is heeded.
    Heeded,
    /// It may say what is so in any case: its default, or one of several with `|` between.
    Fixed,
    /// It asks for something that there is not: it must not seem to be done.
    Refused,
}

/// One flag of etcd's. As environment variable it is `ETCD_` and the name in capitals.
struct Flag {
    name: &'static str,
    /// Without a value, or with `=true` and `=false`.
    switch: bool,
    default: &'static str,
    effect: Effect,
    help: &'static str,
}

const fn flag(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag {
        name,
        switch: false,
        default,
        effect: Effect::Heeded,
        help,
    }
}

const fn refused(name: &'static str, switch: bool) -> Flag {
    Flag {
        name,
        switch,
        default: "",
        effect: Effect::Refused,
        help: "",
    }
}

const fn fixed(name: &'static str, default: &'static str) -> Flag {
    Flag {
        name,
        switch: false,
        default,
        effect: Effect::Fixed,
        help: "",
    }
}

const fn fixed_switch(name: &'static str, default: &'static str) -> Flag {
    Flag {
        switch: true,
        ..fixed(name, default)
    }
}

const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag {
        switch: true,
        ..flag(name, "", help)
    }
}

/// Stands for the name of a member of a cluster with a token that is given none.
pub(super) const HOSTNAME: &str = "the machine's name";

/// Stands for this machine's address, which is asked for as an environment variable would be.
pub(super) const ADDRESS: &str = "this machine's address";
/// How CoreOS's cloud-configs write it.
const PLACEHOLDERS: [&str; 2] = ["$private_ipv4", "$public_ipv4"];

/// Every flag that is known.
const FLAGS: &[Flag] = &[
    flag("name", "default", "name of this member"),
    flag(
        "data-dir",
        "",
        "directory for the data (default: NAME.etcd)",
    ),
    flag(
        "listen-client-urls",
        "http://127.0.0.1:2379,http://127.0.0.1:4001",
        "addresses to serve clients on, http://IP:PORT or https://IP:PORT, with commas between",
    ),
    flag(
        "advertise-client-urls",
        "http://localhost:2379",
        "URLs of this member that clients are told",
    ),
    flag(
        "initial-advertise-peer-urls",
        "http://localhost:2380",
        "URLs of this member that other members are told",
    ),
    flag(
        "listen-peer-urls",
        "http://127.0.0.1:2380",
        "addresses to listen to other members on, with commas between; all of them with TLS if there is a --peer-cert-file",
    ),
    flag(
        "initial-cluster",
        "",
        "the first members, NAME=http://IP:PORT, with commas between (default: this one alone)",
    ),
    flag(
        "initial-cluster-state",
        "new",
        "new, or existing to join a cluster that this member was added to",
    ),
    flag(
        "initial-cluster-token",
        "etcd-cluster",
        "tells clusters of the same first members apart",
    ),
    flag(
        "discovery",
        "",
        "URL at which the first members find one another, instead of --initial-cluster: http://HOST:PORT/v2/keys/… of any etcd or Orlop store, where …/_config/size is their number",
    ),
    flag(
        "discovery-fallback",
        "proxy",
        "what a machine does that finds all places of the --discovery taken: proxy passes its clients on to the members, at the client URLs that they advertise; exit ends",
    ),
    flag(
        "token",
        "",
        "the secret by which machines are let into the cluster; with it a member needs no --initial-cluster",
    ),
    flag(
        "join",
        "",
        "peer URLs of any members, with commas between; the machine that has the first one's address makes the cluster",
    ),
    switch(
        "bootstrap",
        "whether this machine makes the cluster of the token when there is none; it does not, if false",
    ),
    flag(
        "machine",
        "",
        "what this machine is known by in the cluster of the token (default: /etc/machine-id)",
    ),
    flag(
        "quota-backend-bytes",
        "0",
        "bytes of records above which writes are refused; 0 is 2 GiB",
    ),
    flag(
        "heartbeat-interval",
        "100",
        "milliseconds between two signs of the leader, in hundreds",
    ),
    flag(
        "election-timeout",
        "1000",
        "milliseconds of silence after which another one stands, in hundreds; at least 5 heartbeats",
    ),
    flag(
        "snapshot-count",
        "5000",
        "entries kept for members that lag behind; one further behind gets the whole state",
    ),
    flag(
        "auto-compaction-mode",
        "periodic",
        "periodic: old revisions are given up by age; revision: by their number",
    ),
    flag(
        "auto-compaction-retention",
        "1h",
        "how long (hours, or with h, m or s), or how many revisions, are kept; 0 keeps all",
    ),
    flag(
        "cert-file",
        "",
        "certificate for clients at https:// URLs, PEM",
    ),
    flag("key-file", "", "its private key, PEM"),
    flag(
        "trusted-ca-file",
        "",
        "authority of the clients' certificates, PEM; then they need one",
    ),
    switch(
        "client-cert-auth",
        "clients need a certificate; needs --trusted-ca-file, and is then on unless it is false",
    ),
    flag(
        "peer-cert-file",
        "",
        "certificate for members, PEM: they talk with TLS",
    ),
    flag("peer-key-file", "", "its private key, PEM"),
    flag(
        "peer-trusted-ca-file",
        "",
        "authority of the members' certificates, PEM; each needs one for its address or for orlop-store",
    ),
    flag(
        "log-level",
        "info",
        "debug, info, warn or error: what is told on standard error; that the member is ready is told at info",
    ),
    switch("debug", "the same as --log-level=debug"),
    switch(
        "experimental-initial-corrupt-check",
        "look at the checksums of the whole state before it is used, however large it is; else only up to 256 MiB",
    ),
    switch(
        "peer-client-cert-auth",
        "members that talk with TLS need a certificate in any case; false is refused then",
    ),
    refused("peer-cert-allowed-cn", false),
    refused("peer-cert-allowed-hostname", false),
    refused("client-crl-file", false),
    refused("client-cert-allowed-hostname", false),
    refused("auto-tls", true),
    refused("peer-auto-tls", true),
    refused("peer-crl-file", false),
    refused("cipher-suites", false),
    fixed("auth-token", "simple"),
    refused("discovery-proxy", false),
    refused("discovery-srv", false),
    refused("discovery-srv-name", false),
    fixed_switch("enable-grpc-gateway", "false"),
    fixed_switch("enable-pprof", "false"),
    fixed_switch("enable-v2", "true"),
    refused("force-new-cluster", true),
    refused("listen-metrics-urls", false),
    fixed("log-output", "default|stderr"),
    fixed("log-outputs", "default|stderr"),
    refused("log-package-levels", false),
    fixed("logger", "zap|capnslog"),
    refused("max-concurrent-streams", false),
    fixed("max-request-bytes", "1572864"),
    fixed("max-snapshots", "5"),
    fixed("max-txn-ops", "128"),
    fixed("max-wals", "5"),
    fixed("metrics", "basic"),
    fixed_switch("pre-vote", "true"),
    fixed("proxy", "off"),
    fixed_switch("strict-reconfig-check", "true"),
    refused("wal-dir", false),
];

/// What was said.
pub(super) enum Read {
    Flags(Given),
    Help,
    Version,
}

/// The flags that were given, in the environment or, which wins, as words.
pub(super) struct Given(Vec<Option<String>>);

fn place(name: &str) -> Option<usize> {
    FLAGS.iter().position(|flag| flag.name == name)
}

/// Go's spellings of a boolean (`strconv.ParseBool`).
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

impl Given {
    /// Reads the words. Go's flags have one dash or two.
    pub(super) fn read(
        args: &[OsString],
        environment: &impl Fn(&str) -> Option<String>,
    ) -> Result<Read, String> {
        let variable = |flag: &Flag| format!("ETCD_{}", flag.name.to_uppercase().replace('-', "_"));
        let mut values: Vec<Option<String>> = FLAGS
            .iter()
            .map(|flag| environment(&variable(flag)))
            .collect();
        let mut words = args.iter();
        while let Some(word) = words.next() {
            let word = word
                .to_str()
                .ok_or_else(|| format!("{word:?} is not UTF-8"))?;
            let Some(body) = word
                .strip_prefix("--")
                .or_else(|| word.strip_prefix('-'))
                .filter(|b| !b.is_empty())
            else {
                return Err(format!("{word:?} is not a flag"));
            };
            match body {
                "help" | "h" => return Ok(Read::Help),
                "version" => return Ok(Read::Version),
                _ => {}
            }
            let (name, given) = body
                .split_once('=')
                .map_or((body, None), |(name, value)| (name, Some(value.to_owned())));
            let place =
                place(name).ok_or_else(|| format!("flag provided but not defined: -{name}"))?;
            let value = match given {
                Some(value) => value,
                None if FLAGS[place].switch => "true".into(),
                None => words
                    .next()
                    .and_then(|w| w.to_str())
                    .ok_or_else(|| format!("flag needs an argument: -{name}"))?
                    .to_owned(),
            };
            values[place] = Some(value);
        }
        let is_open = |value: &String| PLACEHOLDERS.iter().any(|p| value.contains(p));
        if values.iter().flatten().any(is_open) {
            let address = environment(ADDRESS)
                .ok_or("this machine has no address to put for $private_ipv4")?;
            for value in values.iter_mut().flatten() {
                for placeholder in PLACEHOLDERS {
                    *value = value.replace(placeholder, &address);
                }
            }
        }
        for (flag, value) in FLAGS.iter().zip(&values) {
            flag.check(value.as_deref().unwrap_or_default())?;
        }
        Ok(Read::Flags(Self(values)))
    }

    /// What was given, if it is not empty.
    pub(super) fn given(&self, name: &str) -> Option<String> {
        let value = place(name).and_then(|place| self.0.get(place)?.clone());
        value.filter(|v| !v.is_empty())
    }

    /// What was given, or the default.
    pub(super) fn value(&self, name: &str) -> String {
        let place = place(name);
        place
            .and_then(|place| {
                let given = self.0.get(place)?.clone();
                given.or_else(|| Some(FLAGS[place].default.to_owned()))
            })
            .unwrap_or_default()
    }

    /// The same with commas between, taken apart.
    pub(super) fn list(&self, name: &str) -> Vec<String> {
        self.value(name)
            .split(',')
            .filter(|u| !u.is_empty())
            .map(str::to_owned)
            .collect()
    }
}

impl Flag {
    /// Whether a value can be heeded; an empty one says nothing.
    fn check(&self, value: &str) -> Result<(), String> {
        if value.is_empty() {
            return Ok(());
        }
        let truth = boolean(value);
        if self.switch && truth.is_none() {
            return Err(format!(
                "invalid boolean value {value:?} for -{}",
                self.name
            ));
        }
        match self.effect {
            Effect::Heeded => Ok(()),
            Effect::Refused if self.switch && truth == Some(false) => Ok(()),
            Effect::Refused => Err(format!("-{} is not supported", self.name)),
            Effect::Fixed if self.switch && truth == boolean(self.default) => Ok(()),
            Effect::Fixed if !self.switch && self.default.split('|').any(|v| v == value) => Ok(()),
            Effect::Fixed => Err(format!(
                "-{}: {} is all there is",
                self.name,
                self.default.replace('|', " or ")
            )),
        }
    }
}

/// What `--help` prints.
pub(super) fn help() -> String {
    let mut out = String::from(
        "A member of the store, which speaks etcd's v3 and v2 APIs.\n\nUsage: orlop store [FLAG…]\n\nFlags, with one dash or two:\n",
    );
    for flag in FLAGS.iter().filter(|f| f.effect == Effect::Heeded) {
        let name = if flag.default.is_empty() {
            flag.name.to_owned()
        } else {
            format!("{} '{}'", flag.name, flag.default)
        };
        out.push_str(&format!("  --{name}\n        {}\n", flag.help));
    }
    out.push_str(
        "  --version, --help\n\n$private_ipv4 and $public_ipv4 in a value stand for this machine's address.\n\nFlags of etcd's that may say what is so in any case, and nothing else:\n",
    );
    for flag in FLAGS.iter().filter(|f| f.effect == Effect::Fixed) {
        out.push_str(&format!("  --{}={}\n", flag.name, flag.default));
    }
    out
}
