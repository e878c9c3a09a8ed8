//! `fleetctl`: fleet's commands, columns and flags; it waits for what really comes of a command, and says why.

mod flags;
pub(crate) mod http;
mod list;
mod outcome;
mod remote;
mod table;
mod units;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

use flags::{Flag, Values};
use http::{Endpoint, Http};

/// Flags that stand before the command; in the environment `FLEETCTL_` and the name in capitals.
const GLOBAL: &[Flag] = &[
    Flag::value(
        "endpoint",
        "unix:///run/fleet.sock",
        "where the API is: unix:///PATH or http://ADDRESS:PORT",
    ),
    Flag::value(
        "driver",
        "API",
        "API; etcd is not supported: any machine's API will do",
    ),
    Flag::value(
        "tunnel",
        "",
        "HOST[:PORT]: reach the API and the machines by ssh through this one",
    ),
    Flag::value("ssh-username", "core", "the user on other machines"),
    Flag::value(
        "ssh-timeout",
        "10.0",
        "seconds until a connection by ssh fails",
    ),
    Flag::value(
        "known-hosts-file",
        "~/.fleetctl/known_hosts",
        "hosts' keys for ssh",
    ),
    Flag::switch(
        "strict-host-key-checking",
        "true",
        "refuse hosts whose key has changed",
    ),
    Flag::value("request-timeout", "3.0", "seconds until a request fails"),
    Flag::ignored("etcd-key-prefix"),
    Flag::ignored("etcd-keyfile"),
    Flag::ignored("etcd-certfile"),
    Flag::ignored("etcd-cafile"),
    Flag::ignored_switch("experimental-api"),
    Flag::refused("ca-file", "TLS is not supported yet: use --tunnel"),
    Flag::refused("cert-file", "TLS is not supported yet: use --tunnel"),
    Flag::refused("key-file", "TLS is not supported yet: use --tunnel"),
    Flag::ignored_switch("debug"),
    Flag::switch("version", "false", "print the version"),
    Flag::switch("help", "false", "print this list"),
];

const NO_BLOCK: Flag = Flag::switch("no-block", "false", "do not wait for the outcome");
const ATTEMPTS: Flag = Flag::value(
    "block-attempts",
    "0",
    "wait this often for 2 s; 0 stands for 5 min",
);
const REPLACE: Flag = Flag::switch("replace", "false", "replace a unit of other content");
const SIGN: Flag = Flag::ignored_switch("sign");
const FULL: Flag = Flag::switch("full", "false", "do not shorten");
const SHORT_FULL: Flag = Flag::switch("l", "false", "the same");
const NO_LEGEND: Flag = Flag::switch("no-legend", "false", "no line of titles");

/// What a command gets.
struct Context {
    http: Http,
    global: Values,
    flags: Values,
    words: Vec<String>,
}

/// One command.
struct Command {
    name: &'static str,
    usage: &'static str,
    summary: &'static str,
    flags: &'static [Flag],
    run: fn(&Context) -> Result<ExitCode>,
}

/// Every command.
const COMMANDS: &[Command] = &[
    Command {
        name: "cat",
        usage: "UNIT…",
        summary: "print units' content",
        flags: &[],
        run: units::cat,
    },
    Command {
        name: "destroy",
        usage: "UNIT…",
        summary: "stop units and forget them",
        flags: &[NO_BLOCK, ATTEMPTS],
        run: units::destroy,
    },
    Command {
        name: "journal",
        usage: "UNIT",
        summary: "print a unit's log from the machine where it is",
        flags: &[
            Flag::value("lines", "10", "how many lines"),
            Flag::switch("follow", "false", "go on as lines come"),
            Flag::switch("f", "false", "the same"),
            Flag::value("output", "short", "the form of the lines"),
            Flag::switch("sudo", "false", "as root"),
        ],
        run: remote::journal,
    },
    Command {
        name: "list-machines",
        usage: "",
        summary: "the machines that are heard",
        flags: &[
            FULL,
            SHORT_FULL,
            NO_LEGEND,
            Flag::value("fields", list::MACHINE_FIELDS, "columns"),
        ],
        run: list::machines,
    },
    Command {
        name: "list-unit-files",
        usage: "",
        summary: "the units that are known, and what is wanted of them",
        flags: &[
            FULL,
            SHORT_FULL,
            NO_LEGEND,
            Flag::value("fields", list::FILE_FIELDS, "columns"),
        ],
        run: list::unit_files,
    },
    Command {
        name: "list-units",
        usage: "",
        summary: "units on machines, and those that wait for one",
        flags: &[
            FULL,
            SHORT_FULL,
            NO_LEGEND,
            Flag::value("fields", list::UNIT_FIELDS, "columns"),
        ],
        run: list::units,
    },
    Command {
        name: "load",
        usage: "UNIT…",
        summary: "give units a machine, do not start them",
        flags: &[NO_BLOCK, ATTEMPTS, REPLACE, SIGN],
        run: units::load,
    },
    Command {
        name: "restart",
        usage: "UNIT…",
        summary: "stop units and start them again",
        flags: &[ATTEMPTS],
        run: units::restart,
    },
    Command {
        name: "ssh",
        usage: "[-A] [--machine M|--unit U|M|U] [COMMAND…]",
        summary: "log in to a machine, or run a command there",
        flags: &[
            Flag::value("machine", "", "a machine by its id"),
            Flag::value("unit", "", "the machine of a unit"),
            Flag::switch("forward-agent", "false", "let the other side use our keys"),
            Flag::switch("A", "false", "the same"),
            Flag::value("ssh-port", "22", "the port"),
        ],
        run: remote::ssh,
    },
    Command {
        name: "start",
        usage: "UNIT…",
        summary: "give units a machine and start them",
        flags: &[NO_BLOCK, ATTEMPTS, REPLACE, SIGN],
        run: units::start,
    },
    Command {
        name: "status",
        usage: "UNIT…",
        summary: "what units do on their machines",
        flags: &[],
        run: remote::status,
    },
    Command {
        name: "stop",
        usage: "UNIT…",
        summary: "stop units, they keep their machine",
        flags: &[NO_BLOCK, ATTEMPTS],
        run: units::stop,
    },
    Command {
        name: "submit",
        usage: "UNIT…",
        summary: "make units known",
        flags: &[REPLACE, SIGN],
        run: units::submit,
    },
    Command {
        name: "unload",
        usage: "UNIT…",
        summary: "stop units and take their machine away",
        flags: &[NO_BLOCK, ATTEMPTS],
        run: units::unload,
    },
    Command {
        name: "verify",
        usage: "UNIT",
        summary: "gone: units are not signed",
        flags: &[],
        run: |_| bail!("signed units are gone; `orlop unit verify FILE` checks a unit"),
    },
    Command {
        name: "why",
        usage: "UNIT",
        summary: "for every machine, why it does not take a unit",
        flags: &[],
        run: outcome::why,
    },
    Command {
        name: "fd-forward",
        usage: "SOCKET",
        summary: "join standard input and output to a socket; for --tunnel",
        flags: &[],
        run: remote::fd_forward,
    },
    Command {
        name: "version",
        usage: "",
        summary: "print the version",
        flags: &[],
        run: |_| Ok(version()),
    },
    Command {
        name: "help",
        usage: "",
        summary: "print this list",
        flags: &[],
        run: |_| Ok(help()),
    },
];

/// Runs `fleetctl`: 0 when it is done, 1 when it came to nothing, 2 for a wrong call.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let words: Vec<String> = args
        .iter()
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    let prepared = match prepare(&words, |name| std::env::var(name).ok()) {
        Ok(Some(prepared)) => prepared,
        Ok(None) => return help(),
        Err(err) => {
            eprintln!("fleetctl: {err:#}");
            return ExitCode::from(2);
        }
    };
    let (command, context) = prepared;
    if context.global.is_set("version") {
        return version();
    }
    match (command.run)(&context) {
        Ok(code) => code,
        Err(err) => {
            eprintln!("{err:#}");
            ExitCode::FAILURE
        }
    }
}

/// The command and what it gets; nothing when help is asked for.
fn prepare(
    words: &[String],
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Option<(&'static Command, Context)>> {
    let (global, rest) = flags::parse(GLOBAL, words, true, |name| {
        environment(&format!(
            "FLEETCTL_{}",
            name.to_uppercase().replace('-', "_")
        ))
    })?;
    let asks_version = global.is_set("version");
    let Some((word, rest)) = rest.split_first().filter(|_| !global.is_set("help")) else {
        return Ok(match COMMANDS.iter().find(|c| c.name == "version") {
            Some(command) if asks_version => Some((
                command,
                Context {
                    http: http(&global)?,
                    global,
                    flags: Values::default(),
                    words: Vec::new(),
                },
            )),
            _ => None,
        });
    };
    let command = find(word)?;
    let asks_help = |word: &String| matches!(word.as_str(), "--help" | "-help" | "-h");
    if command.name != "ssh" && rest.iter().any(asks_help) {
        return Ok(None);
    }
    // The command that ssh runs has flags of its own.
    let (flags, words) = flags::parse(command.flags, rest, command.name == "ssh", |_| None)
        .with_context(|| command.name)?;
    let http = http(&global)?;
    Ok(Some((
        command,
        Context {
            http,
            global,
            flags,
            words,
        },
    )))
}

/// A command by its name or an unambiguous beginning of it.
fn find(word: &str) -> Result<&'static Command> {
    if let Some(command) = COMMANDS.iter().find(|c| c.name == word) {
        return Ok(command);
    }
    let mut matching = COMMANDS.iter().filter(|c| c.name.starts_with(word));
    match (matching.next(), matching.next()) {
        (Some(command), None) => Ok(command),
        (Some(one), Some(two)) => Err(anyhow!("{word:?} may be {} or {}", one.name, two.name)),
        _ => Err(anyhow!("no command {word:?}; `fleetctl help` lists them")),
    }
}

fn http(global: &Values) -> Result<Http> {
    let driver = global.get("driver");
    if !driver.is_empty() && !driver.eq_ignore_ascii_case("api") {
        bail!("the driver {driver:?} is not supported: any machine's API will do");
    }
    let seconds: f64 = global
        .get("request-timeout")
        .parse()
        .ok()
        .filter(|s: &f64| s.is_finite() && *s > 0.0 && *s < 1e6)
        .context("--request-timeout takes seconds")?;
    let endpoint = Endpoint::parse(global.get("endpoint"))?;
    let endpoint = match global.get("tunnel") {
        "" => endpoint,
        tunnel => {
            let Endpoint::Unix(socket) = endpoint else {
                bail!("--tunnel goes to a unix:// endpoint");
            };
            Endpoint::Tunnel {
                command: remote::ssh_command(global, tunnel, None, &[])?,
                socket,
            }
        }
    };
    Ok(Http {
        endpoint,
        timeout: Duration::from_secs_f64(seconds),
    })
}

impl Context {
    /// A request whose answer must be one of success; fleet's message otherwise.
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = self
            .http
            .request(method, &format!("/fleet/v1{path}"), body)?;
        if answer.status < 300 {
            return Ok(answer.body);
        }
        let message = answer
            .body
            .pointer("/error/message")
            .and_then(Value::as_str);
        Err(
            anyhow!("{}", message.unwrap_or("the API refused without a word"))
                .context(format!("{method} {path}: {}", answer.status)),
        )
    }

    /// The same, or nothing when it is not there.
    fn find(&self, path: &str) -> Result<Option<Value>> {
        let answer = self
            .http
            .request("GET", &format!("/fleet/v1{path}"), None)?;
        match answer.status {
            404 => Ok(None),
            status if status < 300 => Ok(Some(answer.body)),
            status => {
                let message = answer
                    .body
                    .pointer("/error/message")
                    .and_then(Value::as_str);
                Err(
                    anyhow!("{}", message.unwrap_or("the API refused without a word"))
                        .context(format!("GET {path}: {status}")),
                )
            }
        }
    }

    /// All pages of a list.
    fn list(&self, what: &str) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        let mut token = String::new();
        loop {
            let page = self.call("GET", &format!("/{what}{token}"), None)?;
            if let Some(Value::Array(part)) =
                page.get(if what == "state" { "states" } else { what })
            {
                all.extend(part.iter().cloned());
            }
            match page.get("nextPageToken").and_then(Value::as_str) {
                Some(next) => token = format!("?nextPageToken={}", next.replace('=', "%3D")),
                None => return Ok(all),
            }
        }
    }
}

/// A text of a JSON object, empty when there is none.
fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn version() -> ExitCode {
    println!("fleetctl version {}", env!("CARGO_PKG_VERSION"));
    ExitCode::SUCCESS
}

fn help() -> ExitCode {
    println!("Usage: fleetctl [FLAG…] COMMAND [FLAG…] [ARGUMENT…]\n\nCommands:");
    for command in COMMANDS {
        let call = format!("{} {}", command.name, command.usage);
        println!("  {:<24}{}", call.trim_end(), command.summary);
        print!("{}", flags::help(command.flags, 26));
    }
    println!("\nFlags before the command, also as FLEETCTL_NAME in the environment:");
    print!("{}", flags::help(GLOBAL, 2));
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(words: &[&str], environment: &[(&str, &str)]) -> Result<(String, Context)> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        let prepared = prepare(&words, |name| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })?;
        let (command, context) = prepared.context("help")?;
        Ok((command.name.to_owned(), context))
    }

    #[test]
    fn commands_may_be_shortened_and_flags_come_as_in_go() {
        let (name, context) = prepared(
            &[
                "-endpoint",
                "unix:///x",
                "list-unit-",
                "--full",
                "-no-legend=true",
            ],
            &[],
        )
        .unwrap();
        assert_eq!(name, "list-unit-files");
        assert!(context.flags.is_set("full") && context.flags.is_set("no-legend"));
        assert_eq!(context.http.endpoint, Endpoint::Unix("/x".into()));
        assert!(prepared(&["list"], &[]).is_err(), "ambiguous");
        assert!(prepared(&["start", "--no-such"], &[]).is_err());
        assert!(prepared(&["--driver", "etcd", "version"], &[]).is_err());
    }

    #[test]
    fn the_environment_counts_where_no_flag_is_given() {
        let environment = [
            ("FLEETCTL_ENDPOINT", "unix:///env"),
            ("FLEETCTL_SSH_USERNAME", "me"),
        ];
        let (_, context) = prepared(&["list-machines"], &environment).unwrap();
        assert_eq!(context.http.endpoint, Endpoint::Unix("/env".into()));
        assert_eq!(context.global.get("ssh-username"), "me");
        let (_, context) =
            prepared(&["--endpoint=unix:///flag", "list-machines"], &environment).unwrap();
        assert_eq!(context.http.endpoint, Endpoint::Unix("/flag".into()));
    }
}
