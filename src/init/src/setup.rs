//! `orlop setup`: the short-lived process that makes the machine what its configuration says, before any unit starts.
//!
//! `STEPS` is the whole of it. A step that fails is a line in the log and the others go on, so that whatever the
//! configuration holds the machine comes up and can be looked at. A second run changes nothing.

mod clock;
mod files;
mod identity;
mod kernel;
mod label;
mod remote;
mod replace;
mod reset;
mod seed;
mod source;
mod start;
mod volume;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use orlop_boot::cmdline::CommandLine;
use orlop_boot::times;
use orlop_config::{Input, Machine, Plan};

pub(crate) use clock::save as save_clock;
pub(crate) use seed::save as save_seed;

/// What the steps know and pass on.
struct Setup {
    /// What every path starts from: `/`, or a scratch directory in tests.
    root: PathBuf,
    /// Whether `root` is the machine's, so that mounts and kernel calls that have no path are made too.
    is_machine: bool,
    command_line: CommandLine,
    /// What the configuration is read from, in rising precedence.
    inputs: Vec<Input>,
    /// Whether a data source answered.
    has_source: bool,
    /// Whether what the data source gave has errors.
    has_errors: bool,
    machine: Machine,
    plan: Plan,
    /// What was asked for and did not happen, a line each.
    failures: Vec<String>,
}

/// A step with the name under which `orlop boot-times` shows it.
struct Step {
    name: &'static str,
    run: fn(&mut Setup),
}

/// All steps in their order.
///
/// The data volume comes before most of the configuration is applied, since it holds the configuration to use when the data
/// source is down.
const STEPS: &[Step] = &[
    Step {
        name: "setup.start",
        run: start::tell,
    },
    Step {
        name: "setup.source",
        run: source::find,
    },
    Step {
        name: "setup.configuration",
        run: source::load,
    },
    Step {
        name: "setup.data-volume",
        run: volume::mount_var,
    },
    Step {
        name: "setup.reset",
        run: reset::apply,
    },
    Step {
        name: "setup.directories",
        run: volume::make_directories,
    },
    Step {
        name: "setup.kept-configuration",
        run: source::keep,
    },
    Step {
        name: "setup.machine",
        run: source::record,
    },
    Step {
        name: "setup.seed",
        run: source::leave,
    },
    Step {
        name: "setup.machine-id",
        run: identity::machine_id,
    },
    Step {
        name: "setup.hostname",
        run: identity::hostname,
    },
    Step {
        name: "setup.kernel",
        run: kernel::apply,
    },
    Step {
        name: "setup.loopback",
        run: kernel::loopback,
    },
    Step {
        name: "setup.clock",
        run: clock::set,
    },
    Step {
        name: "setup.random-seed",
        run: seed::load,
    },
    Step {
        name: "setup.files",
        run: files::apply,
    },
];

/// Runs all steps on this machine. Fails when something that was asked for did not happen; all else is done.
#[must_use]
pub fn run() -> ExitCode {
    orlop_sys::kmsg::Logger::install("orlop");
    std::panic::set_hook(Box::new(|panic| log::error!("setup: {panic}")));
    match run_on(Path::new("/"), true).is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Runs all steps on the machine below `root` and gives a line for each failure.
fn run_on(root: &Path, is_machine: bool) -> Vec<String> {
    let mut setup = Setup::new(root, is_machine);
    for step in STEPS {
        let start_ns = times::now_ns();
        (step.run)(&mut setup);
        if is_machine {
            times::record(step.name, start_ns);
        }
    }
    setup.failures
}

impl Setup {
    fn new(root: &Path, is_machine: bool) -> Self {
        let text = std::fs::read(root.join("proc/cmdline")).unwrap_or_default();
        Self {
            root: root.to_owned(),
            is_machine,
            command_line: CommandLine::parse(&String::from_utf8_lossy(&text)),
            inputs: Vec::new(),
            has_source: false,
            has_errors: false,
            machine: Machine::default(),
            plan: Plan::default(),
            failures: Vec::new(),
        }
    }

    /// Where the machine's absolute `path` is.
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Reports something that was asked for and does not happen.
    fn fail(&mut self, what: impl std::fmt::Display) {
        log::error!("setup: {what}");
        self.failures.push(what.to_string());
    }
}

#[cfg(test)]
mod tests;
