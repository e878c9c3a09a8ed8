//! `systemctl show`: what is known of a unit as `Property=value`, under systemd's names.

use std::process::ExitCode;

use orlop_init::client::{Client, Error};
use serde_json::Value;

use super::{Options, files, look, string, strings};

/// How a property's value is made from what PID 1 says.
enum From {
    /// A text.
    Text(&'static str),
    /// A number; `0` where there is none.
    Number(&'static str),
    /// A number; `[not set]` where there is none.
    Measured(&'static str),
    /// Words with spaces between them.
    List(&'static str),
    /// The units that are related so.
    Related,
    /// Something else.
    Made(fn(&Value) -> String),
}

/// Sorted by what belongs together, as systemd has it.
#[rustfmt::skip]
const PROPERTIES: &[(&str, From)] = &[
    ("Type", From::Text("type")),
    ("Restart", From::Text("restart")),
    ("NotifyAccess", From::Text("notify_access")),
    ("MainPID", From::Number("main_pid")),
    ("ControlPID", From::Number("control_pid")),
    ("StatusText", From::Text("status")),
    ("Result", From::Text("result")),
    ("NRestarts", From::Number("restarts")),
    ("ExecMainCode", From::Number("exec_main_code")),
    ("ExecMainStatus", From::Number("exec_main_status")),
    ("User", From::Text("user")),
    ("Group", From::Text("group")),
    ("Slice", From::Text("slice")),
    ("ControlGroup", From::Made(|unit| match string(unit, "cgroup") { "" => String::new(), path => format!("/{path}") })),
    ("MemoryCurrent", From::Measured("memory_bytes")),
    ("MemoryMax", From::Made(|unit| limit(unit, "memory_max_bytes"))),
    ("CPUUsageNSec", From::Made(|unit| unit.get("cpu_us").and_then(Value::as_u64).map_or_else(|| "[not set]".to_owned(), |us| us.saturating_mul(1000).to_string()))),
    ("TasksCurrent", From::Measured("tasks")),
    ("TasksMax", From::Made(|unit| limit(unit, "tasks_max"))),
    ("Listen", From::List("listen")),
    ("NextElapseUSecRealtime", From::Made(|unit| unit.get("next_elapse_us").and_then(Value::as_u64).map_or_else(String::new, super::when))),
    ("LastTriggerUSec", From::Made(|unit| unit.get("last_trigger_us").and_then(Value::as_u64).map_or_else(String::new, super::when))),
    ("Id", From::Text("name")),
    ("Names", From::List("names")),
    ("Requires", From::Related),
    ("Requisite", From::Related),
    ("Wants", From::Related),
    ("BindsTo", From::Related),
    ("PartOf", From::Related),
    ("Upholds", From::Related),
    ("RequiredBy", From::Related),
    ("RequisiteOf", From::Related),
    ("WantedBy", From::Related),
    ("BoundBy", From::Related),
    ("UpheldBy", From::Related),
    ("ConsistsOf", From::Related),
    ("Conflicts", From::Related),
    ("ConflictedBy", From::Related),
    ("Before", From::Related),
    ("After", From::Related),
    ("OnFailure", From::Related),
    ("OnSuccess", From::Related),
    ("Triggers", From::List("triggers")),
    ("TriggeredBy", From::List("triggered_by")),
    ("Documentation", From::List("documentation")),
    ("Description", From::Text("description")),
    ("LoadState", From::Text("load")),
    ("LoadError", From::Text("problem")),
    ("ActiveState", From::Text("active")),
    ("SubState", From::Text("sub")),
    ("FragmentPath", From::Text("fragment")),
    ("DropInPaths", From::List("drop_ins")),
    ("UnitFileState", From::Made(|unit| files::state_word(string(unit, "name")).to_owned())),
    ("UnitFilePreset", From::Made(|unit| files::preset_word(string(unit, "name")).to_owned())),
    ("StateChangeTimestamp", From::Made(|unit| unit.get("state_since_us").and_then(Value::as_u64).map_or_else(String::new, super::when))),
    ("InvocationID", From::Text("invocation")),
    ("FailureText", From::Text("failure")),
];

fn limit(unit: &Value, key: &str) -> String {
    let number = unit.get(key).and_then(Value::as_u64);
    number.map_or_else(|| "infinity".to_owned(), |n| n.to_string())
}

fn value(unit: &Value, name: &str, from: &From) -> String {
    let number = |key: &str| unit.get(key).and_then(Value::as_i64).map(|n| n.to_string());
    match from {
        From::Text(key) => string(unit, key).to_owned(),
        From::Number(key) => number(key).unwrap_or_else(|| "0".to_owned()),
        From::Measured(key) => number(key).unwrap_or_else(|| "[not set]".to_owned()),
        From::List(key) => strings(unit, key).join(" "),
        From::Related => unit
            .get("dependencies")
            .map_or_else(String::new, |all| strings(all, name).join(" ")),
        From::Made(make) => make(unit),
    }
}

/// Prints the properties, those that are asked for or all; a unit that is not there has a few as well.
pub(super) fn show(
    client: &mut Client,
    units: &[String],
    options: &Options,
) -> Result<ExitCode, Error> {
    for (number, unit) in units.iter().enumerate() {
        let shown = match look(client, unit) {
            Ok(shown) => shown,
            Err(Error::Refused { name, .. }) if name.ends_with("NoSuchUnit") => {
                serde_json::json!({
                    "name": unit, "names": [unit], "description": unit,
                    "load": "not-found", "active": "inactive", "sub": "dead",
                })
            }
            Err(err) => return Err(err),
        };
        if options.json {
            println!("{shown:#}");
            continue;
        }
        if number > 0 {
            println!();
        }
        for (name, from) in PROPERTIES {
            let asked = options.properties.is_empty()
                || options
                    .properties
                    .iter()
                    .any(|p| p.eq_ignore_ascii_case(name));
            if !asked {
                continue;
            }
            let value = value(&shown, name, from);
            if options.value_only {
                println!("{value}");
            } else if options.all || !value.is_empty() || !options.properties.is_empty() {
                println!("{name}={value}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
