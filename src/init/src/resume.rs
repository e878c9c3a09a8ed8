//! PID 1 executed again: on request, for a new version of itself, or after a crash. Units, descriptors and timers go on.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixDatagram;

use nix::sys::epoll::{Epoll, EpollCreateFlags};
use orlop_boot::times;
use orlop_sys::crash;
use orlop_sys::kmsg::{self, Priority};
use serde::Serialize;
use serde_json::Value;

use crate::control::Server;
use crate::manager::{Manager, Owner};
use crate::pid1::{Ending, Pid1};
use crate::teardown::Action;
use crate::watchdog::Feeder;
use crate::{notify, saved};

/// After so long without a crash the earlier ones do not count any more.
const WELL_NS: u64 = 60_000_000_000;

/// What an earlier PID 1 has left.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// The number of the descriptor of its log.
    state: i32,
    /// Crashes in a row.
    crashes: u32,
}

/// What is written down of PID 1 itself.
#[derive(Serialize)]
struct MachineLine<'a> {
    machine: &'static str,
    control: Option<Value>,
    notify: Option<RawFd>,
    journal: Option<RawFd>,
    watchdog: Option<RawFd>,
    callers: &'a BTreeMap<u64, i32>,
    setup: Option<i32>,
    ending: Option<(&'static str, &'static str, u64)>,
}

impl Left {
    /// From `--state NUMBER --crashes COUNT`, which nobody but PID 1 gives to itself.
    #[must_use]
    pub fn from_arguments() -> Option<Self> {
        // The kernel passes on what it does not know of its own command line, whatever that is.
        let arguments: Vec<String> = std::env::args_os()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let value = |name: &str| {
            let mut rest = arguments.iter().skip_while(|word| *word != name);
            rest.nth(1)?.parse::<i32>().ok()
        };
        Some(Self {
            state: value("--state").filter(|number| *number > 2)?,
            crashes: value("--crashes")
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(0),
        })
    }
}

/// Goes on with what an earlier PID 1 has written down.
///
/// # Errors
/// When the state cannot be read, or the kernel has no epoll descriptor left.
pub fn go_on(left: Left) -> io::Result<Pid1> {
    crash::set_crashes(left.crashes);
    let lines = saved::read(left.state)?;
    let machine = lines
        .iter()
        .find(|line| line.get("machine").is_some())
        .cloned()
        .unwrap_or_default();
    let control = machine.get("control").and_then(Server::resume);
    let control = control.map_or_else(Server::listen, Ok);
    let notify = saved::take(&machine, "notify").map(UnixDatagram::from);
    let notify = notify.map_or_else(notify::open, Ok);
    let number = machine.get("watchdog").and_then(Value::as_i64);
    let watchdog = Feeder::take_over(
        number.and_then(|number| i32::try_from(number).ok()),
        times::now_ns(),
    );
    let mut manager = Manager::new();
    let journal = saved::take(&machine, "journal");
    manager.streams.resume_socket(journal);
    manager.watch()?;
    manager.resume(&lines);
    let callers: BTreeMap<u64, i32> = machine
        .get("callers")
        .and_then(|callers| serde_json::from_value(callers.clone()).ok())
        .unwrap_or_default();
    for (connection, pid) in &callers {
        manager.adopt(*pid, Owner::Caller(*connection));
    }
    let setup = machine
        .get("setup")
        .and_then(Value::as_i64)
        .and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = setup {
        manager.adopt(pid, Owner::Setup);
    }
    let ending = machine.get("ending").and_then(ending);
    // Of what nobody has taken nobody knows any more.
    saved::close_rest();
    kmsg::write(
        Priority::Notice,
        "orlop",
        &format!("PID 1 goes on with {} units", manager.graph.len()),
    );
    Ok(Pid1 {
        manager,
        control: control.ok(),
        callers,
        notify: notify.ok(),
        buttons: None,
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        watched: BTreeMap::new(),
        ending,
        setup_began_ns: times::now_ns(),
        quiet_at_ns: None,
        watchdog,
        trial: None,
        setup,
        resumed_at_ns: Some(times::now_ns()),
        log: saved::Log::new().ok(),
        machine_line: String::new(),
        execute_again: false,
    })
}

fn ending(saved: &Value) -> Option<(Action, Ending, u64)> {
    let action = match saved.get(0)?.as_str()? {
        "reboot" => Action::Reboot,
        "poweroff" => Action::PowerOff,
        _ => Action::Halt,
    };
    let stage = match saved.get(1)?.as_str()? {
        "ordered" => Ending::Ordered,
        _ => Ending::Rest,
    };
    Some((action, stage, saved.get(2)?.as_u64()?))
}

impl Pid1 {
    /// Writes down what has changed in this turn of the loop, for the case that the next one is the last.
    pub(crate) fn write_down(&mut self) {
        let now_ns = times::now_ns();
        if self
            .resumed_at_ns
            .is_some_and(|at| now_ns.saturating_sub(at) > WELL_NS)
        {
            self.resumed_at_ns = None;
            crash::set_crashes(0);
        }
        let Some(mut log) = self.log.take() else {
            return;
        };
        let is_first = self.machine_line.is_empty();
        let mut is_whole = is_first;
        if log.is_stale()
            && let Ok(fresh) = saved::Log::new()
        {
            log = fresh;
            is_whole = true;
        }
        let mut text = self.manager.lines(is_whole);
        let line = self.machine();
        if is_whole || line != self.machine_line {
            text.push_str(&line);
            self.machine_line = line;
        }
        if !text.is_empty()
            && let Err(err) = log.append(&text)
        {
            crash::resume_with(-1);
            let text =
                format!("the state cannot be written down: a crash would be a reboot: {err}");
            kmsg::write(Priority::Error, "orlop", &text);
            return;
        }
        if is_whole {
            log.is_compact();
            crash::resume_with(log.number());
        }
        self.log = Some(log);
    }

    /// The line about PID 1 itself.
    fn machine(&self) -> String {
        let ending = self.ending.map(|(action, stage, deadline_ns)| {
            let action = match action {
                Action::Reboot => "reboot",
                Action::PowerOff => "poweroff",
                Action::Halt => "halt",
            };
            let stage = match stage {
                Ending::Ordered => "ordered",
                Ending::Rest => "rest",
            };
            (action, stage, deadline_ns)
        });
        let mut line = String::new();
        let about = MachineLine {
            machine: "pid1",
            control: self.control.as_ref().map(Server::save),
            notify: self.notify.as_ref().map(|socket| socket.as_raw_fd()),
            journal: self
                .manager
                .streams
                .socket()
                .map(|socket| socket.as_raw_fd()),
            watchdog: self.watchdog.as_ref().map(Feeder::number),
            callers: &self.callers,
            setup: self.setup,
            ending,
        };
        saved::add(&about, &mut line);
        line
    }

    /// Executes the program anew when that was asked for, and nobody is between clone3(2) and its program.
    pub(crate) fn execute_again_if_asked(&mut self) {
        if !self.execute_again || self.manager.is_starting_some() {
            return;
        }
        self.execute_again = false;
        let Err(err) = self.execute_program_again();
        saved::hide_descriptors();
        let text = format!("cannot execute PID 1 again: {err}");
        kmsg::write(Priority::Error, "orlop", &text);
    }

    fn execute_program_again(&mut self) -> io::Result<std::convert::Infallible> {
        let mut log = saved::Log::new()?;
        let mut text = self.manager.lines(true);
        text.push_str(&self.machine());
        text.push('\n');
        log.append(&text)?;
        let number = CString::new(log.number().to_string())?;
        let arguments = [
            c"/sbin/init".to_owned(),
            c"--state".to_owned(),
            number,
            c"--crashes".to_owned(),
            c"0".to_owned(),
        ];
        kmsg::write(Priority::Notice, "orlop", "executing PID 1 again");
        saved::keep_descriptors();
        for program in [c"/sbin/init", c"/proc/self/exe"] {
            // It comes back only with an error; the next program may do.
            let _ = nix::unistd::execv(program, &arguments);
        }
        Err(io::Error::last_os_error())
    }
}
