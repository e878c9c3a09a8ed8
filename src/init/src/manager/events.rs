//! What the kernel tells of units: connections, files, memory that ran out, clocks that were set, mounts that are gone.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use orlop_unit::{ActiveState, Kind, UnitId};

use super::Manager;
use crate::cgroup;
use crate::service::Input;
use crate::trigger::{Trigger, timer};

/// What an event of the manager's own epoll is about; the kind is in the upper half.
pub(super) mod token {
    pub(in crate::manager) const MEMORY: u64 = 1;
    pub(in crate::manager) const CLOCK: u64 = 2;
    pub(in crate::manager) const MOUNTS: u64 = 3;
    /// The unit's index and the descriptor's place, 16 bits each.
    pub(in crate::manager) const SOCKET: u64 = 1 << 32;
    pub(in crate::manager) const PATH: u64 = 2 << 32;
    pub(in crate::manager) const KIND: u64 = !0 << 32;
}

impl Manager {
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

    /// Begins to hear of memory that ran out in the unit's cgroup.
    ///
    /// What the kernel counts for a cgroup it counts for those above it (`Documentation/admin-guide/cgroup-v2.rst`, `memory.events`): one watch
    /// serves all units of a slice, which are looked at when one of them was killed in.
    pub(in crate::manager) fn watch_memory(&mut self, path: &Path) {
        let Some(top) = cgroup::top(path) else { return };
        if self.starved.values().any(|(watched, _)| *watched == top) {
            return;
        }
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
        if let Ok(watch) = inotify.add_watch(&top.join("memory.events"), AddWatchFlags::IN_MODIFY) {
            let kills = cgroup::oom_kills(&top);
            self.starved.insert(watch, (top, kills));
        }
    }

    fn memory_ran_out(&mut self) {
        let mut told = BTreeSet::new();
        while let Some(Ok(events)) = self.memory.as_ref().map(Inotify::read_events) {
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.starved.remove(&event.wd);
                } else if let Some((top, kills)) = self.starved.get_mut(&event.wd) {
                    // It is told of every limit that is met, not only of those that kill.
                    let before = std::mem::replace(kills, cgroup::oom_kills(top));
                    if *kills > before {
                        told.insert(top.clone());
                    }
                }
            }
        }
        let units: Vec<UnitId> = self
            .graph
            .ids()
            .filter(|id| {
                let cgroup = self.entry(*id).and_then(|entry| entry.cgroup.as_ref());
                cgroup.is_some_and(|(path, _)| told.iter().any(|top| path.starts_with(top)))
            })
            .collect();
        for id in units {
            if self.has_new_oom_kill(id) {
                self.feed(id, Input::OutOfMemoryWithin);
            }
        }
    }

    /// Begins to hear of jumps of the wall clock and of changes of the mounts.
    pub(in crate::manager) fn watch_machine(&mut self) {
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
}
