//! `orlop agent`: this machine's part in the cluster, in the foreground.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use orlop_agent::agent::{self, Settings, Timing};
use orlop_agent::connect::TlsFlags;
use orlop_agent::facts::{self, Facts};
use orlop_agent::supervisor::Pid1;

use crate::{stderr, unit};

/// The group that may use the API's socket.
const GROUP: &str = "sudo";

/// Takes work from the store, reports what is, and may lead the scheduler.
///
/// Each flag can be given in the environment, as fleetd's were: FLEET_PUBLIC_IP, FLEET_METADATA, FLEET_ETCD_SERVERS,
/// FLEET_ETCD_CAFILE, FLEET_ETCD_CERTFILE, FLEET_ETCD_KEYFILE, FLEET_DISABLE_ENGINE.
#[derive(Debug, Parser)]
#[command(name = "orlop agent", no_binary_name = true)]
struct Flags {
    /// The store's client URLs, with commas between
    #[arg(long, visible_alias = "etcd-servers", value_name = "URLS")]
    endpoints: Option<String>,
    /// The authority of the store's certificates, PEM; for endpoints at https://
    #[arg(long, value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// The certificate that is shown to the store, PEM
    #[arg(long, value_name = "FILE")]
    etcd_certfile: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE")]
    etcd_keyfile: Option<PathBuf>,
    /// What units' MachineMetadata is compared with: KEY=VALUE, with commas between
    #[arg(long, value_name = "PAIRS")]
    metadata: Option<String>,
    /// The address at which this machine is reached (default: the one towards the default route)
    #[arg(long, value_name = "ADDRESS")]
    public_ip: Option<IpAddr>,
    /// The machine's id (default: /etc/machine-id)
    #[arg(long, value_name = "ID")]
    machine_id: Option<String>,
    /// Where fleet's API is served over TCP; may be given again
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:49153")]
    listen: Vec<SocketAddr>,
    /// Let those who come over TCP change things: nobody asks who they are
    #[arg(long)]
    listen_for_writes: bool,
    /// The API's socket
    #[arg(long, value_name = "PATH", default_value = "/run/fleet.sock")]
    socket: PathBuf,
    /// Where units' files go
    #[arg(long, value_name = "DIRECTORY", default_value = "/run/fleet/units")]
    units_directory: PathBuf,
    /// Where the last assignment is kept
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/orlop/agent")]
    state_directory: PathBuf,
    /// Never lead the scheduler
    #[arg(long, visible_alias = "disable-engine")]
    no_lead: bool,
}

/// Runs the role until it cannot go on.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let flags = match Flags::try_parse_from(args) {
        Ok(flags) => flags,
        Err(err) => {
            // Help is no error; there is nobody to tell when it cannot be printed.
            let _ = err.print();
            return ExitCode::from(u8::try_from(err.exit_code()).unwrap_or(2));
        }
    };
    let settings = match settings(flags, |name| std::env::var(name).ok()) {
        Ok(settings) => settings,
        Err(problem) => {
            eprintln!("orlop agent: {problem}");
            return ExitCode::from(2);
        }
    };
    stderr::install();
    let ready = |addresses: &[SocketAddr]| {
        for address in addresses {
            log::info!("serving fleet's API at {address}");
        }
        if let Err(err) = orlop_sys::notify::tell("READY=1") {
            log::warn!("cannot tell that the agent is ready: {err}");
        }
    };
    match agent::run(settings, Arc::new(Pid1), ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            log::error!("{}", orlop_journal::writer::chain(&err));
            ExitCode::FAILURE
        }
    }
}

fn settings(
    flags: Flags,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Settings, String> {
    let from = |flag: Option<String>, name: &str| flag.or_else(|| environment(name));
    let endpoints = from(flags.endpoints, "FLEET_ETCD_SERVERS")
        .unwrap_or_else(|| "http://127.0.0.1:2379".to_owned());
    let file = |flag: Option<PathBuf>, name: &str| {
        flag.or_else(|| environment(name).filter(|v| !v.is_empty()).map(Into::into))
    };
    let tls = TlsFlags {
        authority: file(flags.etcd_cafile, "FLEET_ETCD_CAFILE"),
        certificate: file(flags.etcd_certfile, "FLEET_ETCD_CERTFILE"),
        key: file(flags.etcd_keyfile, "FLEET_ETCD_KEYFILE"),
        unverified: false,
    };
    let metadata = metadata(&from(flags.metadata, "FLEET_METADATA").unwrap_or_default())?;
    let public_ip = match (flags.public_ip, environment("FLEET_PUBLIC_IP")) {
        (None, Some(text)) if !text.is_empty() => Some(
            text.parse()
                .map_err(|_| format!("{text:?} is no address"))?,
        ),
        (flag, _) => flag,
    };
    let machine_id = flags
        .machine_id
        .or_else(facts::machine_id)
        .ok_or("/etc/machine-id holds no id: give --machine-id")?;
    if machine_id.is_empty() || machine_id.contains('/') {
        return Err(format!("{machine_id:?} is no machine id"));
    }
    let data = flags
        .state_directory
        .ancestors()
        .find(|path| path.is_dir())
        .map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let disable_engine = environment("FLEET_DISABLE_ENGINE").unwrap_or_default();
    let no_lead = match disable_engine.as_str() {
        "" | "0" | "false" => flags.no_lead,
        "1" | "true" => true,
        other => return Err(format!("FLEET_DISABLE_ENGINE is {other:?}: true or false")),
    };
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    Ok(Settings {
        endpoints: endpoints
            .split(',')
            .map(|url| url.trim().to_owned())
            .filter(|url| !url.is_empty())
            .collect(),
        tls,
        machine_id,
        facts: Facts::new(move || facts::gather(&data, &unit::DIRECTORIES, &metadata, public_ip)),
        units_directory: flags.units_directory,
        state_directory: flags.state_directory,
        boot_id: facts::boot_id(),
        listen: flags.listen,
        listen_for_writes: flags.listen_for_writes,
        socket: Some(flags.socket),
        socket_group: group_id(&groups, GROUP),
        may_lead: !no_lead,
        timing: Timing::default(),
    })
}

fn metadata(text: &str) -> Result<BTreeMap<String, String>, String> {
    let pairs = text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() && !value.contains('=') => {
                Ok((key.to_owned(), value.to_owned()))
            }
            _ => Err(format!("metadata {pair:?} is not KEY=VALUE")),
        })
        .collect()
}

/// The number of a group in the text of /etc/group (group(5)).
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str], environment: &[(&str, &str)]) -> Result<Settings, String> {
        let flags = Flags::try_parse_from(args).map_err(|err| err.to_string())?;
        settings(flags, |name| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn flags_go_before_the_environment() {
        let environment = [
            ("FLEET_METADATA", "a=1,b=2"),
            ("FLEET_PUBLIC_IP", "10.0.0.9"),
            ("FLEET_ETCD_SERVERS", "http://a:2379,http://b:2379"),
        ];
        let args = ["--machine-id", "m1"];
        let from_environment = parsed(&args, &environment).unwrap();
        assert_eq!(from_environment.facts.look().ip, "10.0.0.9");
        assert_eq!(from_environment.facts.look().metadata["b"], "2");
        assert_eq!(from_environment.endpoints.len(), 2);
        let args = ["--machine-id", "m1", "--metadata", "c=3"];
        let from_flags = parsed(&args, &environment).unwrap();
        assert_eq!(from_flags.facts.look().metadata.len(), 1);
        assert!(parsed(&["--machine-id", "m1", "--metadata", "c"], &[]).is_err());
        let environment = [("FLEET_ETCD_CAFILE", "/ca.pem")];
        let args = [
            &args[..],
            &["--etcd-certfile", "/c", "--etcd-keyfile", "/k"],
        ]
        .concat();
        let tls = parsed(&args, &environment).unwrap().tls;
        assert_eq!(tls.authority, Some("/ca.pem".into()));
        assert_eq!(
            (tls.certificate, tls.key),
            (Some("/c".into()), Some("/k".into()))
        );
    }

    #[test]
    fn groups_are_found_by_name() {
        assert_eq!(group_id("root:x:0:\nsudo:x:27:core\n", "sudo"), Some(27));
        assert_eq!(group_id("root:x:0:\n", "sudo"), None);
    }
}
