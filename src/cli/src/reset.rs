//! `orlop reset`: what is kept on `/var` goes at the next start, all of it or named parts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use orlop_update::reset::{PARTS, Scope, cancel, request, requested};

use crate::{systemctl, update};

/// Wipe /var at the next start. The image and its slots stay.
#[derive(Parser)]
#[command(name = "orlop reset", no_binary_name = true, after_help = parts())]
struct Arguments {
    /// Keep these parts and wipe all others.
    #[arg(
        long,
        value_name = "PART",
        value_delimiter = ',',
        conflicts_with = "only"
    )]
    keep: Vec<String>,
    /// Wipe these parts alone.
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<String>,
    /// Do it: without this only what would be wiped is said.
    #[arg(long)]
    yes: bool,
    /// Reboot at once.
    #[arg(long, requires = "yes")]
    reboot: bool,
    /// Take back what was asked for and not done yet.
    #[arg(long, conflicts_with_all = ["keep", "only", "yes"])]
    cancel: bool,
    /// Another directory than /var.
    #[arg(long, value_name = "DIRECTORY", default_value = "/var")]
    var: PathBuf,
}

fn parts() -> String {
    let mut text = String::from("Parts:\n");
    for (name, _, what) in PARTS {
        text.push_str(&format!("  {name:<11} {what}\n"));
    }
    text.push_str(
        "\nWhat is in no part goes unless --only is given. Files are removed, not overwritten.",
    );
    text
}

/// Runs `orlop reset` with the arguments after that word.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => return update::refuse(&error),
    };
    reset(&arguments).unwrap_or_else(|error| {
        eprintln!("orlop reset: {error:#}");
        ExitCode::from(2)
    })
}

fn reset(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let var = &arguments.var;
    if arguments.cancel {
        let what = if cancel(var)? {
            "nothing is reset at the next start"
        } else {
            "nothing was to be reset"
        };
        println!("{what}");
        return Ok(ExitCode::SUCCESS);
    }
    let scope = Scope::new(&arguments.keep, &arguments.only)?;
    let what = match &scope {
        Scope::All => format!("everything on {}", var.display()),
        Scope::Keep(parts) => format!("everything on {} but {}", var.display(), parts.join(", ")),
        Scope::Only(parts) => format!("{} on {}", parts.join(", "), var.display()),
    };
    if !arguments.yes {
        if let Some(scope) = requested(var)? {
            println!("the next start resets: {scope}");
        }
        eprintln!("this would wipe {what} at the next start; --yes does it");
        return Ok(ExitCode::FAILURE);
    }
    if statfs(var).is_ok_and(|filesystem| filesystem.filesystem_type() == TMPFS_MAGIC)
        && var.starts_with("/var")
    {
        bail!("{} is in memory: a reboot forgets all of it", var.display());
    }
    request(var, &scope)?;
    println!("the next start wipes {what}");
    match arguments.reboot {
        true => Ok(systemctl::end("reboot", &[])),
        false => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_for_without_a_yes() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
        let directory = tempfile::tempdir().unwrap();
        let var = directory.path().to_str().unwrap().to_owned();
        let words = |words: &[&str]| {
            let words = words.iter().map(OsString::from);
            run(&words
                .chain(["--var".into(), var.clone().into()])
                .collect::<Vec<OsString>>())
        };
        assert_eq!(words(&["--keep", "ssh"]), ExitCode::FAILURE);
        assert_eq!(requested(directory.path()).unwrap(), None);
        assert_eq!(words(&["--keep", "ssh,home", "--yes"]), ExitCode::SUCCESS);
        let keep = Scope::Keep(vec!["ssh".to_owned(), "home".to_owned()]);
        assert_eq!(requested(directory.path()).unwrap(), Some(keep));
        assert_eq!(words(&["--keep", "sshd", "--yes"]), ExitCode::from(2));
        assert_eq!(
            words(&["--keep", "ssh", "--only", "home", "--yes"]),
            ExitCode::from(2)
        );
        assert_eq!(words(&["--cancel"]), ExitCode::SUCCESS);
        assert_eq!(requested(directory.path()).unwrap(), None);
    }
}
