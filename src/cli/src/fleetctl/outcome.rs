//! What has become of a command: waiting for it, and saying why it does not come.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use orlop_schedule::UnitName;
use serde_json::Value;

use super::{Context, list, text, units};

/// How long is waited when nothing is said.
const PATIENCE: Duration = Duration::from_secs(300);
/// One of `--block-attempts`.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Between two looks.
const POLL: Duration = Duration::from_millis(250);
/// How long every machine must refuse until it is told as the outcome: a decision may be on its way.
const REFUSED_FOR: Duration = Duration::from_secs(2);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// A machine has it.
    Loaded,
    /// It is up.
    Launched,
    /// It has stopped and keeps its machine.
    Stopped,
    /// No machine has it.
    Inactive,
    /// The same, and it is not known any more.
    Destroyed,
}

impl Awaited {
    /// fleet's word for what is wanted.
    pub(super) fn state(self) -> &'static str {
        match self {
            Self::Launched => "launched",
            Self::Loaded | Self::Stopped => "loaded",
            Self::Inactive | Self::Destroyed => "inactive",
        }
    }
}

/// How a unit stands to what is waited for.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// It has come about; what to print.
    Done(String),
    /// It has failed on this machine, for this reason; the last lines of its log.
    Failed {
        machine: String,
        reason: String,
        log: Vec<String>,
    },
    /// No machine takes it, and none will unless somebody does something.
    Refused,
    /// Not yet, because of this.
    Pending(String),
}

/// Waits for units one after the other, all in the same time.
pub(super) fn wait(context: &Context, units: &[UnitName], awaited: Awaited) -> Result<ExitCode> {
    let attempts: u32 = match context.flags.get("block-attempts") {
        "" => 0,
        text => text.parse().context("--block-attempts takes a number")?,
    };
    let patience = if attempts == 0 {
        PATIENCE
    } else {
        ATTEMPT * attempts
    };
    let end = Instant::now() + patience;
    let mut failed = false;
    for unit in units {
        failed |= !wait_for(context, unit, awaited, end)?;
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn wait_for(context: &Context, unit: &UnitName, awaited: Awaited, end: Instant) -> Result<bool> {
    let mut refused_since: Option<Instant> = None;
    loop {
        let (standing, why) = look(context, unit, awaited)?;
        match standing {
            Standing::Done(words) => {
                println!("{words}");
                return Ok(true);
            }
            Standing::Failed {
                machine,
                reason,
                log,
            } => {
                eprintln!("Unit {unit} failed on {}: {reason}", place(&why, &machine));
                for line in &log {
                    eprintln!("{line}");
                }
                eprintln!("More of its log: fleetctl journal --lines 100 {unit}");
                return Ok(false);
            }
            Standing::Refused => {
                let since = *refused_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= REFUSED_FOR || Instant::now() >= end {
                    eprintln!("Unit {unit} waits, no machine takes it:");
                    eprint!("{}", reasons(&why));
                    eprintln!(
                        "It will be placed when one does; `fleetctl unload {unit}` gives up."
                    );
                    return Ok(false);
                }
            }
            Standing::Pending(reason) => {
                refused_since = None;
                if Instant::now() >= end {
                    let state = awaited.state();
                    eprintln!(
                        "Error waiting for units: timed out waiting for unit {unit} to report state {state}: {reason}"
                    );
                    eprint!("{}", reasons(&why));
                    return Ok(false);
                }
            }
        }
        thread::sleep(POLL);
    }
}

fn look(context: &Context, unit: &UnitName, awaited: Awaited) -> Result<(Standing, Value)> {
    let why = context.call("GET", &format!("/why/{unit}"), None)?;
    let states = context.call("GET", &format!("/state/{unit}"), None)?;
    let states = states.get("states").and_then(Value::as_array).cloned();
    let standing = judge(unit, awaited, &why, &states.unwrap_or_default());
    Ok((standing, why))
}

/// Pure: what the answers of the API say.
fn judge(unit: &UnitName, awaited: Awaited, why: &Value, states: &[Value]) -> Standing {
    let array = |key: &str| {
        why.get(key)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let placed = array("placed");
    if matches!(awaited, Awaited::Inactive | Awaited::Destroyed) {
        return match states.first() {
            None if placed.is_empty() => Standing::Done(match awaited {
                Awaited::Destroyed => format!("Destroyed {unit}"),
                _ => format!("Unit {unit} inactive"),
            }),
            Some(state) => match text(state, "error") {
                "" => Standing::Pending(format!(
                    "it is still on {}",
                    list::short(text(state, "machineID"))
                )),
                error => Standing::Pending(error.to_owned()),
            },
            None => Standing::Pending("its machine has not been taken away".to_owned()),
        };
    }
    if why.get("exists").and_then(Value::as_bool) != Some(true) {
        return Standing::Pending("there is no such unit".to_owned());
    }
    if let Some(error) = why.get("error").and_then(Value::as_str) {
        return Standing::Failed {
            machine: String::new(),
            reason: error.to_owned(),
            log: Vec::new(),
        };
    }
    let Some(on) = placed.first() else {
        let machines = array("machines");
        if machines.is_empty() {
            return Standing::Pending("no machine has registered".to_owned());
        }
        let stays = |machine: &Value| {
            machine.get("reason").is_some_and(Value::is_string)
                && machine.get("passing").and_then(Value::as_bool) == Some(false)
        };
        if machines.iter().all(stays) {
            return Standing::Refused;
        }
        if why.get("leader").is_none_or(Value::is_null) {
            return Standing::Pending("no machine leads the scheduler now".to_owned());
        }
        return Standing::Pending("no machine has been chosen yet".to_owned());
    };
    let machine = text(on, "machineID").to_owned();
    let fence = on.get("fence").and_then(Value::as_u64);
    let current = states.iter().find(|state| {
        text(state, "machineID") == machine && state.get("fence").and_then(Value::as_u64) == fence
    });
    let Some(state) = current else {
        return Standing::Pending(match on.get("waitsFor").and_then(Value::as_str) {
            Some(other) => format!("{} has not let it go yet", list::short(other)),
            None => format!("{} has not taken it yet", list::short(&machine)),
        });
    };
    let place = place(why, &machine);
    let launched = state.get("launched").and_then(Value::as_bool) == Some(true);
    let active = text(state, "systemdActiveState");
    let error = text(state, "error");
    let log = || {
        let lines = state.get("log").and_then(Value::as_array);
        let lines = lines.into_iter().flatten();
        lines.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    match awaited {
        Awaited::Loaded => Standing::Done(format!("Unit {unit} loaded on {place}")),
        Awaited::Stopped if !launched && matches!(active, "inactive" | "failed") => {
            Standing::Done(format!("Unit {unit} loaded on {place}"))
        }
        Awaited::Stopped => Standing::Pending(format!("it is {active} on {place}")),
        _ if !error.is_empty() => Standing::Failed {
            machine,
            reason: error.to_owned(),
            log: log(),
        },
        _ if active == "failed" => Standing::Failed {
            machine,
            reason: format!("it is {active} ({})", text(state, "systemdSubState")),
            log: log(),
        },
        // What has done its work and ended is launched too.
        _ if launched && matches!(active, "active" | "reloading" | "inactive") => {
            Standing::Done(format!("Unit {unit} launched on {place}"))
        }
        _ => Standing::Pending(match on.get("waitsFor").and_then(Value::as_str) {
            Some(other) => format!("{} has not let it go yet", list::short(other)),
            None => format!("it is {active} on {place}"),
        }),
    }
}

/// A machine for the eye.
fn place(why: &Value, machine: &str) -> String {
    let all = ["placed", "machines"]
        .into_iter()
        .filter_map(|k| why.get(k)?.as_array());
    let found = all.flatten().find(|m| text(m, "machineID") == machine);
    list::machine_name(machine, found.map(|m| text(m, "primaryIP")), false)
}

/// Every machine that does not take a unit, with its reason.
fn reasons(why: &Value) -> String {
    let machines = why.get("machines").and_then(Value::as_array);
    let mut out = String::new();
    for machine in machines.into_iter().flatten() {
        if let Some(reason) = machine.get("reason").and_then(Value::as_str) {
            let name = list::machine_name(
                text(machine, "machineID"),
                Some(text(machine, "primaryIP")),
                false,
            );
            out.push_str(&format!("  {name}: {reason}\n"));
        }
    }
    out
}

pub(super) fn why(context: &Context) -> Result<ExitCode> {
    let [word] = context.words.as_slice() else {
        bail!("usage: fleetctl why UNIT");
    };
    let unit = units::name_of(word)?;
    let why = context.call("GET", &format!("/why/{unit}"), None)?;
    if why.get("exists").and_then(Value::as_bool) != Some(true) {
        bail!("Unit {unit} does not exist.");
    }
    if let Some(error) = why.get("error").and_then(Value::as_str) {
        println!("{unit} cannot be used: {error}");
        return Ok(ExitCode::FAILURE);
    }
    println!("{unit}: {} is wanted", text(&why, "desiredState"));
    if why.get("template").and_then(Value::as_bool) == Some(true) {
        println!("  it is a template: its instances are placed");
    }
    for on in why
        .get("placed")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let machine = place(&why, text(on, "machineID"));
        let fence = on.get("fence").and_then(Value::as_u64).unwrap_or_default();
        print!("  on {machine}, number {fence}");
        match (text(on, "active"), text(on, "sub")) {
            ("", _) => print!(", nothing reported yet"),
            (active, sub) => print!(", {active} ({sub})"),
        }
        if let Some(seconds) = on.get("silentSeconds").and_then(Value::as_u64) {
            print!(", not seen for {seconds} s");
        }
        if let Some(other) = on.get("waitsFor").and_then(Value::as_str) {
            print!(", waits until {} has let it go", list::short(other));
        }
        println!();
        if let Some(error) = on.get("error").and_then(Value::as_str) {
            println!("    {error}");
        }
    }
    print!("{}", reasons(&why));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn why_of(placed: Value, machines: Value) -> Value {
        json!({ "exists": true, "error": null, "leader": "m1", "placed": placed, "machines": machines })
    }

    fn judged(awaited: Awaited, why: &Value, states: &[Value]) -> Standing {
        judge(&UnitName::parse("a.service").unwrap(), awaited, why, states)
    }

    #[test]
    fn a_unit_that_every_machine_refuses_for_good_is_told_at_once() {
        let refuses = |passing| json!({ "machineID": "m1", "reason": "insufficient memory", "passing": passing });
        let why = why_of(json!([]), json!([refuses(false)]));
        assert_eq!(judged(Awaited::Launched, &why, &[]), Standing::Refused);
        let why = why_of(json!([]), json!([refuses(false), refuses(true)]));
        assert!(matches!(
            judged(Awaited::Launched, &why, &[]),
            Standing::Pending(_)
        ));
    }

    #[test]
    fn started_means_that_it_runs() {
        let on = json!([{ "machineID": "0123456789", "primaryIP": "10.0.0.1", "fence": 7 }]);
        let why = why_of(on, json!([]));
        let state = |fence: u64, launched: bool, active: &str, error: Option<&str>| {
            json!({ "machineID": "0123456789", "fence": fence, "launched": launched,
                "systemdActiveState": active, "systemdSubState": "x", "error": error,
                "log": ["its last words"] })
        };
        let start = |state: Value| judged(Awaited::Launched, &why, &[state]);
        assert_eq!(
            start(state(7, true, "active", None)),
            Standing::Done("Unit a.service launched on 01234567.../10.0.0.1".into())
        );
        for pending in [
            state(6, true, "active", None),
            state(7, false, "inactive", None),
            state(7, true, "activating", None),
        ] {
            assert!(matches!(start(pending), Standing::Pending(_)));
        }
        let failed = |reason: &str| Standing::Failed {
            machine: "0123456789".into(),
            reason: reason.into(),
            log: vec!["its last words".into()],
        };
        assert_eq!(
            start(state(7, true, "failed", Some("exit code 3"))),
            failed("exit code 3")
        );
        assert_eq!(
            start(state(7, true, "failed", None)),
            failed("it is failed (x)")
        );
    }

    #[test]
    fn a_unit_is_gone_when_no_machine_reports_it() {
        let why = json!({ "exists": false });
        assert_eq!(
            judged(Awaited::Destroyed, &why, &[]),
            Standing::Done("Destroyed a.service".into())
        );
        let state = json!({ "machineID": "m1", "systemdActiveState": "deactivating" });
        assert!(matches!(
            judged(Awaited::Destroyed, &why, &[state]),
            Standing::Pending(_)
        ));
    }
}
