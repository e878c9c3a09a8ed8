//! The three tables.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::{Result, bail};
use orlop_schedule::{UnitFile, UnitName, UnitOption};
use serde_json::Value;

use super::{Context, table, text};

pub(super) const MACHINE_FIELDS: &str = "machine,ip,metadata";
pub(super) const UNIT_FIELDS: &str = "unit,machine,active,sub";
pub(super) const FILE_FIELDS: &str = "unit,hash,dstate,state,target";

/// The first characters of a machine's id.
pub(super) fn short(id: &str) -> String {
    match id.char_indices().nth(8) {
        Some((end, _)) => format!("{}...", id.get(..end).unwrap_or(id)),
        None => id.to_owned(),
    }
}

/// `SHORT.../IP`.
pub(super) fn machine_name(id: &str, ip: Option<&str>, full: bool) -> String {
    if id.is_empty() {
        return "-".to_owned();
    }
    let id = if full { id.to_owned() } else { short(id) };
    match ip {
        Some(ip) if !ip.is_empty() => format!("{id}/{ip}"),
        _ => id,
    }
}

/// The machines' addresses by their ids.
pub(super) fn addresses(context: &Context) -> Result<BTreeMap<String, String>> {
    let machines = context.list("machines")?;
    let entry = |m: &Value| (text(m, "id").to_owned(), text(m, "primaryIP").to_owned());
    Ok(machines.iter().map(entry).collect())
}

/// The unit's content, read as machines read it.
pub(super) fn file(unit: &Value) -> Option<UnitFile> {
    let name = UnitName::parse(text(unit, "name")).ok()?;
    let options = unit.get("options").and_then(Value::as_array)?;
    let options = options.iter().map(|option| UnitOption {
        section: text(option, "section").to_owned(),
        name: text(option, "name").to_owned(),
        value: text(option, "value").to_owned(),
    });
    UnitFile::from_options(&name, options.collect()).ok()
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

fn is_full(context: &Context) -> bool {
    context.flags.is_set("full") || context.flags.is_set("l")
}

/// Prints the asked columns of rows that are sorted already.
fn print(
    context: &Context,
    known: &[&str],
    rows: Vec<BTreeMap<&'static str, String>>,
) -> Result<ExitCode> {
    let fields: Vec<&str> = context
        .flags
        .get("fields")
        .split(',')
        .filter(|f| !f.is_empty())
        .collect();
    if fields.is_empty() {
        bail!("Must define output format");
    }
    if let Some(unknown) = fields.iter().find(|field| !known.contains(field)) {
        bail!("Invalid key in output format: {unknown:?}");
    }
    let mut cells: Vec<Vec<String>> = Vec::new();
    if !context.flags.is_set("no-legend") {
        cells.push(fields.iter().map(|f| f.to_uppercase()).collect());
    }
    for row in rows {
        let cell = |field: &&str| row.get(field).cloned().unwrap_or_else(|| "-".to_owned());
        cells.push(fields.iter().map(cell).collect());
    }
    print!("{}", table::lay_out(&cells));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn machines(context: &Context) -> Result<ExitCode> {
    let machines = match context.list("machines") {
        Ok(machines) => machines,
        Err(err) => {
            eprintln!("Error retrieving list of active machines from fleet API ({err:#})");
            eprintln!("Possible issues:");
            eprintln!("\torlop-agent.service does not run on this machine");
            eprintln!(
                "\tthe agent cannot reach the store: see `journalctl -u orlop-agent.service`"
            );
            return Ok(ExitCode::FAILURE);
        }
    };
    let full = is_full(context);
    let mut rows: Vec<_> = machines
        .iter()
        .map(|machine| {
            let id = text(machine, "id");
            let metadata = machine.get("metadata").and_then(Value::as_object);
            let mut pairs: Vec<String> = metadata
                .into_iter()
                .flatten()
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                .collect();
            pairs.sort_unstable();
            BTreeMap::from([
                ("machine", if full { id.to_owned() } else { short(id) }),
                ("ip", or_dash(text(machine, "primaryIP"))),
                ("metadata", or_dash(&pairs.join(","))),
            ])
        })
        .collect();
    rows.sort_unstable_by(|a, b| a.get("machine").cmp(&b.get("machine")));
    print(context, &["machine", "ip", "metadata"], rows)
}

pub(super) fn units(context: &Context) -> Result<ExitCode> {
    let full = is_full(context);
    let addresses = addresses(context)?;
    let mut rows = Vec::new();
    let mut seen = BTreeSet::new();
    let hash = |hash: &str| {
        let end = if full { hash.len() } else { hash.len().min(7) };
        or_dash(hash.get(..end).unwrap_or(hash))
    };
    for state in context.list("state")? {
        let (name, id) = (text(&state, "name"), text(&state, "machineID"));
        seen.insert(name.to_owned());
        rows.push(BTreeMap::from([
            ("unit", name.to_owned()),
            ("load", or_dash(text(&state, "systemdLoadState"))),
            ("active", or_dash(text(&state, "systemdActiveState"))),
            ("sub", or_dash(text(&state, "systemdSubState"))),
            (
                "machine",
                machine_name(id, addresses.get(id).map(String::as_str), full),
            ),
            ("hash", hash(text(&state, "hash"))),
        ]));
    }
    // What is to run and has no machine is not left out.
    for unit in context.list("units")? {
        let name = text(&unit, "name");
        let waits =
            text(&unit, "desiredState") != "inactive" && text(&unit, "machineID").is_empty();
        let file = file(&unit);
        let global = file.as_ref().is_some_and(|f| f.constraints.global);
        if waits && !global && !seen.contains(name) {
            rows.push(BTreeMap::from([
                ("unit", name.to_owned()),
                ("sub", "pending".to_owned()),
                ("hash", hash(&file.map(|f| f.hash).unwrap_or_default())),
            ]));
        }
    }
    rows.sort_unstable_by(|a, b| {
        (a.get("unit"), a.get("machine")).cmp(&(b.get("unit"), b.get("machine")))
    });
    let known = ["unit", "load", "active", "sub", "machine", "hash"];
    print(context, &known, rows)
}

pub(super) fn unit_files(context: &Context) -> Result<ExitCode> {
    let full = is_full(context);
    if context
        .flags
        .get("fields")
        .split(',')
        .any(|f| f == "tmachine")
    {
        eprintln!("WARNING: The \"tmachine\" field is deprecated. Use \"target\" instead");
    }
    let addresses = addresses(context)?;
    let mut rows: Vec<_> = context
        .list("units")?
        .iter()
        .map(|unit| {
            let id = text(unit, "machineID");
            let file = file(unit);
            let global = file.as_ref().is_some_and(|f| f.constraints.global);
            let hash = file.as_ref().map(|f| f.hash.clone()).unwrap_or_default();
            let end = if full { hash.len() } else { hash.len().min(7) };
            let machine = machine_name(id, addresses.get(id).map(String::as_str), full);
            let target = if global { "global".to_owned() } else { machine };
            let state = if global {
                ""
            } else {
                text(unit, "currentState")
            };
            let description = file.as_ref().and_then(|f| f.value("Unit", "Description"));
            BTreeMap::from([
                ("unit", text(unit, "name").to_owned()),
                ("hash", or_dash(hash.get(..end).unwrap_or(&hash))),
                ("dstate", or_dash(text(unit, "desiredState"))),
                ("state", or_dash(state)),
                ("target", target.clone()),
                ("tmachine", target),
                ("global", global.to_string()),
                ("desc", or_dash(description.unwrap_or_default())),
            ])
        })
        .collect();
    rows.sort_unstable_by(|a, b| a.get("unit").cmp(&b.get("unit")));
    let known = [
        "unit", "hash", "dstate", "state", "target", "global", "desc", "tmachine",
    ];
    print(context, &known, rows)
}
