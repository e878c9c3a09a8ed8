//! Units without processes of their own: what they hold open, and what they start.

mod paths;
mod sockets;
mod timers;

use orlop_sys::kmsg::Priority;
use orlop_unit::{
    Action as JobAction, ActiveState, Edge, Kind, Mode, Outcome, Request, Unit, UnitId,
};

use super::Manager;
use crate::cgroup;
use crate::trigger::{Trigger, listen, path, socket, timer};

use paths::make_directory;
pub use sockets::Connection;
pub(crate) use timers::now;
use timers::{read_stamp, write_stamp};

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
    pub(in crate::manager) fn begin_without_processes(&mut self, id: UnitId, action: JobAction) {
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

    pub(in crate::manager) fn trigger_state(&self, id: UnitId) -> Option<ActiveState> {
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
                let (opened, _) = cgroup::create(&path, resources)
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

    pub(in crate::manager) fn trigger_mut(&mut self, id: UnitId) -> Option<&mut Trigger> {
        self.entries.get_mut(id.index())?.trigger.as_mut()
    }

    /// The unit that `id` starts.
    pub(in crate::manager) fn triggered(&self, id: UnitId) -> Option<UnitId> {
        self.graph.related(id, Edge::Triggers).next()
    }

    /// Another unit has changed its state: whoever starts it may have to do something.
    pub(in crate::manager) fn tell_triggers(&mut self, other: UnitId) {
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

    /// Starts what `id` is there to start.
    pub(in crate::manager) fn start_triggered(&mut self, id: UnitId) {
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
    pub(in crate::manager) fn gave_up(&mut self, id: UnitId) {
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

    /// Polls nothing of the unit any more: others may have its descriptors, so that closing them here is not the end of it.
    pub(in crate::manager) fn unpoll(&mut self, id: UnitId) {
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

    /// When something of the unit is due; to be called after each change.
    pub(in crate::manager) fn schedule(&mut self, id: UnitId) {
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
