//! A further process in a container that runs.
//!
//! The container may be hostile by now: whatever joins it hides from it first, brings no descriptor along, looks up
//! users and directories inside its root, and ends up with no more than its first process has.

use std::ffi::CString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags as Join;
use orlop_sys::clone::{CloneFlags, Spawned, close_on_exec_from, spawn};
use orlop_sys::pidfd;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::container::{Error, Running};
use crate::paths::Root;
use crate::plan::{CapabilitySets, Plan, Unsupported, Who};
use crate::process;
use crate::report::{During, Failure};
use crate::seccomp::Filter;
use crate::user;

/// What to run in a container.
#[derive(Debug, Clone, Default)]
pub struct Exec {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// `NAME=value`, besides the environment of the first process.
    pub environment: Vec<String>,
    /// Where; the root if unset.
    pub working_directory: Option<PathBuf>,
    /// `user[:group]` by the container's files; root if unset.
    pub user: Option<String>,
}

/// Larger environments are cut.
const MAX_ENVIRONMENT_BYTES: u64 = 1 << 20;

/// Starts a process in the container whose first process is `first`, number `pid`; it is our child.
pub fn exec(first: BorrowedFd<'_>, pid: i32, request: &Exec) -> Result<Running, Error> {
    let plan = plan(pid, request)?;
    // Everything was read by number: the process must have been there all the time.
    if pidfd::has_exited(first).map_err(Error::Channel)? {
        return Err(Error::Vanished);
    }
    join_cgroup(pid);
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| Error::Channel(e.into()))?;
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(std::io::Error::from);
    hidden
        .and_then(|()| close_on_exec_from(3))
        .and_then(|()| Ok(nix::sched::setns(first, Join::CLONE_NEWPID)?))
        .map_err(|err| Error::Namespace { kind: "pid", err })?;
    let mut ours = Some(ours);
    let child = || {
        drop(ours.take());
        let Err(failure) = become_payload(first, &plan);
        let _nobody = send(&theirs, &failure.encode(), SendFlags::NOSIGNAL);
        failure.exit_code
    };
    let Spawned { pid, pidfd } =
        spawn(CloneFlags::CLEAR_SIGNAL_HANDLERS, None, child).map_err(Error::Clone)?;
    drop(theirs);
    let channel: OwnedFd = ours.ok_or(Error::Vanished)?;
    match process::receive(channel.as_fd()).map_err(Error::Channel)? {
        None => Ok(Running::new(pid, pidfd)),
        Some(packet) => {
            // Left unreaped it would hold up the end of the container's first process.
            let _ended = pidfd::wait_child(pidfd.as_fd());
            Err(Failure::decode(&packet).into())
        }
    }
}

fn become_payload(first: BorrowedFd<'_>, plan: &Plan) -> Result<std::convert::Infallible, Failure> {
    process::leave_callers_signals_and_session()?;
    let all = Join::CLONE_NEWNS
        | Join::CLONE_NEWNET
        | Join::CLONE_NEWIPC
        | Join::CLONE_NEWUTS
        | Join::CLONE_NEWCGROUP;
    nix::sched::setns(first, all)
        .map_err(std::io::Error::from)
        .during(|| "join the container")?;
    let root = Root::open(Path::new("/")).during(|| "open the container's root")?;
    let identity = match &plan.who {
        Who::Named { user, groups } => user::resolve(&root, user, groups)?,
        Who::Numbers(identity) => identity.clone(),
    };
    process::finish(root, plan, &identity)
}

/// Limits count for the newcomer as for the rest. Where the machine keeps no cgroup2 there is none to join.
fn join_cgroup(pid: i32) {
    let Some(mount) = orlop_sys::cgroup::mount_point() else {
        return;
    };
    let list = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    if let Some(path) = list.lines().find_map(|line| line.strip_prefix("0::/")) {
        let file = mount.join(path).join("cgroup.procs");
        if let Err(error) = std::fs::write(&file, std::process::id().to_string()) {
            log::warn!("{}: {error}", file.display());
        }
    }
}

/// What the newcomer is to be, by what the first process is.
fn plan(pid: i32, request: &Exec) -> Result<Plan, Error> {
    let file = |name: &str| {
        let path = PathBuf::from(format!("/proc/{pid}/{name}"));
        let mut bytes = Vec::new();
        let read =
            File::open(&path).and_then(|f| f.take(MAX_ENVIRONMENT_BYTES).read_to_end(&mut bytes));
        read.map(|_| bytes)
            .map_err(|err| Error::Directory { path, err })
    };
    let status = String::from_utf8_lossy(&file("status")?).into_owned();
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.map(str::trim).unwrap_or_default()
    };
    let bounding = u64::from_str_radix(value("CapBnd:"), 16).unwrap_or(0);
    let mut environment: Vec<String> = file("environ")?
        .split(|byte| *byte == 0)
        .filter(|entry| {
            !entry.is_empty()
                && !entry.starts_with(b"HOME=")
                && !entry.starts_with(b"NOTIFY_SOCKET=")
        })
        .map(|entry| String::from_utf8_lossy(entry).into_owned())
        .collect();
    for entry in &request.environment {
        let name = entry.split('=').next();
        environment.retain(|old| old.split('=').next() != name);
        environment.push(entry.clone());
    }
    let strings = |what, list: &[String]| crate::plan::strings(what, list);
    let arguments: Vec<CString> = strings("argument", &request.command)?;
    if arguments.is_empty() {
        return Err(Unsupported::Missing("command").into());
    }
    Ok(Plan {
        arguments,
        environment: strings("environment", &environment)?,
        working_directory: request
            .working_directory
            .clone()
            .unwrap_or_else(|| PathBuf::from("/")),
        who: Who::Named {
            user: request
                .user
                .clone()
                .filter(|u| !u.is_empty())
                .unwrap_or_else(|| "0".into()),
            groups: Vec::new(),
        },
        capabilities: CapabilitySets {
            bounding,
            effective: bounding,
            permitted: bounding,
            // Never what our caller has (CVE-2022-29162).
            inheritable: 0,
            ambient: 0,
        },
        no_new_privileges: value("NoNewPrivs:") == "1",
        filter: (value("Seccomp:") == "2").then(|| Filter::for_capabilities(bounding)),
        umask: 0o022,
        ..Plan::nothing()
    })
}
