//! `orlop slots` and `orlop rollback`: the versions on the disk, how they stand, and the way back by hand.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use orlop_boot::entries::{self, Entry, Standing};
use orlop_boot::slot::{self, Booted};
use orlop_boot::trials::{Trial, Trials};
use orlop_init::client::Client;
use orlop_unit::Civil;
use serde_json::json;

/// Shows the slots.
pub(crate) fn slots(args: &[OsString]) -> ExitCode {
    let as_json = match args {
        [] => false,
        [flag] if flag == "--json" => true,
        _ => return usage("slots [--json]"),
    };
    end(show(as_json))
}

/// Goes back to the last good version.
pub(crate) fn rollback(args: &[OsString]) -> ExitCode {
    let reboot = match args {
        [] => true,
        [flag] if flag == "--no-reboot" => false,
        _ => return usage("rollback [--no-reboot]"),
    };
    end(go_back(reboot))
}

fn usage(words: &str) -> ExitCode {
    eprintln!("usage: orlop {words}");
    ExitCode::from(2)
}

fn end(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("orlop: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn booted() -> Result<Booted> {
    let is_root = nix::unistd::geteuid().is_root();
    match Booted::read() {
        _ if !is_root => bail!("the slots are root's to see: try it with sudo"),
        Some(booted) => Ok(booted),
        None => bail!("this machine was not started from a slot on a disk"),
    }
}

fn show(as_json: bool) -> Result<()> {
    let booted = booted()?;
    let (mut entries, trials) =
        slot::with_esp(&booted, |esp, entries| Ok((entries, Trials::load(esp))))?;
    entries.sort_by(|a, b| b.version.cmp(&a.version));
    let next = entries::choose(&entries).map(|entry| entry.version.clone());
    if as_json {
        let slots: Vec<_> = entries
            .iter()
            .map(|entry| {
                let trial = trials.of(&entry.version);
                json!({
                    "version": entry.version,
                    "entry": entry.file_name(),
                    "standing": standing(entry),
                    "tries_left": entry.counter.map(|counter| counter.left),
                    "running": entry.version == booted.version,
                    "next": Some(&entry.version) == next.as_ref(),
                    "failed": reason(entry, &booted, trial),
                    "failed_at": trial.filter(|t| t.reason.is_some()).map(|t| t.began_s),
                })
            })
            .collect();
        println!(
            "{}",
            json!({ "slots": slots, "watchdog_reset": booted.watchdog_reset })
        );
        return Ok(());
    }
    println!("VERSION          STATE");
    for entry in &entries {
        let tries = match entry.counter {
            Some(counter) if counter.left > 0 => format!(", {} tries left", counter.left),
            _ => String::new(),
        };
        let mut notes = Vec::new();
        if entry.version == booted.version {
            notes.push("running".to_owned());
        }
        if Some(&entry.version) == next.as_ref() {
            notes.push("next".to_owned());
        }
        let state = format!("{}{tries}", standing(entry));
        println!(
            "{:<16} {state:<22} {}",
            entry.version.as_str(),
            notes.join(", ")
        );
        let trial = trials.of(&entry.version);
        if let Some(reason) = reason(entry, &booted, trial) {
            let when = trial.map_or(0, |trial| trial.began_s);
            println!("    failed in the start of {}: {reason}", date(when));
        }
    }
    Ok(())
}

fn standing(entry: &Entry) -> &'static str {
    match entry.standing() {
        Standing::Good => "good",
        Standing::OnTrial => "on trial",
        Standing::Bad => "bad",
    }
}

/// Why a version's last start failed, when one did.
fn reason(entry: &Entry, booted: &Booted, trial: Option<&Trial>) -> Option<String> {
    match trial {
        Some(trial) => trial.reason.clone(),
        None if entry.standing() == Standing::Bad && entry.version != booted.version => {
            Some("unknown".to_owned())
        }
        None => None,
    }
}

/// Seconds since 1970 as `2026-11-21 08:25:45 UTC`.
fn date(seconds: u64) -> String {
    if seconds == 0 {
        return "an unknown time".to_owned();
    }
    let at = Civil::from_us(seconds.saturating_mul(1_000_000));
    format!("{} UTC", at.date_and_time())
}

fn go_back(reboot: bool) -> Result<()> {
    let booted = booted()?;
    let target = slot::with_esp(&booted, |esp, entries| {
        let Some((running, target)) = way_back(&entries, &booted) else {
            return Ok(None);
        };
        esp.rename(running, &running.condemned())?;
        let mut trials = Trials::load(esp);
        trials.end(&booted.version, "it was rolled back by hand");
        if let Err(err) = trials.save(esp) {
            eprintln!("orlop: the reason is not kept: {err}");
        }
        Ok(Some(target.version.clone()))
    })?;
    let Some(target) = target else {
        bail!("there is no good version to go back to; `orlop slots` shows what there is");
    };
    println!("the next start is of {target}");
    if reboot {
        Client::connect()?
            .call("Shutdown", &json!({ "action": "reboot", "force": false }))
            .context("reboot")?;
    }
    Ok(())
}

/// The running entry and the good one that is started instead when the running one is condemned.
fn way_back<'a>(entries: &'a [Entry], booted: &Booted) -> Option<(&'a Entry, &'a Entry)> {
    let running = entries.iter().find(|e| e.version == booted.version)?;
    let others: Vec<Entry> = entries
        .iter()
        .filter(|entry| entry.version != booted.version)
        .cloned()
        .collect();
    let chosen = entries::choose(&others)?;
    let target = entries.iter().find(|entry| *entry == chosen)?;
    (target.standing() == Standing::Good).then_some((running, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(date(1_795_250_745), "2026-11-21 08:45:45 UTC");
        assert_eq!(date(0), "an unknown time");
    }

    #[test]
    fn the_way_back_leads_to_a_good_version_alone() {
        let entries = |names: &[&str]| -> Vec<Entry> {
            names.iter().filter_map(|name| Entry::parse(name)).collect()
        };
        let booted = |version: &str| Booted {
            version: version.parse().unwrap(),
            entry: String::new(),
            root_hash: String::new(),
            disk: "/dev/vda".into(),
            esp: "/dev/vda1".into(),
            by_loader: true,
            watchdog_reset: false,
        };
        let all = entries(&["orlop_1.efi", "orlop_2.efi"]);
        assert_eq!(
            way_back(&all, &booted("2")).unwrap().1.version.as_str(),
            "1"
        );
        let all = entries(&["orlop_1+0-3.efi", "orlop_2.efi"]);
        assert!(way_back(&all, &booted("2")).is_none());
        let all = entries(&["orlop_2.efi"]);
        assert!(way_back(&all, &booted("2")).is_none());
    }
}
