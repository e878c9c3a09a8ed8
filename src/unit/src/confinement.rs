//! What a service's processes may see and do (`systemd.exec(5)`, "Sandboxing", "Capabilities", "System Call Filtering").

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

use crate::syscall::{Answer, SystemCallFilter};

/// A set of capabilities by number (`include/uapi/linux/capability.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Names without `CAP_`, in the order of their numbers.
    pub const NAMES: [&str; 41] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ];

    /// Every capability that there is.
    pub const ALL: Self = Self((1 << Self::NAMES.len()) - 1);

    /// One by its name, `CAP_NET_ADMIN` or `cap_net_admin`.
    #[must_use]
    pub fn one(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_")?;
        let number = Self::NAMES.iter().position(|n| *n == bare)?;
        1u64.checked_shl(u32::try_from(number).ok()?).map(Self)
    }

    /// Whether the capability of that number is in it.
    #[must_use]
    pub fn has(self, number: u32) -> bool {
        1u64.checked_shl(number)
            .is_some_and(|bit| self.0 & bit != 0)
    }
}

/// `ProtectSystem=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProtectSystem {
    /// Nothing.
    #[default]
    No,
    /// `/usr` and the boot files are read-only.
    Yes,
    /// `/etc` too.
    Full,
    /// Everything but `/dev`, `/proc` and `/sys`.
    Strict,
}

/// `ProtectHome=`: `/home`, `/root` and `/run/user`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProtectHome {
    /// As they are.
    #[default]
    No,
    /// Empty and closed.
    Yes,
    /// Read-only.
    ReadOnly,
    /// An empty file system each.
    Tmpfs,
}

/// `ProtectProc=`: whose processes `/proc` shows (`hidepid=` of `proc(5)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProtectProc {
    /// Everybody's.
    #[default]
    Default,
    /// Others' cannot be looked into.
    NoAccess,
    /// Others' cannot be seen.
    Invisible,
    /// Only those that could be traced can be seen.
    Ptraceable,
}

/// `DevicePolicy=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DevicePolicy {
    /// All devices, unless `DeviceAllow=` is used.
    #[default]
    Auto,
    /// The pseudo devices and those of `DeviceAllow=`.
    Closed,
    /// Those of `DeviceAllow=` alone.
    Strict,
}

/// A line of `DeviceAllow=`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceAllow {
    /// A path in `/dev`, or `char-NAME` or `block-NAME`, where the name may be a glob.
    pub device: String,
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// May be made with `mknod`.
    pub make: bool,
}

/// A path that is treated specially.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfinedPath {
    /// Absolute.
    pub path: String,
    /// `-`: it may be missing.
    pub optional: bool,
    /// `+`: relative to `RootDirectory=`.
    pub in_root: bool,
}

/// `BindPaths=` and `BindReadOnlyPaths=`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindPath {
    /// What is shown, absolute.
    pub source: String,
    /// Where, absolute.
    pub target: String,
    /// `-`: the source may be missing.
    pub optional: bool,
    /// With what is mounted below it.
    pub recursive: bool,
    /// Read-only.
    pub read_only: bool,
}

/// `TemporaryFileSystem=`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemporaryFileSystem {
    /// Where, absolute.
    pub path: String,
    /// Mount options of tmpfs, with commas; may be empty.
    pub options: String,
}

/// Kinds of namespaces, as flags of `clone(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces(pub u32);

impl Namespaces {
    /// Names and flags (`include/uapi/linux/sched.h`).
    pub const FLAGS: [(&str, u32); 7] = [
        ("cgroup", 0x0200_0000),
        ("ipc", 0x0800_0000),
        ("net", 0x4000_0000),
        ("mnt", 0x0002_0000),
        ("pid", 0x2000_0000),
        ("user", 0x1000_0000),
        ("uts", 0x0400_0000),
    ];

    /// Every kind.
    pub const ALL: Self = Self(0x7e02_0000);

    /// One by its name.
    #[must_use]
    pub fn one(name: &str) -> Option<Self> {
        let mut flags = Self::FLAGS.iter();
        flags.find(|(n, _)| *n == name).map(|(_, flag)| Self(*flag))
    }
}

/// `RestrictAddressFamilies=`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressFamilies {
    /// The list holds what is allowed; otherwise what is refused.
    pub allow_list: bool,
    /// Numbers of `AF_…` (`include/linux/socket.h`).
    pub families: BTreeSet<u16>,
}

impl AddressFamilies {
    /// Names and numbers.
    #[rustfmt::skip]
    pub const NAMES: &[(&'static str, u16)] = &[
        ("AF_UNIX", 1), ("AF_LOCAL", 1), ("AF_INET", 2), ("AF_AX25", 3), ("AF_IPX", 4), ("AF_APPLETALK", 5),
        ("AF_NETROM", 6), ("AF_BRIDGE", 7), ("AF_ATMPVC", 8), ("AF_X25", 9), ("AF_INET6", 10), ("AF_ROSE", 11),
        ("AF_DECnet", 12), ("AF_NETBEUI", 13), ("AF_SECURITY", 14), ("AF_KEY", 15), ("AF_NETLINK", 16),
        ("AF_PACKET", 17), ("AF_ASH", 18), ("AF_ECONET", 19), ("AF_ATMSVC", 20), ("AF_RDS", 21), ("AF_SNA", 22),
        ("AF_IRDA", 23), ("AF_PPPOX", 24), ("AF_WANPIPE", 25), ("AF_LLC", 26), ("AF_IB", 27), ("AF_MPLS", 28),
        ("AF_CAN", 29), ("AF_TIPC", 30), ("AF_BLUETOOTH", 31), ("AF_IUCV", 32), ("AF_RXRPC", 33), ("AF_ISDN", 34),
        ("AF_PHONET", 35), ("AF_IEEE802154", 36), ("AF_CAIF", 37), ("AF_ALG", 38), ("AF_NFC", 39), ("AF_VSOCK", 40),
        ("AF_KCM", 41), ("AF_QIPCRTR", 42), ("AF_SMC", 43), ("AF_XDP", 44), ("AF_MCTP", 45),
    ];
}

/// An architecture whose system calls may be made (`SystemCallArchitectures=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Architecture {
    /// The machine's own, x86-64.
    Native,
    /// 32-bit x86.
    X86,
    /// The x32 interface.
    X32,
    /// Any other, which this machine has not.
    Other,
}

/// `MountFlags=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Both ways.
    Shared,
    /// From the machine to the service.
    Slave,
    /// Not at all.
    Private,
}

/// `LoadCredential=`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadCredential {
    /// The file's name in `$CREDENTIALS_DIRECTORY`.
    pub id: String,
    /// An absolute path, or the name of a credential that the machine was given.
    pub source: String,
}

/// `SetCredential=`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetCredential {
    /// The file's name in `$CREDENTIALS_DIRECTORY`.
    pub id: String,
    /// What it holds.
    pub data: Vec<u8>,
}

/// Everything that confines a service. [`Confinement::parts`] lists what is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is a directive")]
pub struct Confinement {
    /// `AmbientCapabilities=`
    pub ambient_capabilities: Capabilities,
    /// `BindPaths=` and `BindReadOnlyPaths=`, in order.
    pub bind_paths: Vec<BindPath>,
    /// `CapabilityBoundingSet=`; `None` keeps all.
    pub capability_bounding_set: Option<Capabilities>,
    /// `DeviceAllow=`
    pub device_allow: Vec<DeviceAllow>,
    /// `DevicePolicy=`
    pub device_policy: DevicePolicy,
    /// `DynamicUser=`: a user that exists while the service does. Other parts that it implies are set along with it.
    pub dynamic_user: bool,
    /// `ExecPaths=`
    pub exec_paths: Vec<ConfinedPath>,
    /// `InaccessiblePaths=`
    pub inaccessible_paths: Vec<ConfinedPath>,
    /// `LoadCredential=`
    pub load_credential: Vec<LoadCredential>,
    /// `LockPersonality=`
    pub lock_personality: bool,
    /// `MemoryDenyWriteExecute=`
    pub memory_deny_write_execute: bool,
    /// `MountAPIVFS=`; `None` where it is not written.
    pub mount_api_vfs: Option<bool>,
    /// `MountFlags=`
    pub mount_flags: Option<Propagation>,
    /// `NetworkNamespacePath=`
    pub network_namespace_path: Option<String>,
    /// `NoExecPaths=`
    pub no_exec_paths: Vec<ConfinedPath>,
    /// `NoNewPrivileges=`
    pub no_new_privileges: bool,
    /// `PrivateDevices=`
    pub private_devices: bool,
    /// `PrivateIPC=`
    pub private_ipc: bool,
    /// `PrivateMounts=`
    pub private_mounts: bool,
    /// `PrivateNetwork=`
    pub private_network: bool,
    /// `PrivateTmp=`
    pub private_tmp: bool,
    /// `PrivateUsers=`
    pub private_users: bool,
    /// `ProcSubset=pid`
    pub proc_subset_pid: bool,
    /// `ProtectClock=`
    pub protect_clock: bool,
    /// `ProtectControlGroups=`
    pub protect_control_groups: bool,
    /// `ProtectHome=`
    pub protect_home: ProtectHome,
    /// `ProtectHostname=`
    pub protect_hostname: bool,
    /// `ProtectKernelLogs=`
    pub protect_kernel_logs: bool,
    /// `ProtectKernelModules=`
    pub protect_kernel_modules: bool,
    /// `ProtectKernelTunables=`
    pub protect_kernel_tunables: bool,
    /// `ProtectProc=`
    pub protect_proc: ProtectProc,
    /// `ProtectSystem=`
    pub protect_system: ProtectSystem,
    /// `ReadOnlyPaths=`
    pub read_only_paths: Vec<ConfinedPath>,
    /// `ReadWritePaths=`
    pub read_write_paths: Vec<ConfinedPath>,
    /// `RestrictAddressFamilies=`
    pub restrict_address_families: Option<AddressFamilies>,
    /// `RestrictNamespaces=`: the kinds that may be made; `None` is every kind.
    pub restrict_namespaces: Option<Namespaces>,
    /// `RestrictRealtime=`
    pub restrict_realtime: bool,
    /// `RestrictSUIDSGID=`
    pub restrict_suid_sgid: bool,
    /// `RootDirectory=`
    pub root_directory: Option<String>,
    /// `SetCredential=`
    pub set_credential: Vec<SetCredential>,
    /// `SystemCallArchitectures=`; `None` is every one.
    pub system_call_architectures: Option<Vec<Architecture>>,
    /// `SystemCallErrorNumber=`; `None` kills.
    pub system_call_answer: Option<Answer>,
    /// `SystemCallFilter=`; `None` is every call.
    pub system_call_filter: Option<SystemCallFilter>,
    /// `TemporaryFileSystem=`
    pub temporary_file_systems: Vec<TemporaryFileSystem>,
}

impl Confinement {
    /// The directives that are set to more than their defaults, by name, sorted.
    #[must_use]
    pub fn parts(&self) -> Vec<&'static str> {
        let binds = |read_only| {
            self.bind_paths
                .iter()
                .any(|bind| bind.read_only == read_only)
        };
        #[rustfmt::skip]
        let set = [
            ("AmbientCapabilities", self.ambient_capabilities.0 != 0),
            ("BindPaths", binds(false)),
            ("BindReadOnlyPaths", binds(true)),
            ("CapabilityBoundingSet", self.capability_bounding_set.is_some()),
            ("DeviceAllow", !self.device_allow.is_empty()),
            ("DevicePolicy", self.device_policy != DevicePolicy::Auto),
            ("DynamicUser", self.dynamic_user),
            ("ExecPaths", !self.exec_paths.is_empty()),
            ("InaccessiblePaths", !self.inaccessible_paths.is_empty()),
            ("LoadCredential", !self.load_credential.is_empty()),
            ("LockPersonality", self.lock_personality),
            ("MemoryDenyWriteExecute", self.memory_deny_write_execute),
            ("MountAPIVFS", self.mount_api_vfs == Some(true)),
            ("MountFlags", self.mount_flags.is_some()),
            ("NetworkNamespacePath", self.network_namespace_path.is_some()),
            ("NoExecPaths", !self.no_exec_paths.is_empty()),
            ("NoNewPrivileges", self.no_new_privileges),
            ("PrivateDevices", self.private_devices),
            ("PrivateIPC", self.private_ipc),
            ("PrivateMounts", self.private_mounts),
            ("PrivateNetwork", self.private_network),
            ("PrivateTmp", self.private_tmp),
            ("PrivateUsers", self.private_users),
            ("ProcSubset", self.proc_subset_pid),
            ("ProtectClock", self.protect_clock),
            ("ProtectControlGroups", self.protect_control_groups),
            ("ProtectHome", self.protect_home != ProtectHome::No),
            ("ProtectHostname", self.protect_hostname),
            ("ProtectKernelLogs", self.protect_kernel_logs),
            ("ProtectKernelModules", self.protect_kernel_modules),
            ("ProtectKernelTunables", self.protect_kernel_tunables),
            ("ProtectProc", self.protect_proc != ProtectProc::Default),
            ("ProtectSystem", self.protect_system != ProtectSystem::No),
            ("ReadOnlyPaths", !self.read_only_paths.is_empty()),
            ("ReadWritePaths", !self.read_write_paths.is_empty()),
            ("RestrictAddressFamilies", self.restrict_address_families.is_some()),
            ("RestrictNamespaces", self.restrict_namespaces.is_some()),
            ("RestrictRealtime", self.restrict_realtime),
            ("RestrictSUIDSGID", self.restrict_suid_sgid),
            ("RootDirectory", self.root_directory.is_some()),
            ("SetCredential", !self.set_credential.is_empty()),
            ("SystemCallArchitectures", self.system_call_architectures.is_some()),
            ("SystemCallErrorNumber", self.system_call_answer.is_some()),
            ("SystemCallFilter", self.system_call_filter.is_some()),
            ("TemporaryFileSystem", !self.temporary_file_systems.is_empty()),
        ];
        set.into_iter()
            .filter(|(_, is_set)| *is_set)
            .map(|(name, _)| name)
            .collect()
    }

    /// Sets what other parts imply: `DynamicUser=` brings `ProtectSystem=strict`, `ProtectHome=read-only`, `PrivateTmp=`,
    /// `NoNewPrivileges=` and `RestrictSUIDSGID=`.
    ///
    /// What needs seccomp implies `NoNewPrivileges=` only for processes without `CAP_SYS_ADMIN`, so that is left to who applies it.
    pub(crate) fn complete(&mut self) {
        if self.dynamic_user {
            self.protect_system = ProtectSystem::Strict;
            if self.protect_home == ProtectHome::No {
                self.protect_home = ProtectHome::ReadOnly;
            }
            self.private_tmp = true;
            self.no_new_privileges = true;
            self.restrict_suid_sgid = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_numbers() {
        assert_eq!(Capabilities::one("CAP_CHOWN"), Some(Capabilities(1)));
        let last = Capabilities::one("cap_checkpoint_restore").unwrap();
        assert!(last.has(40) && Capabilities::ALL.has(40) && !Capabilities::ALL.has(41));
        assert_eq!(Capabilities::one("CHOWN"), None);
    }

    #[test]
    fn all_namespaces_are_each_of_them() {
        let all = Namespaces::FLAGS
            .iter()
            .fold(0, |all, (_, flag)| all | flag);
        assert_eq!(Namespaces::ALL.0, all);
    }

    #[test]
    fn nothing_is_confined_by_default() {
        assert_eq!(Confinement::default().parts(), [""; 0]);
    }
}
