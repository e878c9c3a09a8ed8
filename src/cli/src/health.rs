//! `orlop health`: the gate that a new version has to pass, and the word that blesses it.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use orlop_boot::entries::{Entry, Standing};
use orlop_boot::gate::{Decision, Gate};
use orlop_boot::slot::{self, Booted};
use orlop_boot::times;
use orlop_config::Machine;
use orlop_init::client::Client;
use orlop_init::trial::DECIDING;
use serde_json::{Value, json};

/// The compiled configuration.
const MACHINE: &str = "/run/orlop/machine.json";

/// There when this start is good.
const HEALTHY: &str = "/run/orlop/healthy";

/// What has to be active where the configuration names nothing.
const WANTED: [&str; 1] = ["network-online.target"];

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
    let mut wanted: Vec<String> = update.healthy.iter().map(|u| u.value.clone()).collect();
    if wanted.is_empty() {
        wanted = WANTED.map(str::to_owned).to_vec();
    }
    let deadline = seconds(&update.boot_deadline, DEADLINE);
    let hold = seconds(&update.healthy_for, HOLD);
    let mut gate = Gate::new(hold, deadline);
    if !booted.is_on_trial() {
        // A version that was good once is not taken back because the network is down today.
        println!("{} is good", booted.version);
        return mark();
    }
    println!("{} is on trial", booted.version);
    let mut last = String::new();
    loop {
        let seen = units().map_or_else(|err| Err(format!("{err:#}")), |u| judge(&u, &wanted));
        let words = seen.clone().err().unwrap_or_default();
        if words != last && !words.is_empty() {
            println!("not yet: {words}");
        }
        last = words;
        match gate.step(times::now_ns(), seen) {
            Decision::Bless => return bless(&booted),
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

/// Whether all that is wanted is active and nothing has failed; else what is against it.
fn judge(units: &[Value], wanted: &[String]) -> Result<(), String> {
    let text = |unit: &Value, key: &str| {
        let text = unit.get(key).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let mut against: Vec<String> = units
        .iter()
        .filter(|unit| text(unit, "active") == "failed" && text(unit, "name") != OWN_UNIT)
        .map(|unit| format!("{} failed", text(unit, "name")))
        .collect();
    for name in wanted {
        match units.iter().find(|unit| text(unit, "name") == *name) {
            Some(unit) if text(unit, "active") == "active" => {}
            Some(unit) if text(unit, "active") == "failed" => {}
            Some(unit) => against.push(format!("{name} is {}", text(unit, "active"))),
            None => against.push(format!("there is no {name}")),
        }
    }
    if against.is_empty() {
        Ok(())
    } else {
        Err(against.join(", "))
    }
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
}
