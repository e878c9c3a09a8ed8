//! The life of the container's first process between `clone3` and `execve`.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use orlop_sys::clone::CloneFlags;
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fstat};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{DumpableBehavior, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::capabilities::COUNT;
use crate::paths::Root;
use crate::plan::{Plan, Who};
use crate::report::{During, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, Failure};
use crate::rootfs::{self, Places};
use crate::user::{self, Identity};

/// What the first process says when everything but the last steps is done; a [`Failure`] is longer.
pub(crate) const READY: u8 = 1;
/// What it then waits for.
pub(crate) const GO: u8 = 2;

/// Runs in the new process; returns only if the payload could not be started.
pub(crate) fn run(places: &Places, plan: &Plan, channel: &OwnedFd) -> u8 {
    let Err(failure) = become_payload(places, plan, channel);
    // With nobody left to listen the exit code has to do.
    let _nobody = send(channel, &failure.encode(), SendFlags::NOSIGNAL);
    failure.exit_code
}

fn become_payload(
    places: &Places,
    plan: &Plan,
    channel: &OwnedFd,
) -> Result<std::convert::Infallible, Failure> {
    // Until execve this process still is our own binary, which nothing in the container may look into or write to.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).during(|| "hide from the container")?;
    leave_callers_signals_and_session()?;
    if plan.namespaces.contains(CloneFlags::NEW_NETWORK) {
        orlop_sys::loopback::set_up().during(|| "set the loopback link up")?;
    }

    let root = rootfs::build(places, plan)?;
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes())
            .during(|| format!("set the host name {name:?}"))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .during(|| format!("set the domain name {name:?}"))?;
    }
    let identity = match &plan.who {
        Who::Named { user, groups } => user::resolve(&root, user, groups)?,
        Who::Numbers(identity) => identity.clone(),
    };

    send(channel, &[READY], SendFlags::NOSIGNAL).during(|| "report to the parent")?;
    let mut answer = [0_u8; 1];
    let received = rustix::io::retry_on_intr(|| recv(channel, &mut answer[..], RecvFlags::empty()));
    if received.during(|| "wait for the parent")?.0 != 1 || answer != [GO] {
        return Err(Failure::refused("the parent gave up"));
    }

    // The network is there by now, and with it the sysctls of its links.
    rootfs::write_kernel_values(plan)?;
    for (resource, soft, hard) in &plan.limits {
        let limit = Rlimit {
            current: (*soft != u64::MAX).then_some(*soft),
            maximum: (*hard != u64::MAX).then_some(*hard),
        };
        setrlimit(*resource, limit).during(|| format!("limit {resource:?} to {soft}:{hard}"))?;
    }
    finish(root, plan, &identity)
}

/// Gives every signal its default effect and opens a session, so that no terminal of ours is the payload's to command.
pub(crate) fn leave_callers_signals_and_session() -> Result<(), Failure> {
    orlop_sys::clone::reset_signal_dispositions();
    nix::sys::signal::SigSet::empty()
        .thread_set_mask()
        .map_err(std::io::Error::from)
        .during(|| "unblock signals")?;
    nix::unistd::setsid()
        .map_err(std::io::Error::from)
        .during(|| "start a session")?;
    Ok(())
}

/// The last steps, in the container already.
pub(crate) fn finish(
    root: Root,
    plan: &Plan,
    identity: &Identity,
) -> Result<std::convert::Infallible, Failure> {
    give_streams(identity);
    enter_working_directory(&root, &plan.working_directory)?;
    drop(root);
    rustix::process::umask(Mode::from_raw_mode(plan.umask));
    become_user(plan, identity)?;
    orlop_sys::clone::close_on_exec_from(3).during(|| "close descriptors")?;
    execute(plan, identity)
}

/// Lets the payload's user open its own standard streams anew, through `/dev/stdout` for one.
///
/// Only pipes and sockets change hands: a device belongs to others too (`/dev/null` of the machine, a terminal).
fn give_streams(identity: &Identity) {
    if identity.uid == 0 {
        return;
    }
    let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for stream in [input.as_fd(), output.as_fd(), errors.as_fd()] {
        let owned = fstat(stream).is_ok_and(|s| {
            matches!(
                FileType::from_raw_mode(s.st_mode),
                FileType::Fifo | FileType::Socket
            )
        });
        if owned {
            let _kept = rustix::fs::fchown(stream, Some(Uid::from_raw(identity.uid)), None);
        }
    }
}

/// Enters the directory by a lookup inside the root, and checks that it is inside (CVE-2024-21626).
fn enter_working_directory(root: &Root, path: &Path) -> Result<(), Failure> {
    let step = || format!("enter the working directory {}", path.display());
    let directory = root
        .lookup(path, OFlags::PATH | OFlags::DIRECTORY)
        .during(step)?;
    rustix::process::fchdir(&directory).during(step)?;
    let current = rustix::process::getcwd(Vec::new()).during(step)?;
    if current.as_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(Failure::refused(format!(
            "{}: it lies outside the container",
            step()
        )))
    }
}

/// Gives up everything that the payload is not to have.
fn become_user(plan: &Plan, identity: &Identity) -> Result<(), Failure> {
    let has = capabilities(None).during(|| "read capabilities")?.permitted;
    // Without no_new_privs the filter needs a capability that is gone afterwards.
    if !plan.no_new_privileges {
        install_filter(plan)?;
    }
    for number in 0..COUNT {
        if plan.capabilities.bounding >> number & 1 == 0 {
            match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number))
            {
                // A kernel older than the capability.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error).during(|| "drop capabilities")?,
            }
        }
    }
    set_keep_capabilities(true).during(|| "keep capabilities")?;
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups).during(|| "set groups")?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    set_thread_res_gid(gid, gid, gid).during(|| format!("become group {}", identity.gid))?;
    set_thread_res_uid(uid, uid, uid).during(|| format!("become user {}", identity.uid))?;
    // Nobody can hand on what the machine itself was not given.
    let possible = |set: u64| CapabilitySet::from_bits_retain(set) & has;
    let sets = CapabilitySets {
        effective: possible(plan.capabilities.effective),
        permitted: possible(plan.capabilities.permitted),
        inheritable: possible(plan.capabilities.inheritable),
    };
    set_capabilities(None, sets).during(|| "set capabilities")?;
    clear_ambient_capability_set().during(|| "clear ambient capabilities")?;
    for number in (0..COUNT).filter(|n| plan.capabilities.ambient >> n & 1 == 1) {
        configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << number), true)
            .during(|| "set ambient capabilities")?;
    }
    if plan.no_new_privileges {
        set_no_new_privs(true).during(|| "set no_new_privs")?;
        install_filter(plan)?;
    }
    Ok(())
}

fn install_filter(plan: &Plan) -> Result<(), Failure> {
    match &plan.filter {
        Some(filter) => orlop_sys::seccomp::install(filter.instructions())
            .during(|| "install the seccomp filter"),
        None => Ok(()),
    }
}

/// Replaces this process by the payload, looking for it in the container's own `PATH` as a shell does.
fn execute(plan: &Plan, identity: &Identity) -> Result<std::convert::Infallible, Failure> {
    let mut environment = plan.environment.clone();
    if !environment
        .iter()
        .any(|entry| entry.as_bytes().starts_with(b"HOME="))
    {
        let home = identity.home.as_deref().unwrap_or("/");
        environment.extend(CString::new(format!("HOME={home}")));
    }
    let program = plan
        .arguments
        .first()
        .map(|a| a.as_bytes())
        .unwrap_or_default();
    let candidates: Vec<CString> = if program.contains(&b'/') {
        CString::new(program).into_iter().collect()
    } else {
        let path = environment
            .iter()
            .find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
        path.unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .split(|byte| *byte == b':')
            .filter(|directory| directory.starts_with(b"/"))
            .filter_map(|directory| CString::new([directory, b"/", program].concat()).ok())
            .collect()
    };
    let mut error = nix::errno::Errno::ENOENT;
    for candidate in &candidates {
        let Err(reason) = nix::unistd::execve(candidate, &plan.arguments, &environment);
        match reason {
            nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR => {}
            // One that may not be run does not hide one further on that may.
            nix::errno::Errno::EACCES => error = reason,
            other => {
                error = other;
                break;
            }
        }
    }
    Err(Failure {
        step: format!("exec {}", Path::new(OsStr::from_bytes(program)).display()),
        errno: error as i32,
        exit_code: if error == nix::errno::Errno::ENOENT {
            EXIT_NOT_FOUND
        } else {
            EXIT_NOT_EXECUTABLE
        },
    })
}

/// Reads one packet; `None` when the other side closed.
pub(crate) fn receive(channel: BorrowedFd<'_>) -> std::io::Result<Option<Vec<u8>>> {
    let mut packet = vec![0_u8; Failure::MAX_PACKET];
    let (length, _) =
        rustix::io::retry_on_intr(|| recv(channel.as_fd(), &mut packet[..], RecvFlags::empty()))?;
    packet.truncate(length);
    Ok(Some(packet).filter(|p| !p.is_empty()))
}
