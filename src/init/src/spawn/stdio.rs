//! Standard input, output and error of a unit's processes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::OnceLock;

use orlop_unit::{Input, Output, Service};

use super::{Failure, Surroundings};

/// A descriptor that is only passed on, or one that was opened for it.
enum Descriptor<'a> {
    Passed(BorrowedFd<'a>),
    Opened(OwnedFd),
}

impl AsFd for Descriptor<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Passed(fd) => *fd,
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}

pub(super) struct Stdio<'a> {
    input: Descriptor<'a>,
    output: Option<Descriptor<'a>>,
    error: Option<Descriptor<'a>>,
    pub(super) is_terminal: bool,
}

impl Stdio<'_> {
    /// Standard input, output and error.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        let output = self.output.as_ref().unwrap_or(&self.input);
        let error = self.error.as_ref().unwrap_or(output);
        [self.input.as_fd(), output.as_fd(), error.as_fd()]
    }
}

fn open(path: &str, options: &mut OpenOptions) -> Result<OwnedFd, Failure> {
    options
        .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|err| Failure::resources(format!("cannot open {path}: {err}")))
}

/// `/dev/null`, opened once: nothing that a service does to it matters to another.
fn null() -> Result<Descriptor<'static>, Failure> {
    static NULL: OnceLock<OwnedFd> = OnceLock::new();
    let null = match NULL.get() {
        Some(null) => null,
        None => {
            let opened = open("/dev/null", File::options().read(true).write(true))?;
            NULL.get_or_init(|| opened)
        }
    };
    Ok(Descriptor::Passed(null.as_fd()))
}

/// Whether anything that the service's processes write goes to the journal.
#[must_use]
pub fn writes_to_journal(service: &Service) -> bool {
    let journal = |output: &Output| matches!(output, Output::Journal | Output::JournalAndConsole);
    journal(&service.standard_output) || journal(&service.standard_error)
}

pub(super) fn open_stdio<'a>(
    service: &Service,
    around: &Surroundings<'a>,
) -> Result<Stdio<'a>, Failure> {
    let opened =
        |path: &str, options: &mut OpenOptions| open(path, options).map(Descriptor::Opened);
    let terminal = || opened(&service.tty_path, File::options().read(true).write(true));
    let socket = |directive: &str| {
        around.connection.map(Descriptor::Passed).ok_or_else(|| {
            let text = format!("{directive}=socket: it was not started by exactly one socket");
            Failure::resources(text)
        })
    };
    let (input, is_terminal) = match &service.standard_input {
        Input::Null => (null()?, false),
        Input::Tty | Input::TtyForce | Input::TtyFail => (terminal()?, true),
        Input::File(path) => (opened(path, File::options().read(true))?, false),
        Input::Data(bytes) => (Descriptor::Opened(data(bytes)?), false),
        Input::Descriptor(name) => (named(around, "StandardInput", name)?, false),
        Input::Socket => (socket("StandardInput")?, false),
    };
    let is_socket = matches!(service.standard_input, Input::Socket | Input::Descriptor(_));
    let stream = |output: &Output| -> Result<Option<Descriptor<'a>>, Failure> {
        Ok(Some(match output {
            Output::Inherit => return Ok(None),
            Output::Null => null()?,
            Output::Journal | Output::JournalAndConsole => match around.journal {
                Some(fd) => Descriptor::Passed(fd),
                None => null()?,
            },
            Output::KernelLog => opened("/dev/kmsg", File::options().write(true))?,
            Output::Tty => terminal()?,
            Output::Socket => socket("StandardOutput")?,
            Output::Descriptor(name) => named(around, "StandardOutput", name)?,
            Output::File(path) => opened(path, File::options().write(true).create(true))?,
            Output::Append(path) => opened(path, File::options().append(true).create(true))?,
            Output::Truncate(path) => opened(
                path,
                File::options().write(true).create(true).truncate(true),
            )?,
        }))
    };
    let output = match (&service.standard_output, is_terminal) {
        // A terminal as input is the output as well, unless something else is asked for (systemd.exec(5)).
        (Output::Journal, true) => stream(&Output::Tty)?,
        (Output::Journal, false) if is_socket => None,
        (output, _) => stream(output)?,
    };
    let error = stream(&service.standard_error)?;
    Ok(Stdio {
        input,
        output,
        error,
        is_terminal,
    })
}

/// The first descriptor of that name that the unit's sockets pass, or that it gave into keeping.
fn named<'a>(
    around: &Surroundings<'a>,
    directive: &str,
    name: &str,
) -> Result<Descriptor<'a>, Failure> {
    let names = around.descriptor_names.unwrap_or_default();
    let index = names.iter().position(|n| n == name);
    let fd = index.and_then(|index| around.inherit.get(index));
    fd.copied().map(Descriptor::Passed).ok_or_else(|| {
        Failure::resources(format!(
            "{directive}=fd:{name}: no socket of the unit has that name"
        ))
    })
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
