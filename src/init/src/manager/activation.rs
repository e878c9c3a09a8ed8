//! Timers, sockets, paths and slices: what they hold open, and what they start.

use std::hash::Hasher as _;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use orlop_boot::times;
use orlop_sys::kmsg::Priority;
use orlop_unit::{
    Action as JobAction, ActiveState, Edge, Kind, Mode, Outcome, Request, Socket as SocketUnit,
    Unit, UnitId, UnitName, Watch,
};
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with, getsockname};

use super::{Manager, log};
use crate::service::Input;
use crate::trigger::{Trigger, Watcher, listen, path, socket, timer};
use crate::{cgroup, conditions, spawn};

/// Where the last moments of persistent timers are kept, as the modification times of files.
pub const STAMPS: &str = "/var/lib/orlop/timers";

/// What an event of the manager's own epoll is about; the kind is in the upper half.
mod token {
    pub(super) const MEMORY: u64 = 1;
    pub(super) const CLOCK: u64 = 2;
    pub(super) const MOUNTS: u64 = 3;
    /// The unit's index and the descriptor's place, 16 bits each.
    pub(super) const SOCKET: u64 = 1 << 32;
    pub(super) const PATH: u64 = 2 << 32;
    pub(super) const KIND: u64 = !0 << 32;
}

/// A connection of a socket unit with `Accept=yes`, until its instance is down.
#[derive(Debug)]
pub struct Connection {
    /// The socket unit.
    pub socket: UnitId,
    /// The connection.
    pub fd: OwnedFd,
    /// The other side, where it has an address: for `REMOTE_ADDR` and `REMOTE_PORT`.
    pub remote: Option<(String, u16)>,
}

/// Both clocks.
pub(super) fn now() -> timer::Now {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    timer::Now {
        boot_ns: times::now_ns(),
        wall_us: u64::try_from(wall.as_micros()).unwrap_or(u64::MAX),
    }
}

/// What starts other units, of a unit that does.
pub(super) fn trigger_of(unit: &std::sync::Arc<Unit>) -> Option<Trigger> {
    timer::Timer::new(unit)
        .map(|timer| Trigger::Timer(Box::new(timer)))
        .or_else(|| socket::Socket::new(unit).map(|socket| Trigger::Socket(socket, Vec::new())))
        .or_else(|| path::Path::new(unit).map(|path| Trigger::Path(path, None)))
}

/// Takes a unit's files as they are now.
pub(super) fn replace_unit(trigger: &mut Trigger, unit: &std::sync::Arc<Unit>) {
    match trigger {
        Trigger::Timer(timer) => timer.replace_unit(unit),
        Trigger::Socket(socket, _) => socket.replace_unit(unit),
        Trigger::Path(path, _) => path.replace_unit(unit),
    }
}

/// The unit that a trigger's state was made from.
pub(super) fn unit_of(trigger: &Trigger) -> &std::sync::Arc<Unit> {
    match trigger {
        Trigger::Timer(timer) => timer.unit(),
        Trigger::Socket(socket, _) => socket.unit(),
        Trigger::Path(path, _) => path.unit(),
    }
}

impl Manager {
    /// Carries out a job of a unit that has no processes.
    pub(super) fn begin_without_processes(&mut self, id: UnitId, action: JobAction) {
        let starts = match action {
            JobAction::Start => true,
            JobAction::Stop { .. } => false,
            JobAction::Reload => {
                let text = "it has nothing that could be reloaded".to_owned();
                self.report(id, self.graph.state(id), Outcome::Failed(text));
                return;
            }
        };
        let done = if starts {
            self.start_without_processes(id)
        } else {
            self.stop_without_processes(id);
            Ok(())
        };
        let up = if starts {
            ActiveState::Active
        } else {
            ActiveState::Inactive
        };
        match done {
            Ok(()) => {
                let state = self.trigger_state(id).unwrap_or(up);
                self.report(id, state, Outcome::Done);
            }
            Err(why) => self.report(id, ActiveState::Failed, Outcome::Failed(why)),
        }
        self.schedule(id);
    }

    fn trigger_state(&self, id: UnitId) -> Option<ActiveState> {
        Some(self.entry(id)?.trigger.as_ref()?.active_state())
    }

    fn start_without_processes(&mut self, id: UnitId) -> Result<(), String> {
        let Some(unit) = self.graph.unit(id).cloned() else {
            return Ok(());
        };
        match &unit.kind {
            Kind::Timer(directives) => {
                let stamp_us = directives
                    .persistent
                    .then(|| read_stamp(&unit.name))
                    .flatten();
                let watched = self.watched(id);
                let random = self.random_for(&unit, directives.fixed_random_delay);
                if let Some(Trigger::Timer(timer)) = self.trigger_mut(id) {
                    timer.start(stamp_us, watched, random, now());
                }
                if directives.persistent && stamp_us.is_none() {
                    // What is missed counts from here.
                    write_stamp(&unit.name, now().wall_us);
                }
                Ok(())
            }
            Kind::Socket(directives) => self.start_listening(id, directives),
            Kind::Path(directives) => {
                if directives.make_directory {
                    for (_, watched) in &directives.watches {
                        make_directory(watched, directives.directory_mode)?;
                    }
                }
                self.look_at_paths(id, false, true);
                Ok(())
            }
            Kind::Slice(resources) => {
                let path = cgroup::slice_path(&unit.name);
                let opened = cgroup::create(&path, resources)
                    .map_err(|err| format!("cannot make the cgroup {}: {err}", path.display()))?;
                if let Some(entry) = self.entries.get_mut(id.index()) {
                    entry.cgroup = Some((path, opened));
                }
                Ok(())
            }
            Kind::Target | Kind::Service(_) | Kind::Mount(_) => Ok(()),
        }
    }

    fn stop_without_processes(&mut self, id: UnitId) {
        self.unpoll(id);
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        match &mut entry.trigger {
            Some(Trigger::Timer(timer)) => timer.stop(),
            Some(Trigger::Socket(socket, open)) => {
                socket.stop();
                open.clear();
                if let Some(directives) = socket.directives() {
                    listen::remove(directives);
                }
            }
            Some(Trigger::Path(path, watcher)) => {
                path.stop();
                *watcher = None;
            }
            None => {
                if let Some((path, _)) = entry.cgroup.take() {
                    // One that others are in stays.
                    let _ = std::fs::remove_dir(path);
                }
            }
        }
    }

    pub(super) fn trigger_mut(&mut self, id: UnitId) -> Option<&mut Trigger> {
        self.entries.get_mut(id.index())?.trigger.as_mut()
    }

    /// The unit that `id` starts.
    fn triggered(&self, id: UnitId) -> Option<UnitId> {
        self.graph.related(id, Edge::Triggers).next()
    }

    /// What a timer wants to know of its unit.
    fn watched(&self, id: UnitId) -> timer::Watched {
        let Some(other) = self.triggered(id) else {
            return timer::Watched::default();
        };
        let entry = self.entry(other);
        timer::Watched {
            started_ns: entry.and_then(|e| e.started_ns),
            ended_ns: entry.and_then(|e| e.ended_ns),
            is_down: self.graph.state(other).is_down(),
        }
    }

    /// A random number, or one that this machine always has for this unit.
    fn random_for(&self, unit: &Unit, is_fixed: bool) -> u64 {
        if !is_fixed {
            return u64::from_ne_bytes(orlop_sys::random::bytes().unwrap_or_default());
        }
        // SipHash without a key: the same for as long as the machine's id is.
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(self.specifiers.machine_id.as_bytes());
        hasher.write(unit.name.as_str().as_bytes());
        hasher.finish()
    }

    /// Another unit has changed its state: whoever starts it may have to do something.
    pub(super) fn tell_triggers(&mut self, other: UnitId) {
        let triggers: Vec<UnitId> = self.graph.related(other, Edge::TriggeredBy).collect();
        let state = self.graph.state(other);
        for id in triggers {
            match self.trigger_mut(id) {
                Some(Trigger::Timer(_)) => self.timer_looks_again(id),
                Some(Trigger::Socket(socket, _)) => {
                    socket.service_changed(state.is_down(), state.is_up());
                    self.poll_sockets(id);
                }
                Some(Trigger::Path(path, _)) => {
                    let ended = state.is_down() && path.unit_ended();
                    if ended {
                        self.look_at_paths(id, false, false);
                    }
                }
                None => {}
            }
            if let Some(state) = self.trigger_state(id) {
                self.graph.set_state(id, state);
            }
            self.schedule(id);
        }
    }

    pub(super) fn timer_looks_again(&mut self, id: UnitId) {
        let watched = self.watched(id);
        let Some(unit) = self.graph.unit(id).cloned() else {
            return;
        };
        let Kind::Timer(directives) = &unit.kind else {
            return;
        };
        let random = self.random_for(&unit, directives.fixed_random_delay);
        if let Some(Trigger::Timer(timer)) = self.trigger_mut(id) {
            timer.look_again(watched, random, now());
            let state = timer.active_state();
            self.graph.set_state(id, state);
        }
        self.schedule(id);
    }

    /// A timer may be due.
    pub(super) fn timer_is_due(&mut self, id: UnitId) {
        let now = now();
        let Some(Trigger::Timer(timer)) = self.trigger_mut(id) else {
            return;
        };
        if timer.elapses(now) {
            let persistent = timer.directives().is_some_and(|d| d.persistent);
            let name = self.graph.name(id).clone();
            if persistent {
                write_stamp(&name, now.wall_us);
            }
            self.start_triggered(id);
        }
        self.schedule(id);
    }

    /// Starts what `id` is there to start.
    fn start_triggered(&mut self, id: UnitId) {
        let Some(other) = self.triggered(id) else {
            return;
        };
        let asked = self
            .jobs
            .request(&self.graph, Request::Start, other, Mode::Replace);
        if let Err(err) = asked {
            let text = format!("cannot start {}: {err}", self.name(other));
            self.log(Priority::Error, id, &text);
            match self.trigger_mut(id) {
                Some(Trigger::Timer(_)) => self.timer_looks_again(id),
                Some(Trigger::Socket(socket, _)) => {
                    socket.fail(text);
                    self.gave_up(id);
                }
                Some(Trigger::Path(path, _)) => {
                    path.state = path::State::Failed;
                    self.gave_up(id);
                }
                None => {}
            }
        } else if self.graph.state(other).is_up()
            && let Some(Trigger::Timer(_)) = self.trigger_mut(id)
        {
            // It runs already: the next moment counts.
            self.timer_looks_again(id);
        }
    }

    /// A trigger has failed by itself.
    fn gave_up(&mut self, id: UnitId) {
        self.unpoll(id);
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        let why = match &mut entry.trigger {
            Some(Trigger::Socket(socket, open)) => {
                open.clear();
                socket.failure.clone()
            }
            Some(Trigger::Path(_, watcher)) => {
                *watcher = None;
                Some("it triggered too often".to_owned())
            }
            _ => None,
        };
        if let Some(why) = why {
            entry.failure = Some(why.clone());
            self.log(Priority::Error, id, &format!("failed: {why}"));
        }
        self.graph.set_state(id, ActiveState::Failed);
        self.jobs.gone_by_itself(&self.graph, id);
        self.follow(id);
    }

    fn start_listening(&mut self, id: UnitId, directives: &SocketUnit) -> Result<(), String> {
        let service = self.triggered(id);
        let is_up = service.is_some_and(|s| !self.graph.state(s).is_down());
        if is_up && !directives.accept {
            let name = service.map(|s| self.name(s)).unwrap_or_default();
            return Err(format!("{name} runs already, without the socket"));
        }
        let opened = listen::open(directives);
        let Some(Trigger::Socket(socket, open)) = self.trigger_mut(id) else {
            return Ok(());
        };
        match opened {
            Ok(mut opened) => {
                if directives.accept {
                    for fd in &mut opened {
                        // Whoever came may be gone again when he is let in.
                        let _ = rustix::io::ioctl_fionbio(&*fd, true);
                    }
                }
                if directives.flush_pending {
                    listen::flush(&opened);
                }
                *open = opened;
                socket.listen(false);
                self.poll_sockets(id);
                Ok(())
            }
            Err(err) => {
                socket.fail(err.to_string());
                Err(err.to_string())
            }
        }
    }

    /// Polls a socket unit's descriptors while it listens, and not otherwise.
    pub(super) fn poll_sockets(&mut self, id: UnitId) {
        let Some(Trigger::Socket(socket, open)) = self
            .entries
            .get(id.index())
            .and_then(|e| e.trigger.as_ref())
        else {
            return;
        };
        let Some(epoll) = &self.epoll else { return };
        for (at, fd) in (0_u64..).zip(open) {
            let number = u64::try_from(id.index()).unwrap_or(0) << 16 | at;
            if socket.state == socket::State::Listening {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, token::SOCKET | number);
                // One that is polled already stays so.
                let _ = epoll.add(fd, event);
            } else {
                let _ = epoll.delete(fd);
            }
        }
    }

    /// Polls nothing of the unit any more: others may have its descriptors, so that closing them here is not the end of it.
    pub(super) fn unpoll(&mut self, id: UnitId) {
        let Some(epoll) = &self.epoll else { return };
        match self
            .entries
            .get(id.index())
            .and_then(|e| e.trigger.as_ref())
        {
            Some(Trigger::Socket(_, open)) => {
                for fd in open {
                    let _ = epoll.delete(fd);
                }
            }
            Some(Trigger::Path(_, Some(watcher))) => {
                let _ = epoll.delete(&watcher.inotify);
            }
            _ => {}
        }
    }

    /// The descriptor that is readable when [`Manager::polled`] has something to do.
    pub fn epoll(&self) -> Option<BorrowedFd<'_>> {
        self.epoll.as_ref().map(|epoll| epoll.0.as_fd())
    }

    /// Somebody connected, a file changed, the clock was set, memory ran out.
    pub fn polled(&mut self) {
        let mut events = [EpollEvent::empty(); 32];
        let count = match self.epoll.as_ref() {
            Some(epoll) => epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0),
            None => 0,
        };
        for event in events.iter().take(count) {
            let data = event.data();
            let number = data & !token::KIND;
            match data {
                token::MEMORY => self.memory_ran_out(),
                token::CLOCK => self.clock_was_set(),
                token::MOUNTS => {}
                _ => {
                    let index = match data & token::KIND {
                        token::SOCKET => number >> 16,
                        _ => number,
                    };
                    let unit = self
                        .graph
                        .ids()
                        .nth(usize::try_from(index).unwrap_or(usize::MAX));
                    match (data & token::KIND, unit) {
                        (token::SOCKET, Some(id)) => {
                            let at = usize::try_from(number & 0xffff).unwrap_or(usize::MAX);
                            self.somebody_comes(id, at);
                        }
                        (token::PATH, Some(id)) => self.path_changed(id),
                        _ => {}
                    }
                }
            }
        }
        // The kernel tells of changed mounts once, and that was to whoever polls this epoll (fs/proc_namespace.c, mounts_poll).
        self.mounts_changed();
        self.turn();
    }

    fn somebody_comes(&mut self, id: UnitId, at: usize) {
        let now_ns = times::now_ns();
        let Some(Trigger::Socket(socket, _)) = self.trigger_mut(id) else {
            return;
        };
        match socket.comes(now_ns) {
            socket::Verdict::Wait => self.poll_sockets(id),
            socket::Verdict::TooOften => self.gave_up(id),
            socket::Verdict::Start => {
                self.poll_sockets(id);
                self.start_triggered(id);
            }
            socket::Verdict::Accept => self.let_in(id, at),
        }
    }

    /// Accepts a connection and starts an instance for it.
    fn let_in(&mut self, id: UnitId, at: usize) {
        let own = self.graph.name(id).clone();
        let Some(Trigger::Socket(socket, open)) = self.trigger_mut(id) else {
            return;
        };
        let Some(listening) = open.get(at) else {
            return;
        };
        let Ok((fd, remote)) = acceptfrom_with(listening, SocketFlags::CLOEXEC) else {
            return;
        };
        let remote = remote.and_then(|address| internet_address(&address));
        let source = remote.as_ref().map(|(address, _)| address.clone());
        if !socket.has_room(source.as_deref()) {
            let text = format!("{own}: too many connections: one is refused");
            log(Priority::Warning, &text);
            return;
        }
        socket.accepted = socket.accepted.saturating_add(1);
        let number = socket.accepted.saturating_sub(1);
        let instance = match &remote {
            Some((address, port)) => {
                let local = getsockname(&fd).ok().as_ref().and_then(internet_address);
                let (here, here_port) = local.unwrap_or_default();
                format!("{number}-{here}:{here_port}-{address}:{port}")
            }
            None => match rustix::net::sockopt::socket_peercred(&fd) {
                Ok(peer) => format!(
                    "{number}-{}-{}",
                    peer.pid.as_raw_nonzero(),
                    peer.uid.as_raw()
                ),
                Err(_) => number.to_string(),
            },
        };
        let Ok(name) = UnitName::parse(&format!("{}@{instance}.service", own.prefix())) else {
            return;
        };
        let service = self.load(&name);
        if self.graph.unit(service).is_none() {
            let text = format!("{own}: cannot load {name} for a connection");
            log(Priority::Error, &text);
            self.forgettable.push(service);
            return;
        }
        if let Some(entry) = self.entries.get_mut(service.index()) {
            entry.connection = Some(Connection {
                socket: id,
                fd,
                remote,
            });
        }
        if let Some(Trigger::Socket(socket, _)) = self.trigger_mut(id) {
            socket.connections.insert(service, source);
        }
        let asked = self
            .jobs
            .request(&self.graph, Request::Start, service, Mode::Replace);
        if let Err(err) = asked {
            self.log(
                Priority::Error,
                service,
                &format!("cannot be started: {err}"),
            );
            self.connection_is_over(service);
        }
    }

    /// The instance for a connection is down: its unit goes with it.
    pub(super) fn connection_is_over(&mut self, service: UnitId) {
        let entry = self.entries.get_mut(service.index());
        let Some(connection) = entry.and_then(|e| e.connection.take()) else {
            return;
        };
        if let Some(Trigger::Socket(socket, _)) = self.trigger_mut(connection.socket) {
            socket.connections.remove(&service);
        }
        self.forgettable.push(service);
    }

    fn path_changed(&mut self, id: UnitId) {
        let Some(Trigger::Path(_, Some(watcher))) = self.trigger_mut(id) else {
            return;
        };
        let mut changed = false;
        while let Ok(events) = watcher.inotify.read_events() {
            changed |= events.iter().any(|event| watcher.own.contains(&event.wd));
        }
        self.look_at_paths(id, changed, false);
    }

    /// Looks at what a path unit watches, and watches on.
    pub(super) fn look_at_paths(&mut self, id: UnitId, changed: bool, is_start: bool) {
        self.unpoll(id);
        let now_ns = times::now_ns();
        let index = u64::try_from(id.index()).unwrap_or(0);
        let Some(Trigger::Path(path, held)) = self.trigger_mut(id) else {
            return;
        };
        let watches = path
            .directives()
            .map_or_else(Vec::new, |d| d.watches.clone());
        // First watched, then looked at: what happens in between is not missed.
        let watcher = watch_paths(&watches);
        let exists = watches
            .iter()
            .map(|(watch, path)| holds(*watch, path))
            .collect();
        let verdict = path.look(exists, changed, is_start, now_ns);
        let is_waiting = path.state == path::State::Waiting;
        match watcher {
            Ok(watcher) => *held = is_waiting.then_some(watcher),
            Err(err) => {
                let text = format!("cannot watch its paths: {err}");
                self.log(Priority::Error, id, &text);
            }
        }
        if let (Some(Trigger::Path(_, Some(watcher))), Some(epoll)) = (
            self.entries
                .get(id.index())
                .and_then(|e| e.trigger.as_ref()),
            &self.epoll,
        ) {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token::PATH | index);
            if let Err(err) = epoll.add(&watcher.inotify, event) {
                self.log(
                    Priority::Error,
                    id,
                    &format!("cannot watch its paths: {err}"),
                );
            }
        }
        match verdict {
            path::Verdict::Wait => {}
            path::Verdict::Start => self.start_triggered(id),
            path::Verdict::TooOften => self.gave_up(id),
        }
    }

    /// Begins to hear of memory that ran out in the unit's cgroup.
    pub(super) fn watch_memory(&mut self, id: UnitId, path: &std::path::Path) {
        if self.memory.is_none() {
            let made = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
            if let (Ok(inotify), Some(epoll)) = (made, &self.epoll)
                && epoll
                    .add(
                        &inotify,
                        EpollEvent::new(EpollFlags::EPOLLIN, token::MEMORY),
                    )
                    .is_ok()
            {
                self.memory = Some(inotify);
            }
        }
        let Some(inotify) = &self.memory else { return };
        // Without the controller there is nothing to hear.
        if let Ok(watch) = inotify.add_watch(&path.join("memory.events"), AddWatchFlags::IN_MODIFY)
        {
            self.memory_of.insert(watch, id);
        }
    }

    fn memory_ran_out(&mut self) {
        let mut starved = std::collections::BTreeSet::new();
        while let Some(Ok(events)) = self.memory.as_ref().map(Inotify::read_events) {
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.memory_of.remove(&event.wd);
                } else if let Some(id) = self.memory_of.get(&event.wd) {
                    starved.insert(*id);
                }
            }
        }
        for id in starved {
            if self.has_new_oom_kill(id) {
                self.feed(id, Input::OutOfMemoryWithin);
            }
        }
    }

    /// Begins to hear of jumps of the wall clock and of changes of the mounts.
    pub(super) fn watch_machine(&mut self) {
        use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
        let Some(epoll) = &self.epoll else { return };
        let made = TimerFd::new(
            ClockId::CLOCK_REALTIME,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        );
        if let Ok(clock) = made
            && epoll
                .add(&clock, EpollEvent::new(EpollFlags::EPOLLIN, token::CLOCK))
                .is_ok()
        {
            self.clock = Some(clock);
        }
        if let Ok(mounts) = std::fs::File::open("/proc/self/mountinfo")
            && epoll
                .add(
                    &mounts,
                    EpollEvent::new(EpollFlags::EPOLLPRI, token::MOUNTS),
                )
                .is_ok()
        {
            self.mounts = Some(mounts);
        }
        self.arm_clock();
    }

    fn arm_clock(&self) {
        use nix::sys::time::TimeSpec;
        use nix::sys::timerfd::{Expiration, TimerSetTimeFlags};
        if let Some(clock) = &self.clock {
            // Never: it only tells that the clock was set (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
            let never = Expiration::OneShot(TimeSpec::new(i64::MAX / 1_000_000_000, 0));
            let flags =
                TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
            let _ = clock.set(never, flags);
        }
    }

    fn clock_was_set(&mut self) {
        if let Some(clock) = &self.clock {
            // ECANCELED is the news itself.
            let _ = clock.wait();
        }
        self.arm_clock();
        let timers: Vec<UnitId> = self
            .graph
            .ids()
            .filter(|id| {
                matches!(
                    self.entry(*id).and_then(|e| e.trigger.as_ref()),
                    Some(Trigger::Timer(_))
                )
            })
            .collect();
        for id in timers {
            let Some(Trigger::Timer(timer)) = self.trigger_mut(id) else {
                continue;
            };
            let elapses = timer.state == timer::State::Waiting
                && timer.directives().is_some_and(|d| d.on_clock_change);
            if elapses {
                self.start_triggered(id);
            }
            self.timer_looks_again(id);
        }
    }

    /// Somebody mounted or unmounted something: mount units whose place is empty now are down.
    fn mounts_changed(&mut self) {
        use std::io::Seek as _;
        if let Some(file) = &mut self.mounts {
            // The news is read; what there is, is read anew below.
            let _ = file.rewind();
        }
        let units: Vec<(UnitId, String)> = self
            .graph
            .ids()
            .filter_map(|id| match &self.graph.unit(id)?.kind {
                Kind::Mount(mount) if self.graph.state(id) == ActiveState::Active => {
                    Some((id, mount.place.clone()))
                }
                _ => None,
            })
            .collect();
        if units.is_empty() {
            return;
        }
        let mounts = crate::mountinfo::read();
        for (id, place) in units {
            if !mounts.iter().any(|mount| mount.target == place) {
                self.feed(id, Input::Gone);
            }
        }
    }

    /// When something of the unit is due; to be called after each change.
    pub(super) fn schedule(&mut self, id: UnitId) {
        self.dirty.insert(id);
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        let due = match (&entry.run, &entry.trigger) {
            (Some(run), _) => run.deadline_ns(),
            (None, Some(Trigger::Timer(timer))) => timer.deadline_ns(now()),
            _ => None,
        };
        if due != entry.due_ns {
            if let Some(before_ns) = entry.due_ns {
                self.due.remove(&(before_ns, id));
            }
            entry.due_ns = due;
            if let Some(due_ns) = due {
                self.due.insert((due_ns, id));
            }
        }
    }
}

/// The address and the port of an internet socket; an IPv4 address in IPv6's clothes is one.
fn internet_address(address: &SocketAddrAny) -> Option<(String, u16)> {
    let address = std::net::SocketAddr::try_from(address.clone()).ok()?;
    let ip = match address.ip() {
        IpAddr::V6(ip) => ip.to_canonical(),
        ip => ip,
    };
    Some((ip.to_string(), address.port()))
}

/// Whether that which is watched for is there; for changes, whether the path exists.
fn holds(watch: Watch, path: &str) -> bool {
    match watch {
        Watch::Exists | Watch::Changed | Watch::Modified => std::fs::symlink_metadata(path).is_ok(),
        Watch::ExistsGlob => conditions::matches_glob(path),
        Watch::DirectoryNotEmpty => {
            std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
        }
    }
}

/// Watches each path, and the directories above it, in which it may appear or go.
fn watch_paths(watches: &[(Watch, String)]) -> nix::Result<Watcher> {
    let mut watcher = Watcher {
        inotify: Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?,
        own: Vec::new(),
    };
    let comings = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::from_bits_retain(libc::IN_MASK_ADD);
    for (watch, path) in watches {
        let changes = match watch {
            Watch::Changed => AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB,
            Watch::Modified => {
                AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_MODIFY
            }
            _ => AddWatchFlags::empty(),
        };
        let path = std::path::Path::new(path);
        // What is not there is watched for from above.
        if let Ok(own) = watcher.inotify.add_watch(path, comings | changes)
            && !changes.is_empty()
        {
            watcher.own.push(own);
        }
        for above in path.ancestors().skip(1) {
            let _ = watcher.inotify.add_watch(above, comings);
        }
    }
    Ok(watcher)
}

fn make_directory(path: &str, mode: u32) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;
    if std::fs::metadata(path).is_ok() {
        return Ok(());
    }
    std::fs::create_dir_all(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
        .map_err(|err| format!("cannot make {path}: {err}"))
}

fn stamp(unit: &UnitName) -> String {
    format!("{STAMPS}/stamp-{unit}")
}

fn read_stamp(unit: &UnitName) -> Option<u64> {
    let modified = std::fs::metadata(stamp(unit)).ok()?.modified().ok()?;
    let time: Duration = modified.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(time.as_micros()).ok()
}

/// Keeps the moment by a child: the disk may not answer, and PID 1 must not wait for it.
fn write_stamp(unit: &UnitName, wall_us: u64) {
    let seconds = wall_us / 1_000_000;
    let script = "mkdir -p \"$1\" && touch -d \"@$2\" \"$3\"";
    let words = [
        "/bin/sh",
        "-c",
        script,
        "sh",
        STAMPS,
        &seconds.to_string(),
        &stamp(unit),
    ];
    if let Err(err) = spawn::start_program(&words) {
        log(
            Priority::Warning,
            &format!("{unit}: its moment is not kept: {err}"),
        );
    }
}
