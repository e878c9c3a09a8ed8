//! The machine's way from the setup to its end.

use orlop_boot::{cmdline::CommandLine, times};
use orlop_sys::kmsg::Priority;
use orlop_unit::{MachineAction, Mode, ProcessEnd, Request, UnitName, Urgency};

use super::{Ending, Pid1, crash_if_asked, log};
use crate::manager::Owner;
use crate::shutdown::{self, words};
use crate::spawn;
use crate::teardown::Action;
use crate::trial::Trial;
use crate::watchdog::Feeder;

/// How long units have to stop at a shutdown, beyond which the machine goes on without them.
const STOP_LIMIT_NS: u64 = 120_000_000_000;

impl Pid1 {
    /// Configuration runs as a child of its own: what it parses is not to be trusted, and what it does may block.
    pub(super) fn start_setup(&mut self) {
        self.setup_began_ns = times::now_ns();
        match spawn::start_role(&["setup"]) {
            Ok(pid) => {
                self.setup = Some(pid);
                self.manager.adopt(pid, Owner::Setup);
            }
            Err(err) => {
                log(
                    Priority::Critical,
                    &format!("cannot start the setup: {err}"),
                );
                self.start_units();
            }
        }
    }

    /// What a PID 1 does that goes on where another was.
    pub(super) fn take_over(&mut self) {
        let connections: Vec<u64> = self
            .control
            .as_ref()
            .map(|control| control.connections().collect())
            .unwrap_or_default();
        for id in connections {
            self.watch_connection(id);
            self.rewatch(id);
        }
        // Children that ended in between are waiting to be heard.
        self.reap_all();
        match self.setup {
            Some(pid) if !std::path::Path::new(&format!("/proc/{pid}")).exists() => {
                self.setup_ended(ProcessEnd::Exited(0));
            }
            Some(_) => {}
            None => {
                self.trial = Some(Trial::begin());
                self.watch_buttons();
                crash_if_asked();
            }
        }
    }

    pub(super) fn setup_ended(&mut self, end: ProcessEnd) {
        self.setup = None;
        if end != ProcessEnd::Exited(0) {
            let text = format!(
                "the setup {}; the machine goes on with what it has",
                crate::service::describe(end)
            );
            log(Priority::Error, &text);
        }
        times::record("setup", self.setup_began_ns);
        self.trial = Some(Trial::begin());
        // Its driver may have come late.
        if self.watchdog.is_none() {
            self.watchdog = Feeder::open(times::now_ns());
        }
        self.start_units();
        self.watch_buttons();
    }

    fn start_units(&mut self) {
        let command_line = CommandLine::read().unwrap_or_else(|_| CommandLine::parse(""));
        let target = command_line
            .value("systemd.unit")
            .unwrap_or("default.target")
            .to_owned();
        let mut wanted = vec![target];
        for terminal in command_line.values("orlop.shell") {
            wanted.push(format!(
                "console-shell@{}.service",
                terminal.trim_start_matches("/dev/")
            ));
        }
        for name in wanted {
            if let Err(err) = self.start_unit(&name, Mode::Replace) {
                log(Priority::Error, &format!("cannot start {name}: {err}"));
            }
        }
    }

    /// Asks for the start of a unit.
    fn start_unit(&mut self, name: &str, mode: Mode) -> Result<(), String> {
        let name = UnitName::parse(name).map_err(|err| err.to_string())?;
        let id = self.manager.load(&name);
        self.manager.request(Request::Start, id, mode, None)
    }

    /// Nobody decides about a version on trial: a child keeps the reason, so that a disk which hangs does not hang PID 1, and asks
    /// for the reboot.
    pub(super) fn give_up(&mut self) {
        log(
            Priority::Critical,
            "nobody decides whether this version is good: it is given up",
        );
        if let Err(err) = spawn::start_role(&["health", "--undecided"]) {
            self.end(Action::Reboot, &format!("cannot start a program: {err}"));
        }
    }

    /// Begins the end: everything is stopped in reverse order.
    pub(crate) fn end(&mut self, action: Action, why: &str) {
        if let Some((planned, _, _)) = &mut self.ending {
            *planned = action;
            return;
        }
        log(Priority::Notice, &format!("{}: {why}", words(action)));
        let deadline_ns = times::now_ns().saturating_add(STOP_LIMIT_NS);
        self.ending = Some((action, Ending::Ordered, deadline_ns));
        if let Err(err) = self.start_unit("shutdown.target", Mode::ReplaceIrreversibly) {
            log(
                Priority::Error,
                &format!("cannot stop the units in order: {err}"),
            );
        }
    }

    /// `FailureAction=` and its sisters.
    fn act_on_machine(&mut self, action: MachineAction, why: &str) {
        let (action, urgency) = match action {
            MachineAction::None => return,
            MachineAction::Reboot(urgency) => (Action::Reboot, urgency),
            MachineAction::PowerOff(urgency) | MachineAction::Exit(urgency) => {
                (Action::PowerOff, urgency)
            }
        };
        match urgency {
            Urgency::Orderly => self.end(action, why),
            Urgency::Force | Urgency::Immediate => {
                log(Priority::Notice, &format!("{}: {why}", words(action)));
                if urgency == Urgency::Immediate {
                    let refusal = crate::teardown::final_step(action);
                    log(Priority::Alert, &refusal);
                }
                shutdown::finish(action);
            }
        }
    }

    /// What follows from all that happened in one turn of the loop.
    pub(super) fn after(&mut self) {
        let idle = self.manager.jobs.is_empty();
        if idle
            && self.manager.is_booting()
            && self.setup_began_ns > 0
            && !self.manager.graph.is_empty()
        {
            self.manager.booted();
            log(
                Priority::Notice,
                &format!(
                    "boot is complete, {} ms after the kernel",
                    times::now_ns() / 1_000_000
                ),
            );
            crash_if_asked();
        }
        while let Some((action, why)) = self.manager.take_machine_action() {
            self.act_on_machine(action, &why);
        }
        let Some((action, stage, deadline_ns)) = self.ending else {
            return;
        };
        let late = times::now_ns() >= deadline_ns;
        if !idle && !late {
            return;
        }
        if late {
            log(
                Priority::Error,
                "units did not stop in time; going on without them",
            );
        }
        match stage {
            Ending::Ordered if !late => {
                self.ending = Some((action, Ending::Rest, deadline_ns));
                self.manager.stop_rest();
                if self.manager.jobs.is_empty() {
                    shutdown::finish(action);
                }
            }
            Ending::Ordered | Ending::Rest => shutdown::finish(action),
        }
    }
}
