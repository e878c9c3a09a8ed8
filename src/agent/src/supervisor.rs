//! Who carries out starts and stops on this node.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use orlop_init::client::{Client, Error};
use orlop_schedule::UnitName;
use serde_json::{Value, json};

use crate::hands::Observed;

/// A supervisor of units. The calls block.
pub trait Supervisor: Send + Sync + 'static {
    /// All units that it knows.
    ///
    /// # Errors
    /// One sentence.
    fn list(&self) -> Result<BTreeMap<UnitName, Observed>, String>;

    /// Lets it read its unit files again.
    ///
    /// # Errors
    /// One sentence.
    fn reload(&self) -> Result<(), String>;

    /// Starts a unit and waits for what comes of it.
    ///
    /// # Errors
    /// Why it does not run.
    fn start(&self, unit: &UnitName) -> Result<(), String>;

    /// Stops a unit and waits until it has stopped.
    ///
    /// # Errors
    /// Why it may still run.
    fn stop(&self, unit: &UnitName) -> Result<(), String>;

    /// What is known of a unit that has failed.
    fn failure(&self, unit: &UnitName) -> Failure;
}

/// Why a unit has failed, for those who cannot look at its machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// One sentence; empty when nothing is known.
    pub reason: String,
    /// The last lines of its log.
    pub log: Vec<String>,
}

/// The lines of a log that are told.
const LOG_LINES: usize = 10;
/// Characters of such a line.
const LINE_LENGTH: usize = 300;

/// PID 1 (`docs/io.orlop.Init.varlink`).
#[derive(Clone, Copy, Debug)]
pub struct Pid1;

impl Pid1 {
    fn call(method: &str, parameters: &Value) -> Result<Value, Error> {
        Client::connect()?.call(method, parameters)
    }

    /// The last lines of a unit's log, by the applet that people use.
    fn log(unit: &UnitName) -> std::io::Result<Vec<String>> {
        let output = Command::new("/usr/bin/journalctl")
            .args(["--no-pager", &format!("--lines={LOG_LINES}"), "--unit"])
            .arg(unit.as_str())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = |line: &str| line.chars().take(LINE_LENGTH).collect();
        Ok(text.lines().take(LOG_LINES).map(line).collect())
    }

    fn job(verb: &str, unit: &UnitName) -> Result<(), String> {
        let parameters = json!({ "verb": verb, "unit": unit.as_str(), "block": true });
        let answer = match Self::call("Job", &parameters) {
            Ok(answer) => answer,
            // What is not there does not run.
            Err(Error::Refused { name, .. }) if verb == "stop" && name.ends_with("NoSuchUnit") => {
                return Ok(());
            }
            Err(err) => return Err(err.to_string()),
        };
        match text(&answer, "result").as_str() {
            "done" | "skipped" => Ok(()),
            result => Err(format!(
                "{verb} ended with {result}: {}",
                text(&answer, "message")
            )),
        }
    }
}

fn text(value: &Value, key: &str) -> String {
    let text = value.get(key).and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}

impl Supervisor for Pid1 {
    fn list(&self) -> Result<BTreeMap<UnitName, Observed>, String> {
        let answer = Self::call("List", &json!({ "all": false })).map_err(|err| err.to_string())?;
        let units = answer.get("units").and_then(Value::as_array);
        let entry = |unit: &Value| {
            let name = UnitName::parse(&text(unit, "name")).ok()?;
            let observed = Observed {
                load: text(unit, "load"),
                active: text(unit, "active"),
                sub: text(unit, "sub"),
            };
            Some((name, observed))
        };
        Ok(units.into_iter().flatten().filter_map(entry).collect())
    }

    fn reload(&self) -> Result<(), String> {
        let answer = Self::call("Reload", &json!({}));
        answer.map(drop).map_err(|err| err.to_string())
    }

    fn start(&self, unit: &UnitName) -> Result<(), String> {
        Self::job("start", unit)
    }

    fn stop(&self, unit: &UnitName) -> Result<(), String> {
        Self::job("stop", unit)
    }

    fn failure(&self, unit: &UnitName) -> Failure {
        let shown = Self::call("Show", &json!({ "unit": unit.as_str() }));
        let reason = shown.map(|answer| {
            answer
                .get("unit")
                .map(|unit| text(unit, "failure"))
                .unwrap_or_default()
        });
        Failure {
            reason: reason.unwrap_or_else(|err| err.to_string()),
            log: Self::log(unit).unwrap_or_else(|err| vec![format!("no log: {err}")]),
        }
    }
}
