//! The processes of units: started, followed, counted, and gone.

use std::os::fd::{AsFd as _, BorrowedFd};

use orlop_sys::kmsg::Priority;
use orlop_unit::{KillMode, NotifyAccess, ProcessEnd, UnitId};

use super::{Manager, Owner, log};
use crate::service::{Input, Phase, Role, Run};
use crate::spawn::{self, Surroundings};
use crate::streams::JOURNAL_UNIT;
use crate::{cgroup, notify};

impl Manager {
    pub(super) fn signal_process(&self, pid: Option<i32>, signal: i32) {
        let Some(pid) = pid.filter(|p| self.processes.contains_key(p)) else {
            return;
        };
        // A child's number is not given anew before it was waited for.
        if let Ok(signal) = nix::sys::signal::Signal::try_from(signal) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
        }
    }

    pub(super) fn is_empty(&self, id: UnitId) -> bool {
        let Some(entry) = self.entry(id) else {
            return true;
        };
        let Some(run) = &entry.run else { return true };
        let alone = run.main.is_none() && run.control.is_none();
        match &entry.cgroup {
            Some((path, _)) => match run.service().kill_mode {
                KillMode::Process | KillMode::None => alone || !cgroup::is_populated(path),
                KillMode::ControlGroup | KillMode::Mixed => alone && !cgroup::is_populated(path),
            },
            None => alone,
        }
    }

    pub(super) fn release(&mut self, id: UnitId) {
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        entry.output = None;
        if let Some((path, _)) = entry.cgroup.take() {
            cgroup::remove(&path);
        }
        if let Some(run) = &entry.run {
            spawn::remove_runtime_directories(run.service());
        }
    }

    pub(super) fn spawn(
        &mut self,
        id: UnitId,
        phase: Phase,
        index: usize,
        role: Role,
    ) -> Result<(), spawn::Failure> {
        let failure = |text: String| spawn::Failure {
            result: orlop_unit::ServiceResult::Resources,
            text,
        };
        let name = self.name(id);
        let is_journal = name == JOURNAL_UNIT;
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return Err(failure("the unit is not loaded".to_owned()));
        };
        let Some(run) = entry.run.as_mut() else {
            return Err(failure("the unit is no service".to_owned()));
        };
        let unit = std::sync::Arc::clone(run.unit());
        let service = std::sync::Arc::clone(run.service());
        let Some(command) = run.command(phase, index).cloned() else {
            return Err(failure("the command is gone".to_owned()));
        };
        if entry.cgroup.is_none()
            && std::path::Path::new(cgroup::ROOT)
                .join("cgroup.procs")
                .exists()
        {
            let path = cgroup::path(&unit.name, service.slice.as_ref());
            let opened = cgroup::create(&path, &service.resources).map_err(|err| {
                failure(format!("cannot make the cgroup {}: {err}", path.display()))
            })?;
            entry.oom_kills = cgroup::oom_kills(&path);
            entry.cgroup = Some((path, opened));
        }
        if entry.output.is_none() && !is_journal {
            let program = command.program.rsplit('/').next();
            let identifier = service.syslog_identifier.as_deref().or(program);
            match self
                .streams
                .open(&name, &entry.invocation, identifier, &service.logging)
            {
                Ok(write) => entry.output = Some(write),
                Err(err) => log(
                    Priority::Warning,
                    &format!("{name}: its output is lost: {err}"),
                ),
            }
        }
        let journal_socket = if is_journal && role == Role::Main {
            let socket = self.streams.connect();
            Some(
                socket
                    .map_err(|err| failure(format!("cannot make the journal's socket: {err}")))?,
            )
        } else {
            None
        };
        let inherit: Vec<BorrowedFd<'_>> = journal_socket.iter().map(|s| s.as_fd()).collect();
        let around = Surroundings {
            invocation: &entry.invocation,
            notify_socket: (service.notify_access != NotifyAccess::None).then_some(notify::SOCKET),
            main: run.main,
            variables: variables(run, phase),
            journal: entry.output.as_ref().map(|o| o.as_fd()),
            inherit: &inherit,
            cgroup: entry.cgroup.as_ref().map(|(_, fd)| fd.as_fd()),
        };
        let spawned = spawn::start(&unit, &service, &command, &around)?;
        match role {
            Role::Main => run.main = Some(spawned.pid),
            Role::Control => run.control = Some(spawned.pid),
        }
        self.processes
            .insert(spawned.pid, Owner::Unit(id, role, command.program.clone()));
        self.starting.insert(spawned.pid, (id, role, spawned.start));
        Ok(())
    }

    /// The pipes that tell how starts went, with the children's numbers.
    pub fn starting(&self) -> impl Iterator<Item = (i32, BorrowedFd<'_>)> {
        self.starting
            .iter()
            .map(|(pid, (_, _, fd))| (*pid, fd.as_fd()))
    }

    /// A start's pipe can be read.
    pub fn start_told(&mut self, pid: i32) {
        self.hear_start(pid);
        self.turn();
    }

    fn hear_start(&mut self, pid: i32) {
        let Some((_, _, start)) = self.starting.get_mut(&pid) else {
            return;
        };
        let told = match start.result() {
            Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(err) => Err(orlop_sys::process::StartFailure {
                step: orlop_sys::process::Step::Exec,
                err,
            }),
            Ok(told) => told,
        };
        let Some((id, role, _)) = self.starting.remove(&pid) else {
            return;
        };
        match told {
            Ok(()) => {
                if role == Role::Main {
                    self.feed(id, Input::Executing);
                }
            }
            Err(failure) => {
                let program = match self.processes.remove(&pid) {
                    Some(Owner::Unit(_, _, program)) => program,
                    _ => String::new(),
                };
                let text = format!(
                    "cannot {} {program}: {} (status {}/{})",
                    failure.step.words(),
                    words(&failure.err),
                    failure.step as u8,
                    orlop_unit::value::exit_code_name(failure.step as u8).unwrap_or("?")
                );
                self.feed(
                    id,
                    Input::StartFailed(role, orlop_unit::ServiceResult::ExitCode, text),
                );
            }
        }
    }

    /// A child has ended; answers the connection that waits for it, if it was started for one.
    pub fn ended(&mut self, pid: i32, end: ProcessEnd) -> Option<Owner> {
        // How its start went comes first, where both are there at once.
        self.hear_start(pid);
        let owner = self.processes.remove(&pid);
        if let Some(Owner::Unit(id, role, program)) = &owner {
            let program = program.rsplit('/').next().map(str::to_owned);
            let current =
                self.entry(*id)
                    .and_then(|e| e.run.as_ref())
                    .is_some_and(|run| match role {
                        Role::Main => run.main == Some(pid),
                        Role::Control => run.control == Some(pid),
                    });
            if current {
                if *role == Role::Main && self.was_out_of_memory(*id, end) {
                    self.feed(*id, Input::OutOfMemory);
                }
                self.feed(*id, Input::Ended(*role, end, program));
            }
        }
        self.turn();
        owner
    }

    fn was_out_of_memory(&mut self, id: UnitId, end: ProcessEnd) -> bool {
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return false;
        };
        let Some((path, _)) = &entry.cgroup else {
            return false;
        };
        if !matches!(end, ProcessEnd::Killed(orlop_unit::Signal::KILL)) {
            return false;
        }
        let kills = cgroup::oom_kills(path);
        let more = kills > entry.oom_kills;
        entry.oom_kills = kills;
        more
    }

    /// Some child or orphan has gone: looks whether stopping units are empty now.
    pub fn check_empty(&mut self) {
        let waiting: Vec<UnitId> = self
            .graph
            .ids()
            .filter(|id| {
                let run = self.entry(*id).and_then(|e| e.run.as_ref());
                run.is_some_and(Run::awaits_empty) && self.is_empty(*id)
            })
            .collect();
        for id in waiting {
            self.feed(id, Input::Empty);
        }
        self.turn();
    }

    /// What a service said of itself.
    pub fn notified(&mut self, message: notify::Message) {
        let Some(id) = self.unit_of(message.pid) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        let Some(run) = &entry.run else { return };
        let trusted = match run.service().notify_access {
            NotifyAccess::None => false,
            NotifyAccess::Main => run.main == Some(message.pid),
            NotifyAccess::Exec => run.main == Some(message.pid) || run.control == Some(message.pid),
            NotifyAccess::All => true,
        };
        if !trusted {
            return;
        }
        if message.status.is_some() {
            entry.status = message.status;
        }
        if message.ready {
            self.feed(id, Input::Ready);
        }
        self.turn();
    }

    /// The unit that a process belongs to, by its number or its cgroup.
    #[must_use]
    pub fn unit_of(&self, pid: i32) -> Option<UnitId> {
        if let Some(Owner::Unit(id, _, _)) = self.processes.get(&pid) {
            return Some(*id);
        }
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = text.lines().find_map(|l| l.strip_prefix("0::"))?;
        path.split('/').find_map(|part| self.graph.find(part))
    }

    /// The caller, a unit's main process, is followed by another child of ours.
    ///
    /// # Errors
    /// When the caller is none, or the other process is not ours.
    pub fn hand_off(&mut self, caller: i32, successor: i32) -> Result<(), String> {
        let Some(Owner::Unit(id, Role::Main, _)) = self.processes.get(&caller) else {
            return Err("only the main process of a unit can hand over its place".to_owned());
        };
        let id = *id;
        let status =
            std::fs::read_to_string(format!("/proc/{successor}/status")).unwrap_or_default();
        let parent = status
            .lines()
            .find_map(|l| l.strip_prefix("PPid:"))
            .map(str::trim);
        if parent != Some("1") {
            return Err(format!("process {successor} is no child of PID 1"));
        }
        let program = status
            .lines()
            .find_map(|l| l.strip_prefix("Name:"))
            .map_or_else(String::new, |n| n.trim().to_owned());
        self.processes
            .insert(successor, Owner::Unit(id, Role::Main, program));
        self.feed(id, Input::MainProcess(successor));
        self.turn();
        Ok(())
    }

    /// Sends a signal to a unit's processes.
    pub fn kill(&self, id: UnitId, signal: i32, whom: &str) {
        let Some(entry) = self.entry(id) else { return };
        let Some(run) = &entry.run else { return };
        match (whom, &entry.cgroup) {
            ("main", _) => self.signal_process(run.main, signal),
            ("control", _) => self.signal_process(run.control, signal),
            (_, Some((path, _))) => cgroup::signal_all(path, orlop_unit::Signal(signal)),
            (_, None) => {
                self.signal_process(run.main, signal);
                self.signal_process(run.control, signal);
            }
        }
    }
}

/// The kernel's error in words alone; the library adds its number.
fn words(err: &std::io::Error) -> String {
    err.raw_os_error().map_or_else(
        || err.to_string(),
        |number| nix::errno::Errno::from_raw(number).desc().to_owned(),
    )
}

/// What stop commands are told of the run's end (systemd.exec(5)).
fn variables(run: &Run, phase: Phase) -> Vec<(String, String)> {
    if !matches!(phase, Phase::Stop | Phase::StopPost) {
        return Vec::new();
    }
    let mut list = vec![("SERVICE_RESULT".to_owned(), run.result.as_str().to_owned())];
    if let Some(end) = run.main_end {
        let (code, status) = match end {
            ProcessEnd::Exited(code) => ("exited", code.to_string()),
            ProcessEnd::Killed(signal) => (
                "killed",
                signal.to_string().trim_start_matches("SIG").to_owned(),
            ),
            ProcessEnd::Dumped(signal) => (
                "dumped",
                signal.to_string().trim_start_matches("SIG").to_owned(),
            ),
        };
        list.push(("EXIT_CODE".to_owned(), code.to_owned()));
        list.push(("EXIT_STATUS".to_owned(), status));
    }
    list
}
