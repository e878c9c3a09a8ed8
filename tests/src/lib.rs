//! What tests need that boot guests: the image, one guest at a time, and many checks a boot.

pub mod random;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use orlop_qemu::guest::{Guest, Machine};
use orlop_qemu::image::{self, Compression, MachineKind, Options, Products, Project};
use orlop_qemu::process;

/// The image that all guests boot, built once; its cargo profile is `$ORLOP_BUILD`, or `release`.
///
/// # Panics
/// It cannot be built.
pub fn products() -> &'static Products {
    static PRODUCTS: OnceLock<Products> = OnceLock::new();
    PRODUCTS.get_or_init(|| build(MachineKind::Virtual))
}

/// The image for real machines, which has drivers that the other lacks.
///
/// # Panics
/// It cannot be built.
pub fn metal_products() -> &'static Products {
    static PRODUCTS: OnceLock<Products> = OnceLock::new();
    PRODUCTS.get_or_init(|| build(MachineKind::Metal))
}

fn build(machine: MachineKind) -> Products {
    // The same place and the same options as `make image`, which has built it already when `make test` calls us.
    let mut output = std::env::var_os("ORLOP_OUTPUT").map_or_else(|| "dist".into(), PathBuf::from);
    if machine == MachineKind::Metal {
        output.push(machine.name());
    }
    build_to(&output, machine)
}

/// Builds the image, or finds it up to date, in a directory of the project.
///
/// # Panics
/// It cannot be built.
pub fn build_to(output: &std::path::Path, machine: MachineKind) -> Products {
    let project = Project::here();
    let options = Options {
        build: std::env::var("ORLOP_BUILD").unwrap_or_else(|_| "release".to_owned()),
        binary: None,
        compression: Compression::Zstd,
        carry_root: true,
        machine,
        rescue: false,
        output: project.root.join(output),
    };
    match image::image(&project, &options) {
        Ok(products) => products,
        Err(error) => panic!("the image cannot be built: {error:#}"),
    }
}

/// The text of a file of the project.
///
/// # Panics
/// It cannot be read.
#[must_use]
pub fn project_file(path: &str) -> String {
    let path = Project::here().path(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The turn of one test to have guests.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed leaves nothing behind that the next one would mind.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One machine, its guest, and what was found wrong with it.
#[derive(Debug)]
pub struct Scenario {
    /// The machine, to be started again.
    pub machine: Machine,
    guest: Option<Guest>,
    name: &'static str,
    failures: Vec<String>,
    /// Two cores do not make two guests faster than one.
    _turn: MutexGuard<'static, ()>,
}

impl Scenario {
    /// Prepares a machine with `user_data`, `change`s it, and switches it on.
    ///
    /// # Panics
    /// QEMU does not start.
    pub fn start(
        name: &'static str,
        user_data: &str,
        change: impl FnOnce(&mut Machine) -> Result<()>,
    ) -> Self {
        Self::start_on(products(), name, user_data, change)
    }

    /// As [`Scenario::start`], with products of one's choice.
    ///
    /// # Panics
    /// QEMU does not start.
    pub fn start_on(
        products: &Products,
        name: &'static str,
        user_data: &str,
        change: impl FnOnce(&mut Machine) -> Result<()>,
    ) -> Self {
        let turn = turn();
        let prepared = (|| {
            let project = Project::here();
            let mut machine = Machine::new(&project, name, products)?;
            machine.write_seed(&project, user_data.as_bytes())?;
            change(&mut machine)?;
            Ok::<_, anyhow::Error>(machine)
        })();
        let machine =
            prepared.unwrap_or_else(|error| panic!("{name}: cannot be prepared: {error:#}"));
        let mut scenario = Self {
            machine,
            guest: None,
            name,
            failures: Vec::new(),
            _turn: turn,
        };
        scenario.switch_on();
        scenario
    }

    /// Switches the machine on, perhaps again.
    ///
    /// # Panics
    /// QEMU does not start.
    pub fn switch_on(&mut self) {
        match self.machine.start() {
            Ok(guest) => self.guest = Some(guest),
            Err(error) => panic!("{}: QEMU does not start: {error:#}", self.name),
        }
    }

    /// Makes one check, prints its sentence and its time, and goes on whatever came of it.
    pub fn check(&mut self, sentence: &str, check: impl FnOnce(&mut Guest) -> Result<()>) {
        let start = Instant::now();
        let result = match &mut self.guest {
            Some(guest) => check(guest),
            None => Err(anyhow::anyhow!("the guest is gone")),
        };
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        println!(
            "{}: {sentence} ... {verdict} ({:.1} s)",
            self.name,
            start.elapsed().as_secs_f64()
        );
        if let Err(error) = result {
            println!("    {error:#}");
            self.failures.push(format!("{sentence}: {error:#}"));
        }
    }

    /// A check without which the others say nothing.
    ///
    /// # Panics
    /// It fails.
    pub fn need(&mut self, sentence: &str, check: impl FnOnce(&mut Guest) -> Result<()>) {
        let before = self.failures.len();
        self.check(sentence, check);
        if self.failures.len() > before {
            self.fail();
        }
    }

    /// A check of one command in the guest, by SSH: it succeeds, and its output is as `is_right` wants it.
    pub fn command(&mut self, sentence: &str, command: &str, is_right: impl FnOnce(&str) -> bool) {
        self.check(sentence, |guest| {
            let output = guest.ssh()?.run(command)?;
            ensure!(is_right(&output), "`{command}` printed:\n{output}");
            Ok(())
        });
    }

    /// A check of one command: it succeeds, and prints just these lines.
    pub fn prints(&mut self, sentence: &str, command: &str, lines: &[&str]) {
        self.command(sentence, command, |text| {
            text.lines().eq(lines.iter().copied())
        });
    }

    /// A check of one command that may need time until its output is right.
    pub fn command_becomes(
        &mut self,
        sentence: &str,
        command: &str,
        is_right: impl Fn(&str) -> bool,
    ) {
        self.check(sentence, |guest| {
            let ssh = guest.ssh()?;
            let mut last = String::new();
            let deadline = Instant::now() + Duration::from_secs(60);
            process::poll(sentence, deadline, || {
                guest.alive()?;
                let output = ssh.output(command)?;
                last = format!(
                    "{}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
                Ok(is_right(&last).then_some(()))
            })
            .with_context(|| format!("`{command}` printed:\n{last}"))
        });
    }

    /// Powers the machine off in order; it can be switched on again.
    pub fn power_off(&mut self) {
        self.check(
            "the power button powers it off in order",
            Guest::press_power_button,
        );
        self.guest = None;
    }

    /// Pulls the plug.
    pub fn cut_power(&mut self) {
        if let Some(guest) = self.guest.take()
            && let Err(error) = guest.cut_power()
        {
            self.failures.push(format!("{error:#}"));
        }
    }

    /// Ends the test.
    ///
    /// # Panics
    /// A check failed.
    pub fn finish(self) {
        if !self.failures.is_empty() {
            self.fail();
        }
    }

    fn fail(&self) -> ! {
        let words = match &self.guest {
            Some(guest) => guest.last_words(),
            None => format!("logs: {}", self.machine.directory.display()),
        };
        panic!(
            "{}: {} checks failed:\n- {}\n{words}",
            self.name,
            self.failures.len(),
            self.failures.join("\n- ")
        );
    }
}

/// The number behind `mark` in `text`.
///
/// # Errors
/// There is none.
pub fn number_after(text: &str, mark: &str) -> Result<u64> {
    let (_, rest) = text
        .split_once(mark)
        .with_context(|| format!("{text:?} does not hold {mark:?}"))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits
        .parse()
        .with_context(|| format!("no number behind {mark:?} in {text:?}"))
}
