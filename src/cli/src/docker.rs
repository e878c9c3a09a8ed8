//! The applet `docker`: the commands that unit files and hands use, without a daemon.
//!
//! Messages and exit codes are those that scripts know. What needs a registry says so.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use orlop_container::{Record, Records, StateError};
use orlop_sys::pidfd;

use crate::container::{self, cleanup, signal_number, stop_process};
use crate::image;

/// A command of `docker`.
struct Word {
    name: &'static str,
    arguments: &'static str,
    summary: &'static str,
    run: fn(&[String]) -> ExitCode,
}

/// Every command.
const WORDS: &[Word] = &[
    Word {
        name: "run",
        arguments: "[FLAG…] IMAGE [COMMAND…]",
        summary: "start a container",
        run: |words| container::run("docker", words),
    },
    Word {
        name: "stop",
        arguments: "[-t SECONDS] [-s SIGNAL] NAME…",
        summary: "ask containers to stop, then kill them",
        run: |words| {
            each_of(
                "stop",
                words,
                &[('t', "time", true), ('s', "signal", true)],
                stop,
            )
        },
    },
    Word {
        name: "kill",
        arguments: "[-s SIGNAL] NAME…",
        summary: "signal containers",
        run: |words| each_of("kill", words, &[('s', "signal", true)], kill),
    },
    Word {
        name: "rm",
        arguments: "[-f] NAME…",
        summary: "remove containers",
        run: |words| {
            each_of(
                "rm",
                words,
                &[('f', "force", false), ('v', "volumes", false)],
                remove,
            )
        },
    },
    Word {
        name: "exec",
        arguments: "[-i] [-e NAME=VALUE] [-w DIRECTORY] [-u USER] NAME COMMAND…",
        summary: "run a further command in a container",
        run: run_exec,
    },
    Word {
        name: "wait",
        arguments: "NAME…",
        summary: "wait for containers to end",
        run: |words| each_of("wait", words, &[], wait),
    },
    Word {
        name: "ps",
        arguments: "[-a] [-q]",
        summary: "list containers",
        run: |words| finish(list(words)),
    },
    Word {
        name: "logs",
        arguments: "[-f] [-n LINES] NAME",
        summary: "show what a container wrote",
        run: |words| finish(logs(words)),
    },
    Word {
        name: "load",
        arguments: "[-i ARCHIVE]",
        summary: "load images from an archive",
        run: |words| to_image(image::load, words),
    },
    Word {
        name: "images",
        arguments: "[-q]",
        summary: "list images",
        run: |words| to_image(image::images, words),
    },
    Word {
        name: "rmi",
        arguments: "[-f] IMAGE…",
        summary: "remove images",
        run: |words| to_image(image::rmi, words),
    },
    Word {
        name: "tag",
        arguments: "IMAGE NAME",
        summary: "give an image another name",
        run: |words| to_image(image::tag, words),
    },
    Word {
        name: "image",
        arguments: "COMMAND …",
        summary: "the commands of images under one word",
        run: |words| to_image(image::image, words),
    },
    Word {
        name: "pull",
        arguments: "IMAGE",
        summary: "make sure that an image is there",
        run: |words| finish(pull(words)),
    },
];

/// Runs `docker …`.
pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    let words: Vec<String> = arguments
        .iter()
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    let Some((name, rest)) = words.split_first() else {
        return help();
    };
    // What starts containers goes on until they run, whoever reads its output.
    if name != "run" {
        orlop_sys::signal::end_with_closed_pipes();
    }
    match WORDS.iter().find(|word| word.name == name) {
        Some(word) => (word.run)(rest),
        None if ["help", "--help", "-h"].contains(&name.as_str()) => help(),
        None => {
            eprintln!("docker: '{name}' is not a docker command.\nSee 'docker --help'");
            ExitCode::FAILURE
        }
    }
}

fn help() -> ExitCode {
    println!("Usage: docker COMMAND\n\nCommands:");
    for word in WORDS {
        println!("  {:<8} {:<32} {}", word.name, word.arguments, word.summary);
    }
    ExitCode::SUCCESS
}

fn finish(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("docker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn records() -> Records {
    Records::new(Records::DIRECTORY)
}

/// Flags that were given, with their values.
#[derive(Debug, Default)]
struct Given(Vec<(char, String)>);

impl Given {
    fn value(&self, flag: char) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(f, _)| *f == flag)
            .map(|(_, value)| value.as_str())
    }
}

/// A flag: its letter, its name, and whether it takes a value.
type Flag = (char, &'static str, bool);

/// Takes flags and names apart.
fn split(words: &[String], flags: &[Flag]) -> Result<(Given, Vec<String>)> {
    let (mut given, mut names) = (Given::default(), Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            names.extend(words.by_ref().cloned());
        } else if let Some(long) = word.strip_prefix("--") {
            let (name, value) = long
                .split_once('=')
                .map_or((long, None), |(n, v)| (n, Some(v.to_owned())));
            // Docker renamed one of its own.
            let name = if name == "timeout" { "time" } else { name };
            let Some((letter, _, takes_value)) = flags.iter().find(|(_, n, _)| *n == name) else {
                bail!("unknown flag: --{name}");
            };
            let value = match (takes_value, value) {
                (_, Some(value)) => value,
                (true, None) => words
                    .next()
                    .with_context(|| format!("flag needs an argument: --{name}"))?
                    .clone(),
                (false, None) => "true".to_owned(),
            };
            given.0.push((*letter, value));
        } else if let Some(letters) = word.strip_prefix('-').filter(|l| !l.is_empty()) {
            let mut rest = letters.chars();
            while let Some(letter) = rest.next() {
                let Some((_, _, takes_value)) = flags.iter().find(|(l, ..)| *l == letter) else {
                    bail!("unknown shorthand flag: '{letter}' in -{letters}");
                };
                if *takes_value {
                    let attached = rest.as_str().trim_start_matches('=').to_owned();
                    rest = "".chars();
                    let value = if attached.is_empty() {
                        words
                            .next()
                            .with_context(|| format!("flag needs an argument: -{letter}"))?
                            .clone()
                    } else {
                        attached
                    };
                    given.0.push((letter, value));
                } else {
                    given.0.push((letter, "true".to_owned()));
                }
            }
        } else {
            names.push(word.clone());
        }
    }
    Ok((given, names))
}

/// Does something to each container named, reporting those that failed; prints the names of the others.
fn each_of(
    word: &str,
    words: &[String],
    flags: &[Flag],
    action: fn(&Record, &Given) -> Result<Option<String>>,
) -> ExitCode {
    let (given, names) = match split(words, flags) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("docker {word}: {error:#}");
            return ExitCode::from(125);
        }
    };
    if names.is_empty() {
        eprintln!("\"docker {word}\" requires at least 1 argument.");
        return ExitCode::FAILURE;
    }
    let mut code = ExitCode::SUCCESS;
    for name in names {
        let result = match records().find(&name) {
            // Asked by force, its absence is what was wanted.
            Err(StateError::Unknown(_)) if word == "rm" && given.value('f').is_some() => {
                Ok(Some(name))
            }
            Err(error) => Err(error.into()),
            Ok(record) => action(&record, &given).map(|said| Some(said.unwrap_or(name))),
        };
        match result {
            Ok(Some(text)) => println!("{text}"),
            Ok(None) => {}
            Err(error) => {
                eprintln!("Error response from daemon: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn stop(record: &Record, given: &Given) -> Result<Option<String>> {
    let Some(process) = record.running() else {
        return Ok(None);
    };
    let signal = given
        .value('s')
        .map_or(Ok(record.stop_signal), signal_number)?;
    let timeout = match given.value('t') {
        // Docker: -1 waits for ever. A year is as good, and ends.
        Some("-1") => 31_536_000,
        Some(text) => text
            .parse()
            .with_context(|| format!("invalid time {text:?}"))?,
        None => record.stop_timeout_seconds,
    };
    stop_process(process.as_fd(), signal, Duration::from_secs(timeout))?;
    after_end(record);
    Ok(None)
}

/// Cleans up where nobody waits for the container's end: neither a unit nor a command.
fn after_end(record: &Record) {
    if record.remove && record.unit.is_none() && record.log.is_some() {
        cleanup(&records(), record, true);
    }
}

fn kill(record: &Record, given: &Given) -> Result<Option<String>> {
    let signal = given
        .value('s')
        .map_or(Ok(Signal::SIGKILL as i32), signal_number)?;
    match record.running() {
        Some(process) => {
            pidfd::send_signal(process.as_fd(), signal).context("signal the container")?;
            Ok(None)
        }
        None => bail!(
            "cannot kill container: {}: container {} is not running",
            record.name,
            record.id
        ),
    }
}

fn remove(record: &Record, given: &Given) -> Result<Option<String>> {
    if let Some(process) = record.running() {
        if given.value('f').is_none() {
            bail!(
                "cannot remove container \"/{}\": container is running: stop the container before removing or force remove",
                record.name
            );
        }
        stop_process(
            process.as_fd(),
            Signal::SIGKILL as i32,
            Duration::from_secs(10),
        )?;
    }
    cleanup(&records(), record, true);
    Ok(None)
}

/// A further process in a container that runs; flags end at the name.
fn run_exec(words: &[String]) -> ExitCode {
    let flags = [
        ('i', "interactive", false),
        ('t', "tty", false),
        ('e', "env", true),
        ('w', "workdir", true),
        ('u', "user", true),
    ];
    let takes_value = |word: &String| {
        flags
            .iter()
            .any(|(l, n, v)| *v && (*word == format!("-{l}") || *word == format!("--{n}")))
    };
    let mut own = 0;
    while let Some(word) = words.get(own).filter(|w| w.starts_with('-')) {
        own += if takes_value(word) { 2 } else { 1 };
    }
    let (given, rest) = words.split_at(own.min(words.len()));
    let result = split(given, &flags).and_then(|(given, _)| match rest.split_first() {
        Some((name, command)) if !command.is_empty() => exec(&given, name, command),
        _ => bail!("\"docker exec\" requires at least 2 arguments."),
    });
    result.unwrap_or_else(|error| {
        eprintln!("docker: {error:#}");
        let code = error
            .downcast_ref::<orlop_container::Error>()
            .map_or(1, orlop_container::Error::exit_code);
        ExitCode::from(code)
    })
}

fn exec(given: &Given, name: &str, command: &[String]) -> Result<ExitCode> {
    let record = records().find(name)?;
    let Some(first) = record.running() else {
        bail!("container {} is not running", record.id)
    };
    if given.value('i').is_none() {
        let null = std::fs::File::open("/dev/null").context("open /dev/null")?;
        nix::unistd::dup2_stdin(&null).context("redirect standard input")?;
    }
    let mut environment: Vec<String> = given
        .0
        .iter()
        .filter(|(f, _)| *f == 'e')
        .map(|(_, v)| v.clone())
        .collect();
    if given.value('t').is_some() {
        environment.insert(0, "TERM=xterm".to_owned());
    }
    let request = orlop_container::Exec {
        command: command.to_vec(),
        environment,
        working_directory: given
            .value('w')
            .map(Into::into)
            .or(Some(record.working_directory.clone())),
        user: given
            .value('u')
            .map(str::to_owned)
            .or(Some(record.user.clone())),
    };
    let running = orlop_container::exec(first.as_fd(), record.pid, &request)?;
    Ok(ExitCode::from(container::wait_exit_code(&running)?))
}

fn wait(record: &Record, _: &Given) -> Result<Option<String>> {
    if let Some(process) = record.running() {
        pidfd::wait_for_exit(process.as_fd(), None)?;
    }
    let after = records().load(&record.name).ok().and_then(|r| r.exit_code);
    // Who is not its parent learns only that it ended.
    Ok(Some(after.or(record.exit_code).unwrap_or(0).to_string()))
}

fn list(words: &[String]) -> Result<()> {
    let flags = [
        ('a', "all", false),
        ('q', "quiet", false),
        ('n', "no-trunc", false),
    ];
    let (given, _) = split(words, &flags)?;
    let mut rows = vec![
        [
            "CONTAINER ID",
            "IMAGE",
            "COMMAND",
            "CREATED",
            "STATUS",
            "PORTS",
            "NAMES",
        ]
        .map(str::to_owned),
    ];
    let mut output = std::io::stdout().lock();
    for record in records().all()?.into_iter().rev() {
        let runs = record.running().is_some();
        if !runs && given.value('a').is_none() {
            continue;
        }
        let id = record.id.get(..12).unwrap_or(&record.id).to_owned();
        if given.value('q').is_some() {
            writeln!(output, "{id}")?;
            continue;
        }
        let age = age(record.created_unix_seconds);
        let status = match (runs, record.exit_code) {
            (true, _) => format!("Up {age}"),
            (false, Some(code)) => format!("Exited ({code})"),
            (false, None) => "Exited".to_owned(),
        };
        let command = record.command.join(" ");
        let short: String = command.chars().take(20).collect();
        let ports: Vec<String> = record
            .ports
            .iter()
            .map(|p| {
                let ip = p
                    .host_ip
                    .map_or_else(|| "0.0.0.0".to_owned(), |ip| ip.to_string());
                format!("{ip}:{}->{}/{}", p.host_port, p.container_port, p.protocol)
            })
            .collect();
        rows.push([
            id,
            record.image,
            format!("\"{short}\""),
            format!("{age} ago"),
            status,
            ports.join(", "),
            record.name,
        ]);
    }
    if given.value('q').is_none() {
        write_table(&mut output, &rows)?;
    }
    Ok(())
}

fn write_table<const N: usize>(
    output: &mut impl std::io::Write,
    rows: &[[String; N]],
) -> Result<()> {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        writeln!(output, "{}", cells.join("   ").trim_end())?;
    }
    Ok(())
}

/// `5 seconds`, `2 hours`.
fn age(since_unix_seconds: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let seconds = now.saturating_sub(since_unix_seconds);
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86400 => (seconds / 3600, "hour"),
        _ => (seconds / 86400, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

fn logs(words: &[String]) -> Result<()> {
    let flags = [
        ('f', "follow", false),
        ('n', "tail", true),
        ('t', "timestamps", false),
    ];
    let (given, names) = split(words, &flags)?;
    let [name] = names.as_slice() else {
        bail!("\"docker logs\" requires exactly 1 argument.")
    };
    let record = records().find(name)?;
    if let Some(unit) = &record.unit {
        let mut arguments: Vec<OsString> =
            ["-u", unit, "--output", "cat"].map(OsString::from).into();
        if given.value('f').is_some() {
            arguments.push("-f".into());
        }
        if let Some(lines) = given.value('n').filter(|n| *n != "all") {
            arguments.extend(["-n".into(), lines.into()]);
        }
        return match crate::journalctl::run(&arguments) {
            code if code == ExitCode::SUCCESS => Ok(()),
            _ => bail!("the journal did not answer"),
        };
    }
    let Some(path) = &record.log else {
        bail!("{name}: its output went to the terminal that started it")
    };
    let mut file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    std::io::copy(&mut file, &mut std::io::stdout().lock())
        .with_context(|| format!("read {}", path.display()))?;
    Ok(())
}

/// Hands the words on to the commands of images.
fn to_image(run: fn(&[OsString]) -> ExitCode, words: &[String]) -> ExitCode {
    let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
    run(&arguments)
}

fn pull(words: &[String]) -> Result<()> {
    let (_, names) = split(words, &[('q', "quiet", false), ('a', "all-tags", false)])?;
    let [name] = names.as_slice() else {
        bail!("\"docker pull\" requires exactly 1 argument.")
    };
    match orlop_image::Store::open(container::IMAGES)?.resolve(name) {
        Ok(image) => {
            println!("Status: Image is up to date for {name} ({})", image.id);
            Ok(())
        }
        Err(error) => bail!(
            "{name}: {error:#}; images come from archives: there is no registry client yet (`docker load -i ARCHIVE`)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn flags_are_found_in_all_their_forms() {
        let flags = [('t', "time", true), ('f', "force", false)];
        for form in [
            &["-t", "3", "web"][..],
            &["-t3", "web"],
            &["--time=3", "web"],
            &["web", "--timeout", "3"],
        ] {
            let (given, names) = split(&words(form), &flags).unwrap();
            assert_eq!(
                (given.value('t'), names.as_slice()),
                (Some("3"), &["web".to_owned()][..]),
                "{form:?}"
            );
        }
        assert!(split(&words(&["--nope"]), &flags).is_err());
        assert!(split(&words(&["-t"]), &flags).is_err());
    }
}
