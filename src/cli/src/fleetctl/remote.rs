//! What is done on the machine where a unit is: here when it is this one, by ssh otherwise.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;

use anyhow::{Context as _, Result, bail};
use orlop_agent::facts;
use orlop_schedule::UnitName;
use serde_json::Value;

use super::flags::Values;
use super::{Context, list, text, units};
use crate::{journalctl, systemctl};

/// Programs that log in to other machines, the best first.
const PROGRAMS: &[&str] = &["ssh", "dbclient"];
/// Where they may be.
const PATH: &[&str] = &["/usr/bin", "/bin", "/usr/local/bin"];

/// The command that runs another on a host, up to that other; `through` is the tunnel.
pub(super) fn ssh_command(
    global: &Values,
    host: &str,
    through: Option<&str>,
    more: &[String],
) -> Result<Vec<String>> {
    let exists = |program: &&&str| PATH.iter().any(|dir| Path::new(dir).join(program).exists());
    let program = PROGRAMS
        .iter()
        .find(exists)
        .context("there is no ssh on this machine to reach the other with")?;
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => (host, port),
        _ => (host, "22"),
    };
    let user = global.get("ssh-username");
    let mut command = vec![(*program).to_owned()];
    if *program == "ssh" {
        let timeout = global.get("ssh-timeout").parse::<f64>().unwrap_or(10.0);
        let known = global.get("known-hosts-file");
        let known = match (known.strip_prefix("~/"), std::env::var("HOME")) {
            (Some(rest), Ok(home)) => format!("{home}/{rest}"),
            _ => known.to_owned(),
        };
        let strict = if global.is_set("strict-host-key-checking") {
            "ask"
        } else {
            "no"
        };
        if let Some(directory) = Path::new(&known).parent()
            && !directory.exists()
        {
            // ssh says itself that it cannot keep a key.
            let _ = std::fs::create_dir_all(directory);
        }
        for option in [
            format!("ConnectTimeout={timeout:.0}"),
            format!("UserKnownHostsFile={known}"),
            format!("StrictHostKeyChecking={strict}"),
        ] {
            command.extend(["-o".to_owned(), option]);
        }
        if let Some(tunnel) = through {
            // Not -J: it would not look into our file of hosts' keys.
            let join = ["-W".to_owned(), "%h:%p".to_owned()];
            let proxy: Vec<String> = ssh_command(global, tunnel, None, &join)?
                .iter()
                .map(|word| {
                    if word == "%h:%p" {
                        word.clone()
                    } else {
                        quoted(word)
                    }
                })
                .collect();
            let proxy = proxy.join(" ");
            command.extend(["-o".to_owned(), format!("ProxyCommand={proxy}")]);
        }
        command.extend(["-p".to_owned(), port.to_owned()]);
        command.extend(more.iter().cloned());
        command.push(format!("{user}@{host}"));
    } else {
        if !global.is_set("strict-host-key-checking") {
            command.push("-y".to_owned());
        }
        command.extend(more.iter().cloned());
        let hop = format!("{user}@{host}^{port}");
        command.push(match through {
            Some(tunnel) => format!("{user}@{},{hop}", tunnel.replace(':', "^")),
            None => hop,
        });
    }
    Ok(command)
}

/// A machine: its id and its address.
struct Place {
    id: String,
    ip: String,
}

impl Place {
    fn is_here(&self) -> bool {
        facts::machine_id().as_deref() == Some(self.id.as_str())
    }
}

/// The machine of a unit.
fn place_of(context: &Context, unit: &UnitName) -> Result<Place> {
    let known = context.find(&format!("/units/{unit}"))?;
    let known = known.with_context(|| format!("Unit {unit} does not exist."))?;
    let mut id = text(&known, "machineID").to_owned();
    if id.is_empty() {
        // Of a global unit's instances the one on this machine.
        let here = facts::machine_id().unwrap_or_default();
        let states = context.call("GET", &format!("/state/{unit}"), None)?;
        let states = states.get("states").and_then(Value::as_array);
        if states
            .into_iter()
            .flatten()
            .any(|state| text(state, "machineID") == here)
        {
            id = here;
        }
    }
    if id.is_empty() {
        bail!("Unit {unit} does not appear to be loaded.");
    }
    let ip = list::addresses(context)?.remove(&id).unwrap_or_default();
    Ok(Place { id, ip })
}

/// Runs a command there; its exit code.
fn run_there(
    context: &Context,
    place: &Place,
    more: &[String],
    words: &[String],
) -> Result<ExitCode> {
    if place.ip.is_empty() {
        bail!(
            "machine {} is not heard, its address is not known",
            list::short(&place.id)
        );
    }
    let tunnel = Some(context.global.get("tunnel")).filter(|t| !t.is_empty());
    let port = context.flags.get("ssh-port");
    let host = if port.is_empty() {
        place.ip.clone()
    } else {
        format!("{}:{port}", place.ip)
    };
    let command = ssh_command(&context.global, &host, tunnel, more)?;
    let (program, arguments) = command.split_first().context("no program")?;
    let status = Command::new(program)
        .args(arguments)
        .args(words)
        .status()
        .with_context(|| format!("run {program}"))?;
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|c| u8::try_from(c).ok())
            .unwrap_or(1),
    ))
}

fn arguments(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

pub(super) fn status(context: &Context) -> Result<ExitCode> {
    if context.words.is_empty() {
        bail!("No units given");
    }
    let mut code = ExitCode::SUCCESS;
    for (index, word) in context.words.iter().enumerate() {
        let unit = units::name_of(word)?;
        let place = place_of(context, &unit)?;
        if index > 0 {
            println!();
        }
        let words = ["status", "-l", unit.as_str()];
        let one = if place.is_here() && context.global.get("tunnel").is_empty() {
            systemctl::run(&arguments(&words))
        } else {
            let words: Vec<String> = ["systemctl"]
                .iter()
                .chain(&words)
                .map(|w| quoted(w))
                .collect();
            run_there(context, &place, &[], &words)?
        };
        if one != ExitCode::SUCCESS {
            code = one;
        }
    }
    Ok(code)
}

/// A word for the other side's shell.
fn quoted(word: &str) -> String {
    let plain = |b: u8| {
        b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b'@' | b':' | b'=')
    };
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

pub(super) fn journal(context: &Context) -> Result<ExitCode> {
    let [word] = context.words.as_slice() else {
        bail!("One unit file must be provided.");
    };
    let unit = units::name_of(word)?;
    let place = place_of(context, &unit)?;
    let lines = format!("--lines={}", context.flags.get("lines"));
    let output = format!("--output={}", context.flags.get("output"));
    let mut words = vec!["--unit", unit.as_str(), "--no-pager", &lines, &output];
    if context.flags.is_set("follow") || context.flags.is_set("f") {
        words.push("-f");
    }
    if place.is_here() && context.global.get("tunnel").is_empty() {
        return Ok(journalctl::run(&arguments(&words)));
    }
    let sudo: &[&str] = if context.flags.is_set("sudo") {
        &["sudo"]
    } else {
        &[]
    };
    let words: Vec<String> = sudo
        .iter()
        .chain(&["journalctl"])
        .chain(&words)
        .map(|w| quoted(w))
        .collect();
    run_there(context, &place, &[], &words)
}

pub(super) fn ssh(context: &Context) -> Result<ExitCode> {
    let (machine, unit) = (context.flags.get("machine"), context.flags.get("unit"));
    let (target, words) = match (machine, unit) {
        ("", "") => {
            let (target, words) = context
                .words
                .split_first()
                .context("Provide one machine or unit.")?;
            (target.as_str(), words)
        }
        ("", unit) => (unit, context.words.as_slice()),
        (machine, _) => (machine, context.words.as_slice()),
    };
    let found = list::addresses(context)?
        .into_iter()
        .find(|(id, _)| *id == target || id.starts_with(target.trim_end_matches('.')));
    let place = match found {
        Some((id, ip)) if unit.is_empty() => Place { id, ip },
        _ if !machine.is_empty() => bail!("there is no machine {machine:?} that is heard"),
        _ => place_of(context, &units::name_of(target)?)?,
    };
    let forward = context.flags.is_set("A") || context.flags.is_set("forward-agent");
    let more: &[String] = if forward { &["-A".to_owned()] } else { &[] };
    run_there(context, &place, more, words)
}

/// Joins standard input and output to a socket, until the socket's other side has said all.
pub(super) fn fd_forward(context: &Context) -> Result<ExitCode> {
    let [path] = context.words.as_slice() else {
        bail!("usage: fleetctl fd-forward SOCKET");
    };
    let mut socket = UnixStream::connect(path).with_context(|| format!("connect to {path}"))?;
    let mut to = socket.try_clone()?;
    // Ends with the process.
    thread::spawn(move || {
        let copied = io::copy(&mut io::stdin().lock(), &mut to);
        let closed = to.shutdown(Shutdown::Write);
        copied.and(closed)
    });
    let mut out = io::stdout().lock();
    let mut part = [0_u8; 8192];
    loop {
        let length = socket.read(&mut part)?;
        if length == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        out.write_all(part.get(..length).unwrap_or_default())?;
        out.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_held_to_the_same_file_of_hosts_keys() {
        let (global, _) = super::super::flags::parse(super::super::GLOBAL, &[], true, |name| {
            (name == "known-hosts-file").then(|| "/tmp/known keys".to_owned())
        })
        .unwrap();
        // Where there is no ssh, or dropbear's alone, the way is another.
        let Ok(command) = ssh_command(&global, "10.0.0.2", Some("gate:2222"), &[]) else {
            return;
        };
        if command.first().is_some_and(|program| program == "ssh") {
            let proxy = command
                .iter()
                .find(|word| word.starts_with("ProxyCommand="));
            let proxy = proxy.unwrap();
            assert!(
                proxy.contains("'UserKnownHostsFile=/tmp/known keys'"),
                "{proxy}"
            );
            assert!(proxy.ends_with("-p 2222 -W %h:%p core@gate"), "{proxy}");
        }
    }

    #[test]
    fn words_reach_the_other_sides_shell_as_they_are() {
        assert_eq!(quoted("web@1.service"), "web@1.service");
        assert_eq!(quoted("a'b c"), "'a'\\''b c'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("a\\x2d"), "'a\\x2d'");
    }
}
