//! The flags of `docker run`, and what they mean in terms of [`Request`].

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the comments of flags are their help, where brackets mean what may be left out"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser};
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType};
use orlop_container::{ALL_CAPABILITIES, Device, Fill, Request, adjust_capabilities};
use orlop_net::container::Publish;

use super::volumes;

/// Start a container.
///
/// IMAGE is a name in the store, `docker-archive:PATH`, `oci-archive:PATH[:TAG]` or `oci:PATH[:TAG]`.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "run",
    no_binary_name = true,
    disable_help_flag = true,
    disable_version_flag = true,
    disable_help_subcommand = true,
    override_usage = "run [FLAG…] IMAGE [COMMAND…]",
    args_override_self = true
)]
pub(crate) struct RunFlags {
    /// Name of the container
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Remove the container when it ends
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub(crate) rm: Bool,
    /// Do not wait for it
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub(crate) detach: Bool,
    /// Keep standard input open
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub(crate) interactive: Bool,
    /// Give it a terminal
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub(crate) tty: Bool,
    /// Replace a container of that name
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub(crate) replace: Bool,
    /// IMAGE is a directory that holds a root
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub(crate) rootfs: Bool,

    /// Have a first process that reaps orphans and hands on signals
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub(crate) init: Bool,
    /// NAME=VALUE, or NAME to hand on our own value
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// File of such lines
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// SOURCE:TARGET[:ro]; a source without a slash is a named volume
    #[arg(short, long, value_name = "SOURCE:TARGET[:OPTIONS]")]
    volume: Vec<String>,
    /// type=bind|volume|tmpfs,source=…,target=…[,readonly]
    #[arg(long, value_name = "KEY=VALUE,…")]
    mount: Vec<String>,
    /// TARGET[:OPTIONS]
    #[arg(long, value_name = "TARGET[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// Make the root read-only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    read_only: Bool,

    /// [IP:]HOST_PORT:CONTAINER_PORT[/udp]
    #[arg(short, long, value_name = "PORTS")]
    publish: Vec<String>,
    /// bridge, host or none
    #[arg(long, visible_alias = "net", default_value = "bridge")]
    network: String,
    /// Host name
    #[arg(short, long)]
    hostname: Option<String>,
    /// NAME:ADDRESS for /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub(crate) add_host: Vec<String>,
    /// Name server
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dns: Vec<String>,
    /// Search domain
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) dns_search: Vec<String>,
    /// Option of resolv.conf
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    pub(crate) dns_option: Vec<String>,

    /// Program instead of the image's
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Directory to start in
    #[arg(short, long, value_name = "DIRECTORY")]
    workdir: Option<PathBuf>,
    /// USER[:GROUP], by name or number
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Further group, by name or number
    #[arg(long, value_name = "GROUP")]
    pub(crate) group_add: Vec<String>,
    /// Capability to add
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',')]
    cap_add: Vec<String>,
    /// Capability to take away
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',')]
    cap_drop: Vec<String>,
    /// no-new-privileges[=false], seccomp=unconfined
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// All capabilities and devices, no masks, no filter
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    privileged: Bool,
    /// HOST_PATH[:CONTAINER_PATH[:rwm]]
    #[arg(long, value_name = "DEVICE")]
    device: Vec<String>,

    /// Memory limit
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Memory and swap together; -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Soft memory limit
    #[arg(long, value_name = "BYTES")]
    memory_reservation: Option<String>,
    /// Processors: 1.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Weight, 1024 by default
    #[arg(short, long, value_name = "WEIGHT")]
    cpu_shares: Option<u64>,
    /// Processors to run on: 0-2
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Processes at most; -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT")]
    ulimit: Vec<String>,
    /// KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    sysctl: Vec<String>,
    /// -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    oom_score_adj: Option<i32>,

    /// NAME=VALUE
    #[arg(short, long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// File of such lines
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// Signal that asks it to stop
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
    /// Seconds to wait before it is killed
    #[arg(long, value_name = "SECONDS")]
    pub(crate) stop_timeout: Option<u64>,
    /// File to write the container's id to
    #[arg(long, value_name = "FILE")]
    pub(crate) cidfile: Option<PathBuf>,
    /// Hand on the notification socket
    #[arg(long, visible_alias = "sdnotify", num_args = 0..=1, require_equals = true, default_missing_value = "container")]
    pub(crate) notify: Option<String>,

    /// Flags of Docker's and Podman's that change nothing here
    #[command(flatten)]
    _without_effect: WithoutEffect,

    /// Print this
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,

    /// What to run
    #[arg(skip)]
    pub(crate) image: String,
    /// What to run, then command and arguments instead of the image's
    #[command(subcommand)]
    rest: Option<Rest>,
    #[arg(skip)]
    command: Vec<String>,
}

/// From the image on nothing is a flag of ours: what clap calls an external subcommand.
#[derive(Debug, Clone, clap::Subcommand)]
enum Rest {
    #[command(external_subcommand)]
    Words(Vec<String>),
}

impl RunFlags {
    /// Reads the words behind `run`.
    ///
    /// # Errors
    /// What is wrong with them, or the help that they ask for.
    pub(crate) fn parse_words(words: &[String]) -> Result<Self, clap::Error> {
        let mut flags = Self::try_parse_from(words)?;
        let Some(Rest::Words(mut rest)) = flags.rest.take().filter(|Rest::Words(w)| !w.is_empty())
        else {
            let text = "an image is needed";
            return Err(Self::command().error(ErrorKind::MissingRequiredArgument, text));
        };
        flags.image = rest.remove(0);
        flags.command = rest;
        Ok(flags)
    }
}

/// Taken so that command lines of old units work; what they ask for is so anyway, or has no meaning here.
#[derive(Debug, Clone, clap::Args)]
struct WithoutEffect {
    #[arg(short, long, hide = true)]
    attach: Vec<String>,
    #[arg(long, hide = true)]
    log_driver: Option<String>,
    #[arg(long, hide = true)]
    log_opt: Vec<String>,
    #[arg(long, hide = true)]
    pull: Option<String>,
    #[arg(long, hide = true)]
    platform: Option<String>,
    #[arg(long, hide = true)]
    cgroups: Option<String>,
    #[arg(long, hide = true)]
    cgroupns: Option<String>,
    #[arg(long, hide = true)]
    restart: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: Option<String>,
    #[arg(long, hide = true)]
    annotation: Vec<String>,
    #[arg(long, hide = true)]
    expose: Vec<String>,
    #[arg(long, hide = true)]
    network_alias: Vec<String>,
}

/// `true` and `false` as Go's flag package takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bool(pub(crate) bool);

impl std::str::FromStr for Bool {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(Self(true)),
            "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(Self(false)),
            _ => Err("neither true nor false".into()),
        }
    }
}

/// How a container is on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// An address of its own behind the machine's.
    Bridge,
    /// The machine's own.
    Host,
    /// Loopback alone.
    None,
}

/// What the flags say, checked.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) request: Request,
    pub(crate) network: Network,
    pub(crate) publish: Vec<Publish>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) unconfined: bool,
    /// Named volumes, to be filled from the image if they are empty.
    pub(crate) volumes: Vec<Fill>,
}

impl RunFlags {
    /// Checks everything that can be checked without the image.
    pub(crate) fn resolve(&self, default_hostname: &str) -> Result<Wanted> {
        let network = match self.network.as_str() {
            "bridge" | "default" | "" => Network::Bridge,
            "host" => Network::Host,
            "none" => Network::None,
            other => bail!("network {other:?} not found: there are bridge, host and none"),
        };
        let mut publish = Vec::new();
        for text in &self.publish {
            publish.extend(Publish::parse(text)?);
        }
        let mut environment = Vec::new();
        for path in &self.env_file {
            environment.extend(lines_of(path)?.iter().filter_map(|line| handed_on(line)));
        }
        environment.extend(self.env.iter().filter_map(|entry| handed_on(entry)));
        let mut labels = BTreeMap::new();
        let mut label_lines = Vec::new();
        for path in &self.label_file {
            label_lines.extend(lines_of(path)?);
        }
        for label in label_lines.iter().chain(&self.label) {
            let (name, value) = label.split_once('=').unwrap_or((label, ""));
            labels.insert(name.to_owned(), value.to_owned());
        }
        let security = self.security()?;
        let privileged = self.privileged.0;
        let (mounts, named) = volumes::parse(&self.volume, &self.mount, &self.tmpfs)?;
        let request = Request {
            hostname: match (&self.hostname, network) {
                (Some(name), _) => name.clone(),
                (None, Network::Host) => own_hostname(),
                (None, _) => default_hostname.to_owned(),
            },
            entrypoint: self
                .entrypoint
                .as_ref()
                .map(|program| vec![program.clone()]),
            command: self.command.clone(),
            environment,
            working_directory: self.workdir.clone(),
            capabilities: if privileged {
                ALL_CAPABILITIES
            } else {
                adjust_capabilities(&self.cap_add, &self.cap_drop)
                    .map_err(|name| anyhow!("unknown capability {name:?}"))?
            },
            no_new_privileges: security.no_new_privileges && !privileged,
            privileged,
            read_only: self.read_only.0,
            own_network: network != Network::Host,
            mounts,
            shm_size_bytes: self
                .shm_size
                .as_deref()
                .map(|t| bytes("shm-size", t))
                .transpose()?
                .map(i64::unsigned_abs),
            sysctls: self
                .sysctl
                .iter()
                .map(|text| {
                    let (key, value) = text
                        .split_once('=')
                        .ok_or_else(|| anyhow!("sysctl {text:?} has no value"))?;
                    Ok((key.to_owned(), value.to_owned()))
                })
                .collect::<Result<_>>()?,
            limits: self
                .ulimit
                .iter()
                .map(|text| limit(text))
                .collect::<Result<_>>()?,
            memory_bytes: self
                .memory
                .as_deref()
                .map(|t| bytes("memory", t))
                .transpose()?
                .filter(|n| *n != 0),
            memory_swap_bytes: self
                .memory_swap
                .as_deref()
                .map(|t| bytes("memory-swap", t))
                .transpose()?
                .filter(|n| *n != 0),
            memory_reservation_bytes: self
                .memory_reservation
                .as_deref()
                .map(|t| bytes("memory-reservation", t))
                .transpose()?,
            cpu_thousandths: self
                .cpus
                .as_deref()
                .map(thousandths)
                .transpose()?
                .filter(|n| *n != 0),
            cpu_shares: self.cpu_shares.filter(|n| *n != 0),
            cpu_set: self.cpuset_cpus.clone(),
            pids: self.pids_limit.filter(|n| *n != 0),
            oom_score_adjust: self.oom_score_adj,
            devices: self
                .device
                .iter()
                .map(|text| device(text))
                .collect::<Result<_>>()?,
        };
        Ok(Wanted {
            request,
            network,
            publish,
            labels,
            unconfined: security.unconfined || privileged,
            volumes: named,
        })
    }

    fn security(&self) -> Result<Security> {
        let mut security = Security {
            no_new_privileges: true,
            unconfined: false,
        };
        for option in &self.security_opt {
            let (key, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
            match (key, value) {
                ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
                ("no-new-privileges", "false") => security.no_new_privileges = false,
                ("seccomp", "unconfined") => security.unconfined = true,
                ("seccomp", "builtin") => {}
                // No such module guards this kernel.
                ("apparmor" | "label", _) => {}
                _ => bail!("--security-opt {option:?} is not supported"),
            }
        }
        Ok(security)
    }
}

struct Security {
    no_new_privileges: bool,
    unconfined: bool,
}

/// Lines of a file of variables: no quoting, `#` begins a comment line.
fn lines_of(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let lines = text
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

/// A variable without a value takes ours, and is left out if we have none.
fn handed_on(entry: &str) -> Option<String> {
    if entry.contains('=') {
        return Some(entry.to_owned());
    }
    std::env::var(entry)
        .ok()
        .map(|value| format!("{entry}={value}"))
}

fn own_hostname() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// `64m`, `1.5g`, `512k`, `-1`; units are powers of 1024.
fn bytes(what: &str, text: &str) -> Result<i64> {
    let wrong =
        || anyhow!("--{what} {text:?} is no size: give bytes, or a number with k, m, g or t");
    if text == "-1" {
        return Ok(-1);
    }
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower
        .strip_suffix("ib")
        .or_else(|| lower.strip_suffix('b'))
        .unwrap_or(&lower);
    let (digits, shift) = match lower.chars().last() {
        Some('k') => (&lower[..lower.len() - 1], 10),
        Some('m') => (&lower[..lower.len() - 1], 20),
        Some('g') => (&lower[..lower.len() - 1], 30),
        Some('t') => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    let value: f64 = digits.parse().map_err(|_| wrong())?;
    let bytes = value * f64::from(1 << 10_u32).powi(shift / 10);
    if !bytes.is_finite() || !(0.0..9.0e18).contains(&bytes) {
        return Err(wrong());
    }
    Ok(bytes as i64)
}

/// `1.5` processors are 1500 thousandths.
fn thousandths(text: &str) -> Result<u64> {
    let value: f64 = text
        .parse()
        .map_err(|_| anyhow!("--cpus {text:?} is no number"))?;
    if !(0.0..=1_000_000.0).contains(&value) || (value > 0.0 && value < 0.01) {
        bail!("--cpus {text:?} is out of range: 0.01 at least");
    }
    Ok((value * 1000.0).round() as u64)
}

fn limit(text: &str) -> Result<PosixRlimit> {
    use PosixRlimitType as T;
    let wrong = || anyhow!("--ulimit {text:?} is not NAME=SOFT[:HARD]");
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let kind = match name {
        "cpu" => T::RlimitCpu,
        "fsize" => T::RlimitFsize,
        "data" => T::RlimitData,
        "stack" => T::RlimitStack,
        "core" => T::RlimitCore,
        "rss" => T::RlimitRss,
        "nproc" => T::RlimitNproc,
        "nofile" => T::RlimitNofile,
        "memlock" => T::RlimitMemlock,
        "as" => T::RlimitAs,
        "locks" => T::RlimitLocks,
        "sigpending" => T::RlimitSigpending,
        "msgqueue" => T::RlimitMsgqueue,
        "nice" => T::RlimitNice,
        "rtprio" => T::RlimitRtprio,
        "rttime" => T::RlimitRttime,
        _ => bail!("--ulimit {text:?}: there is no limit {name:?}"),
    };
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        digits => digits.parse::<u64>().map_err(|_| wrong()),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        bail!("--ulimit {text:?}: the soft limit is above the hard one");
    }
    Ok(PosixRlimitBuilder::default()
        .typ(kind)
        .soft(soft)
        .hard(hard)
        .build()?)
}

/// `HOST[:CONTAINER[:rwm]]`.
fn device(text: &str) -> Result<Device> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let is_access = |part: &&str| !part.is_empty() && part.chars().all(|c| "rwm".contains(c));
    let parts: Vec<&str> = text.split(':').collect();
    let (host, inside, access) = match parts.as_slice() {
        [host] => (*host, *host, "rwm"),
        [host, access] if is_access(access) => (*host, *host, *access),
        [host, inside] => (*host, *inside, "rwm"),
        [host, inside, access] if is_access(access) => (*host, *inside, *access),
        _ => bail!("--device {text:?} is not HOST[:CONTAINER[:rwm]]"),
    };
    let status = std::fs::metadata(host).with_context(|| format!("--device {host}"))?;
    let kind = status.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        bail!("--device {host}: it is no device");
    }
    let number = status.rdev();
    Ok(Device {
        path: inside.into(),
        block: kind.is_block_device(),
        major: u32::try_from(nix::sys::stat::major(number)).unwrap_or(0),
        minor: u32::try_from(nix::sys::stat::minor(number)).unwrap_or(0),
        mode: status.mode() & 0o777,
        uid: status.uid(),
        gid: status.gid(),
        access: access.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn flags(list: &[&str]) -> RunFlags {
        RunFlags::parse_words(&words(list)).unwrap()
    }

    #[test]
    fn a_flag_right_behind_the_image_is_the_commands() {
        let flags = flags(&["--entrypoint", "/bin/sh", "busybox", "-c", "exit 3", "--rm"]);
        assert_eq!(flags.image, "busybox");
        assert_eq!(flags.command, ["-c", "exit 3", "--rm"]);
        assert!(!flags.rm.0);
    }

    #[test]
    fn a_flag_that_nobody_knows_is_no_image() {
        for list in [["--no-such-flag", "busybox"], ["-Z", "busybox"]] {
            let error = RunFlags::parse_words(&words(&list))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(&format!("unexpected argument '{}' found", list[0])),
                "{error}"
            );
        }
        assert!(RunFlags::parse_words(&[]).is_err());
    }

    #[test]
    fn flags_after_the_image_belong_to_the_command() {
        let flags = flags(&[
            "--rm",
            "-it",
            "-p8080:80",
            "-eA=1",
            "--name=web",
            "busybox",
            "ls",
            "-l",
            "--rm=false",
        ]);
        assert_eq!(flags.image, "busybox");
        assert_eq!(flags.command, ["ls", "-l", "--rm=false"]);
        assert!(flags.rm.0 && flags.interactive.0 && flags.tty.0 && !flags.detach.0);
        let wanted = flags.resolve("id").unwrap();
        assert_eq!(wanted.publish.len(), 1);
        assert_eq!(wanted.request.environment, ["A=1"]);
    }

    #[test]
    fn sizes_and_shares_of_processors_are_dockers() {
        assert_eq!(bytes("memory", "64m").unwrap(), 64 << 20);
        assert_eq!(bytes("memory", "1.5G").unwrap(), 3 << 29);
        assert_eq!(bytes("memory", "512KiB").unwrap(), 512 << 10);
        assert_eq!(bytes("memory", "4096").unwrap(), 4096);
        for wrong in ["", "m", "-5", "1x", "inf", "nan", "9e30"] {
            assert!(bytes("memory", wrong).is_err(), "{wrong}");
        }
        assert_eq!(thousandths("1.5").unwrap(), 1500);
        assert!(thousandths("-1").is_err());
    }

    #[test]
    fn a_wrong_value_is_named() {
        let problem = |words: &[&str]| flags(words).resolve("id").unwrap_err().to_string();
        assert!(problem(&["--ulimit", "nofiles=1", "x"]).contains("nofiles"));
        assert!(problem(&["--cap-add", "FLY", "x"]).contains("FLY"));
        assert!(problem(&["--network", "weave", "x"]).contains("weave"));
        assert!(problem(&["--security-opt", "seccomp=/p.json", "x"]).contains("/p.json"));
    }
}
