//! Child processes that do not outlive this program.

use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

type Request = (Command, Sender<std::io::Result<Child>>);

/// Starts `command`, which is to run below `setpriv` (see [`bound`]).
///
/// The kernel sends a child its death signal when the *thread* that started it ends (prctl(2), `PR_SET_PDEATHSIG`): a test's
/// thread is gone before the guest that it shares with others. So one thread that never ends starts them all.
///
/// # Errors
/// The program cannot be started.
pub fn spawn(command: Command) -> Result<Child> {
    static STARTER: OnceLock<Sender<Request>> = OnceLock::new();
    let program = command.get_program().to_string_lossy().into_owned();
    let starter = STARTER.get_or_init(|| {
        let (sender, receiver) = channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in receiver {
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, child) = channel();
    starter
        .send((command, answer))
        .context("the thread that starts programs is gone")?;
    child
        .recv()
        .context("the thread that starts programs is gone")?
        .with_context(|| format!("start {program}"))
}

/// A command that the kernel kills when this program ends in whatever way.
#[must_use]
pub fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// Looks again and again until `look` finds something, at most until `deadline`.
///
/// # Errors
/// The time is over, or `look` gave up.
pub fn poll<T>(
    what: &str,
    deadline: Instant,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            anyhow::bail!(
                "waited {:.0} s in vain for {what}",
                start.elapsed().as_secs_f64()
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A child that is killed and reaped when its owner goes.
#[derive(Debug)]
pub struct Owned(pub Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
