//! `systemctl status`: a unit's state, its processes, why it failed, and what it said last.

use std::path::Path;
use std::process::ExitCode;

use orlop_init::client::{Client, Error};
use orlop_journal::filter::Filter;
use serde_json::Value;

use super::{NO_SUCH_UNIT, NOT_RUNNING, Options, files, look, span, string, strings, when};

/// The journal's lines that are shown when nothing else is asked.
const LINES: usize = 10;

/// The sign before a unit of that state.
pub(super) fn dot(active: &str) -> &'static str {
    match active {
        "active" => "●",
        "failed" => "×",
        "reloading" | "activating" | "deactivating" => "↻",
        _ => "○",
    }
}

/// Prints the state of units; 3 where one of them does not run, 4 where there is none.
pub(super) fn status(
    client: &mut Client,
    units: &[String],
    options: &Options,
) -> Result<ExitCode, Error> {
    if units.is_empty() {
        return super::list::units(client, &[], options);
    }
    let mut code = 0;
    for (number, unit) in units.iter().enumerate() {
        if number > 0 {
            println!();
        }
        match look(client, unit) {
            Ok(shown) => {
                print(&shown, options);
                if !matches!(string(&shown, "active"), "active" | "reloading") && code == 0 {
                    code = NOT_RUNNING;
                }
            }
            Err(Error::Refused { name, .. }) if name.ends_with("NoSuchUnit") => {
                eprintln!("Unit {unit} could not be found.");
                code = NO_SUCH_UNIT;
            }
            Err(err) => return Err(err),
        }
    }
    Ok(ExitCode::from(code))
}

fn print(unit: &Value, options: &Options) {
    let name = string(unit, "name");
    let number = |key: &str| unit.get(key).and_then(Value::as_u64);
    let line = |head: &str, text: &str| println!("{head:>11}: {text}");
    match string(unit, "description") {
        "" => println!("{} {name}", dot(string(unit, "active"))),
        text => println!("{} {name} - {text}", dot(string(unit, "active"))),
    }
    line("Loaded", &loaded(unit));
    let drop_ins = strings(unit, "drop_ins");
    for (at, path) in drop_ins.iter().enumerate() {
        let corner = if at + 1 == drop_ins.len() {
            "└─"
        } else {
            "├─"
        };
        if at == 0 {
            line("Drop-In", &format!("{corner}{path}"));
        } else {
            println!("             {corner}{path}");
        }
    }
    line("Active", &active(unit));
    if !string(unit, "failure").is_empty() {
        let text = format!(
            "{} (result {})",
            string(unit, "failure"),
            string(unit, "result")
        );
        line("Reason", &text);
    }
    let waits = strings(unit, "waits_for");
    if !waits.is_empty() {
        line("Waits", &format!("for {}", waits.join(", ")));
    }
    for (head, key) in [
        ("Triggers", "triggers"),
        ("TriggeredBy", "triggered_by"),
        ("Listen", "listen"),
        ("Docs", "documentation"),
    ] {
        let list = strings(unit, key);
        if !list.is_empty() {
            line(head, &list.join(" "));
        }
    }
    if let Some(us) = number("next_elapse_us") {
        line("Trigger", &when(us));
    }
    if let Some(pid) = number("main_pid") {
        line("Main PID", &format!("{pid}{}", program_of(unit, pid)));
    } else if !string(unit, "main_end").is_empty() {
        line("Main PID", &format!("({})", string(unit, "main_end")));
    }
    if !string(unit, "status").is_empty() {
        line("Status", &format!("\"{}\"", string(unit, "status")));
    }
    if let Some(tasks) = number("tasks") {
        let limit = number("tasks_max").map_or_else(String::new, |max| format!(" (limit: {max})"));
        line("Tasks", &format!("{tasks}{limit}"));
    }
    if let Some(bytes) = number("memory_bytes") {
        let limit = number("memory_max_bytes")
            .map_or_else(String::new, |max| format!(" (max: {})", size(max)));
        line("Memory", &format!("{}{limit}", size(bytes)));
    }
    if let Some(us) = number("cpu_us") {
        line("CPU", &span(std::time::Duration::from_micros(us)));
    }
    if !string(unit, "cgroup").is_empty() {
        line("CGroup", &format!("/{}", string(unit, "cgroup")));
        processes(unit);
    }
    last_lines(name, options);
}

fn loaded(unit: &Value) -> String {
    let name = string(unit, "name");
    let load = string(unit, "load");
    match (load, string(unit, "problem"), string(unit, "fragment")) {
        ("masked", ..) => format!("masked (Reason: Unit {name} is masked.)"),
        (_, "", "") => load.to_owned(),
        (_, "", fragment) => {
            let state = files::state_word(name);
            let preset = match state {
                "enabled" | "disabled" => format!("; preset: {}", files::preset_word(name)),
                _ => String::new(),
            };
            let state = if state.is_empty() {
                String::new()
            } else {
                format!("; {state}")
            };
            format!("{load} ({fragment}{state}{preset})")
        }
        (_, problem, _) => format!("{load} (Reason: {problem})"),
    }
}

fn active(unit: &Value) -> String {
    let sub = match (string(unit, "active"), string(unit, "result")) {
        ("failed", result) if !result.is_empty() => format!("Result: {result}"),
        _ => string(unit, "sub").to_owned(),
    };
    let mut text = format!("{} ({sub})", string(unit, "active"));
    if let Some(ms) = unit.get("state_age_ms").and_then(Value::as_u64) {
        let age = std::time::Duration::from_millis(ms);
        let since = std::time::SystemTime::now().checked_sub(age);
        let us = since
            .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
            .and_then(|d| u64::try_from(d.as_micros()).ok());
        if let Some(us) = us {
            text.push_str(&format!(" since {}; {} ago", when(us), span(age)));
        }
    }
    text
}

fn program_of(unit: &Value, pid: u64) -> String {
    let mut processes = unit
        .get("processes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let own = processes.find(|p| p.get("pid").and_then(Value::as_u64) == Some(pid));
    own.and_then(|p| string(p, "command").split(' ').next())
        .and_then(|program| program.rsplit('/').next())
        .filter(|program| !program.is_empty())
        .map_or_else(String::new, |program| format!(" ({program})"))
}

fn processes(unit: &Value) {
    let list: Vec<&Value> = unit
        .get("processes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .collect();
    for (at, process) in list.iter().enumerate() {
        let pid = process.get("pid").and_then(Value::as_i64).unwrap_or(0);
        let corner = if at + 1 == list.len() {
            "└─"
        } else {
            "├─"
        };
        println!("             {corner}{pid} {}", string(process, "command"));
    }
}

/// Bytes in the unit that suits them, as systemd writes it.
fn size(bytes: u64) -> String {
    const UNITS: [(u64, char); 4] = [
        (1 << 40, 'T'),
        (1 << 30, 'G'),
        (1 << 20, 'M'),
        (1 << 10, 'K'),
    ];
    for (unit, letter) in UNITS {
        if bytes >= unit {
            let tenths = u128::from(bytes) * 10 / u128::from(unit);
            return format!("{}.{}{letter}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes}B")
}

/// The journal may not be readable for everybody; `status` says what it can without it.
fn last_lines(unit: &str, options: &Options) {
    let lines = options.lines.unwrap_or(LINES);
    let path = Path::new(orlop_journal::segments::DIRECTORY);
    let Ok(journal) = orlop_journal::reader::Journal::open(path) else {
        return;
    };
    let filter = Filter {
        units: vec![unit.to_owned()],
        ..Filter::default()
    };
    let Ok(items) = journal.last(&filter, lines) else {
        return;
    };
    if lines > 0 {
        println!();
    }
    let style = orlop_journal::render::Style {
        format: orlop_journal::render::Format::Short,
        hostname: String::new(),
        colour: false,
        escape: true,
        fields: Vec::new(),
    };
    for item in items {
        if let orlop_journal::reader::Item::Entry(record) = item {
            let mut line = Vec::new();
            orlop_journal::render::render(&record, &style, &mut line);
            print!("{}", String::from_utf8_lossy(&line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_in_the_unit_that_suits_them() {
        assert_eq!(size(512), "512B");
        assert_eq!(size(1536), "1.5K");
        assert_eq!(size(64 << 20), "64.0M");
    }
}
