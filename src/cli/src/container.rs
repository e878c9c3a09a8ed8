//! `orlop container`: what units of containers call, and the runtime behind the `docker` applet.

mod files;
mod flags;
mod init;
mod start;
mod volumes;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use nix::sys::signal::Signal;
use orlop_container::{EXIT_RUNTIME, Error, Record, Records, StateError};

pub(crate) use flags::RunFlags;
pub(crate) use start::{stop_process, wait_exit_code};

/// What containers write, each in a directory of its name.
pub(crate) const CONTAINERS: &str = "/var/lib/orlop/containers";
/// The image store.
pub(crate) const IMAGES: &str = "/var/lib/orlop/images";

/// Runs `orlop container …`.
pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    let words: Vec<String> = arguments
        .iter()
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    let (word, rest) = words
        .split_first()
        .map_or(("help", &[][..]), |(word, rest)| (word.as_str(), rest));
    match (word, rest) {
        ("run", flags) => run("orlop container run", flags),
        ("cleanup", [name]) => clean_up(name),
        ("init", words) => init::main(words),
        ("help" | "--help", _) => {
            println!(
                "Usage:\n  orlop container run [FLAG…] IMAGE [COMMAND…]\n  orlop container cleanup NAME"
            );
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("orlop container: expected `run [FLAG…] IMAGE [COMMAND…]` or `cleanup NAME`");
            ExitCode::from(2)
        }
    }
}

/// Runs `run` for the command called `caller`.
pub(crate) fn run(caller: &str, words: &[String]) -> ExitCode {
    let flags = match RunFlags::parse_words(words) {
        Ok(flags) => flags,
        Err(error) if error.use_stderr() => {
            // The first line says it; the rest is a usage that scrolls it away in a journal.
            let text = error.to_string();
            let line = text
                .lines()
                .next()
                .unwrap_or_default()
                .trim_start_matches("error: ");
            eprintln!("{caller}: {line}");
            return ExitCode::from(EXIT_RUNTIME);
        }
        Err(help) => {
            print!("{help}");
            return ExitCode::SUCCESS;
        }
    };
    match start::run(&flags) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let caller = caller.split(' ').next().unwrap_or(caller);
            let name = flags.name.as_deref().unwrap_or(&flags.image);
            eprintln!("{caller}: {name}: {error:#}");
            ExitCode::from(
                error
                    .downcast_ref::<Error>()
                    .map_or(EXIT_RUNTIME, Error::exit_code),
            )
        }
    }
}

/// What remains to be done after the container of a unit has ended.
fn clean_up(name: &str) -> ExitCode {
    let records = Records::new(Records::DIRECTORY);
    let record = match records.load(name) {
        Ok(record) => record,
        // Cleaned up already, or never started.
        Err(StateError::Unknown(_)) => Record {
            name: name.into(),
            attached: true,
            ..Record::default()
        },
        Err(error) => {
            eprintln!("orlop: {error}");
            return ExitCode::FAILURE;
        }
    };
    if record.running().is_some() {
        eprintln!("orlop: {name}: the container still runs");
        return ExitCode::FAILURE;
    }
    cleanup(&records, &record, true);
    ExitCode::SUCCESS
}

/// Takes back what a container that ended held; `forget`: and everything that it was.
pub(crate) fn cleanup(records: &Records, record: &Record, forget: bool) {
    if record.attached
        && let Err(error) = orlop_net::container::detach(&record.name)
    {
        log::warn!("{}: {error}", record.name);
    }
    if let Some(cgroup) = &record.cgroup
        && let Err(error) = orlop_container::remove_cgroup(cgroup)
    {
        log::warn!("{}: {error}", record.name);
    }
    let directory = Path::new(CONTAINERS).join(&record.name);
    let result = if forget {
        for result in [
            std::fs::remove_dir_all(&directory),
            records.remove(&record.name).map_err(std::io::Error::other),
        ] {
            if let Err(error) = result
                && error.kind() != std::io::ErrorKind::NotFound
            {
                log::warn!("{}: {error}", record.name);
            }
        }
        Ok(())
    } else {
        records.save(record)
    };
    if let Err(error) = result {
        log::warn!("{}: {error}", record.name);
    }
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
pub(crate) fn signal_number(text: &str) -> Result<i32> {
    let unknown = || anyhow!("Invalid signal: {text}");
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err(unknown())
        };
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        // As the C library counts them, two of the kernel's are its own.
        let offset = if rest.is_empty() {
            0
        } else {
            rest.strip_prefix('+')
                .and_then(|n| n.parse().ok())
                .ok_or_else(unknown)?
        };
        return if (0..=30).contains(&offset) {
            Ok(34 + offset)
        } else {
            Err(unknown())
        };
    }
    format!("SIG{bare}")
        .parse::<Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_by_name_and_number() {
        assert_eq!(signal_number("TERM").unwrap(), 15);
        assert_eq!(signal_number("sigquit").unwrap(), 3);
        assert_eq!(signal_number("SIGRTMIN+3").unwrap(), 37);
        assert_eq!(signal_number("9").unwrap(), 9);
        for wrong in ["0", "65", "SIGNOPE", "RTMIN-1", "RTMIN+31", ""] {
            assert!(signal_number(wrong).is_err(), "{wrong}");
        }
    }
}
