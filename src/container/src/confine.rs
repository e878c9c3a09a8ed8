//! Confines the calling process as a service's directives say, and makes it the service's program.
//!
//! PID 1 starts this for units that ask for more than a few system calls: the process keeps its number, its cgroup and its
//! descriptors, and nothing of ours is left of it when the program runs.

mod credentials;
mod filters;
mod mounts;
mod places;
mod private;
mod resources;
mod root;
mod users;

use std::ffi::CString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use nix::sched::CloneFlags;
use orlop_unit::{Capabilities, Launch};
use rustix::fs::{Access, AtFlags, Gid, Mode, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::capabilities::COUNT;
use crate::report::{During as _, Failure};

/// systemd.exec(5)'s exit codes for the steps of a start.
mod code {
    pub(super) const DIRECTORY: u8 = 200;
    pub(super) const EXECUTE: u8 = 203;
    pub(super) const GROUP: u8 = 216;
    pub(super) const USER: u8 = 217;
    pub(super) const CAPABILITIES: u8 = 218;
    pub(super) const CGROUP: u8 = 219;
    pub(super) const NETWORK: u8 = 225;
    pub(super) const NAMESPACE: u8 = 226;
    pub(super) const NO_NEW_PRIVILEGES: u8 = 227;
    pub(super) const FILTER: u8 = 228;
    pub(super) const STATE_DIRECTORY: u8 = 238;
    pub(super) const CREDENTIALS: u8 = 243;
}

/// The capability that lets a process install filters without giving up privileges for good.
const SYS_ADMIN: Capabilities = Capabilities(1 << 21);

/// Names the step that a failure belongs to.
trait Step<T> {
    fn step(self, code: u8) -> Result<T, Failure>;
}

impl<T> Step<T> for Result<T, Failure> {
    fn step(self, code: u8) -> Result<T, Failure> {
        self.map_err(|failure| Failure {
            exit_code: code,
            ..failure
        })
    }
}

/// Becomes the program of `launch`; comes back only with what went wrong, which has systemd's exit code for it.
///
/// The environment is this process's own.
#[must_use]
pub fn confine(launch: &Launch) -> Failure {
    let Err(failure) = become_program(launch);
    failure
}

fn become_program(launch: &Launch) -> Result<std::convert::Infallible, Failure> {
    let c = &launch.confinement;
    let filters = filters::filters(c)
        .map_err(Failure::refused)
        .step(code::FILTER)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    resources::apply(launch)?;
    resources::restrict_devices(c).step(code::CGROUP)?;
    if let Some(path) = &c.network_namespace_path {
        private::enter_network(path).step(code::NETWORK)?;
    } else if c.private_network {
        let prepare = orlop_sys::loopback::set_up;
        private::enter(launch, "net", CloneFlags::CLONE_NEWNET, prepare).step(code::NETWORK)?;
    }
    if c.private_ipc {
        private::enter(launch, "ipc", CloneFlags::CLONE_NEWIPC, || Ok(())).step(code::NAMESPACE)?;
    }
    if c.protect_hostname {
        nix::sched::unshare(CloneFlags::CLONE_NEWUTS)
            .during(|| "make a namespace for the host name")
            .step(code::NAMESPACE)?;
    }
    if let (Some(user), true) = (&launch.user, launch.owns_directories) {
        for path in &launch.directories {
            mounts::hand_over(path, user.uid, user.gid).step(code::STATE_DIRECTORY)?;
        }
    }
    credentials::show(launch).step(code::CREDENTIALS)?;
    mounts::build(launch).step(code::NAMESPACE)?;
    let keeps_filters = become_user(launch)?;
    rustix::process::chdir(launch.directory.as_str())
        .during(|| format!("change to the directory {}", launch.directory))
        .step(code::DIRECTORY)?;
    if c.no_new_privileges || (!filters.is_empty() && !keeps_filters) {
        set_no_new_privs(true)
            .during(|| "forbid new privileges")
            .step(code::NO_NEW_PRIVILEGES)?;
    }
    execute(launch, &filters)
}

/// What of the capabilities stays, beside what the unit itself takes away.
fn bounding(launch: &Launch) -> u64 {
    let c = &launch.confinement;
    let names = |names: &[&str]| {
        names
            .iter()
            .filter_map(|name| Capabilities::one(name))
            .fold(0, |set, one| set | one.0)
    };
    let mut set = c.capability_bounding_set.unwrap_or(Capabilities::ALL).0;
    for (is_set, taken) in [
        (c.private_devices, &["CAP_MKNOD", "CAP_SYS_RAWIO"][..]),
        (c.protect_kernel_modules, &["CAP_SYS_MODULE"]),
        (c.protect_kernel_logs, &["CAP_SYSLOG"]),
        (c.protect_clock, &["CAP_SYS_TIME", "CAP_WAKE_ALARM"]),
    ] {
        if is_set {
            set &= !names(taken);
        }
    }
    set
}

/// Takes the identity; answers whether the process may install filters as it is.
fn become_user(launch: &Launch) -> Result<bool, Failure> {
    if let Some(user) = &launch.user {
        let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups)
            .during(|| "set groups")
            .step(code::GROUP)?;
    }
    if launch.confinement.private_users {
        let user = launch.user.as_ref();
        let (uid, gid) = user.map_or((0, 0), |u| (u.uid, u.gid));
        users::enter(uid, gid).step(code::USER)?;
    }
    let has = capabilities(None)
        .during(|| "read capabilities")
        .step(code::CAPABILITIES)?
        .permitted;
    let bounding = bounding(launch);
    let ambient = CapabilitySet::from_bits_retain(launch.confinement.ambient_capabilities.0);
    if let Some(missing) = (ambient - has).iter_names().next() {
        return Err(Failure::refused(format!(
            "AmbientCapabilities=: this machine has no CAP_{}",
            missing.0
        )))
        .step(code::CAPABILITIES);
    }
    for number in (0..COUNT).filter(|n| bounding >> n & 1 == 0) {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            // A kernel older than the capability.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => {
                return Err(error)
                    .during(|| "drop capabilities")
                    .step(code::CAPABILITIES);
            }
        }
    }
    let mut keeps = has;
    if let Some(user) = &launch.user {
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        set_thread_res_gid(gid, gid, gid)
            .during(|| format!("become group {}", user.gid))
            .step(code::GROUP)?;
        if user.uid != 0 {
            set_keep_capabilities(true)
                .during(|| "keep capabilities")
                .step(code::CAPABILITIES)?;
            keeps = ambient;
        }
        set_thread_res_uid(uid, uid, uid)
            .during(|| format!("become user {}", user.uid))
            .step(code::USER)?;
    }
    let sets = CapabilitySets {
        effective: keeps,
        permitted: keeps,
        inheritable: ambient,
    };
    set_capabilities(None, sets)
        .and_then(|()| clear_ambient_capability_set())
        .during(|| "set capabilities")
        .step(code::CAPABILITIES)?;
    for number in (0..COUNT).filter(|n| ambient.bits() >> n & 1 == 1) {
        configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << number), true)
            .during(|| "set ambient capabilities")
            .step(code::CAPABILITIES)?;
    }
    Ok(keeps.contains(CapabilitySet::from_bits_retain(SYS_ADMIN.0)))
}

fn execute(
    launch: &Launch,
    filters: &[filters::Filter],
) -> Result<std::convert::Infallible, Failure> {
    let cannot = || format!("cannot execute {}", launch.program);
    let string = |text: &str| {
        CString::new(text)
            .map_err(|_| Failure::refused(format!("{text:?} holds a NUL")))
            .step(code::EXECUTE)
    };
    let program = string(&launch.program)?;
    let arguments = launch
        .arguments
        .iter()
        .map(|a| string(a))
        .collect::<Result<Vec<_>, _>>()?;
    let environment: Vec<CString> = std::env::vars_os()
        .filter_map(|(name, value)| {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend(value.into_vec());
            CString::new(entry).ok()
        })
        .collect();
    // Behind the filters there may be no way to tell what is wrong.
    let program_path = Path::new(&launch.program);
    rustix::fs::accessat(
        rustix::fs::CWD,
        program_path,
        Access::EXEC_OK,
        AtFlags::EACCESS,
    )
    .during(cannot)
    .step(code::EXECUTE)?;
    orlop_sys::clone::reset_signal_dispositions();
    if launch.ignore_broken_pipes {
        orlop_sys::signal::ignore_closed_pipes();
    }
    rustix::process::umask(Mode::from_raw_mode(launch.umask));
    for filter in filters {
        orlop_sys::seccomp::install(&filter.program)
            .during(|| format!("install the filter of {}", filter.directive))
            .step(code::FILTER)?;
    }
    let Err(error) = nix::unistd::execve(&program, &arguments, &environment);
    Err(error).during(cannot).step(code::EXECUTE)
}
