//! The supervisor's state as lines of [`crate::saved`], and back.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use orlop_sys::kmsg::Priority;
use orlop_unit::{ActiveState, Mode, Request, UnitId, UnitName};
use serde::Serialize;
use serde_json::{Value, json};

use super::activation::Connection;
use super::{Manager, Owner, log};
use crate::saved;
use crate::service::saved::SavedRun;
use crate::service::{Input, Role};
use crate::trigger::{Trigger, path, socket, timer};

fn state_of(word: &str) -> ActiveState {
    [
        ActiveState::Activating,
        ActiveState::Active,
        ActiveState::Reloading,
        ActiveState::Deactivating,
        ActiveState::Failed,
    ]
    .into_iter()
    .find(|state| state.as_str() == word)
    .unwrap_or_default()
}

fn kind_of(word: &str) -> Option<Request> {
    Some(match word {
        "start" => Request::Start,
        "stop" => Request::Stop,
        "restart" => Request::Restart,
        "reload" => Request::Reload,
        _ => return None,
    })
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn items(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

/// Reads a part of a line as its type; what is not there, or from another time, is none.
fn part<T: serde::de::DeserializeOwned>(line: &Value, field: &str) -> Option<T> {
    serde_json::from_value(line.get(field)?.clone()).ok()
}

fn moment(now: timer::Now) -> Value {
    json!([now.boot_ns, now.wall_us])
}

fn moment_of(value: Option<&Value>) -> Option<timer::Now> {
    let value = value?;
    Some(timer::Now {
        boot_ns: value.get(0)?.as_u64()?,
        wall_us: value.get(1)?.as_u64()?,
    })
}

/// All that is written down of a unit; [`Manager::resume`] reads it part by part.
#[derive(Serialize)]
struct Line<'a> {
    unit: &'a str,
    active: &'static str,
    run: Option<SavedRun>,
    main: Option<&'a str>,
    control: Option<&'a str>,
    job: Option<&'static str>,
    waiting: Option<&'a Vec<u64>>,
    since_ns: u64,
    invocation: &'a str,
    status: Option<&'a str>,
    failure: Option<&'a str>,
    starts_ns: &'a VecDeque<u64>,
    oom_kills: u64,
    started_ns: Option<u64>,
    ended_ns: Option<u64>,
    cgroup: Option<&'a Path>,
    store: Vec<(&'a str, RawFd)>,
    connection: Option<LineConnection<'a>>,
    trigger: Option<Value>,
}

/// The connection of an instance of `Accept=yes`.
#[derive(Serialize)]
struct LineConnection<'a> {
    socket: &'a str,
    fd: RawFd,
    remote: Option<&'a (String, u16)>,
}

impl Manager {
    /// Lines about what has changed since the last call; with `all`, about everything.
    pub fn lines(&mut self, all: bool) -> String {
        let mut out = String::new();
        let mut changed = std::mem::take(&mut self.dirty);
        if all {
            changed.extend(self.graph.ids());
        } else {
            for name in std::mem::take(&mut self.gone) {
                let _ = writeln!(out, "{}", json!({ "unit": name, "gone": true }));
            }
        }
        for id in changed {
            if let Some(line) = self.line(id) {
                saved::add(&line, &mut out);
            }
        }
        self.streams.lines(all, &mut out);
        out
    }

    /// The line about a unit; none about one of which there is nothing to say.
    fn line(&self, id: UnitId) -> Option<Line<'_>> {
        let entry = self.entry(id)?;
        if self.graph.is_vacant(id) {
            return None;
        }
        let job = self.jobs.job_of(id);
        let program = |pid: Option<i32>| match self.processes.get(&pid?) {
            Some(Owner::Unit(_, _, program)) => Some(program.as_str()),
            _ => None,
        };
        let trigger = entry.trigger.as_ref().map(|trigger| match trigger {
            Trigger::Timer(timer) => json!({
                "state": timer.state,
                "started": moment(timer.started),
                "last": timer.last.map(moment),
                "spent": timer.spent,
            }),
            Trigger::Socket(socket, open) => json!({
                "state": socket.state,
                "failure": socket.failure,
                "accepted": socket.accepted,
                "descriptors": open.iter().map(|fd| fd.as_raw_fd()).collect::<Vec<_>>(),
            }),
            Trigger::Path(path, _) => json!({ "state": path.state }),
        });
        Some(Line {
            unit: self.graph.name(id).as_str(),
            active: self.graph.state(id).as_str(),
            run: entry.run.as_ref().map(crate::service::Run::save),
            main: program(entry.run.as_ref().and_then(|run| run.main)),
            control: program(entry.run.as_ref().and_then(|run| run.control)),
            job: job.map(|job| job.kind.as_str()),
            waiting: job.and_then(|job| self.waiting.get(&job.id)),
            since_ns: entry.since_ns,
            invocation: &entry.invocation,
            status: entry.status.as_deref(),
            failure: entry.failure.as_deref(),
            starts_ns: &entry.starts_ns,
            oom_kills: entry.oom_kills,
            started_ns: entry.started_ns,
            ended_ns: entry.ended_ns,
            cgroup: entry.cgroup.as_ref().map(|(path, _)| path.as_path()),
            store: entry
                .store
                .iter()
                .map(|(name, fd)| (name.as_str(), fd.as_raw_fd()))
                .collect(),
            connection: entry.connection.as_ref().map(|connection| LineConnection {
                socket: self.graph.name(connection.socket).as_str(),
                fd: connection.fd.as_raw_fd(),
                remote: connection.remote.as_ref(),
            }),
            trigger,
        })
    }

    /// Goes on with what another PID 1 has written down.
    pub fn resume(&mut self, lines: &[Value]) {
        self.booting = false;
        for line in lines.iter().filter(|line| line.get("stream").is_some()) {
            self.streams.resume(line);
        }
        let units: Vec<(UnitId, &Value)> = lines
            .iter()
            .filter(|line| line.get("gone").is_none())
            .filter_map(|line| {
                let name = UnitName::parse(line.get("unit")?.as_str()?).ok()?;
                Some((self.load(&name), line))
            })
            .collect();
        self.forgettable.clear();
        for (id, line) in &units {
            self.resume_unit(*id, line);
        }
        for (id, line) in &units {
            self.resume_connection(*id, line);
        }
        for (id, line) in &units {
            self.resume_trigger(*id, line);
            self.schedule(*id);
        }
        for (id, line) in &units {
            self.resume_job(*id, line);
        }
        self.find_out_what_happened();
    }

    fn resume_unit(&mut self, id: UnitId, line: &Value) {
        let state = line
            .get("active")
            .and_then(Value::as_str)
            .map_or(ActiveState::Inactive, state_of);
        self.graph.set_state(id, state);
        let store: Vec<(String, OwnedFd)> = items(line.get("store"))
            .filter_map(|item| Some((text(item.get(0)?)?, saved::take_number(item.get(1)?)?)))
            .collect();
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        entry.told = state;
        entry.store = store;
        entry.since_ns = part(line, "since_ns").unwrap_or_default();
        entry.invocation = part(line, "invocation").unwrap_or_default();
        entry.status = part(line, "status");
        entry.failure = part(line, "failure");
        entry.starts_ns = part(line, "starts_ns").unwrap_or_default();
        entry.oom_kills = part(line, "oom_kills").unwrap_or_default();
        entry.started_ns = part(line, "started_ns");
        entry.ended_ns = part(line, "ended_ns");
        let cgroup: Option<PathBuf> = part(line, "cgroup");
        entry.cgroup = cgroup.and_then(|path| {
            let opened = std::fs::File::open(&path).ok()?;
            Some((path, OwnedFd::from(opened)))
        });
        let path = entry.cgroup.as_ref().map(|(path, _)| path.clone());
        let mut processes = Vec::new();
        if let (Some(run), Some(saved)) = (&mut entry.run, part(line, "run")) {
            run.resume(saved);
            for (pid, role, field) in [
                (run.main, Role::Main, "main"),
                (run.control, Role::Control, "control"),
            ] {
                if let Some(pid) = pid {
                    let program = line.get(field).and_then(text).unwrap_or_default();
                    processes.push((pid, Owner::Unit(id, role, program)));
                }
            }
            if run.is_idle() {
                self.idle.insert(id);
            }
        }
        self.processes.extend(processes);
        if let Some(path) = path {
            self.watch_memory(&path);
        }
    }

    fn resume_connection(&mut self, id: UnitId, line: &Value) {
        let Some(connection) = line.get("connection").filter(|c| !c.is_null()) else {
            return;
        };
        let socket = connection.get("socket").and_then(Value::as_str);
        let Some(socket) = socket.and_then(|name| self.graph.find(name)) else {
            return;
        };
        let Some(fd) = saved::take(connection, "fd") else {
            return;
        };
        let remote: Option<(String, u16)> = part(connection, "remote");
        let source = remote.as_ref().map(|(address, _)| address.clone());
        if let Some(Trigger::Socket(run, _)) = self.trigger_mut(socket) {
            run.connections.insert(id, source);
        }
        if let Some(entry) = self.entries.get_mut(id.index()) {
            entry.connection = Some(Connection { socket, fd, remote });
        }
    }

    fn resume_trigger(&mut self, id: UnitId, line: &Value) {
        let Some(saved) = line.get("trigger") else {
            return;
        };
        match self.trigger_mut(id) {
            Some(Trigger::Timer(timer)) => {
                timer.state = part(saved, "state").unwrap_or(timer::State::Dead);
                timer.started = moment_of(saved.get("started")).unwrap_or(timer.started);
                timer.last = moment_of(saved.get("last"));
                timer.spent = part(saved, "spent").unwrap_or_default();
                self.timer_looks_again(id);
            }
            Some(Trigger::Socket(socket, open)) => {
                socket.state = part(saved, "state").unwrap_or(socket::State::Dead);
                socket.failure = part(saved, "failure");
                socket.accepted = part(saved, "accepted").unwrap_or_default();
                *open = items(saved.get("descriptors"))
                    .filter_map(saved::take_number)
                    .collect();
                self.poll_sockets(id);
            }
            Some(Trigger::Path(path, _)) => {
                path.state = part(saved, "state").unwrap_or(path::State::Dead);
                if path.state == path::State::Waiting {
                    self.look_at_paths(id, false, false);
                }
            }
            None => {}
        }
    }

    /// Asks for the job again that the unit had.
    fn resume_job(&mut self, id: UnitId, line: &Value) {
        let Some(request) = line.get("job").and_then(Value::as_str).and_then(kind_of) else {
            return;
        };
        match self.jobs.request(&self.graph, request, id, Mode::Replace) {
            Ok(job) => {
                let connections: Vec<u64> = part(line, "waiting").unwrap_or_default();
                if !connections.is_empty() {
                    self.waiting.entry(job).or_default().extend(connections);
                }
            }
            Err(err) => self.log(Priority::Error, id, &format!("its job is lost: {err}")),
        }
    }

    /// Compares with what the kernel says: processes that ended unnoticed, starts that nobody hears the end of any more.
    fn find_out_what_happened(&mut self) {
        let mut gone: BTreeMap<i32, (UnitId, Role)> = BTreeMap::new();
        for (pid, owner) in &self.processes {
            if let Owner::Unit(id, role, _) = owner
                && !std::path::Path::new(&format!("/proc/{pid}")).exists()
            {
                gone.insert(*pid, (*id, *role));
            }
        }
        for (pid, (id, role)) in gone {
            self.processes.remove(&pid);
            let name = self.name(id);
            log(
                Priority::Warning,
                &format!("{name}: process {pid} ended while nobody looked"),
            );
            self.feed(
                id,
                Input::Ended(
                    role,
                    orlop_unit::ProcessEnd::Killed(orlop_unit::Signal::KILL),
                    None,
                ),
            );
        }
        let starting: Vec<UnitId> = self
            .graph
            .ids()
            .filter(|id| {
                self.entry(*id)
                    .and_then(|e| e.run.as_ref())
                    .is_some_and(|run| run.is_starting_main())
            })
            .collect();
        for id in starting {
            // Where it failed, its exit code says so.
            self.feed(id, Input::Executing);
        }
        self.check_empty();
    }

    /// Whether a child of ours is on its way to its program, and tells us by a pipe.
    #[must_use]
    pub fn is_starting_some(&self) -> bool {
        !self.starting.is_empty()
    }
}
