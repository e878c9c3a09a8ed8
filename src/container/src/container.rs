//! A container from specification to running process.
//!
//! [`Container::prepare`] checks and makes directories, [`Container::create`] clones the first process, which builds the
//! container around itself while the caller attaches the network; [`Created::wait_ready`] joins the two, and
//! [`Created::start`] lets it become the payload. Dropping a [`Created`] ends its process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{LinuxResources, Spec};
use orlop_sys::clone::{CloneFlags, Spawned, spawn};
use orlop_sys::pidfd::{self, Exit};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

use crate::fill::Fill;
use crate::limits::{self, LimitsError};
use crate::plan::{Plan, Unsupported};
use crate::process::{self, GO, READY};
use crate::report::{EXIT_RUNTIME, Failure};
use crate::rootfs::Places;
use crate::seccomp::Seccomp;

/// Why a container did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification asks for what cannot be done.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A directory of the container could not be made, emptied or opened.
    #[error("{}: {err}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What happened.
        err: io::Error,
    },
    /// The first process could not be made.
    #[error("start a process in new namespaces: {0}")]
    Clone(io::Error),
    /// The channel to the first process broke.
    #[error("talk to the container's first process: {0}")]
    Channel(io::Error),
    /// The first process ended without a word.
    #[error("the container's first process ended before it could run the command (out of memory?)")]
    Vanished,
    /// A step in the first process failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// Limits or the device filter could not be set.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// A namespace of the first process could not be opened.
    #[error("open the container's {kind} namespace: {err}")]
    Namespace {
        /// Its name in `/proc/PID/ns`.
        kind: &'static str,
        /// What happened.
        err: io::Error,
    },
}

impl Error {
    /// What a command that could not start its container exits with, as `docker run` does.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(failure) => failure.exit_code,
            _ => EXIT_RUNTIME,
        }
    }
}

/// The cgroup that a container lives in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroup {
    /// The caller's own, which it shares with nobody else: a unit's.
    Own(PathBuf),
    /// This one, made if it is missing.
    New(PathBuf),
    /// The caller's, without limits: a machine without cgroup2.
    Inherited,
}

/// What a container needs besides its specification.
#[derive(Debug, Clone)]
pub struct Options {
    /// Unpacked layers of the image, lowest first.
    pub layers: Vec<PathBuf>,
    /// The container's own directory: what it writes goes below, and what an earlier start left there is removed.
    pub directory: PathBuf,
    /// Named volumes, which take over what the image has in their place when they are empty.
    pub volumes: Vec<Fill>,
    /// `user[:group]` by the image's account files; `None`: the numbers of the specification.
    pub user: Option<String>,
    /// Further groups by name or number, by the image's files.
    pub groups: Vec<String>,
    /// Which filter.
    pub seccomp: Seccomp,
    /// Which cgroup.
    pub cgroup: Cgroup,
    /// Whether the caller's parent becomes the parent of the container's first process.
    pub child_of_our_parent: bool,
}

/// A container that is ready to be made.
#[derive(Debug)]
pub struct Container {
    plan: Plan,
    places: Places,
    resources: Option<LinuxResources>,
    cgroup: Cgroup,
    child_of_our_parent: bool,
}

impl Container {
    /// Checks the specification and makes the container's directories and cgroup.
    pub fn prepare(spec: &Spec, options: Options) -> Result<Self, Error> {
        let plan = Plan::new(
            spec,
            options.user.as_deref(),
            options.groups,
            options.seccomp,
        )?;
        if plan.terminal {
            return Err(Unsupported::Feature("a terminal".into()).into());
        }
        if options.layers.is_empty() {
            return Err(Unsupported::Missing("root: the image has no layers").into());
        }
        let places = Places {
            layers: options.layers,
            upper: options.directory.join("upper"),
            work: options.directory.join("work"),
            root: options.directory.join("root"),
            volumes: options.volumes,
        };
        for path in [&places.upper, &places.work, &places.root] {
            fresh_directory(path).map_err(|err| Error::Directory {
                path: path.clone(),
                err,
            })?;
        }
        let resources = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().clone());
        if let Cgroup::New(path) = &options.cgroup {
            limits::make_cgroup(path)?;
        }
        Ok(Self {
            plan,
            places,
            resources,
            cgroup: options.cgroup,
            child_of_our_parent: options.child_of_our_parent,
        })
    }

    /// Starts the first process, which builds the container around itself and then waits.
    pub fn create(self) -> Result<Created, Error> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| Error::Channel(e.into()))?;
        let mut flags = self.plan.namespaces | CloneFlags::CLEAR_SIGNAL_HANDLERS;
        if self.child_of_our_parent {
            flags |= CloneFlags::PARENT;
        }
        let cgroup = match &self.cgroup {
            Cgroup::New(path) => Some(limits::open_cgroup(path)?),
            Cgroup::Own(_) | Cgroup::Inherited => None,
        };
        let mut ours = Some(ours);
        let child = || {
            // Our copy of the parent's end would hide its death from us.
            drop(ours.take());
            process::run(&self.places, &self.plan, &theirs)
        };
        let Spawned { pid, pidfd } =
            spawn(flags, cgroup.as_ref().map(AsFd::as_fd), child).map_err(Error::Clone)?;
        drop(theirs);
        let channel = ours.ok_or(Error::Vanished)?;
        Ok(Created {
            pid,
            pidfd,
            channel,
            resources: self.resources,
            cgroup: self.cgroup,
            own_network: self.plan.namespaces.contains(CloneFlags::NEW_NETWORK),
        })
    }
}

/// Makes an empty directory, whatever was there before.
fn fresh_directory(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::create_dir_all(path)
}

/// A container whose first process exists and waits for [`Created::start`].
#[derive(Debug)]
pub struct Created {
    pid: i32,
    pidfd: OwnedFd,
    channel: OwnedFd,
    resources: Option<LinuxResources>,
    cgroup: Cgroup,
    own_network: bool,
}

impl Created {
    /// The first process, in our PID namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The first process.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The container's network namespace; `None` when it shares the machine's.
    pub fn network_namespace(&self) -> Result<Option<OwnedFd>, Error> {
        if !self.own_network {
            return Ok(None);
        }
        match pidfd::open_namespace(self.pidfd(), self.pid, "net") {
            Ok(namespace) => Ok(Some(namespace)),
            // A first process that failed early has a better story to tell.
            Err(err) => match self.receive() {
                Err(failed @ Error::Failed(_)) => Err(failed),
                _ => Err(Error::Namespace { kind: "net", err }),
            },
        }
    }

    fn receive(&self) -> Result<Option<u8>, Error> {
        match process::receive(self.channel.as_fd())
            .map_err(Error::Channel)?
            .as_deref()
        {
            None => Ok(None),
            Some([word]) => Ok(Some(*word)),
            Some(packet) => Err(Failure::decode(packet).into()),
        }
    }

    /// Waits until the container is built, and sets its limits.
    pub fn wait_ready(&mut self) -> Result<(), Error> {
        match self.receive()? {
            Some(READY) => {}
            _ => return Err(Error::Vanished),
        }
        // Not earlier: what preparation needs of memory is not the payload's.
        match &self.cgroup {
            Cgroup::Own(path) | Cgroup::New(path) => {
                Ok(limits::apply(path, self.resources.as_ref())?)
            }
            Cgroup::Inherited => Ok(()),
        }
    }

    /// Lets the first process become the payload; returns when it has.
    pub fn start(self) -> Result<Running, Error> {
        send(&self.channel, &[GO], SendFlags::NOSIGNAL).map_err(|e| Error::Channel(e.into()))?;
        // The channel closes by itself when execve succeeds.
        match self.receive()? {
            None => Ok(Running {
                pid: self.pid,
                pidfd: self.pidfd,
            }),
            Some(_) => Err(Error::Vanished),
        }
    }
}

/// A container that runs.
#[derive(Debug)]
pub struct Running {
    pid: i32,
    pidfd: OwnedFd,
}

impl Running {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    /// The first process, in our PID namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The first process.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits for the first process, which is our child, to end.
    pub fn wait(&self) -> io::Result<Exit> {
        pidfd::wait_child(self.pidfd())
    }

    /// Sends a signal to the first process.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        pidfd::send_signal(self.pidfd(), signal)
    }

    /// Waits at most `timeout` for the first process to end, without reaping it.
    pub fn wait_for_exit(&self, timeout: Duration) -> io::Result<bool> {
        pidfd::wait_for_exit(self.pidfd(), Some(timeout))
    }
}
