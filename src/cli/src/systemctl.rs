//! `systemctl`, and the short words for the machine's end: what PID 1 is asked, and what it answers.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use orlop_init::client::{Client, Error};
use orlop_journal::filter::Filter;
use serde_json::{Value, json};

/// systemctl(1)'s exit code for a unit that is not running (LSB 3).
const NOT_RUNNING: u8 = 3;
/// systemctl(1)'s exit code for a unit that does not exist (LSB 4).
const NO_SUCH_UNIT: u8 = 4;
/// The journal's lines that `status` shows.
const STATUS_LINES: usize = 10;

const HELP: &str = "Usage: systemctl COMMAND [UNIT…]

Commands:
  start|stop|restart|try-restart|reload UNIT…   wait until it is done; --no-block does not
  status [UNIT…]            state, processes, the reason of a failure and the last log lines
  show UNIT                 all that is known, as JSON
  is-active|is-failed UNIT…
  list-units [--all]        the loaded units
  kill [-s SIGNAL] [--kill-whom=main|control|all] UNIT…
  reset-failed [UNIT…]      forget failures and start limits
  daemon-reload             read the unit files again
  daemon-reexec             execute PID 1 anew; units, sockets and timers go on
  reboot|poweroff|halt [-f]
";

/// Runs `systemctl`.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    orlop_sys::signal::end_with_closed_pipes();
    let mut options = Options::default();
    let mut words = Vec::new();
    let mut args = args.iter().map(|a| a.to_string_lossy().into_owned());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--no-block" => options.no_block = true,
            "-a" | "--all" => options.all = true,
            "-f" | "--force" => options.force = true,
            "-q" | "--quiet" => options.quiet = true,
            "--no-pager" | "--no-legend" | "--plain" | "--full" | "-l" | "--system" => {}
            "-s" => options.signal = args.next(),
            "-h" | "--help" => {
                print!("{HELP}");
                return ExitCode::SUCCESS;
            }
            other => {
                if let Some(signal) = other.strip_prefix("--signal=") {
                    options.signal = Some(signal.to_owned());
                } else if let Some(whom) = other.strip_prefix("--kill-whom=") {
                    options.whom = Some(whom.to_owned());
                } else if other.starts_with('-') {
                    eprintln!("systemctl: unknown option {other}; `systemctl --help` lists them");
                    return ExitCode::from(2);
                } else {
                    words.push(arg);
                }
            }
        }
    }
    let (verb, units) = match words.split_first() {
        Some((verb, units)) => (
            verb.as_str(),
            units.iter().map(|u| full_name(u)).collect::<Vec<_>>(),
        ),
        None => ("list-units", Vec::new()),
    };
    let mut client = match Client::connect() {
        Ok(client) => client,
        Err(err) => return fail(&err),
    };
    let outcome = match verb {
        "start" | "stop" | "restart" | "try-restart" | "reload" => {
            jobs(&mut client, verb, &units, &options)
        }
        "status" => status(&mut client, &units),
        "show" => show(&mut client, &units),
        "is-active" | "is-failed" => is_state(&mut client, verb, &units, &options),
        "list-units" => list(&mut client, &options),
        "kill" => kill(&mut client, &units, &options),
        "reset-failed" => reset_failed(&mut client, &units),
        "daemon-reload" => client.call("Reload", &json!({})).map(|_| ExitCode::SUCCESS),
        "daemon-reexec" => client
            .call("Reexecute", &json!({}))
            .map(|_| ExitCode::SUCCESS),
        "reboot" | "poweroff" | "halt" => shut_down(&mut client, verb, options.force),
        other => {
            eprintln!("systemctl: no command {other}; `systemctl --help` lists them");
            return ExitCode::from(2);
        }
    };
    outcome.unwrap_or_else(|err| fail(&err))
}

/// Runs `reboot`, `poweroff` or `halt` by that name.
pub(crate) fn end(action: &str, args: &[OsString]) -> ExitCode {
    let force = args.iter().any(|a| a == "-f" || a == "--force");
    Client::connect()
        .and_then(|mut client| shut_down(&mut client, action, force))
        .unwrap_or_else(|err| fail(&err))
}

#[derive(Debug, Default)]
struct Options {
    no_block: bool,
    all: bool,
    force: bool,
    quiet: bool,
    signal: Option<String>,
    whom: Option<String>,
}

fn full_name(word: &str) -> String {
    let known = [
        "service",
        "target",
        "container",
        "socket",
        "timer",
        "mount",
        "path",
        "slice",
    ];
    match word.rsplit_once('.') {
        Some((_, suffix)) if known.contains(&suffix) => word.to_owned(),
        _ => format!("{word}.service"),
    }
}

fn fail(err: &Error) -> ExitCode {
    match err {
        Error::Refused { name, message } => {
            eprintln!("systemctl: {message}");
            if name.ends_with("NoSuchUnit") {
                return ExitCode::from(NO_SUCH_UNIT);
            }
        }
        other => eprintln!("systemctl: {}", orlop_journal::writer::chain(other)),
    }
    ExitCode::FAILURE
}

fn shut_down(client: &mut Client, action: &str, force: bool) -> Result<ExitCode, Error> {
    client.call("Shutdown", &json!({ "action": action, "force": force }))?;
    Ok(ExitCode::SUCCESS)
}

fn jobs(
    client: &mut Client,
    verb: &str,
    units: &[String],
    options: &Options,
) -> Result<ExitCode, Error> {
    if units.is_empty() {
        eprintln!("systemctl: {verb} takes at least one unit");
        return Ok(ExitCode::from(2));
    }
    let mut code = ExitCode::SUCCESS;
    for unit in units {
        let parameters = json!({ "verb": verb, "unit": unit, "block": !options.no_block });
        match client.call("Job", &parameters) {
            Ok(answer) => {
                let result = string(&answer, "result");
                if !matches!(result, "done" | "skipped" | "queued") {
                    eprintln!(
                        "systemctl: {verb} of {unit} ended with {result}: {}",
                        string(&answer, "message")
                    );
                    eprintln!("See `systemctl status {unit}` and `journalctl -u {unit}`.");
                    code = ExitCode::FAILURE;
                }
            }
            Err(err @ Error::Refused { .. }) => code = fail(&err),
            Err(err) => return Err(err),
        }
    }
    Ok(code)
}

fn string<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn look(client: &mut Client, unit: &str) -> Result<Value, Error> {
    let mut answer = client.call("Show", &json!({ "unit": unit }))?;
    Ok(answer.get_mut("unit").map(Value::take).unwrap_or_default())
}

fn show(client: &mut Client, units: &[String]) -> Result<ExitCode, Error> {
    for unit in units {
        println!("{:#}", look(client, unit)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn is_state(
    client: &mut Client,
    verb: &str,
    units: &[String],
    options: &Options,
) -> Result<ExitCode, Error> {
    let wanted = if verb == "is-failed" {
        "failed"
    } else {
        "active"
    };
    let mut any = false;
    for unit in units {
        let active = match look(client, unit) {
            Ok(shown) => string(&shown, "active").to_owned(),
            Err(Error::Refused { .. }) => "inactive".to_owned(),
            Err(err) => return Err(err),
        };
        if !options.quiet {
            println!("{active}");
        }
        any |= active == wanted || (wanted == "active" && active == "reloading");
    }
    let otherwise = if verb == "is-failed" { 1 } else { NOT_RUNNING };
    Ok(if any {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(otherwise)
    })
}

fn list(client: &mut Client, options: &Options) -> Result<ExitCode, Error> {
    let answer = client.call("List", &json!({ "all": options.all }))?;
    let empty = Vec::new();
    let mut units: Vec<&Value> = answer
        .get("units")
        .and_then(Value::as_array)
        .unwrap_or(&empty)
        .iter()
        .filter(|u| {
            options.all
                || string(u, "active") != "inactive"
                || string(u, "load") == "error"
                || !string(u, "job").is_empty()
        })
        .collect();
    units.sort_by_key(|u| string(u, "name"));
    let width = units
        .iter()
        .map(|u| string(u, "name").len())
        .max()
        .unwrap_or(4)
        .max(4);
    println!(
        "{:<width$} {:<9} {:<12} {:<12} DESCRIPTION",
        "UNIT", "LOAD", "ACTIVE", "SUB"
    );
    for unit in &units {
        println!(
            "{:<width$} {:<9} {:<12} {:<12} {}",
            string(unit, "name"),
            string(unit, "load"),
            string(unit, "active"),
            string(unit, "sub"),
            string(unit, "description")
        );
    }
    println!("\n{} units listed.", units.len());
    Ok(ExitCode::SUCCESS)
}

fn kill(client: &mut Client, units: &[String], options: &Options) -> Result<ExitCode, Error> {
    let word = options.signal.as_deref().unwrap_or("SIGTERM");
    let Some(signal) = orlop_unit::Signal::parse(word) else {
        eprintln!("systemctl: {word} is no signal");
        return Ok(ExitCode::from(2));
    };
    let whom = options.whom.as_deref().unwrap_or("all");
    for unit in units {
        client.call(
            "Kill",
            &json!({ "unit": unit, "signal": signal.0, "whom": whom }),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn reset_failed(client: &mut Client, units: &[String]) -> Result<ExitCode, Error> {
    if units.is_empty() {
        client.call("ResetFailed", &json!({}))?;
    }
    for unit in units {
        client.call("ResetFailed", &json!({ "unit": unit }))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn status(client: &mut Client, units: &[String]) -> Result<ExitCode, Error> {
    if units.is_empty() {
        return list(client, &Options::default());
    }
    let mut code = ExitCode::SUCCESS;
    for unit in units {
        let shown = look(client, unit)?;
        print_status(&shown);
        if !matches!(string(&shown, "active"), "active" | "reloading") {
            code = ExitCode::from(NOT_RUNNING);
        }
    }
    Ok(code)
}

fn print_status(unit: &Value) {
    let name = string(unit, "name");
    println!("● {name} - {}", string(unit, "description"));
    let place = match (string(unit, "problem"), string(unit, "fragment")) {
        ("", "") => String::new(),
        ("", fragment) => format!(" ({fragment})"),
        (problem, _) => format!(" ({problem})"),
    };
    println!("     Loaded: {}{place}", string(unit, "load"));
    let age_s = unit
        .get("state_age_ms")
        .and_then(Value::as_u64)
        .unwrap_or(0)
        / 1000;
    println!(
        "     Active: {} ({}) since {age_s} s ago",
        string(unit, "active"),
        string(unit, "sub")
    );
    let number = |key: &str| unit.get(key).and_then(Value::as_u64);
    if !string(unit, "failure").is_empty() {
        println!(
            "     Reason: {} (result {})",
            string(unit, "failure"),
            string(unit, "result")
        );
    }
    let waits: Vec<&str> = unit
        .get("waits_for")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !waits.is_empty() {
        println!("      Waits: for {}", waits.join(", "));
    }
    if let Some(pid) = number("main_pid") {
        println!("   Main PID: {pid}");
    }
    if !string(unit, "status").is_empty() {
        println!("     Status: \"{}\"", string(unit, "status"));
    }
    if let Some(bytes) = number("memory_bytes") {
        println!("     Memory: {:.1}M", bytes as f64 / 1_048_576.0);
    }
    if let Some(us) = number("cpu_us") {
        println!("        CPU: {}ms", us / 1000);
    }
    if !string(unit, "cgroup").is_empty() {
        println!("     CGroup: /{}", string(unit, "cgroup"));
        for process in unit
            .get("processes")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let pid = process.get("pid").and_then(Value::as_i64).unwrap_or(0);
            println!("             {pid} {}", string(process, "command"));
        }
    }
    print_last_lines(name);
}

/// The journal may not be readable for everybody; `status` says what it can without it.
fn print_last_lines(unit: &str) {
    let Ok(journal) = orlop_journal::reader::Journal::open(Path::new("/var/lib/orlop/journal"))
    else {
        return;
    };
    let filter = Filter {
        units: vec![unit.to_owned()],
        ..Filter::default()
    };
    let Ok(items) = journal.last(&filter, STATUS_LINES) else {
        return;
    };
    println!();
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
