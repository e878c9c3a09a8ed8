//! The command lines: `orlop WORD …` and the applets that old hands know by their own names.
//!
//! One table, `COMMANDS`, holds every word; help, dispatch and the image's links read it.

mod agent;
mod boot_times;
mod calendar;
mod cluster;
mod config;
mod confine;
mod container;
mod docker;
mod etcdctl;
mod fleetctl;
mod forward;
mod health;
pub mod image;
mod install;
mod journal;
mod journalctl;
mod net;
mod notify;
mod progress;
mod reset;
mod slots;
mod stderr;
mod store;
mod sudo;
mod systemctl;
mod unit;
mod update;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

/// A word of `orlop`, and perhaps an applet of the same name.
struct Command {
    /// The first argument that picks it, or the base name of `argv[0]` for an applet.
    name: &'static str,
    /// Whether a link of that name in `/usr/bin` runs it.
    applet: bool,
    /// One line for `orlop help`.
    summary: &'static str,
    /// Takes the arguments after the name.
    run: fn(&[OsString]) -> ExitCode,
}

/// Every word that the binary answers to.
const COMMANDS: &[Command] = &[
    Command {
        name: "calendar",
        applet: false,
        summary: "when calendar expressions of timers come round next",
        run: calendar::run,
    },
    Command {
        name: "config",
        applet: false,
        summary: "check and show configurations",
        run: config::run,
    },
    Command {
        name: "journal",
        applet: false,
        summary: "collect the log; started by PID 1",
        run: journal::run,
    },
    Command {
        name: "forward",
        applet: false,
        summary: "send the log to other machines (journal.forward); started by PID 1",
        run: forward::run,
    },
    Command {
        name: "journalctl",
        applet: true,
        summary: "show the log",
        run: journalctl::run,
    },
    Command {
        name: "devices",
        applet: false,
        summary: "load drivers for devices as they appear (the unit orlop-devices.service)",
        run: |_| orlop_boot::devices::run(),
    },
    Command {
        name: "modprobe",
        applet: true,
        summary: "load kernel modules by name or alias",
        run: orlop_boot::modprobe::run,
    },
    Command {
        name: "net",
        applet: false,
        summary: "keep the links as configured; started by PID 1",
        run: net::run,
    },
    Command {
        name: "setup",
        applet: false,
        summary: "apply the configuration before units start; started by PID 1",
        run: |_| orlop_init::setup::run(),
    },
    Command {
        name: "store",
        applet: false,
        summary: "serve the store, which speaks etcd's v3 API",
        run: store::run,
    },
    Command {
        name: "etcdctl",
        applet: true,
        summary: "ask the store, in etcd's words",
        run: etcdctl::run,
    },
    Command {
        name: "cluster",
        applet: false,
        summary: "make the secrets and configurations of a new cluster",
        run: cluster::run,
    },
    Command {
        name: "agent",
        applet: false,
        summary: "do this machine's part in the cluster; started by PID 1",
        run: agent::run,
    },
    Command {
        name: "fleetctl",
        applet: true,
        summary: "place units on the cluster's machines, and say why they are where they are",
        run: fleetctl::run,
    },
    Command {
        name: "confine",
        applet: false,
        summary: "become a unit's program, confined; started by PID 1",
        run: confine::run,
    },
    Command {
        name: "container",
        applet: false,
        summary: "start containers and clean up after them, for units",
        run: container::main,
    },
    Command {
        name: "docker",
        applet: true,
        summary: "containers and images, in words that hands know",
        run: docker::main,
    },
    Command {
        name: "unit",
        applet: false,
        summary: "check unit files (unit verify FILE…), list directives",
        run: unit::run,
    },
    Command {
        name: "systemctl",
        applet: true,
        summary: "start, stop and look at units",
        run: systemctl::run,
    },
    Command {
        name: "systemd-notify",
        applet: true,
        summary: "tell PID 1 how a service is doing",
        run: notify::run,
    },
    Command {
        name: "sudo",
        applet: true,
        summary: "run a program as root, for members of sudo and wheel",
        run: sudo::run,
    },
    Command {
        name: "boot-times",
        applet: false,
        summary: "where the time of this boot went",
        run: boot_times::run,
    },
    Command {
        name: "update",
        applet: false,
        summary: "bring a newer version to the slot that does not run",
        run: update::run,
    },
    Command {
        name: "install",
        applet: false,
        summary: "put Orlop on a disk",
        run: install::run,
    },
    Command {
        name: "reset",
        applet: false,
        summary: "wipe /var, or parts of it, at the next start",
        run: reset::run,
    },
    Command {
        name: "slots",
        applet: false,
        summary: "the versions on the disk: which runs, which failed and why",
        run: slots::slots,
    },
    Command {
        name: "rollback",
        applet: false,
        summary: "go back to the last good version and reboot",
        run: slots::rollback,
    },
    Command {
        name: "health",
        applet: false,
        summary: "decide whether this start is good; started by PID 1",
        run: health::run,
    },
    Command {
        name: "reboot",
        applet: true,
        summary: "stop all units and reboot",
        run: |args| systemctl::end("reboot", args),
    },
    Command {
        name: "poweroff",
        applet: true,
        summary: "stop all units and power off",
        run: |args| systemctl::end("poweroff", args),
    },
    Command {
        name: "halt",
        applet: true,
        summary: "stop all units and halt",
        run: |args| systemctl::end("halt", args),
    },
    Command {
        name: "version",
        applet: false,
        summary: "print the version",
        run: |_| version(),
    },
    Command {
        name: "help",
        applet: false,
        summary: "print this list",
        run: |_| help(),
    },
];

/// The names for which the image has links to the binary in `/usr/bin`.
pub fn applets() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().filter(|c| c.applet).map(|c| c.name)
}

/// Whether the binary was started without a word of its own: what the kernel does when it runs `/init`.
///
/// The kernel passes what it does not know of its command line as arguments; only a known word counts.
#[must_use]
pub fn is_plain_start(args: &[OsString]) -> bool {
    let applet = args.first().and_then(|a| Path::new(a).file_name());
    let word = args.get(1).map(OsString::as_os_str);
    find(applet, true).is_none()
        && word.is_none_or(|w| w != "--version" && find(Some(w), false).is_none())
}

/// Runs the command that `args`, `argv[0]` included, names.
pub fn run(args: Vec<OsString>) -> ExitCode {
    let applet = args.first().and_then(|a| Path::new(a).file_name());
    if let Some(command) = find(applet, true) {
        return (command.run)(args.get(1..).unwrap_or_default());
    }
    let Some(word) = args.get(1) else {
        return help();
    };
    match word.to_str() {
        Some("--version" | "-V") => return version(),
        Some("--help" | "-h") => return help(),
        _ => {}
    }
    match find(Some(word), false) {
        Some(command) => (command.run)(args.get(2..).unwrap_or_default()),
        None => {
            eprintln!("orlop: no command {word:?}; `orlop help` lists them");
            ExitCode::from(2)
        }
    }
}

fn find(name: Option<&OsStr>, as_applet: bool) -> Option<&'static Command> {
    let name = name?.to_str()?;
    COMMANDS
        .iter()
        .find(|c| c.name == name && (c.applet || !as_applet))
}

fn version() -> ExitCode {
    println!("orlop {}", env!("CARGO_PKG_VERSION"));
    ExitCode::SUCCESS
}

fn help() -> ExitCode {
    println!(
        "Orlop: an operating system for containers.\n\nUsage: orlop COMMAND [ARGUMENT…]\n\nCommands:"
    );
    for command in COMMANDS {
        println!("  {:<12} {}", command.name, command.summary);
    }
    ExitCode::SUCCESS
}
