//! The processes of units: started, followed, counted, and gone.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use orlop_sys::kmsg::Priority;
use orlop_unit::{
    Edge, KillMode, NotifyAccess, OomPolicy, Preserve, ProcessEnd, ServiceType, UnitId,
};

use super::{Manager, Owner, log};
use crate::service::{Input, Phase, Role, Run};
use crate::spawn::{self, Surroundings};
use crate::streams::JOURNAL_UNIT;
use crate::trigger::Trigger;
use crate::{cgroup, notify};

/// So many starts may be on their way before the oldest is listened for while more begin.
const STARTS_AT_ONCE: usize = 4;

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

    pub(super) fn is_empty(&mut self, id: UnitId) -> bool {
        let Some(entry) = self.entry(id) else {
            return true;
        };
        let Some(run) = &entry.run else { return true };
        let alone = run.main.is_none() && run.control.is_none();
        let (leaderless, mode) = (run.is_leaderless(), run.service().kill_mode);
        if entry.cgroup.is_none() {
            return alone;
        }
        match mode {
            _ if leaderless => !self.is_populated(id),
            KillMode::Process | KillMode::None => alone || !self.is_populated(id),
            KillMode::ControlGroup | KillMode::Mixed => alone && !self.is_populated(id),
        }
    }

    /// Whether processes are in the unit's cgroup.
    pub(super) fn is_populated(&mut self, id: UnitId) -> bool {
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return false;
        };
        let Some((path, _)) = &entry.cgroup else {
            return false;
        };
        if !entry.found_empty {
            entry.found_empty = !cgroup::is_populated(path);
        }
        !entry.found_empty
    }

    /// Nothing of the unit runs any more.
    pub(super) fn release(&mut self, id: UnitId, restarting: bool) {
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        if let Some((path, _)) = entry.cgroup.take() {
            cgroup::remove(&path);
        }
        if !restarting {
            entry.store.clear();
        }
        if let Some(run) = &entry.run {
            let keeps = match run.service().runtime_directory_preserve {
                Preserve::No => false,
                Preserve::Yes => true,
                Preserve::Restart => restarting,
            };
            spawn::clean_up(run.unit(), run.service(), keeps, restarting);
        }
    }

    /// The process that the first one of `Type=forking` left behind as the main one: that of the PID file, or the only child of ours.
    pub(super) fn find_main(&mut self, id: UnitId) -> Option<i32> {
        let entry = self.entry(id)?;
        let (path, _) = entry.cgroup.as_ref()?;
        let service = entry.run.as_ref()?.service();
        let found = match &service.pid_file {
            Some(file) => {
                let pid = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
                let is_ours = cgroup::holds(path, pid) && parent_of(pid) == Some(1);
                if !is_ours {
                    let text = format!("PIDFile={file}: process {pid} is none of its own");
                    self.log(Priority::Warning, id, &text);
                    return None;
                }
                pid
            }
            None if service.guess_main_pid => {
                const MOST: usize = 256;
                let mut own = cgroup::processes(path, MOST)
                    .into_iter()
                    .filter(|pid| parent_of(*pid) == Some(1));
                let only = own.next()?;
                if own.next().is_some() {
                    return None;
                }
                only
            }
            None => return None,
        };
        self.adopt_main(id, found);
        Some(found)
    }

    fn adopt_main(&mut self, id: UnitId, pid: i32) {
        let program = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let owner = Owner::Unit(id, Role::Main, program.trim().to_owned());
        self.processes.insert(pid, owner);
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
        entry.found_empty = false;
        let Some(run) = entry.run.as_mut() else {
            return Err(failure("the unit is no service".to_owned()));
        };
        let unit = std::sync::Arc::clone(run.unit());
        let service = std::sync::Arc::clone(run.service());
        let Some(command) = run.command(phase, index).cloned() else {
            return Err(failure("the command is gone".to_owned()));
        };
        if entry.cgroup.is_none() && cgroup::is_mounted() {
            let path = cgroup::path(&unit.name, service.slice.as_ref());
            let (opened, was_there) = cgroup::create(&path, &service.resources).map_err(|err| {
                failure(format!("cannot make the cgroup {}: {err}", path.display()))
            })?;
            entry.oom_kills = if was_there {
                cgroup::oom_kills(&path)
            } else {
                0
            };
            if service.oom_policy == OomPolicy::Kill {
                let grouped = orlop_sys::cgroup::set(&path, "memory.oom.group", "1");
                grouped.map_err(|err| failure(format!("cannot set OOMPolicy=kill: {err}")))?;
            }
            entry.cgroup = Some((path.clone(), opened));
            self.watch_memory(&path);
        }
        let mut passed: Vec<(String, OwnedFd)> = Vec::new();
        if phase == Phase::Start {
            passed = self
                .descriptors_for(id, service.non_blocking)
                .map_err(failure)?;
        }
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return Err(failure("the unit is not loaded".to_owned()));
        };
        let Some(run) = entry.run.as_mut() else {
            return Err(failure("the unit is no service".to_owned()));
        };
        let mut output = None;
        if spawn::writes_to_journal(&service) && !is_journal {
            let program = command.program.rsplit('/').next();
            let identifier = service.syslog_identifier.as_deref().or(program);
            match self
                .streams
                .open(&name, &entry.invocation, identifier, &service.logging)
            {
                Ok(stream) => output = Some(stream),
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
        let names: Vec<String> = passed.iter().map(|(name, _)| name.clone()).collect();
        let inherit: Vec<BorrowedFd<'_>> = passed
            .iter()
            .map(|(_, fd)| fd.as_fd())
            .chain(journal_socket.iter().map(|s| s.as_fd()))
            .collect();
        let connection = entry.connection.as_ref();
        let mut variables = variables(run, phase);
        if let Some((address, port)) = connection.and_then(|c| c.remote.as_ref()) {
            variables.push(("REMOTE_ADDR".to_owned(), address.clone()));
            variables.push(("REMOTE_PORT".to_owned(), port.to_string()));
        }
        // A single socket is what StandardInput=socket means, accepted or not.
        let connection = match (connection, passed.as_slice()) {
            (Some(connection), _) => Some(connection.fd.as_fd()),
            (None, [(_, fd)]) => Some(fd.as_fd()),
            _ => None,
        };
        let around = Surroundings {
            invocation: &entry.invocation,
            notify_socket: (service.notify_access != NotifyAccess::None).then_some(notify::SOCKET),
            main: run.main,
            variables,
            journal: output.as_ref().map(|(_, write)| write.as_fd()),
            inherit: &inherit,
            descriptor_names: (!names.is_empty()).then_some(names.as_slice()),
            connection,
            watchdog: service.watchdog.filter(|_| phase == Phase::Start),
            cgroup: entry.cgroup.as_ref().map(|(_, fd)| fd.as_fd()),
        };
        let started = spawn::start(&unit, &service, &command, &around);
        if let Some((stream, _)) = output {
            match &started {
                // A container's first process takes the place of the one that made it.
                Ok(_) if service.service_type == ServiceType::Container => {
                    self.streams.started(stream, None);
                }
                Ok(spawned) => self.streams.started(stream, Some(spawned.pid)),
                Err(_) => self.streams.abandon(stream),
            }
        }
        let spawned = started?;
        match role {
            Role::Main => run.main = Some(spawned.pid),
            Role::Control => run.control = Some(spawned.pid),
        }
        self.processes
            .insert(spawned.pid, Owner::Unit(id, role, command.program.clone()));
        self.starting.insert(spawned.pid, (id, role, spawned.start));
        Ok(())
    }

    /// What a service finds from descriptor 3 on, with names: its connection, or its sockets, and what it gave into keeping.
    fn descriptors_for(
        &self,
        id: UnitId,
        non_blocking: bool,
    ) -> Result<Vec<(String, OwnedFd)>, String> {
        let Some(entry) = self.entry(id) else {
            return Ok(Vec::new());
        };
        let copy = |fd: &OwnedFd| {
            fd.try_clone()
                .map_err(|err| format!("cannot copy a descriptor: {err}"))
        };
        let mut list = Vec::new();
        if let Some(connection) = &entry.connection {
            list.push(("connection".to_owned(), copy(&connection.fd)?));
        }
        for socket in self.graph.related(id, Edge::TriggeredBy) {
            let Some(Trigger::Socket(socket, open)) =
                self.entry(socket).and_then(|e| e.trigger.as_ref())
            else {
                continue;
            };
            let Some(directives) = socket.directives().filter(|d| !d.accept) else {
                continue;
            };
            for fd in open {
                rustix::io::ioctl_fionbio(fd, non_blocking)
                    .map_err(|err| format!("cannot set NonBlocking= on a socket: {err}"))?;
                list.push((directives.descriptor_name.clone(), copy(fd)?));
            }
        }
        for (name, fd) in &entry.store {
            list.push((name.clone(), copy(fd)?));
        }
        Ok(list)
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

    /// Hears of the oldest starts where many are on their way: what each needs of our memory is given back, to be used by the next ones.
    pub(super) fn hear_oldest_starts(&mut self) {
        while self.starting.len() > STARTS_AT_ONCE {
            let before = self.starting.len();
            if let Some(pid) = self.starting.keys().next().copied() {
                self.hear_start(pid);
            }
            if self.starting.len() == before {
                return;
            }
        }
    }

    fn hear_start(&mut self, pid: i32) {
        let Some((_, _, start)) = self.starting.get_mut(&pid) else {
            return;
        };
        let told = match start.result() {
            Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(err) => Err(orlop_sys::process::StartFailure {
                code: orlop_sys::process::Step::Exec as u8,
                err,
                text: None,
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
                let what = match (&failure.text, failure.step()) {
                    (Some(text), _) => text.clone(),
                    (None, step) => format!(
                        "cannot {} {program}: {}",
                        step.map_or("start", orlop_sys::process::Step::words),
                        words(&failure.err)
                    ),
                };
                let name = orlop_unit::value::exit_code_name(failure.code).unwrap_or("?");
                let text = format!("{what} (status {}/{name})", failure.code);
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
        let Some(entry) = self.entry(id) else {
            return false;
        };
        let is_killed = matches!(end, ProcessEnd::Killed(orlop_unit::Signal::KILL));
        entry.cgroup.is_some() && is_killed && self.has_new_oom_kill(id)
    }

    /// Whether the kernel has killed in the unit's cgroup for lack of memory since this was asked last.
    pub(super) fn has_new_oom_kill(&mut self, id: UnitId) -> bool {
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return false;
        };
        let Some((path, _)) = &entry.cgroup else {
            return false;
        };
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
                run.is_some_and(Run::awaits_empty)
            })
            .collect();
        for id in waiting {
            if self.is_empty(id) {
                self.feed(id, Input::Empty);
            }
        }
        self.turn();
    }

    /// What a service said of itself.
    pub fn notified(&mut self, message: notify::Message) {
        let Some(id) = self.unit_of(message.pid) else {
            return;
        };
        // That its program runs is heard first: of what is not started yet, nothing that is said counts.
        let run = self.entry(id).and_then(|entry| entry.run.as_ref());
        if let Some(main) = run.and_then(|run| run.main) {
            self.hear_start(main);
        }
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
        self.dirty.insert(id);
        if message.status.is_some() {
            entry.status = message.status;
        }
        let most = usize::try_from(run.service().descriptor_store_max).unwrap_or(usize::MAX);
        if let Some(name) = &message.forget_descriptors {
            entry.store.retain(|(stored, _)| stored != name);
        }
        if message.store_descriptors {
            let name = message.descriptor_name.as_deref().unwrap_or("stored");
            for descriptor in message.descriptors {
                if entry.store.len() < most {
                    entry.store.push((name.to_owned(), descriptor));
                }
            }
        }
        if let Some(pid) = message.main_pid
            && run.main != Some(pid)
        {
            let is_ours = entry
                .cgroup
                .as_ref()
                .is_some_and(|(path, _)| cgroup::holds(path, pid));
            if is_ours && parent_of(pid) == Some(1) {
                self.adopt_main(id, pid);
                self.feed(id, Input::MainProcess(pid));
            } else {
                let text =
                    format!("MAINPID={pid} is no process of its own that is a child of PID 1");
                self.log(Priority::Warning, id, &text);
            }
        }
        let said = [
            message.watchdog_interval.map(Input::WatchdogInterval),
            message.extend.map(Input::Extend),
            message.reloading.then_some(Input::Reloading),
            message.ready.then_some(Input::Ready),
            message.stopping.then_some(Input::Stopping),
            message.keep_alive.then_some(Input::KeepAlive),
            message
                .watchdog_triggered
                .then_some(Input::WatchdogTriggered),
        ];
        for input in said.into_iter().flatten() {
            self.feed(id, input);
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

/// The parent of a process.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field may hold anything, spaces and parentheses included (proc_pid_stat(5)).
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
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
