//! PID 1's one loop: signals, processes, messages and time go in, the [`Manager`] decides, and at the end the machine stops.

mod phases;
mod polling;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::Signal;
use orlop_boot::{cmdline::CommandLine, times};
use orlop_sys::kmsg::{self, Priority};
use orlop_sys::signal::{End, Signals, reap};
use orlop_unit::ProcessEnd;

use crate::control::Server;
use crate::manager::{Manager, Owner};
use crate::notify;
use crate::power_button::PowerButtons;
use crate::saved::Log;
use crate::shutdown;
use crate::teardown::Action;
use crate::trial::Trial;
use crate::watchdog::Feeder;

/// What an epoll event is about; connections and children carry their number in the lower half.
mod token {
    pub(super) const SIGNALS: u64 = 1;
    pub(super) const CONTROL: u64 = 2;
    pub(super) const NOTIFY: u64 = 3;
    pub(super) const JOURNAL: u64 = 4;
    pub(super) const DEVICES: u64 = 5;
    pub(super) const BUTTON: u64 = 6;
    pub(super) const TRIGGERS: u64 = 7;
    pub(super) const CONNECTION: u64 = 1 << 32;
    pub(super) const START: u64 = 2 << 32;
    pub(super) const KIND: u64 = !0 << 32;
}

/// How long nothing has to happen before PID 1 counts as waiting.
const QUIET_NS: u64 = 2_000_000_000;

/// The word on the kernel command line that makes PID 1 panic once the boot is complete: what comes of a panic can be tried out.
const CRASH: &str = "orlop.crash";

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Units stop in reverse order.
    Ordered,
    /// What has no part in that order stops as well.
    Rest,
}

/// PID 1.
#[derive(Debug)]
pub struct Pid1 {
    pub(crate) manager: Manager,
    pub(crate) control: Option<Server>,
    pub(crate) callers: BTreeMap<u64, i32>,
    pub(crate) notify: Option<UnixDatagram>,
    pub(crate) buttons: Option<PowerButtons>,
    pub(crate) epoll: Epoll,
    pub(crate) watched: BTreeMap<u64, bool>,
    pub(crate) ending: Option<(Action, Ending, u64)>,
    pub(crate) setup_began_ns: u64,
    /// When code that was needed last is given back.
    pub(crate) quiet_at_ns: Option<u64>,
    pub(crate) watchdog: Option<Feeder>,
    pub(crate) trial: Option<Trial>,
    /// The setup's process, while it runs.
    pub(crate) setup: Option<i32>,
    /// When this PID 1 took over from another.
    pub(crate) resumed_at_ns: Option<u64>,
    /// What the next PID 1 is to know.
    pub(crate) log: Option<Log>,
    /// The last line of it about PID 1 itself.
    pub(crate) machine_line: String,
    /// Somebody asked for another execution.
    pub(crate) execute_again: bool,
}

fn log(priority: Priority, text: &str) {
    kmsg::write(priority, "orlop", text);
}

impl Pid1 {
    /// Prepares the loop.
    ///
    /// # Errors
    /// When the kernel has no epoll descriptor left.
    pub fn new() -> io::Result<Self> {
        let control = Server::listen();
        if let Err(err) = &control {
            log(
                Priority::Error,
                &format!("cannot listen at {}: {err}", crate::control::SOCKET),
            );
        }
        let notify = notify::open();
        if let Err(err) = &notify {
            log(
                Priority::Error,
                &format!("cannot listen at {}: {err}", notify::SOCKET),
            );
        }
        Ok(Self {
            manager: Manager::new(),
            control: control.ok(),
            callers: BTreeMap::new(),
            notify: notify.ok(),
            buttons: None,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            watched: BTreeMap::new(),
            ending: None,
            setup_began_ns: 0,
            quiet_at_ns: None,
            watchdog: Feeder::open(times::now_ns()),
            trial: None,
            setup: None,
            resumed_at_ns: None,
            log: Log::new().ok(),
            machine_line: String::new(),
            execute_again: false,
        })
    }

    /// Runs until the machine ends.
    ///
    /// # Errors
    /// Those of signalfd(2) and epoll(7), without which PID 1 cannot work.
    pub fn run(mut self) -> io::Result<std::convert::Infallible> {
        let signals = Signals::block(&meaningful_signals())?;
        self.epoll.add(
            &signals,
            EpollEvent::new(EpollFlags::EPOLLIN, token::SIGNALS),
        )?;
        if let Some(control) = &self.control {
            self.epoll.add(
                control.listener(),
                EpollEvent::new(EpollFlags::EPOLLIN, token::CONTROL),
            )?;
        }
        if let Some(notify) = &self.notify {
            self.epoll
                .add(notify, EpollEvent::new(EpollFlags::EPOLLIN, token::NOTIFY))?;
        }
        let is_resumed = self.resumed_at_ns.is_some();
        if !is_resumed {
            self.manager.watch()?;
        }
        if let Some(triggers) = self.manager.epoll() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token::TRIGGERS);
            self.epoll.add(triggers, event)?;
        }
        if is_resumed {
            self.take_over();
        } else {
            self.start_setup();
        }
        let mut events = [EpollEvent::empty(); 64];
        loop {
            self.watch_starts();
            self.watch_journal();
            self.write_down();
            self.execute_again_if_asked();
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(err) => return Err(err.into()),
            };
            for event in events.iter().take(count) {
                self.handle(event.data(), event.events(), &signals);
            }
            if let Some(watchdog) = &mut self.watchdog {
                watchdog.feed_if_due(times::now_ns());
            }
            if self
                .trial
                .as_mut()
                .is_some_and(|t| t.is_lost(times::now_ns()))
            {
                self.give_up();
            }
            self.manager.tick();
            self.answer();
            self.after();
            self.rest(count > 0);
        }
    }

    /// Gives code back to the kernel once nothing has happened for a while.
    fn rest(&mut self, busy: bool) {
        let now_ns = times::now_ns();
        if busy {
            self.quiet_at_ns = Some(now_ns.saturating_add(QUIET_NS));
        } else if self.quiet_at_ns.is_some_and(|at_ns| at_ns <= now_ns) {
            self.quiet_at_ns = None;
            orlop_sys::memory::release_code();
            orlop_sys::memory::release_heap();
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let own = self.ending.map(|(_, _, deadline_ns)| deadline_ns);
        let watchdog = self.watchdog.as_ref().map(Feeder::due_ns);
        let trial = self.trial.as_ref().and_then(Trial::deadline_ns);
        let Some(deadline_ns) = [
            self.manager.deadline_ns(),
            own,
            self.quiet_at_ns,
            watchdog,
            trial,
        ]
        .into_iter()
        .flatten()
        .min() else {
            return EpollTimeout::NONE;
        };
        let left_ms = deadline_ns
            .saturating_sub(times::now_ns())
            .div_ceil(1_000_000);
        EpollTimeout::try_from(i32::try_from(left_ms).unwrap_or(i32::MAX))
            .unwrap_or(EpollTimeout::ZERO)
    }

    fn handle(&mut self, token: u64, flags: EpollFlags, signals: &Signals) {
        match token {
            token::SIGNALS => {
                while let Some(number) = signals.next() {
                    self.signal(number);
                }
            }
            token::CONTROL => self.accept(),
            token::DEVICES => self.look_for_buttons(),
            token::BUTTON => {
                if self.buttons.as_mut().is_some_and(PowerButtons::is_pressed) {
                    self.end(Action::PowerOff, "the power button was pressed");
                }
            }
            token::TRIGGERS => self.manager.polled(),
            token::NOTIFY => {
                while let Some(message) = self
                    .notify
                    .as_ref()
                    .and_then(|n| notify::receive(n.as_fd()))
                {
                    self.manager.notified(message);
                }
            }
            token::JOURNAL => {
                if flags.contains(EpollFlags::EPOLLOUT) {
                    self.manager.streams.flush();
                }
                if !self.manager.streams.receive() {
                    self.watched.remove(&token::JOURNAL);
                }
            }
            _ => {
                let number = token & !token::KIND;
                match token & token::KIND {
                    token::CONNECTION => self.connection(number, flags),
                    token::START => self.manager.start_told(i32::try_from(number).unwrap_or(0)),
                    _ => {}
                }
            }
        }
    }

    /// Signals by name as systemd(1), sysvinit and LXC use them.
    fn signal(&mut self, number: i32) {
        let real_time = number.saturating_sub(libc::SIGRTMIN());
        match Signal::try_from(number) {
            Ok(Signal::SIGCHLD) => self.reap_all(),
            Ok(Signal::SIGTERM | Signal::SIGINT) => self.end(Action::Reboot, "asked by a signal"),
            Ok(Signal::SIGPWR | Signal::SIGUSR2) => self.end(Action::PowerOff, "asked by a signal"),
            Ok(Signal::SIGUSR1) => self.end(Action::Halt, "asked by a signal"),
            Ok(Signal::SIGHUP) => self.manager.reload(),
            Ok(_) => {}
            Err(_) => match real_time {
                3 => self.end(Action::Halt, "asked by a signal"),
                4 => self.end(Action::PowerOff, "asked by a signal"),
                5 => self.end(Action::Reboot, "asked by a signal"),
                13..=16 => shutdown::finish(match real_time {
                    14 => Action::PowerOff,
                    13 => Action::Halt,
                    _ => Action::Reboot,
                }),
                _ => {}
            },
        }
    }

    fn reap_all(&mut self) {
        while let Ok(Some((pid, end))) = reap() {
            let end = match end {
                End::Exited(code) => ProcessEnd::Exited(code),
                End::Killed(signal, false) => ProcessEnd::Killed(orlop_unit::Signal(signal)),
                End::Killed(signal, true) => ProcessEnd::Dumped(orlop_unit::Signal(signal)),
            };
            match self.manager.ended(pid, end) {
                Some(Owner::Setup) => self.setup_ended(end),
                Some(Owner::Caller(connection)) => {
                    self.callers.remove(&connection);
                    let code = match end {
                        ProcessEnd::Exited(code) => i32::from(code),
                        ProcessEnd::Killed(signal) | ProcessEnd::Dumped(signal) => {
                            signal.0.saturating_add(128)
                        }
                    };
                    if let Some(control) = &mut self.control {
                        control.reply(connection, &serde_json::json!({ "code": code }));
                    }
                    self.rewatch(connection);
                }
                _ => {}
            }
        }
        self.manager.check_empty();
    }
}

#[expect(clippy::panic, reason = "it is what was asked for")]
fn crash_if_asked() {
    if CommandLine::read().is_ok_and(|line| line.has(CRASH)) {
        panic!("{CRASH} is on the kernel command line");
    }
}

/// The signals that mean something to PID 1, and SIGPIPE, which must not end it.
fn meaningful_signals() -> Vec<i32> {
    let mut numbers = vec![
        libc::SIGCHLD,
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGPWR,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGPIPE,
    ];
    numbers.extend([3, 4, 5, 13, 14, 15, 16].map(|n| libc::SIGRTMIN().saturating_add(n)));
    numbers
}
