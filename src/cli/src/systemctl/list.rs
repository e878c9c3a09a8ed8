//! Lists: units, timers, sockets, and what a unit depends on.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orlop_init::client::{Client, Error};
use orlop_unit::install::fits_pattern;
use serde_json::{Value, json};

use super::{Options, look, string, strings, when};

/// Prints rows below their heads, each column as wide as its widest cell.
pub(super) fn table<const N: usize>(heads: &[&str; N], rows: &[[String; N]], options: &Options) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let head = heads.get(column).map_or(0, |head| head.len());
        let head = if options.no_legend { 0 } else { head };
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
            .max(head)
    };
    let line = |cells: &[&str]| {
        let mut text = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let room = width(column).saturating_sub(cell.chars().count());
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', room.saturating_add(1)));
        }
        println!("{}", text.trim_end());
    };
    if !options.no_legend {
        line(heads);
    }
    for row in rows {
        line(&row.each_ref().map(String::as_str));
    }
}

fn fits(name: &str, patterns: &[String]) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| fits_pattern(pattern, name))
}

fn all(client: &mut Client, even_vacant: bool) -> Result<Vec<Value>, Error> {
    let mut answer = client.call("List", &json!({ "all": even_vacant }))?;
    let mut units = match answer.get_mut("units").map(Value::take) {
        Some(Value::Array(units)) => units,
        _ => Vec::new(),
    };
    units.sort_by(|a, b| string(a, "name").cmp(string(b, "name")));
    Ok(units)
}

/// `list-units`
pub(super) fn units(
    client: &mut Client,
    patterns: &[String],
    options: &Options,
) -> Result<ExitCode, Error> {
    let units = all(client, options.all)?;
    let shown: Vec<&Value> = units
        .iter()
        .filter(|unit| {
            let is_alive = string(unit, "active") != "inactive"
                || string(unit, "load") == "error"
                || !string(unit, "job").is_empty();
            let name = string(unit, "name");
            let asked = options.states.is_empty()
                || ["load", "active", "sub"]
                    .iter()
                    .any(|key| options.states.iter().any(|s| s == string(unit, key)));
            (options.all || is_alive || !options.states.is_empty())
                && asked
                && options.has_type(name)
                && fits(name, patterns)
        })
        .collect();
    if options.json {
        println!("{:#}", json!(shown));
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<[String; 5]> = shown
        .iter()
        .map(|unit| {
            ["name", "load", "active", "sub", "description"].map(|key| string(unit, key).to_owned())
        })
        .collect();
    table(
        &["UNIT", "LOAD", "ACTIVE", "SUB", "DESCRIPTION"],
        &rows,
        options,
    );
    if !options.no_legend {
        println!("\n{} units listed.", rows.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// `list-timers`
pub(super) fn timers(
    client: &mut Client,
    patterns: &[String],
    options: &Options,
) -> Result<ExitCode, Error> {
    let mut rows = Vec::new();
    for unit in all(client, options.all)? {
        let name = string(&unit, "name");
        let is_up = options.all || string(&unit, "active") == "active";
        if !name.ends_with(".timer") || !is_up || !fits(name, patterns) {
            continue;
        }
        let shown = look(client, name)?;
        let time = |key: &str| shown.get(key).and_then(Value::as_u64);
        let (next, last) = (time("next_elapse_us"), time("last_trigger_us"));
        let at = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), when);
        rows.push((
            next.unwrap_or(u64::MAX),
            [
                at(next),
                next.map_or_else(|| "-".to_owned(), |us| format!("{} left", distance(us))),
                at(last),
                last.map_or_else(|| "-".to_owned(), |us| format!("{} ago", distance(us))),
                name.to_owned(),
                strings(&shown, "triggers").join(", "),
            ],
        ));
    }
    rows.sort();
    let rows: Vec<[String; 6]> = rows.into_iter().map(|(_, row)| row).collect();
    table(
        &["NEXT", "LEFT", "LAST", "PASSED", "UNIT", "ACTIVATES"],
        &rows,
        options,
    );
    if !options.no_legend {
        println!("\n{} timers listed.", rows.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// How far a time in microseconds since 1970 is from now, either way.
fn distance(us: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_micros(us);
    let now = SystemTime::now();
    let span = now
        .duration_since(then)
        .or_else(|_| then.duration_since(now));
    super::span(span.unwrap_or_default())
}

/// `list-sockets`
pub(super) fn sockets(
    client: &mut Client,
    patterns: &[String],
    options: &Options,
) -> Result<ExitCode, Error> {
    let mut rows = Vec::new();
    for unit in all(client, options.all)? {
        let name = string(&unit, "name");
        let is_up = options.all || string(&unit, "active") == "active";
        if !name.ends_with(".socket") || !is_up || !fits(name, patterns) {
            continue;
        }
        let shown = look(client, name)?;
        let triggers = strings(&shown, "triggers").join(", ");
        for listen in strings(&shown, "listen") {
            rows.push([listen.to_owned(), name.to_owned(), triggers.clone()]);
        }
    }
    rows.sort();
    table(&["LISTEN", "UNIT", "ACTIVATES"], &rows, options);
    if !options.no_legend {
        println!("\n{} sockets listed.", rows.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// `list-dependencies`: what it needs, or with `--reverse` what needs it, as a tree of at most so many units.
pub(super) fn dependencies(
    client: &mut Client,
    units: &[String],
    options: &Options,
) -> Result<ExitCode, Error> {
    let default = ["multi-user.target".to_owned()];
    let roots = if units.is_empty() {
        &default[..]
    } else {
        units
    };
    let keys: &[&str] = if options.reverse {
        &[
            "RequiredBy",
            "RequisiteOf",
            "WantedBy",
            "BoundBy",
            "UpheldBy",
        ]
    } else {
        &["Requires", "Requisite", "Wants", "BindsTo", "Upholds"]
    };
    for root in roots {
        let shown = look(client, root)?;
        println!("{}", string(&shown, "name"));
        let mut path = vec![string(&shown, "name").to_owned()];
        branch(client, &shown, keys, "", &mut path, options)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn branch(
    client: &mut Client,
    unit: &Value,
    keys: &[&str],
    indent: &str,
    path: &mut Vec<String>,
    options: &Options,
) -> Result<(), Error> {
    let dependencies = unit.get("dependencies");
    let names: BTreeSet<String> = keys
        .iter()
        .filter_map(|key| dependencies.map(|d| strings(d, key)))
        .flatten()
        .map(str::to_owned)
        .collect();
    let count = names.len();
    for (number, name) in names.into_iter().enumerate() {
        let is_last = number.saturating_add(1) == count;
        let shown = match look(client, &name) {
            Ok(shown) => shown,
            Err(Error::Refused { .. }) => json!({ "name": name, "active": "inactive" }),
            Err(err) => return Err(err),
        };
        let dot = super::status::dot(string(&shown, "active"));
        let corner = if is_last { "└─" } else { "├─" };
        println!("{dot} {indent}{corner}{name}");
        // systemd goes into targets alone, unless it is asked for all.
        let goes_on = (options.all || name.ends_with(".target")) && !path.contains(&name);
        if goes_on {
            let more = if is_last { "  " } else { "│ " };
            path.push(name);
            branch(
                client,
                &shown,
                keys,
                &format!("{indent}{more}"),
                path,
                options,
            )?;
            path.pop();
        }
    }
    Ok(())
}
