//! What the container's first process has to do, checked and decided beforehand from the OCI runtime specification.

use std::ffi::CString;
use std::path::PathBuf;

use oci_spec::runtime::{
    Capabilities, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, Mount, PosixRlimit,
    PosixRlimitType, Spec,
};
use orlop_sys::clone::CloneFlags;
use orlop_sys::mount_api::{MountAttributes, Propagation};
use rustix::process::Resource;

use crate::capabilities::parse_capability;
use crate::paths::normal;
use crate::seccomp::{Filter, Seccomp};
use crate::user::Identity;

/// A part of the specification that cannot be obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// A required part is missing.
    #[error("the specification has no {0}")]
    Missing(&'static str),
    /// This runtime does not do it.
    #[error("not supported: {0}")]
    Feature(String),
    /// The value makes no sense.
    #[error("{what} {value:?}: {reason}")]
    Value {
        /// The part of the specification.
        what: &'static str,
        /// What it holds.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// One mount.
#[derive(Debug)]
pub(crate) struct PlannedMount {
    pub(crate) destination: PathBuf,
    pub(crate) source: Source,
    pub(crate) set: MountAttributes,
    pub(crate) clear: MountAttributes,
    pub(crate) propagation: Propagation,
}

/// What is mounted.
#[derive(Debug)]
pub(crate) enum Source {
    /// A new filesystem of `kind`.
    Filesystem {
        kind: String,
        source: String,
        options: Vec<String>,
    },
    /// What is at `path` on the machine.
    Bind { path: PathBuf, recursive: bool },
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) path: PathBuf,
    pub(crate) block: bool,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The five sets: bit n is capability number n.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct CapabilitySets {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

/// Who the payload is to be.
#[derive(Debug)]
pub(crate) enum Who {
    /// Looked up in the image once its root is there.
    Named {
        /// `user[:group]`.
        user: String,
        /// Groups besides those that the user has.
        groups: Vec<String>,
    },
    /// As the specification's numbers say.
    Numbers(Identity),
}

/// Everything that the first process does before it becomes the payload.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) namespaces: CloneFlags,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    pub(crate) mounts: Vec<PlannedMount>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) masked_paths: Vec<PathBuf>,
    pub(crate) read_only_paths: Vec<PathBuf>,
    pub(crate) read_only_root: bool,
    pub(crate) sysctls: Vec<(String, String)>,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    pub(crate) working_directory: PathBuf,
    pub(crate) who: Who,
    pub(crate) umask: u32,
    pub(crate) terminal: bool,
    pub(crate) capabilities: CapabilitySets,
    pub(crate) no_new_privileges: bool,
    pub(crate) filter: Option<Filter>,
    pub(crate) limits: Vec<(Resource, u64, u64)>,
    pub(crate) oom_score_adjust: Option<i32>,
}

/// Nodes that the specification promises in every container, all of mode 0666.
const STANDARD_NODES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

impl Plan {
    /// A plan that asks for nothing.
    pub(crate) fn nothing() -> Self {
        Self {
            namespaces: CloneFlags::empty(),
            hostname: None,
            domainname: None,
            mounts: Vec::new(),
            nodes: Vec::new(),
            masked_paths: Vec::new(),
            read_only_paths: Vec::new(),
            read_only_root: false,
            sysctls: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            working_directory: PathBuf::from("/"),
            who: Who::Numbers(Identity::default()),
            umask: 0o022,
            terminal: false,
            capabilities: CapabilitySets::default(),
            no_new_privileges: true,
            filter: None,
            limits: Vec::new(),
            oom_score_adjust: None,
        }
    }

    /// Checks `spec`; `user` is what `--user` or the image's configuration says, to be looked up in the image.
    pub(crate) fn new(
        spec: &Spec,
        user: Option<&str>,
        groups: Vec<String>,
        seccomp: Seccomp,
    ) -> Result<Self, Unsupported> {
        let process = spec
            .process()
            .as_ref()
            .ok_or(Unsupported::Missing("process"))?;
        let linux = spec.linux().as_ref().ok_or(Unsupported::Missing("linux"))?;
        if linux.seccomp().is_some() {
            return Err(Unsupported::Feature(
                "a seccomp profile of one's own".into(),
            ));
        }
        if spec.hooks().is_some() {
            return Err(Unsupported::Feature("hooks".into()));
        }
        let namespaces = namespaces(linux.namespaces().as_deref().unwrap_or_default())?;
        let own_network = namespaces.contains(CloneFlags::NEW_NETWORK);
        let mut sysctls: Vec<(String, String)> = linux
            .sysctl()
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        sysctls.sort();
        if let Some((key, _)) = sysctls
            .iter()
            .find(|(key, _)| !is_namespaced_sysctl(key, own_network))
        {
            return Err(Unsupported::Value {
                what: "sysctl",
                value: key.clone(),
                reason: "it belongs to the whole machine, not to a container",
            });
        }
        let sets = process
            .capabilities()
            .as_ref()
            .map_or(CapabilitySets::default(), |c| CapabilitySets {
                bounding: bits(c.bounding()),
                effective: bits(c.effective()),
                permitted: bits(c.permitted()),
                inheritable: bits(c.inheritable()),
                ambient: bits(c.ambient()),
            });
        let arguments = strings("argument", process.args().as_deref().unwrap_or_default())?;
        if arguments.first().is_none_or(|program| program.is_empty()) {
            return Err(Unsupported::Missing(
                "command: neither the image nor the command line names one",
            ));
        }
        let numbers = process.user();
        let mut nodes: Vec<Node> = STANDARD_NODES
            .iter()
            .map(|(path, major, minor)| Node {
                path: path.into(),
                block: false,
                major: *major,
                minor: *minor,
                mode: 0o666,
                uid: 0,
                gid: 0,
            })
            .collect();
        for device in linux.devices().iter().flatten() {
            nodes.push(node(device)?);
        }
        Ok(Self {
            namespaces,
            hostname: spec.hostname().clone(),
            domainname: spec.domainname().clone(),
            mounts: spec
                .mounts()
                .iter()
                .flatten()
                .map(planned_mount)
                .collect::<Result<_, _>>()?,
            nodes,
            masked_paths: paths(linux.masked_paths()),
            read_only_paths: paths(linux.readonly_paths()),
            read_only_root: spec
                .root()
                .as_ref()
                .and_then(oci_spec::runtime::Root::readonly)
                .unwrap_or(false),
            sysctls,
            arguments,
            environment: strings("environment", process.env().as_deref().unwrap_or_default())?,
            working_directory: normal(process.cwd()),
            who: match user {
                Some(user) => Who::Named {
                    user: if user.is_empty() { "0" } else { user }.to_owned(),
                    groups,
                },
                None => Who::Numbers(Identity {
                    uid: numbers.uid(),
                    gid: numbers.gid(),
                    groups: numbers.additional_gids().clone().unwrap_or_default(),
                    home: None,
                }),
            },
            umask: numbers.umask().unwrap_or(0o022) & 0o777,
            terminal: process.terminal().unwrap_or(false),
            capabilities: sets,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            filter: match seccomp {
                Seccomp::Default => Some(Filter::for_capabilities(sets.bounding)),
                Seccomp::Unconfined => None,
            },
            limits: process.rlimits().iter().flatten().map(limit).collect(),
            oom_score_adjust: process.oom_score_adj(),
        })
    }
}

fn paths(list: &Option<Vec<String>>) -> Vec<PathBuf> {
    list.iter()
        .flatten()
        .map(|path| normal(path.as_ref()))
        .collect()
}

pub(crate) fn strings(what: &'static str, list: &[String]) -> Result<Vec<CString>, Unsupported> {
    list.iter()
        .map(|text| {
            CString::new(text.as_str()).map_err(|_| Unsupported::Value {
                what,
                value: text.clone(),
                reason: "it holds a zero byte",
            })
        })
        .collect()
}

fn bits(set: &Option<Capabilities>) -> u64 {
    set.iter()
        .flatten()
        .filter_map(|capability| parse_capability(&capability.to_string()))
        .fold(0, |a, b| a | b)
}

fn namespaces(list: &[oci_spec::runtime::LinuxNamespace]) -> Result<CloneFlags, Unsupported> {
    let mut flags = CloneFlags::empty();
    for namespace in list {
        if let Some(path) = namespace.path() {
            return Err(Unsupported::Feature(format!(
                "joining the namespace {}",
                path.display()
            )));
        }
        flags |= match namespace.typ() {
            LinuxNamespaceType::Mount => CloneFlags::NEW_MOUNT,
            LinuxNamespaceType::Cgroup => CloneFlags::NEW_CGROUP,
            LinuxNamespaceType::Uts => CloneFlags::NEW_UTS,
            LinuxNamespaceType::Ipc => CloneFlags::NEW_IPC,
            LinuxNamespaceType::Pid => CloneFlags::NEW_PID,
            LinuxNamespaceType::Network => CloneFlags::NEW_NETWORK,
            other => return Err(Unsupported::Feature(format!("a namespace of type {other}"))),
        };
    }
    // Without these the steps that follow would work on the machine's own mounts and processes.
    for (needed, name) in [
        (CloneFlags::NEW_MOUNT, "mount"),
        (CloneFlags::NEW_PID, "pid"),
    ] {
        if !flags.contains(needed) {
            return Err(Unsupported::Feature(format!(
                "a container without its own {name} namespace"
            )));
        }
    }
    Ok(flags)
}

/// Whether the kernel keeps the value per namespace, so that a container may set it for itself.
fn is_namespaced_sysctl(key: &str, own_network: bool) -> bool {
    let key = key.replace('/', ".");
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let sane = key.split('.').all(|part| !part.is_empty());
    sane && (IPC.contains(&key.as_str())
        || key.starts_with("fs.mqueue.")
        || own_network && key.starts_with("net."))
}

fn node(device: &LinuxDevice) -> Result<Node, Unsupported> {
    let refuse = |reason| Unsupported::Value {
        what: "device",
        value: device.path().display().to_string(),
        reason,
    };
    Ok(Node {
        path: normal(device.path()),
        block: match device.typ() {
            LinuxDeviceType::B => true,
            LinuxDeviceType::C | LinuxDeviceType::U => false,
            LinuxDeviceType::A | LinuxDeviceType::P => {
                return Err(refuse("neither a block nor a character device"));
            }
        },
        major: device
            .major()
            .try_into()
            .map_err(|_| refuse("its major number is out of range"))?,
        minor: device
            .minor()
            .try_into()
            .map_err(|_| refuse("its minor number is out of range"))?,
        mode: device.file_mode().unwrap_or(0o666) & 0o777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

fn limit(limit: &PosixRlimit) -> (Resource, u64, u64) {
    let resource = match limit.typ() {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    };
    (resource, limit.soft(), limit.hard())
}

fn planned_mount(mount: &Mount) -> Result<PlannedMount, Unsupported> {
    let mut set = MountAttributes::empty();
    let mut clear = MountAttributes::empty();
    let mut propagation = Propagation::Private;
    let mut bind = None;
    let mut data = Vec::new();
    for option in mount.options().iter().flatten() {
        match option.as_str() {
            "bind" => bind = Some(bind.unwrap_or(false)),
            "rbind" => bind = Some(true),
            "ro" | "rro" => set |= MountAttributes::MOUNT_ATTR_RDONLY,
            "rw" | "rrw" => clear |= MountAttributes::MOUNT_ATTR_RDONLY,
            "nosuid" => set |= MountAttributes::MOUNT_ATTR_NOSUID,
            "suid" => clear |= MountAttributes::MOUNT_ATTR_NOSUID,
            "nodev" => set |= MountAttributes::MOUNT_ATTR_NODEV,
            "dev" => clear |= MountAttributes::MOUNT_ATTR_NODEV,
            "noexec" => set |= MountAttributes::MOUNT_ATTR_NOEXEC,
            "exec" => clear |= MountAttributes::MOUNT_ATTR_NOEXEC,
            "nodiratime" => set |= MountAttributes::MOUNT_ATTR_NODIRATIME,
            "noatime" => {
                set |= MountAttributes::MOUNT_ATTR_NOATIME;
                clear |= MountAttributes::MOUNT_ATTR__ATIME;
            }
            "strictatime" => {
                set |= MountAttributes::MOUNT_ATTR_STRICTATIME;
                clear |= MountAttributes::MOUNT_ATTR__ATIME;
            }
            // The kernel's own default.
            "relatime" | "defaults" | "async" | "diratime" | "norelatime" => {}
            "private" | "rprivate" => propagation = Propagation::Private,
            "slave" | "rslave" => propagation = Propagation::Slave,
            "shared" | "rshared" => propagation = Propagation::Shared,
            other => data.push(other.to_owned()),
        }
    }
    let kind = mount.typ().as_deref().unwrap_or("none");
    let source_path = mount.source().clone();
    let refuse = |reason| Unsupported::Value {
        what: "mount",
        value: mount.destination().display().to_string(),
        reason,
    };
    let source = match (bind, kind) {
        (Some(recursive), _) => Source::Bind {
            path: source_path
                .filter(|p| p.is_absolute())
                .ok_or_else(|| refuse("its source is no absolute path"))?,
            recursive,
        },
        (None, "bind") => Source::Bind {
            path: source_path
                .filter(|p| p.is_absolute())
                .ok_or_else(|| refuse("its source is no absolute path"))?,
            recursive: true,
        },
        (None, "none") => return Err(refuse("it has neither a type nor the option bind")),
        (None, kind) => Source::Filesystem {
            // A container sees version 2 only, whatever the specification calls it.
            kind: if kind == "cgroup" { "cgroup2" } else { kind }.to_owned(),
            source: source_path.map_or_else(|| kind.to_owned(), |p| p.display().to_string()),
            options: data,
        },
    };
    let destination = normal(mount.destination());
    if destination == std::path::Path::new("/") {
        return Err(refuse("the root itself cannot be mounted over"));
    }
    Ok(PlannedMount {
        destination,
        source,
        set,
        clear,
        propagation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_of_the_machine_are_refused() {
        assert!(is_namespaced_sysctl("net.core.somaxconn", true));
        assert!(!is_namespaced_sysctl("net.core.somaxconn", false));
        assert!(is_namespaced_sysctl("kernel.shmmax", false));
        for global in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net.../kernel/core_pattern",
            "net..x",
            "kernel.shmmax.x",
        ] {
            assert!(!is_namespaced_sysctl(global, true), "{global}");
        }
    }

    #[test]
    fn a_container_on_the_machines_processes_is_refused() {
        let mut spec = Spec::default();
        if let Some(linux) = spec.linux_mut() {
            linux.set_namespaces(None);
            linux.set_seccomp(None);
        }
        assert!(matches!(
            Plan::new(&spec, None, Vec::new(), Seccomp::Default),
            Err(Unsupported::Feature(_))
        ));
    }
}
