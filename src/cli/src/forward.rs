//! `orlop forward`: the role that sends the journal to other machines.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use orlop_config::{LogScheme, Machine, Sourced};
use orlop_journal::forward::{self, Destination, Protocol, Settings, Tls};
use orlop_journal::{segments, writer};

/// The compiled configuration.
const MACHINE: &str = "/run/orlop/machine.json";
/// Where it is kept how far each destination has got.
const CURSORS: &str = "/var/lib/orlop/forward";
/// `info`, where the configuration names no priority.
const PRIORITY_DEFAULT: u8 = 6;

const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Runs the role until the journal cannot be read.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    if !args.is_empty() {
        eprintln!(
            "usage: orlop forward\nIt takes what journal.forward of the configuration says, and is started by PID 1."
        );
        return ExitCode::from(2);
    }
    let machine = match crate::journal::machine(MACHINE) {
        Ok(machine) => machine,
        Err(why) => {
            eprintln!("<3>{why}");
            return ExitCode::FAILURE;
        }
    };
    let settings = Settings {
        directory: PathBuf::from(segments::DIRECTORY),
        cursors: PathBuf::from(CURSORS),
        hostname: nix::unistd::gethostname()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        boot: segments::boot_id(),
        retry_min: RETRY_MIN,
        retry_max: RETRY_MAX,
        resolve: |host| orlop_update::dns::resolve(host).map_err(|err| writer::chain(&err)),
    };
    let Err(err) = forward::run(&settings, &destinations(&machine));
    eprintln!("<3>{}", writer::chain(&err));
    ExitCode::FAILURE
}

fn path(value: &Option<Sourced<String>>) -> Option<PathBuf> {
    value.as_ref().map(|path| PathBuf::from(&path.value))
}

fn destinations(machine: &Machine) -> Vec<Destination> {
    let named = machine.journal.forward.iter().filter_map(|forward| {
        let target = &forward.to.as_ref()?.value;
        Some(Destination {
            name: target.to_string(),
            protocol: match target.scheme {
                LogScheme::Udp => Protocol::SyslogUdp,
                LogScheme::Tcp | LogScheme::Tls => Protocol::SyslogTcp,
                LogScheme::Http | LogScheme::Https => Protocol::Loki,
            },
            tls: target.scheme.is_secure().then(|| Tls {
                authority: path(&forward.trusted_ca_file),
                certificate: path(&forward.cert_file).zip(path(&forward.key_file)),
            }),
            host: target.host.clone(),
            port: target.port,
            path: target.path.clone(),
            priority_max: forward
                .priority
                .as_ref()
                .map_or(PRIORITY_DEFAULT, |priority| priority.value.0),
        })
    });
    named.collect()
}
