//! What PID 1 listens to: starts, the journal, connections, the power button.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::signal::Signal;
use orlop_sys::kmsg::Priority;

use super::{Pid1, log, token};
use crate::control::Server;
use crate::power_button::PowerButtons;
use crate::spawn;

fn polled(writing: bool) -> EpollFlags {
    if writing {
        EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT
    } else {
        EpollFlags::EPOLLIN
    }
}

/// Polls a descriptor for reading from now on, and notes it under its token.
fn begin(
    epoll: &Epoll,
    watched: &mut BTreeMap<u64, bool>,
    fd: impl AsFd,
    token: u64,
) -> nix::Result<()> {
    epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
    watched.insert(token, false);
    Ok(())
}

impl Pid1 {
    /// Polls the pipes of starts that are new, and forgets those that were heard.
    pub(super) fn watch_starts(&mut self) {
        let token_of = |pid: i32| token::START | u64::try_from(pid).unwrap_or(0);
        let mut live = BTreeSet::new();
        for (pid, fd) in self.manager.starting() {
            let token = token_of(pid);
            live.insert(token);
            if self.watched.contains_key(&token) {
                continue;
            }
            if let Err(err) = begin(&self.epoll, &mut self.watched, fd, token) {
                log(Priority::Error, &format!("cannot poll a start: {err}"));
            }
        }
        self.watched
            .retain(|t, _| t & token::KIND != token::START || live.contains(t));
    }

    /// Polls the journal's socket, for writing too while streams wait.
    pub(super) fn watch_journal(&mut self) {
        let waiting = self.manager.streams.is_waiting();
        let Some(socket) = self.manager.streams.socket() else {
            self.watched.remove(&token::JOURNAL);
            return;
        };
        if self.watched.get(&token::JOURNAL) == Some(&waiting) {
            return;
        }
        let event = EpollEvent::new(polled(waiting), token::JOURNAL);
        let mut changed = event;
        let result = match self.epoll.add(socket, event) {
            Err(nix::errno::Errno::EEXIST) => self.epoll.modify(socket, &mut changed),
            other => other,
        };
        match result {
            Ok(()) => {
                self.watched.insert(token::JOURNAL, waiting);
            }
            Err(err) => log(Priority::Error, &format!("cannot poll the journal: {err}")),
        }
    }

    pub(super) fn accept(&mut self) {
        while let Some(id) = self.control.as_mut().and_then(Server::accept) {
            self.watch_connection(id);
        }
    }

    pub(super) fn watch_connection(&mut self, id: u64) {
        let Some(copy) = self.control.as_ref().and_then(|c| c.connection(id)) else {
            return;
        };
        let token = token::CONNECTION | id;
        if let Err(err) = begin(&self.epoll, &mut self.watched, copy, token) {
            log(Priority::Error, &format!("cannot poll a connection: {err}"));
        }
    }

    pub(super) fn connection(&mut self, id: u64, flags: EpollFlags) {
        if flags.contains(EpollFlags::EPOLLOUT)
            && let Some(control) = &mut self.control
        {
            control.flush(id);
        }
        match self.control.as_mut().and_then(|c| c.read(id)) {
            Some(calls) => {
                for call in calls {
                    self.call(id, call);
                }
            }
            None => {
                self.watched.remove(&(token::CONNECTION | id));
                // The program goes with the one who asked for it.
                if let Some(pid) = self.callers.remove(&id) {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGHUP);
                }
            }
        }
        self.rewatch(id);
    }

    /// Polls a connection for writing while an answer waits.
    pub(super) fn rewatch(&mut self, id: u64) {
        let token = token::CONNECTION | id;
        let waiting = self.control.as_mut().is_some_and(|c| c.flush(id));
        if self.watched.get(&token).is_some_and(|w| *w != waiting)
            && let Some(fd) = self.control.as_ref().and_then(|c| c.connection(id))
            && self
                .epoll
                .modify(fd, &mut EpollEvent::new(polled(waiting), token))
                .is_ok()
        {
            self.watched.insert(token, waiting);
        }
    }

    pub(super) fn answer(&mut self) {
        for answer in self.manager.take_answers() {
            if let Some(control) = &mut self.control {
                let parameters =
                    serde_json::json!({ "result": answer.result, "message": answer.message });
                control.reply(answer.connection, &parameters);
            }
            self.rewatch(answer.connection);
        }
    }

    /// Polls the power buttons from here on, and for those that appear later.
    pub(super) fn watch_buttons(&mut self) {
        // No bus alias names it: without this module no input device has a node.
        if let Err(err) = spawn::start_role(&["modprobe", "-q", "evdev"]) {
            log(Priority::Warning, &format!("cannot load evdev: {err}"));
        }
        let watched = PowerButtons::watch().and_then(|buttons| {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token::DEVICES);
            self.epoll.add(buttons.appearing(), event)?;
            Ok(buttons)
        });
        match watched {
            Ok(buttons) => self.buttons = Some(buttons),
            Err(err) => log(
                Priority::Warning,
                &format!("the power button has no effect: {err}"),
            ),
        }
        self.look_for_buttons();
    }

    pub(super) fn look_for_buttons(&mut self) {
        let Some(buttons) = &mut self.buttons else {
            return;
        };
        let (before, all) = buttons.look();
        for button in all.into_iter().skip(before) {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token::BUTTON);
            if let Err(err) = self.epoll.add(button, event) {
                log(
                    Priority::Warning,
                    &format!("cannot poll the power button: {err}"),
                );
            }
        }
    }
}
