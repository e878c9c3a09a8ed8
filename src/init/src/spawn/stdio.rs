//! Standard input, output and error of a unit's processes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use orlop_unit::{Input, Output, Service};

use super::{Failure, Surroundings};

pub(super) struct Stdio {
    pub(super) input: OwnedFd,
    output: Option<OwnedFd>,
    error: Option<OwnedFd>,
    pub(super) is_terminal: bool,
}

impl Stdio {
    pub(super) fn output(&self) -> BorrowedFd<'_> {
        self.output.as_ref().unwrap_or(&self.input).as_fd()
    }

    pub(super) fn error(&self) -> BorrowedFd<'_> {
        self.error
            .as_ref()
            .map_or_else(|| self.output(), |e| e.as_fd())
    }
}

fn open(path: &str, options: &mut OpenOptions) -> Result<OwnedFd, Failure> {
    options
        .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|err| Failure::resources(format!("cannot open {path}: {err}")))
}

fn null() -> Result<OwnedFd, Failure> {
    open("/dev/null", File::options().read(true).write(true))
}

/// Whether anything that the service's processes write goes to the journal.
#[must_use]
pub fn writes_to_journal(service: &Service) -> bool {
    let journal = |output: &Output| matches!(output, Output::Journal | Output::JournalAndConsole);
    journal(&service.standard_output) || journal(&service.standard_error)
}

pub(super) fn open_stdio(service: &Service, around: &Surroundings<'_>) -> Result<Stdio, Failure> {
    let terminal = || open(&service.tty_path, File::options().read(true).write(true));
    let (input, is_terminal) = match &service.standard_input {
        Input::Null => (null()?, false),
        Input::Tty | Input::TtyForce | Input::TtyFail => (terminal()?, true),
        Input::File(path) => (open(path, File::options().read(true))?, false),
        Input::Data(bytes) => (data(bytes)?, false),
        Input::Descriptor(name) => (named(around, "StandardInput", name)?, false),
        Input::Socket => match around.connection {
            Some(fd) => (
                fd.try_clone_to_owned().map_err(|err| {
                    Failure::resources(format!("cannot copy a descriptor: {err}"))
                })?,
                false,
            ),
            None => {
                return Err(Failure::resources(
                    "StandardInput=socket: it was not started by exactly one socket".to_owned(),
                ));
            }
        },
    };
    let is_socket = matches!(service.standard_input, Input::Socket | Input::Descriptor(_));
    let duplicate = |fd: BorrowedFd<'_>| {
        fd.try_clone_to_owned()
            .map_err(|err| Failure::resources(format!("cannot copy a descriptor: {err}")))
    };
    let stream =
        |output: &Output, inherited: Option<BorrowedFd<'_>>| -> Result<Option<OwnedFd>, Failure> {
            Ok(Some(match output {
                Output::Inherit => match inherited {
                    Some(fd) => duplicate(fd)?,
                    None => return Ok(None),
                },
                Output::Null => null()?,
                Output::Journal | Output::JournalAndConsole => match around.journal {
                    Some(fd) => duplicate(fd)?,
                    None => null()?,
                },
                Output::KernelLog => open("/dev/kmsg", File::options().write(true))?,
                Output::Tty => terminal()?,
                Output::Socket => match around.connection {
                    Some(fd) => duplicate(fd)?,
                    None => {
                        return Err(Failure::resources(
                            "StandardOutput=socket: it was not started by exactly one socket"
                                .to_owned(),
                        ));
                    }
                },
                Output::Descriptor(name) => named(around, "StandardOutput", name)?,
                Output::File(path) => open(path, File::options().write(true).create(true))?,
                Output::Append(path) => open(path, File::options().append(true).create(true))?,
                Output::Truncate(path) => open(
                    path,
                    File::options().write(true).create(true).truncate(true),
                )?,
            }))
        };
    let output = match (&service.standard_output, is_terminal) {
        // A terminal as input is the output as well, unless something else is asked for (systemd.exec(5)).
        (Output::Journal, true) => stream(&Output::Tty, None)?,
        (Output::Journal, false) if is_socket => None,
        (output, _) => stream(output, None)?,
    };
    let error = stream(&service.standard_error, None)?;
    Ok(Stdio {
        input,
        output,
        error,
        is_terminal,
    })
}

/// A copy of the first descriptor of that name that the unit's sockets pass, or that it gave into keeping.
fn named(around: &Surroundings<'_>, directive: &str, name: &str) -> Result<OwnedFd, Failure> {
    let names = around.descriptor_names.unwrap_or_default();
    let index = names.iter().position(|n| n == name);
    let Some(fd) = index.and_then(|index| around.inherit.get(index)) else {
        return Err(Failure::resources(format!(
            "{directive}=fd:{name}: no socket of the unit has that name"
        )));
    };
    fd.try_clone_to_owned()
        .map_err(|err| Failure::resources(format!("cannot copy a descriptor: {err}")))
}

/// A pipe that holds `bytes`; more than a pipe takes is refused rather than waited for.
fn data(bytes: &[u8]) -> Result<OwnedFd, Failure> {
    let made = || -> io::Result<OwnedFd> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        let written = nix::unistd::write(&write, bytes)?;
        if written < bytes.len() {
            return Err(io::Error::other("longer than 64 KiB"));
        }
        Ok(read)
    };
    made().map_err(|err| Failure::resources(format!("StandardInputText=: {err}")))
}
