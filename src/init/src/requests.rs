//! What the methods of the control socket do (`docs/io.orlop.Init.varlink`).

use std::os::fd::AsRawFd as _;

use orlop_boot::times;
use orlop_unit::{
    ActiveState, Edge, LoadState, Loaded, Mode, Request, ServiceType, Severity, UnitId, UnitName,
};
use serde_json::{Value, json};

mod details;

use crate::control::Call;
use crate::manager::Owner;
use crate::pid1::Pid1;
use crate::teardown::Action;
use crate::{accounts, cgroup, shutdown, spawn};

/// An error's name and its text.
type Refusal = (&'static str, String);

const DENIED: &str = "io.orlop.Init.Denied";
const FAILED: &str = "io.orlop.Init.Failed";
const NO_SUCH_UNIT: &str = "io.orlop.Init.NoSuchUnit";

/// The most processes of a unit that [`Pid1::show`] lists.
const PROCESSES_SHOWN: usize = 64;

fn text<'a>(parameters: &'a Value, key: &str) -> Result<&'a str, Refusal> {
    parameters
        .get(key)
        .and_then(Value::as_str)
        .ok_or_else(|| (FAILED, format!("the parameter {key} is missing")))
}

/// A parameter that may be left out, or be null.
fn optional<'a, T>(
    parameters: &'a Value,
    key: &str,
    read: impl FnOnce(&'a Value) -> Option<T>,
    otherwise: T,
) -> T {
    parameters.get(key).and_then(read).unwrap_or(otherwise)
}

fn texts(parameters: &Value, key: &str) -> Vec<String> {
    let list = parameters.get(key).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
}

impl Pid1 {
    /// Answers a call, now or when its job has ended.
    pub(crate) fn call(&mut self, connection: u64, call: Call) {
        match self.answer_call(connection, call) {
            Ok(Some(answer)) => {
                if let Some(control) = &mut self.control {
                    control.reply(connection, &answer);
                }
            }
            Ok(None) => {}
            Err((name, message)) => {
                if let Some(control) = &mut self.control {
                    control.error(connection, name, &message);
                }
            }
        }
    }

    fn answer_call(&mut self, connection: u64, call: Call) -> Result<Option<Value>, Refusal> {
        let parameters = &call.parameters;
        let allowed = match call.method.as_str() {
            "List" | "Show" => true,
            "Run" | "Signal" => call.uid == 0 || accounts::may_act_as_root(call.uid),
            _ => call.uid == 0,
        };
        if !allowed {
            return Err((
                DENIED,
                format!("{} takes root: try it with sudo", call.method),
            ));
        }
        match call.method.as_str() {
            "List" => {
                let all = optional(parameters, "all", Value::as_bool, false);
                Ok(Some(self.list(all)))
            }
            "Show" => Ok(Some(json!({ "unit": self.look(parameters)? }))),
            "Job" => self.job(connection, parameters),
            "ResetFailed" => {
                let ids: Vec<UnitId> = if parameters.get("unit").is_some_and(Value::is_string) {
                    self.known(parameters)?.into_iter().collect()
                } else {
                    self.manager.graph.ids().collect()
                };
                for id in ids {
                    self.manager.reset_failed(id);
                }
                Ok(Some(json!({})))
            }
            "Kill" => {
                let id = self.known(parameters)?;
                let signal = optional(parameters, "signal", Value::as_i64, 15);
                let whom = optional(parameters, "whom", Value::as_str, "all");
                let signal =
                    i32::try_from(signal).map_err(|_| (FAILED, "no such signal".to_owned()))?;
                if let Some(id) = id {
                    self.manager.kill(id, signal, whom);
                }
                Ok(Some(json!({})))
            }
            "Reload" => {
                self.manager.reload();
                Ok(Some(json!({})))
            }
            "Reexecute" => {
                self.execute_again = true;
                Ok(Some(json!({})))
            }
            "Shutdown" => self.shut_down(parameters),
            "HandOff" => {
                let successor = successor(&call)?;
                self.manager
                    .hand_off(call.pid, successor)
                    .map_err(|err| (FAILED, err))?;
                Ok(Some(json!({})))
            }
            "Run" => self.run_program(connection, &call),
            "Signal" => {
                let signal = optional(parameters, "signal", Value::as_i64, 15);
                if let (Some(pid), Ok(signal)) =
                    (self.callers.get(&connection), i32::try_from(signal))
                    && let Ok(signal) = nix::sys::signal::Signal::try_from(signal)
                {
                    // The program leads a session of its own; its whole group is meant, as on a terminal.
                    let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(*pid), signal);
                }
                Ok(None)
            }
            other => Err((FAILED, format!("there is no method {other}"))),
        }
    }

    fn find(&mut self, parameters: &Value) -> Result<UnitId, Refusal> {
        let name = text(parameters, "unit")?;
        let parsed =
            UnitName::parse(name).map_err(|err| (NO_SUCH_UNIT, format!("{name}: {err}")))?;
        let id = self.manager.load(&parsed);
        match self.manager.graph.load_state(id) {
            LoadState::NotFound => Err((NO_SUCH_UNIT, format!("unit {name} not found"))),
            _ => Ok(id),
        }
    }

    fn job(&mut self, connection: u64, parameters: &Value) -> Result<Option<Value>, Refusal> {
        let request = match text(parameters, "verb")? {
            "start" => Request::Start,
            "stop" => Request::Stop,
            "restart" => Request::Restart,
            "try-restart" => Request::TryRestart,
            "reload" => Request::Reload,
            "isolate" => Request::Start,
            "reload-or-restart" => self.reload_or(Request::Restart, parameters)?,
            "try-reload-or-restart" => self.reload_or(Request::TryRestart, parameters)?,
            other => return Err((FAILED, format!("there is no verb {other}"))),
        };
        let isolates = text(parameters, "verb")? == "isolate";
        let id = self.find(parameters)?;
        if let LoadState::Failed(problem) = self.manager.graph.load_state(id) {
            return Err((FAILED, problem.to_string()));
        }
        if let Some(unit) = self.manager.graph.unit(id) {
            if isolates && !unit.allow_isolate {
                let text = format!(
                    "{} has no AllowIsolate=yes: all else would be stopped for it",
                    unit.name.as_str()
                );
                return Err((FAILED, text));
            }
            let directive = match request {
                Request::Start | Request::Restart if unit.refuse_manual_start => {
                    "RefuseManualStart="
                }
                Request::Stop | Request::Restart | Request::TryRestart
                    if unit.refuse_manual_stop =>
                {
                    "RefuseManualStop="
                }
                _ => "",
            };
            if !directive.is_empty() {
                let text = format!(
                    "{} has {directive}: other units alone may ask for this",
                    unit.name.as_str()
                );
                return Err((FAILED, text));
            }
        }
        let block = optional(parameters, "block", Value::as_bool, true);
        let mode = if isolates {
            Mode::Isolate
        } else {
            Mode::Replace
        };
        self.manager
            .request(request, id, mode, block.then_some(connection))
            .map_err(|err| (FAILED, err))?;
        Ok((!block).then(|| json!({ "result": "queued", "message": "" })))
    }

    /// A reload of what runs and can reload, `otherwise` for all else.
    fn reload_or(&mut self, otherwise: Request, parameters: &Value) -> Result<Request, Refusal> {
        let id = self.find(parameters)?;
        let service = self.manager.graph.unit(id).and_then(|unit| unit.service());
        let can_reload = service.is_some_and(|service| {
            !service.exec_reload.is_empty() || service.service_type == ServiceType::NotifyReload
        });
        let is_up = self.manager.graph.state(id).is_up();
        Ok(if can_reload && is_up {
            Request::Reload
        } else {
            otherwise
        })
    }

    fn shut_down(&mut self, parameters: &Value) -> Result<Option<Value>, Refusal> {
        let action = match text(parameters, "action")? {
            "reboot" => Action::Reboot,
            "poweroff" => Action::PowerOff,
            "halt" => Action::Halt,
            other => return Err((FAILED, format!("there is no action {other}"))),
        };
        if optional(parameters, "force", Value::as_bool, false) {
            shutdown::finish(action);
        }
        self.end(action, "asked by a command");
        Ok(Some(json!({})))
    }

    fn run_program(&mut self, connection: u64, call: &Call) -> Result<Option<Value>, Refusal> {
        if self.callers.contains_key(&connection) {
            return Err((
                FAILED,
                "a program runs on this connection already".to_owned(),
            ));
        }
        let argv = texts(&call.parameters, "argv");
        let environment = texts(&call.parameters, "environment");
        let directory = text(&call.parameters, "directory")?;
        let [input, output, error] = call.descriptors.as_slice() else {
            return Err((FAILED, "three descriptors are needed".to_owned()));
        };
        let pid = spawn::start_for_caller(&argv, &environment, directory, [input, output, error])
            .map_err(|err| (FAILED, err))?;
        self.callers.insert(connection, pid);
        self.manager.adopt(pid, Owner::Caller(connection));
        Ok(None)
    }

    /// The unit, when it is among the known ones; one that only has files has nothing that could be changed.
    fn known(&self, parameters: &Value) -> Result<Option<UnitId>, Refusal> {
        let name = text(parameters, "unit")?;
        let no_such_unit = || (NO_SUCH_UNIT, format!("unit {name} not found"));
        let parsed =
            UnitName::parse(name).map_err(|err| (NO_SUCH_UNIT, format!("{name}: {err}")))?;
        let graph = &self.manager.graph;
        if let Some(id) = graph.find(name)
            && graph.load_state(id) != &LoadState::NotFound
        {
            return Ok(Some(id));
        }
        let loaded = self.manager.look_at(&parsed);
        if loaded == Loaded::default() {
            return Err(no_such_unit());
        }
        Ok(loaded.unit.and_then(|unit| graph.find(unit.name.as_str())))
    }

    /// What is to be known of a unit. One that is not known to the supervisor is not made known by it: everybody may ask.
    fn look(&self, parameters: &Value) -> Result<Value, Refusal> {
        if let Some(id) = self.known(parameters)? {
            return Ok(self.show(id));
        }
        let name = text(parameters, "unit")?;
        let parsed =
            UnitName::parse(name).map_err(|err| (NO_SUCH_UNIT, format!("{name}: {err}")))?;
        let loaded = self.manager.look_at(&parsed);
        let problem = loaded
            .problems
            .iter()
            .find(|problem| problem.severity == Severity::Error);
        let unit = loaded.unit.as_ref();
        let load = match (unit, loaded.masked) {
            (_, true) => "masked",
            (Some(_), _) => "loaded",
            (None, _) => "error",
        };
        Ok(json!({
            "name": unit.map_or(name, |unit| unit.name.as_str()),
            "description": unit.map_or("", |unit| unit.description.as_str()),
            "load": load,
            "active": ActiveState::Inactive.as_str(),
            "sub": "dead",
            "job": null,
            "problem": problem.map(ToString::to_string),
            "fragment": unit.and_then(|unit| unit.fragment.as_ref()),
            "drop_ins": unit.map_or(&[][..], |unit| unit.drop_ins.as_slice()),
            "waits_for": [],
            "wanted_by": [],
        }))
    }

    fn list(&self, all: bool) -> Value {
        let graph = &self.manager.graph;
        let units: Vec<Value> = graph
            .ids()
            .filter(|id| !graph.is_vacant(*id))
            .filter(|id| all || graph.load_state(*id) != &LoadState::NotFound)
            .map(|id| self.summary(id))
            .collect();
        json!({ "units": units })
    }

    fn summary(&self, id: UnitId) -> Value {
        let graph = &self.manager.graph;
        let run = self.manager.entry(id).and_then(|e| e.run.as_ref());
        let active = graph.state(id);
        let trigger = self.manager.entry(id).and_then(|e| e.trigger.as_ref());
        let sub = match (run, trigger) {
            (Some(run), _) => run.sub_state(),
            (None, Some(trigger)) => trigger.sub_state(),
            (None, None) if active.is_up() => "active",
            (None, None) => "dead",
        };
        json!({
            "name": graph.name(id).as_str(),
            "description": graph.unit(id).map_or("", |u| u.description.as_str()),
            "load": match graph.load_state(id) {
                LoadState::Loaded(_) => "loaded",
                LoadState::NotFound => "not-found",
                LoadState::Masked => "masked",
                LoadState::Failed(_) => "error",
            },
            "active": active.as_str(),
            "sub": sub,
            "job": self.manager.jobs.job_of(id).map(|j| j.kind.as_str()),
        })
    }

    fn show(&self, id: UnitId) -> Value {
        let graph = &self.manager.graph;
        let mut shown = self.summary(id);
        let Some(map) = shown.as_object_mut() else {
            return shown;
        };
        let mut set = |key: &str, value: Value| {
            map.insert(key.to_owned(), value);
        };
        if let LoadState::Failed(problem) = graph.load_state(id) {
            set("problem", json!(problem.to_string()));
        }
        if let Some(unit) = graph.unit(id) {
            set("fragment", json!(unit.fragment));
            set("drop_ins", json!(unit.drop_ins));
        }
        let waits: Vec<&str> = self
            .manager
            .jobs
            .job_of(id)
            .map(|job| {
                self.manager
                    .jobs
                    .waits_for(graph, job.unit)
                    .map(|u| graph.name(u).as_str())
                    .collect()
            })
            .unwrap_or_default();
        set("waits_for", json!(waits));
        let wanted_by: Vec<&str> = graph
            .related(id, Edge::WantedBy)
            .map(|u| graph.name(u).as_str())
            .collect();
        set("wanted_by", json!(wanted_by));
        for (key, value) in details::unit(graph, id) {
            set(key, value);
        }
        let Some(entry) = self.manager.entry(id) else {
            return shown;
        };
        let age_ns = times::now_ns().saturating_sub(entry.since_ns);
        set("state_age_ms", json!(age_ns / 1_000_000));
        set("invocation", json!(entry.invocation));
        set("status", json!(entry.status));
        set("failure", json!(entry.failure));
        if let Some(crate::trigger::Trigger::Timer(timer)) = &entry.trigger {
            let last = timer.last.map(|last| last.wall_us);
            set(
                "next_elapse_us",
                json!(timer.next_wall_us(crate::manager::now())),
            );
            set("last_trigger_us", json!(last));
        }
        if let Some(run) = &entry.run {
            set("main_pid", json!(run.main));
            set("control_pid", json!(run.control));
            set("result", json!(run.result.as_str()));
            set("restarts", json!(run.restarts));
            for (key, value) in details::service(run) {
                set(key, value);
            }
            if graph.state(id) == ActiveState::Failed
                || run.result != orlop_unit::ServiceResult::Success
            {
                set(
                    "failure",
                    json!(run.failure.as_ref().or(entry.failure.as_ref())),
                );
            }
        }
        if let Some((path, _)) = &entry.cgroup {
            let (memory_bytes, cpu_us) = cgroup::usage(path);
            set(
                "cgroup",
                json!(path.strip_prefix(cgroup::ROOT).unwrap_or(path)),
            );
            set("memory_bytes", json!(memory_bytes));
            set(
                "memory_max_bytes",
                json!(cgroup::number_in(path, "memory.max")),
            );
            set("tasks", json!(cgroup::tasks(path)));
            set("tasks_max", json!(cgroup::number_in(path, "pids.max")));
            set("cpu_us", json!(cpu_us));
            let processes: Vec<Value> = cgroup::processes(path, PROCESSES_SHOWN)
                .into_iter()
                .map(|pid| json!({ "pid": pid, "command": command_line(pid) }))
                .collect();
            set("processes", json!(processes));
        }
        shown
    }
}

fn command_line(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    text.truncate(text.trim_end().len());
    text
}

/// The process of the pidfd that came with a call.
fn successor(call: &Call) -> Result<i32, Refusal> {
    let [pidfd] = call.descriptors.as_slice() else {
        return Err((FAILED, "one pidfd is needed".to_owned()));
    };
    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))
        .ok()
        .and_then(|info| {
            info.lines()
                .find_map(|l| l.strip_prefix("Pid:")?.trim().parse::<i32>().ok())
        })
        .filter(|pid| *pid > 1)
        .ok_or_else(|| {
            (
                FAILED,
                "the descriptor is no pidfd of a living process".to_owned(),
            )
        })
}
