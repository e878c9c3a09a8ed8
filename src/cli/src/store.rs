//! `orlop store`: a member of the store in the foreground, with etcd's flags.

mod addresses;
mod discovery;
mod flags;
mod settings;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use discovery::Place;
use flags::{ADDRESS, HOSTNAME};
use orlop_agent::connect::TlsFlags;
use orlop_store::server::{self, Bootstrap, Ready, Settings};
use settings::{Parsed, Start};

/// Pause between two looks for an address.
const LOOK: Duration = Duration::from_millis(500);

/// Where the first members find one another.
#[derive(Debug)]
struct Discovery {
    url: String,
    tls: TlsFlags,
    /// A machine for which there is no place passes its clients on.
    falls_back: bool,
}

impl Discovery {
    /// Sets who the first members are, once they are known.
    fn complete(&self, settings: &mut Settings) -> Result<(), String> {
        let Settings {
            name,
            data_dir,
            peer_urls,
            ..
        } = &*settings;
        let found = discovery::find(
            &self.url,
            &self.tls,
            data_dir,
            name,
            peer_urls,
            self.falls_back,
        );
        settings.bootstrap = match found.map_err(|err| format!("discovery: {err}"))? {
            Place::Member(members) => Bootstrap::New {
                members,
                token: self.url.clone(),
            },
            Place::Proxy(members) => Bootstrap::Proxy { members },
        };
        match settings.bad_peer_urls().first() {
            Some(url) => Err(format!(
                "discovery: members are reached at http://IP:PORT, not at {url:?}"
            )),
            None => Ok(()),
        }
    }
}

/// Runs the role. Ends with 0 after SIGTERM, 1 on a failure, 2 on a command line that is not understood.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    crate::stderr::install();
    match settings::parse(args, surroundings) {
        Ok(Parsed::Help) => {
            print!("{}", flags::help());
            ExitCode::SUCCESS
        }
        Ok(Parsed::Version) => {
            println!(
                "etcd Version: {}\nOrlop: {}",
                server::ETCD_VERSION,
                env!("CARGO_PKG_VERSION")
            );
            ExitCode::SUCCESS
        }
        Ok(Parsed::Run(start)) => {
            let Start {
                mut settings,
                discovery,
                level,
                looks,
            } = *start;
            log::set_max_level(level);
            if let Some(problem) = discovery.and_then(|d| d.complete(&mut settings).err()) {
                eprintln!("orlop store: {problem}");
                return ExitCode::FAILURE;
            }
            if looks {
                server::look_at_state(&settings.data_dir);
            }
            match server::run(&settings, |ready| announce(&settings, ready)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(err) => {
                    eprintln!("orlop store: {:#}", anyhow::Error::new(err));
                    ExitCode::FAILURE
                }
            }
        }
        Err(problem) => {
            eprintln!("orlop store: {problem}; `orlop store --help` lists the flags");
            ExitCode::from(2)
        }
    }
}

/// What the environment says, and about some flags the machine.
fn surroundings(name: &str) -> Option<String> {
    let line = |path| {
        let text = std::fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|l| !l.is_empty())
    };
    std::env::var(name).ok().or_else(|| match name {
        "ETCD_MACHINE" => line("/etc/machine-id"),
        HOSTNAME => line("/proc/sys/kernel/hostname"),
        ADDRESS => Some(own_address()),
        _ => None,
    })
}

/// This machine's address, once it has one.
fn own_address() -> String {
    let mut told = false;
    loop {
        if let Some(address) = server::own_address() {
            return address.to_string();
        }
        if !std::mem::replace(&mut told, true) {
            log::info!("this machine has no address yet");
        }
        std::thread::sleep(LOOK);
    }
}

/// Says that the member is ready: in etcd's words, for scripts that wait for them, and to a supervisor.
fn announce(settings: &Settings, ready: &Ready) {
    for address in &ready.listen {
        log::info!("serving client requests on {address}");
    }
    if ready.member == 0 {
        log::info!("ready to proxy client requests");
    } else {
        log::info!(
            "published {{Name:{} ClientURLs:[{}]}} to cluster {:x}",
            settings.name,
            settings.client_urls.join(" "),
            ready.cluster
        );
    }
    log::info!(
        "enabled capabilities for version {}",
        server::CLUSTER_VERSION.trim_end_matches(".0")
    );
    if let Err(err) = orlop_sys::notify::tell("READY=1") {
        log::warn!("cannot tell that the member is ready: {err}");
    }
}
