//! What confines, `systemd.exec(5)`.

use orlop_unit::confinement::{
    Architecture, Confinement, DevicePolicy, Namespaces, ProtectHome, ProtectProc, ProtectSystem,
};
use orlop_unit::syscall::{self, Answer};
use orlop_unit::{Capabilities, Loader, MemoryStore, SpecifierContext, UnitName};

use super::{message, service};

/// The lines, what they do, and the parts that [`Confinement::parts`] names.
type Row = (
    &'static str,
    fn(&Confinement) -> bool,
    &'static [&'static str],
);

fn cap(name: &str) -> u64 {
    Capabilities::one(name).unwrap().0
}

fn kind(name: &str) -> u32 {
    Namespaces::one(name).unwrap().0
}

fn call(name: &str) -> u32 {
    syscall::number(name).unwrap()
}

#[test]
fn confining_directives_have_their_effect() {
    let all = Capabilities::ALL.0;
    assert_eq!(all.count_ones(), 41);
    let rows: &[Row] = &[
        (
            "NoNewPrivileges=yes",
            |c| c.no_new_privileges,
            &["NoNewPrivileges"],
        ),
        ("PrivateTmp=yes\nPrivateTmp=no", |c| !c.private_tmp, &[]),
        (
            "ProtectSystem=yes",
            |c| c.protect_system == ProtectSystem::Yes,
            &["ProtectSystem"],
        ),
        (
            "ProtectSystem=strict",
            |c| c.protect_system == ProtectSystem::Strict,
            &["ProtectSystem"],
        ),
        (
            "ProtectSystem=full\nProtectSystem=",
            |c| c.protect_system == ProtectSystem::No,
            &[],
        ),
        (
            "ProtectHome=read-only",
            |c| c.protect_home == ProtectHome::ReadOnly,
            &["ProtectHome"],
        ),
        (
            "ProtectHome=on",
            |c| c.protect_home == ProtectHome::Yes,
            &["ProtectHome"],
        ),
        (
            "ProtectProc=invisible\nProcSubset=pid",
            |c| c.protect_proc == ProtectProc::Invisible && c.proc_subset_pid,
            &["ProcSubset", "ProtectProc"],
        ),
        (
            "DevicePolicy=closed\nDeviceAllow=/dev/net/tun rw\nDeviceAllow=char-pts",
            |c| {
                c.device_policy == DevicePolicy::Closed
                    && !c.device_allow[0].make
                    && c.device_allow[1].make
            },
            &["DeviceAllow", "DevicePolicy"],
        ),
        (
            "CapabilityBoundingSet=CAP_CHOWN cap_kill",
            |c| c.capability_bounding_set.unwrap().0 == cap("CAP_CHOWN") | cap("CAP_KILL"),
            &["CapabilityBoundingSet"],
        ),
        (
            "CapabilityBoundingSet=CAP_CHOWN CAP_KILL\nCapabilityBoundingSet=CAP_BPF\nCapabilityBoundingSet=~CAP_KILL",
            |c| c.capability_bounding_set.unwrap().0 == cap("CAP_CHOWN") | cap("CAP_BPF"),
            &["CapabilityBoundingSet"],
        ),
        (
            "CapabilityBoundingSet=~CAP_SYS_ADMIN",
            |c| c.capability_bounding_set.unwrap().0 == Capabilities::ALL.0 & !cap("CAP_SYS_ADMIN"),
            &["CapabilityBoundingSet"],
        ),
        (
            "CapabilityBoundingSet=",
            |c| c.capability_bounding_set == Some(Capabilities(0)),
            &["CapabilityBoundingSet"],
        ),
        (
            "CapabilityBoundingSet=CAP_KILL\nCapabilityBoundingSet=~",
            |c| c.capability_bounding_set.is_none(),
            &[],
        ),
        (
            "AmbientCapabilities=CAP_NET_BIND_SERVICE",
            |c| c.ambient_capabilities.0 == cap("CAP_NET_BIND_SERVICE"),
            &["AmbientCapabilities"],
        ),
        (
            "AmbientCapabilities=CAP_KILL\nAmbientCapabilities=",
            |c| c.ambient_capabilities.0 == 0,
            &[],
        ),
        (
            "RestrictNamespaces=yes",
            |c| c.restrict_namespaces == Some(Namespaces(0)),
            &["RestrictNamespaces"],
        ),
        (
            "RestrictNamespaces=net mnt",
            |c| c.restrict_namespaces.unwrap().0 == kind("net") | kind("mnt"),
            &["RestrictNamespaces"],
        ),
        (
            "RestrictNamespaces=~user",
            |c| c.restrict_namespaces.unwrap().0 == Namespaces::ALL.0 & !kind("user"),
            &["RestrictNamespaces"],
        ),
        (
            "RestrictNamespaces=yes\nRestrictNamespaces=no",
            |c| c.restrict_namespaces.is_none(),
            &[],
        ),
        (
            "RestrictAddressFamilies=AF_UNIX AF_INET\nRestrictAddressFamilies=~AF_INET",
            |c| {
                let f = c.restrict_address_families.as_ref().unwrap();
                f.allow_list && f.families.len() == 1
            },
            &["RestrictAddressFamilies"],
        ),
        (
            "RestrictAddressFamilies=none",
            |c| {
                c.restrict_address_families
                    .as_ref()
                    .is_some_and(|f| f.allow_list && f.families.is_empty())
            },
            &["RestrictAddressFamilies"],
        ),
        (
            "RestrictAddressFamilies=~AF_PACKET",
            |c| {
                c.restrict_address_families
                    .as_ref()
                    .is_some_and(|f| !f.allow_list && f.families.contains(&17))
            },
            &["RestrictAddressFamilies"],
        ),
        (
            "SystemCallFilter=@system-service\nSystemCallFilter=~@privileged",
            |c| {
                let f = c.system_call_filter.as_ref().unwrap();
                f.allow_list
                    && f.calls.contains_key(&call("read"))
                    && f.calls.contains_key(&call("brk"))
                    && !f.calls.contains_key(&call("chroot"))
            },
            &["SystemCallFilter"],
        ),
        (
            "SystemCallFilter=~@mount swapon:EPERM\nSystemCallErrorNumber=ENOSYS",
            |c| {
                let f = c.system_call_filter.as_ref().unwrap();
                !f.allow_list
                    && f.calls[&call("mount")].is_none()
                    && f.calls[&call("swapon")] == Some(Answer::Error(1))
                    && c.system_call_answer == Some(Answer::Error(38))
            },
            &["SystemCallErrorNumber", "SystemCallFilter"],
        ),
        (
            "SystemCallFilter=~mount\nSystemCallFilter=",
            |c| c.system_call_filter.is_none(),
            &[],
        ),
        (
            "SystemCallArchitectures=native x86",
            |c| {
                c.system_call_architectures.as_deref()
                    == Some(&[Architecture::Native, Architecture::X86])
            },
            &["SystemCallArchitectures"],
        ),
        (
            "ReadOnlyPaths=/etc -/opt//x/\nReadWritePaths=+/var/lib\nInaccessiblePaths=-+/root",
            |c| {
                c.read_only_paths.len() == 2
                    && c.read_only_paths[1].path == "/opt/x"
                    && c.read_only_paths[1].optional
                    && c.read_write_paths[0].in_root
                    && c.inaccessible_paths[0].optional
                    && c.inaccessible_paths[0].in_root
            },
            &["InaccessiblePaths", "ReadOnlyPaths", "ReadWritePaths"],
        ),
        (
            "ReadOnlyDirectories=/etc\nReadOnlyPaths=",
            |c| c.read_only_paths.is_empty(),
            &[],
        ),
        (
            "ExecPaths=/usr/bin\nNoExecPaths=/",
            |c| c.no_exec_paths[0].path == "/",
            &["ExecPaths", "NoExecPaths"],
        ),
        (
            "BindPaths=/a:/b:norbind -/c\nBindReadOnlyPaths=/d:/e",
            |c| {
                let [a, c, d] = c.bind_paths.as_slice() else {
                    return false;
                };
                a.target == "/b"
                    && !a.recursive
                    && c.target == "/c"
                    && c.optional
                    && d.read_only
                    && d.recursive
            },
            &["BindPaths", "BindReadOnlyPaths"],
        ),
        (
            "TemporaryFileSystem=/var:ro,size=1M /opt",
            |c| c.temporary_file_systems[0].options == "ro,size=1M",
            &["TemporaryFileSystem"],
        ),
        (
            "RootDirectory=/srv/root\nMountAPIVFS=yes\nMountFlags=slave",
            |c| c.root_directory.as_deref() == Some("/srv/root"),
            &["MountAPIVFS", "MountFlags", "RootDirectory"],
        ),
        (
            "NetworkNamespacePath=/run/netns/a",
            |c| c.network_namespace_path.is_some(),
            &["NetworkNamespacePath"],
        ),
        (
            "PrivateDevices=yes\nPrivateNetwork=yes\nPrivateUsers=yes\nPrivateIPC=yes\nPrivateMounts=yes",
            |c| c.private_devices,
            &[
                "PrivateDevices",
                "PrivateIPC",
                "PrivateMounts",
                "PrivateNetwork",
                "PrivateUsers",
            ],
        ),
        (
            "ProtectKernelTunables=1\nProtectKernelModules=t\nProtectKernelLogs=y\nProtectControlGroups=on\nProtectClock=true\nProtectHostname=yes",
            |c| c.protect_clock,
            &[
                "ProtectClock",
                "ProtectControlGroups",
                "ProtectHostname",
                "ProtectKernelLogs",
                "ProtectKernelModules",
                "ProtectKernelTunables",
            ],
        ),
        (
            "RestrictRealtime=yes\nRestrictSUIDSGID=yes\nLockPersonality=yes\nMemoryDenyWriteExecute=yes",
            |c| c.lock_personality,
            &[
                "LockPersonality",
                "MemoryDenyWriteExecute",
                "RestrictRealtime",
                "RestrictSUIDSGID",
            ],
        ),
        (
            "DynamicUser=yes\nProtectHome=tmpfs",
            |c| {
                c.protect_system == ProtectSystem::Strict
                    && c.protect_home == ProtectHome::Tmpfs
                    && c.private_tmp
            },
            &[
                "DynamicUser",
                "NoNewPrivileges",
                "PrivateTmp",
                "ProtectHome",
                "ProtectSystem",
                "RestrictSUIDSGID",
            ],
        ),
        (
            "LoadCredential=a:/etc/a\nLoadCredential=b\nSetCredential=c:x\\ny",
            |c| c.load_credential[1].source == "b" && c.set_credential[0].data == b"x\ny",
            &["LoadCredential", "SetCredential"],
        ),
    ];
    for (lines, holds, parts) in rows {
        let confinement = service(lines).confinement;
        assert!(holds(&confinement), "{lines}: {confinement:?}");
        assert_eq!(confinement.parts(), *parts, "{lines}");
    }
}

#[test]
fn a_confining_value_that_cannot_be_read_keeps_the_unit_from_loading() {
    for (line, expected) in [
        (
            "ProtectSystem=perhaps",
            "3:15: error: ProtectSystem=: \"perhaps\" is not a boolean, full or strict",
        ),
        (
            "PrivateTmp=maybe",
            "3:12: error: PrivateTmp=: \"maybe\" is not a boolean",
        ),
        (
            "CapabilityBoundingSet=CAP_KILL CAP_NO",
            "3:32: error: CapabilityBoundingSet=: \"CAP_NO\" is not known",
        ),
        (
            "RestrictNamespaces=~net moon",
            "3:25: error: RestrictNamespaces=: \"moon\" is not known",
        ),
        (
            "SystemCallFilter=~mount nocall",
            "3:25: error: SystemCallFilter=: \"nocall\" is no system call, and no set of them",
        ),
        (
            "SystemCallFilter=@nosuch",
            "3:18: error: SystemCallFilter=: \"@nosuch\" is no system call, and no set of them",
        ),
        (
            "ReadOnlyPaths=/a etc",
            "3:18: error: ReadOnlyPaths=: \"etc\" is not an absolute path without ..",
        ),
        (
            "InaccessiblePaths=/a/../b",
            "3:19: error: InaccessiblePaths=: \"/a/../b\" is not an absolute path without ..",
        ),
        (
            "BindPaths=/a:b",
            "3:11: error: BindPaths=: \"/a:b\" is not SOURCE[:TARGET[:rbind|norbind]]",
        ),
        (
            "DeviceAllow=/etc/passwd r",
            "3:13: error: DeviceAllow=: expected is a path in /dev, char-NAME or block-NAME, then letters of r, w and m",
        ),
    ] {
        let text = format!("[Service]\nExecStart=/bin/true\n{line}\n");
        assert_eq!(message("a.service", &text), expected);
    }
    // What is not allowed after all confines more.
    let text = "[Service]\nExecStart=/bin/true\nSystemCallFilter=read nocall\n";
    assert!(message("a.service", text).contains("warning"));
}

#[test]
fn a_drop_in_can_take_back_what_is_not_applied() {
    let context = SpecifierContext::default();
    let store = MemoryStore::new()
        .file(
            "/u/a.service",
            "[Service]\nExecStart=/bin/true\nSELinuxContext=x\nCPUAffinity=0\n",
        )
        .file("/u/a.service.d/a.conf", "[Service]\nSELinuxContext=\n");
    let loaded =
        Loader::new(&["/u"], &store, &context).load(&UnitName::parse("a.service").unwrap());
    assert!(loaded.unit.is_some());
    let text: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    if orlop_unit::support::is_applied("CPUAffinity") {
        assert_eq!(text, [""; 0]);
    } else {
        assert_eq!(
            text,
            ["/u/a.service:4:1: warning: CPUAffinity= is not supported: all processors are used"]
        );
    }
}

#[test]
fn the_supervisor_loads_exactly_what_it_applies() {
    let context = SpecifierContext::default();
    for (line, directive) in [
        ("ProtectSystem=full", "ProtectSystem"),
        ("PrivateTmp=yes", "PrivateTmp"),
        ("SystemCallFilter=@basic-io", "SystemCallFilter"),
        ("CapabilityBoundingSet=", "CapabilityBoundingSet"),
        ("DynamicUser=yes", "DynamicUser"),
        ("NoNewPrivileges=yes", "NoNewPrivileges"),
    ] {
        let text = format!("[Service]\nExecStart=/bin/true\n{line}\n");
        let store = MemoryStore::new().file("/u/a.service", &text);
        let loaded =
            Loader::new(&["/u"], &store, &context).load(&UnitName::parse("a.service").unwrap());
        assert_eq!(
            loaded.unit.is_some(),
            orlop_unit::support::is_applied(directive),
            "{line}"
        );
    }
}
