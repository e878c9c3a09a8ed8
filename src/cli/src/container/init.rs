//! `docker run --init`: a first process that starts the payload, hands on signals, and reaps what is orphaned.
//!
//! It is this binary, mounted read-only into the container.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::Spec;
use orlop_container::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, MountRequest, MountSource};

/// Where the container has it: Docker's own place.
const INSIDE: &str = "/sbin/docker-init";

/// The mount that brings the binary in.
pub(crate) fn mount() -> Result<MountRequest> {
    let binary: PathBuf =
        std::fs::read_link("/proc/self/exe").context("find our own executable")?;
    Ok(MountRequest {
        source: MountSource::Bind(binary),
        destination: INSIDE.into(),
        read_only: true,
        options: Vec::new(),
    })
}

/// Puts the first process before the command of the specification.
pub(crate) fn wrap(spec: &mut Spec) {
    if let Some(process) = spec.process_mut() {
        let mut words: Vec<String> = [INSIDE, "container", "init"].map(str::to_owned).into();
        words.extend(process.args().iter().flatten().cloned());
        process.set_args(Some(words));
    }
}

/// Runs as the first process: `words` are the payload.
pub(crate) fn main(words: &[String]) -> ExitCode {
    let Some((program, arguments)) = words.split_first() else {
        return ExitCode::from(2);
    };
    match run(program, arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("exec {program}: {error}");
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            ExitCode::from(if missing {
                EXIT_NOT_FOUND
            } else {
                EXIT_NOT_EXECUTABLE
            })
        }
    }
}

fn run(program: &str, arguments: &[String]) -> std::io::Result<u8> {
    // Blocked before the payload starts, so that no signal is lost; the library unblocks them for it.
    let all = SigSet::all();
    all.thread_block()?;
    let payload = Command::new(program).args(arguments).spawn()?;
    let payload = Pid::from_raw(i32::try_from(payload.id()).unwrap_or(i32::MAX));
    loop {
        match all.wait()? {
            Signal::SIGCHLD => {
                if let Some(code) = reap(payload)? {
                    return Ok(code);
                }
            }
            // It may have ended meanwhile, and be reaped next.
            signal => drop(kill(payload, signal)),
        }
    }
}

/// Reaps all that have ended; the payload's exit code if it is among them.
fn reap(payload: Pid) -> Result<Option<u8>, Errno> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == payload => {
                return Ok(Some(u8::try_from(code).unwrap_or(u8::MAX)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == payload => {
                return Ok(Some(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}
