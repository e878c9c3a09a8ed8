//! `systemctl`, and the short words for the machine's end: what PID 1 is asked, and what it answers.

mod files;
mod list;
mod show;
mod status;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use orlop_init::client::{Client, Error};
use orlop_unit::Civil;
use serde_json::{Value, json};

/// systemctl(1)'s exit code for a unit that is not running (LSB 3).
const NOT_RUNNING: u8 = 3;
/// systemctl(1)'s exit code for a unit that does not exist (LSB 4).
const NO_SUCH_UNIT: u8 = 4;

const HELP: &str = "Usage: systemctl [OPTION…] COMMAND [UNIT…]

Units:
  start|stop|restart|try-restart|reload UNIT…   wait until it is done; --no-block does not
  reload-or-restart|try-reload-or-restart UNIT…
  isolate UNIT                  start it, and stop all that it does not need
  kill [-s SIGNAL] [--kill-whom=main|control|all] UNIT…
  reset-failed [UNIT…]          forget failures and start limits
  status [-n LINES] [UNIT…]     state, processes, the reason of a failure and the last log lines
  show [-p NAME,…] [--value] [--output=json] UNIT…
  is-active|is-failed UNIT…
  list-units [--all] [--type=TYPE] [--state=STATE] [--failed] [PATTERN…]
  list-timers|list-sockets [--all] [PATTERN…]
  list-dependencies [--reverse] [--all] [UNIT…]

Unit files:
  enable|disable [--now] [--runtime] UNIT…      links that start a unit with another
  reenable|preset|mask|unmask UNIT…
  is-enabled UNIT…
  list-unit-files [--type=TYPE] [--state=STATE] [PATTERN…]
  cat UNIT…
  edit [--full] [--runtime] [--stdin] [--drop-in=NAME] UNIT…
  daemon-reload                 read the unit files again

Machine:
  daemon-reexec                 execute PID 1 anew; units, sockets and timers go on
  reboot|poweroff|halt [-f]

-q says less, --no-legend leaves heads and sums out. UNIT without a suffix is a service.
";

#[derive(Debug, Default)]
struct Options {
    no_block: bool,
    all: bool,
    force: bool,
    quiet: bool,
    signal: Option<String>,
    whom: Option<String>,
    now: bool,
    runtime: bool,
    full: bool,
    stdin: bool,
    drop_in: Option<String>,
    reverse: bool,
    no_legend: bool,
    json: bool,
    value_only: bool,
    properties: Vec<String>,
    types: Vec<String>,
    states: Vec<String>,
    lines: Option<usize>,
}

/// What an option does; `false` for a value that it does not know.
enum Effect {
    /// It takes no value.
    Alone(fn(&mut Options)),
    /// It takes one behind `=`, or none.
    Perhaps(fn(&mut Options, Option<&str>) -> bool),
    /// It takes one, behind `=` or as the next word.
    Value(fn(&mut Options, &str) -> bool),
}

/// Every option by its names.
#[rustfmt::skip]
const OPTIONS: &[(&[&str], Effect)] = &[
    (&["--no-block"], Effect::Alone(|o| o.no_block = true)),
    (&["-a", "--all"], Effect::Alone(|o| o.all = true)),
    (&["-f", "--force"], Effect::Alone(|o| o.force = true)),
    (&["-q", "--quiet"], Effect::Alone(|o| o.quiet = true)),
    (&["--now"], Effect::Alone(|o| o.now = true)),
    (&["--runtime"], Effect::Alone(|o| o.runtime = true)),
    (&["--full"], Effect::Alone(|o| o.full = true)),
    (&["--stdin"], Effect::Alone(|o| o.stdin = true)),
    (&["--reverse"], Effect::Alone(|o| o.reverse = true)),
    (&["--no-legend"], Effect::Alone(|o| o.no_legend = true)),
    (&["--value"], Effect::Alone(|o| o.value_only = true)),
    (&["--failed"], Effect::Alone(|o| o.states.push("failed".to_owned()))),
    // Nothing here is paged, shortened, coloured or asked for, and there is one supervisor.
    (&["--no-pager", "--plain", "-l", "--system", "--no-ask-password", "--no-wall"], Effect::Alone(|_| {})),
    (&["--legend"], Effect::Perhaps(|o, value| {
        let legend = value.map_or(Some(true), orlop_unit::value::parse_bool);
        o.no_legend = legend == Some(false);
        legend.is_some()
    })),
    (&["-s", "--signal"], Effect::Value(|o, value| put(&mut o.signal, value))),
    (&["--kill-whom", "--kill-who"], Effect::Value(|o, value| put(&mut o.whom, value))),
    (&["--drop-in"], Effect::Value(|o, value| put(&mut o.drop_in, value))),
    (&["-p", "--property"], Effect::Value(|o, value| extend(&mut o.properties, value))),
    (&["-P"], Effect::Value(|o, value| {
        o.value_only = true;
        extend(&mut o.properties, value)
    })),
    (&["-t", "--type"], Effect::Value(|o, value| extend(&mut o.types, value))),
    (&["--state"], Effect::Value(|o, value| extend(&mut o.states, value))),
    (&["-o", "--output"], Effect::Value(|o, value| {
        o.json = value.starts_with("json");
        true
    })),
    (&["-n", "--lines"], Effect::Value(|o, value| {
        o.lines = value.parse().ok();
        o.lines.is_some()
    })),
];

fn put(slot: &mut Option<String>, value: &str) -> bool {
    *slot = Some(value.to_owned());
    true
}

/// A list with commas; several options add up.
fn extend(list: &mut Vec<String>, value: &str) -> bool {
    list.extend(value.split(',').map(str::to_owned));
    true
}

impl Options {
    /// Whether a unit is of one of the types that are asked for.
    fn has_type(&self, name: &str) -> bool {
        let suffix = name.rsplit('.').next().unwrap_or_default();
        self.types.is_empty() || self.types.iter().any(|t| t == suffix)
    }

    /// The options and the other words of a command line.
    ///
    /// # Errors
    /// The option that there is none of.
    fn parse(args: impl Iterator<Item = String>) -> Result<(Self, Vec<String>), String> {
        let mut options = Self::default();
        let mut words = Vec::new();
        let mut args = args;
        while let Some(arg) = args.next() {
            if arg == "--" {
                words.extend(args.by_ref());
            } else if !arg.starts_with('-') || arg == "-" {
                words.push(arg);
            } else {
                let (name, value) = match arg.split_once('=') {
                    Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
                    // `-n5` and `-pName`
                    _ if !arg.starts_with("--") && arg.len() > 2 => {
                        let (name, value) = arg.split_at_checked(2).unwrap_or((&arg, ""));
                        (name, Some(value.to_owned()))
                    }
                    _ => (arg.as_str(), None),
                };
                let unknown = || format!("unknown option {arg}; `systemctl --help` lists them");
                let mut rows = OPTIONS.iter();
                let effect = rows.find(|(names, _)| names.contains(&name));
                let (_, effect) = effect.ok_or_else(unknown)?;
                let is_good = match (effect, value) {
                    (Effect::Alone(set), None) => {
                        set(&mut options);
                        true
                    }
                    (Effect::Alone(_), Some(_)) => false,
                    (Effect::Perhaps(set), value) => set(&mut options, value.as_deref()),
                    (Effect::Value(set), value) => {
                        let Some(value) = value.or_else(|| args.next()) else {
                            return Err(format!("option {name} takes a value"));
                        };
                        set(&mut options, &value)
                    }
                };
                if !is_good {
                    return Err(unknown());
                }
            }
        }
        Ok((options, words))
    }
}

/// Runs `systemctl`.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    orlop_sys::signal::end_with_closed_pipes();
    if args.iter().any(|a| a == "-h" || a == "--help") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let words = args.iter().map(|a| a.to_string_lossy().into_owned());
    let (options, words) = match Options::parse(words) {
        Ok(parsed) => parsed,
        Err(text) => {
            eprintln!("systemctl: {text}");
            return ExitCode::from(2);
        }
    };
    let (verb, rest) = match words.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => ("list-units", &[][..]),
    };
    let units: Vec<String> = rest.iter().map(|u| full_name(u)).collect();
    match verb {
        "is-enabled" => return files::is_enabled(&units, &options),
        "list-unit-files" => return files::list(rest, &options),
        "cat" => return files::cat(&units),
        "enable" | "disable" | "reenable" | "mask" | "unmask" | "preset" => {
            return match files::install(verb, &units, &options) {
                Ok(changed) => put_in_force(verb, changed, &units, &options),
                Err(code) => code,
            };
        }
        "edit" => {
            return match files::edit(&units, &options) {
                Ok(changed) => put_in_force(verb, changed, &units, &options),
                Err(code) => code,
            };
        }
        _ => {}
    }
    let mut client = match Client::connect() {
        Ok(client) => client,
        Err(err) => return fail(&err),
    };
    let outcome = match verb {
        "start"
        | "stop"
        | "restart"
        | "try-restart"
        | "reload"
        | "reload-or-restart"
        | "try-reload-or-restart"
        | "isolate" => jobs(&mut client, verb, &units, &options),
        "condrestart" => jobs(&mut client, "try-restart", &units, &options),
        "force-reload" => jobs(&mut client, "try-reload-or-restart", &units, &options),
        "status" => status::status(&mut client, &units, &options),
        "show" => show::show(&mut client, &units, &options),
        "is-active" | "is-failed" => is_state(&mut client, verb, &units, &options),
        "list-units" => list::units(&mut client, rest, &options),
        "list-timers" => list::timers(&mut client, rest, &options),
        "list-sockets" => list::sockets(&mut client, rest, &options),
        "list-dependencies" => list::dependencies(&mut client, &units, &options),
        "kill" => kill(&mut client, &units, &options),
        "reset-failed" => reset_failed(&mut client, &units),
        "daemon-reload" => reload(&mut client),
        "daemon-reexec" => client
            .call("Reexecute", &json!({}))
            .map(|_| ExitCode::SUCCESS),
        "reboot" | "poweroff" | "halt" => shut_down(&mut client, verb, options.force),
        other => {
            eprintln!("Unknown command verb {other}; `systemctl --help` lists them.");
            return ExitCode::FAILURE;
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

fn reload(client: &mut Client) -> Result<ExitCode, Error> {
    client.call("Reload", &json!({})).map(|_| ExitCode::SUCCESS)
}

/// Has PID 1 read what was changed, and with `--now` starts or stops the units. Where no PID 1 of ours runs, as in a root that is
/// only looked at, there is nothing to be told.
fn put_in_force(verb: &str, changed: bool, units: &[String], options: &Options) -> ExitCode {
    if !changed && !options.now {
        return ExitCode::SUCCESS;
    }
    let mut client = match Client::connect() {
        Ok(client) => client,
        Err(Error::Connect(_)) if !options.now => return ExitCode::SUCCESS,
        Err(err) => return fail(&err),
    };
    let outcome = reload(&mut client).and_then(|code| match (options.now, verb) {
        (true, "enable" | "reenable") => jobs(&mut client, "start", units, options),
        (true, "disable" | "mask") => jobs(&mut client, "stop", units, options),
        _ => Ok(code),
    });
    outcome.unwrap_or_else(|err| fail(&err))
}

fn jobs(
    client: &mut Client,
    verb: &str,
    units: &[String],
    options: &Options,
) -> Result<ExitCode, Error> {
    if units.is_empty() || (verb == "isolate" && units.len() > 1) {
        eprintln!(
            "systemctl: {verb} takes {} unit",
            if verb == "isolate" {
                "one"
            } else {
                "at least one"
            }
        );
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
            Err(Error::Refused { name, message }) if name.ends_with("NoSuchUnit") => {
                eprintln!("Failed to {verb} {unit}: {message}");
                // LSB 5, the program is not installed; to stop what is not there is another matter (systemctl(1)).
                code = ExitCode::from(5);
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

fn strings<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    let list = value.get(key).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// A time in microseconds since 1970, as systemd writes it.
fn when(us: u64) -> String {
    Civil::from_us(us).to_string()
}

/// A span in its two largest units, as systemd writes it.
fn span(span: Duration) -> String {
    const UNITS: [(u64, &str); 5] = [
        (31_557_600, "y"),
        (86_400, "d"),
        (3_600, "h"),
        (60, "min"),
        (1, "s"),
    ];
    let seconds = span.as_secs();
    if seconds < 60 {
        let ms = span.subsec_millis();
        return match (seconds, ms) {
            (0, 0) => format!("{}us", span.subsec_micros()),
            (0, ms) => format!("{ms}ms"),
            (s, 0) => format!("{s}s"),
            (s, ms) => format!("{s}.{ms:03}s"),
        };
    }
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (unit, name) in UNITS {
        if rest >= unit && parts.len() < 2 {
            parts.push(format!("{}{name}", rest / unit));
            rest %= unit;
        } else if !parts.is_empty() {
            break;
        }
    }
    parts.join(" ")
}

fn look(client: &mut Client, unit: &str) -> Result<Value, Error> {
    let mut answer = client.call("Show", &json!({ "unit": unit }))?;
    Ok(answer.get_mut("unit").map(Value::take).unwrap_or_default())
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

fn kill(client: &mut Client, units: &[String], options: &Options) -> Result<ExitCode, Error> {
    let word = options.signal.as_deref().unwrap_or("SIGTERM");
    let Some(signal) = orlop_unit::Signal::parse(word) else {
        eprintln!("systemctl: {word} is no signal");
        return Ok(ExitCode::from(2));
    };
    let whom = options.whom.as_deref().unwrap_or("all");
    if !matches!(whom, "all" | "main" | "control") {
        eprintln!("systemctl: --kill-whom= is one of all main control");
        return Ok(ExitCode::from(2));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_with_their_values_in_every_form() {
        let parse = |line: &str| Options::parse(line.split(' ').map(str::to_owned));
        let (options, words) =
            parse("show -pMainPID,Result --property=Id --value -n 5 a.service -- -b").unwrap();
        assert_eq!(options.properties, ["MainPID", "Result", "Id"]);
        assert!(options.value_only);
        assert_eq!(options.lines, Some(5));
        assert_eq!(words, ["show", "a.service", "-b"]);
        for bad in ["--nothing", "--now=1", "status -n", "status -n x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_are_written_in_their_two_largest_units() {
        for (ms, text) in [
            (0, "0us"),
            (35, "35ms"),
            (2_300, "2.300s"),
            (61_000, "1min 1s"),
            (3_600_000, "1h"),
            (90_000_000, "1d 1h"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn times_are_written_as_systemd_does() {
        assert_eq!(when(1_767_225_600_000_000), "Thu 2026-01-01 00:00:00 UTC");
    }
}
