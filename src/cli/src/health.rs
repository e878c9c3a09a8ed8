//! `orlop health`: the gate that a new version has to pass, and the word that blesses it.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use orlop_boot::entries::{Entry, Standing};
use orlop_boot::gate::{Decision, Gate};
use orlop_boot::menu;
use orlop_boot::modprobe::chain;
use orlop_boot::slot::{self, Booted};
use orlop_boot::times;
use orlop_config::Machine;
use orlop_init::client::Client;
use orlop_init::trial::DECIDING;
use serde_json::{Value, json};

use crate::fleetctl::http::{Endpoint, Http};

/// The compiled configuration.
const MACHINE: &str = "/run/orlop/machine.json";

/// There when this start is good.
const HEALTHY: &str = "/run/orlop/healthy";

/// What has to be active where the configuration names nothing.
const NETWORK: &str = "network-online.target";

/// Roles that must have their place in the cluster, where they were started and the configuration names nothing: the unit, where it
/// is asked, and what is asked.
const ROLES: [(&str, &str, &str); 2] = [
    ("orlop-store.service", "http://127.0.0.1:2379", "/health"),
    ("orlop-agent.service", "unix:///run/fleet.sock", "/readyz"),
];

/// How long a role may take to answer.
const ROLE_TIMEOUT: Duration = Duration::from_secs(2);

/// The unit that runs this: it is no condition of its own.
const OWN_UNIT: &str = "orlop-bless.service";

const HOLD: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(300);

/// How often PID 1 is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Runs the role. It ends when the start is good; a start that is not ends in a reboot.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let result = match args {
        [] => watch(),
        [flag] if flag == "--undecided" => undecided(),
        _ => {
            eprintln!("usage: orlop health");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("<3>{err:#}");
            ExitCode::FAILURE
        }
    }
}

/// PID 1's word that the unit of this role did not come to run.
fn undecided() -> Result<()> {
    let booted = Booted::read().context("this machine was not started from a slot")?;
    give_up(&booted, &format!("{OWN_UNIT} did not come to run"))
}

fn watch() -> Result<()> {
    std::fs::write(DECIDING, "").with_context(|| format!("write {DECIDING}"))?;
    let Some(booted) = Booted::read() else {
        println!("this machine was not started from a slot: there is nothing to decide");
        return Ok(());
    };
    let is_ending = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&is_ending))
        .context("listen to SIGTERM")?;
    let machine: Machine =
        serde_json::from_slice(&std::fs::read(MACHINE).with_context(|| format!("read {MACHINE}"))?)
            .with_context(|| format!("read {MACHINE}"))?;
    let update = &machine.update;
    let seconds = |value: &Option<orlop_config::Sourced<u32>>, default: Duration| {
        let given = value.as_ref().map(|v| Duration::from_secs(v.value.into()));
        given.unwrap_or(default)
    };
    let named: Vec<String> = update.healthy.iter().map(|u| u.value.clone()).collect();
    let deadline = seconds(&update.boot_deadline, DEADLINE);
    let hold = seconds(&update.healthy_for, HOLD);
    let allows_recovery = machine.recovery.shell.as_ref().is_some_and(|s| s.value);
    let mut gate = Gate::new(hold, deadline);
    if !booted.is_on_trial() {
        // A version that was good once is not taken back because the network is down today.
        println!("{} is good", booted.version);
        refresh_menu(&booted, allows_recovery);
        return mark();
    }
    println!("{} is on trial", booted.version);
    let mut last = String::new();
    loop {
        let seen = units().map_or_else(|err| Err(format!("{err:#}")), |u| judge(&u, &named));
        let words = seen.clone().err().unwrap_or_default();
        if words != last && !words.is_empty() {
            println!("not yet: {words}");
        }
        last = words;
        match gate.step(times::now_ns(), seen) {
            Decision::Bless => {
                bless(&booted)?;
                refresh_menu(&booted, allows_recovery);
                return Ok(());
            }
            Decision::GiveUp(why) => {
                let reason = format!("not healthy within {} s: {why}", deadline.as_secs());
                if !is_last_resort(&booted)? {
                    return give_up(&booted, &reason);
                }
                eprintln!(
                    "<3>{}: {reason}; there is nothing else to start",
                    booted.version
                );
                note_end(&booted, &reason)?;
                gate = Gate::new(hold, Duration::MAX);
            }
            Decision::Wait => std::thread::sleep(INTERVAL),
        }
        if is_ending.load(Ordering::Relaxed) {
            let reason = format!("it was ended by order before it was healthy: {last}");
            return note_end(&booted, reason.trim_end_matches(": "));
        }
    }
}

/// All loaded units, as PID 1 lists them.
fn units() -> Result<Vec<Value>> {
    let mut client = Client::connect()?;
    let answer = client.call("List", &json!({ "all": true }))?;
    let units = answer.get("units").and_then(Value::as_array);
    Ok(units.cloned().unwrap_or_default())
}

/// Whether all is well: nothing has failed, and what is `named` is active; where nothing is, the network, and the cluster's roles
/// that run here. Else what is against it.
fn judge(units: &[Value], named: &[String]) -> Result<(), String> {
    let mut against: Vec<String> = units
        .iter()
        .filter(|unit| text(unit, "active") == "failed" && text(unit, "name") != OWN_UNIT)
        .map(|unit| format!("{} failed", text(unit, "name")))
        .collect();
    let find = |name: &str| units.iter().find(|unit| text(unit, "name") == name);
    let mut want = |name: &str| match find(name).map(|unit| text(unit, "active")) {
        Some("active") => true,
        // It is among the failed.
        Some("failed") => false,
        Some(state) => {
            against.push(format!("{name} is {state}"));
            false
        }
        None => {
            against.push(format!("there is no {name}"));
            false
        }
    };
    for name in named {
        want(name);
    }
    if named.is_empty() {
        want(NETWORK);
        let is_started =
            |name: &str| find(name).is_some_and(|unit| text(unit, "active") != "inactive");
        let roles = ROLES.iter().filter(|(name, ..)| is_started(name));
        let running: Vec<_> = roles.filter(|(name, ..)| want(name)).collect();
        for (name, endpoint, path) in running {
            if let Err(err) = ask(endpoint, path) {
                against.push(format!("{name}: {err:#}"));
            }
        }
    }
    if against.is_empty() {
        Ok(())
    } else {
        Err(against.join(", "))
    }
}

fn text<'a>(unit: &'a Value, key: &str) -> &'a str {
    unit.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Asks a role whether it is a part of the cluster now.
fn ask(endpoint: &str, path: &str) -> Result<()> {
    let http = Http {
        endpoint: Endpoint::parse(endpoint)?,
        timeout: ROLE_TIMEOUT,
    };
    let answer = http.request("GET", path, None)?;
    let reason = answer.body.get("reason").and_then(Value::as_str);
    ensure!(
        answer.status == 200,
        "{}",
        reason.unwrap_or("it is not in sync with its cluster")
    );
    Ok(())
}

fn bless(booted: &Booted) -> Result<()> {
    slot::with_esp(booted, |esp, entries| {
        let ours = |entry: &&Entry| entry.version == booted.version;
        if let Some(entry) = entries.iter().find(ours)
            && entry.standing() != Standing::Good
        {
            esp.rename(entry, &entry.blessed())?;
        }
        Ok(())
    })
    .with_context(|| format!("bless {}", booted.version))?;
    println!("{} is good from now on", booted.version);
    // The name has decided; the memory of its starts is of no use any more.
    if let Err(err) = slot::note(booted, |trials| trials.forget(&booted.version)) {
        eprintln!("<4>{err}");
    }
    mark()
}

/// Has the loader's menu offer what goes with this version. It stays as it is where that fails: the version is good all the same.
fn refresh_menu(booted: &Booted, allows_recovery: bool) {
    let refreshed = slot::with_esp(booted, |esp, entries| {
        let ours = |entry: &&Entry| entry.version == booted.version;
        let refreshed = entries.iter().find(ours);
        Ok(refreshed.map_or(Ok(()), |entry| menu::refresh(esp, entry, allows_recovery)))
    });
    match refreshed {
        Ok(Ok(())) => {}
        Ok(Err(err)) => eprintln!("<4>the loader's menu: {}", chain(&err)),
        Err(err) => eprintln!("<4>the loader's menu: {}", chain(&err)),
    }
}

fn mark() -> Result<()> {
    std::fs::write(HEALTHY, "").with_context(|| format!("write {HEALTHY}"))
}

/// Whether the next start would be of this version too, with no tries left: a machine that stays up can be looked into.
fn is_last_resort(booted: &Booted) -> Result<bool> {
    let entries = slot::with_esp(booted, |_, entries| Ok(entries)).context("list the slots")?;
    let next = orlop_boot::entries::choose(&entries);
    Ok(next.is_none_or(|e| e.version == booted.version && e.standing() == Standing::Bad))
}

/// Keeps the reason, and reboots: the try was counted when it began.
fn give_up(booted: &Booted, reason: &str) -> Result<()> {
    eprintln!("<2>{}: {reason}; rebooting", booted.version);
    let noted = note_end(booted, reason);
    Client::connect()?
        .call("Shutdown", &json!({ "action": "reboot", "force": false }))
        .context("reboot")?;
    noted
}

fn note_end(booted: &Booted, reason: &str) -> Result<()> {
    slot::note(booted, |trials| trials.end(&booted.version, reason))
        .map_err(|err| anyhow::anyhow!("the reason is not kept: {err}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str, active: &str) -> Value {
        json!({ "name": name, "active": active })
    }

    #[test]
    fn a_failed_unit_and_a_missing_one_are_both_told() {
        let units = [
            unit("web.service", "failed"),
            unit("network-online.target", "inactive"),
            unit("orlop-bless.service", "failed"),
        ];
        let wanted = ["network-online.target".to_owned(), "db.service".to_owned()];
        assert_eq!(
            judge(&units, &wanted).unwrap_err(),
            "web.service failed, network-online.target is inactive, there is no db.service"
        );
        assert_eq!(
            judge(&[unit("a.service", "active")], &["a.service".to_owned()]),
            Ok(())
        );
    }

    #[test]
    fn roles_count_where_they_were_started_and_nothing_is_named() {
        let units = |store: &str| {
            [
                unit("network-online.target", "active"),
                unit("orlop-store.service", store),
            ]
        };
        assert_eq!(judge(&units("inactive"), &[]), Ok(()));
        assert_eq!(
            judge(&units("activating"), &[]).unwrap_err(),
            "orlop-store.service is activating"
        );
        let named = ["network-online.target".to_owned()];
        assert_eq!(judge(&units("activating"), &named), Ok(()));
    }
}
