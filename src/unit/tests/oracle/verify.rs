//! `systemd-analyze verify`: which generated units load, where both read the same directives.

use std::collections::HashSet;
use std::fs;

use orlop_unit::{Loader, MemoryStore, SpecifierContext, UnitName};
use proptest::prelude::*;

use super::systemd_analyze;

/// The names of the files that systemd refuses to load.
fn refused(files: &[(String, String)]) -> HashSet<String> {
    let directory = tempfile::tempdir().expect("a directory");
    let mut words = vec!["verify".to_owned(), "--man=no".to_owned()];
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::write(&path, text).expect("a file");
        words.push(path.to_string_lossy().into_owned());
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = systemd_analyze(&words);
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines()
        .filter_map(|line| {
            line.strip_prefix("Unit ")?
                .strip_suffix(" has a bad unit file setting.")
        })
        .map(str::to_owned)
        .collect()
}

fn loads(name: &str, text: &str) -> (bool, Vec<String>) {
    let store = MemoryStore::new().file(&format!("/u/{name}"), text);
    let context = SpecifierContext::default();
    let loader = Loader::new(&["/u"], &store, &context).reading_all();
    let loaded = loader.load(&UnitName::parse(name).expect("a name"));
    let problems = loaded.problems.iter().map(ToString::to_string).collect();
    (loaded.unit.is_some(), problems)
}

/// One of some lines, each with its weight's worth of chances.
fn line(lines: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(lines).prop_map(str::to_owned)
}

const COMMANDS: &[&str] = &[
    "/bin/true",
    "/bin/true",
    "/bin/true",
    "true",
    "./x",
    "-/bin/false",
    "@/bin/true a b",
    "@/bin/true",
    "+!/bin/true",
    "+/bin/true",
    "!/bin/true",
    "!!/bin/true",
    "--/bin/true",
    "-@:/bin/sh x -c true",
    "/bin/echo 'a",
    "/bin/echo \"a b\" 'c'",
    "/bin/echo %z",
    "/bin/echo %i%n%%",
    "",
    "/bin/true ; /bin/false",
    "/bin/true \\; x",
    "-",
    "/bin/",
    "/bin/echo ${X} $Y $$",
    "/bin/echo \\x41\\n",
    "/bin/echo \\q",
    "%p",
];

const SERVICE: &[&str] = &[
    "Type=simple",
    "Type=oneshot",
    "Type=oneshot",
    "Type=forking",
    "Type=notify",
    "Type=idle",
    "Type=exec",
    "Type=weird",
    "Type=",
    "RemainAfterExit=yes",
    "RemainAfterExit=maybe",
    "Restart=always",
    "Restart=on-failure",
    "Restart=on-success",
    "Restart=never",
    "RestartSec=5",
    "RestartSec=x",
    "TimeoutStartSec=0",
    "TimeoutStartSec=infinity",
    "TimeoutSec=1h",
    "User=root",
    "User=no:such",
    "User=0",
    "User=a b",
    "Group=-1",
    "Group=daemon",
    "SupplementaryGroups=daemon 7",
    "WorkingDirectory=/srv",
    "WorkingDirectory=srv",
    "WorkingDirectory=-/srv",
    "WorkingDirectory=~",
    "KillMode=mixed",
    "KillMode=kill",
    "KillSignal=SIGINT",
    "KillSignal=FOO",
    "Nice=5",
    "Nice=99",
    "LimitNOFILE=1:2",
    "LimitNOFILE=2:1",
    "MemoryMax=1G",
    "MemoryMax=x",
    "CPUWeight=10",
    "CPUQuota=50%",
    "TasksMax=10%",
    "UMask=0077",
    "UMask=99",
    "Environment=A=1",
    "Environment='A",
    "EnvironmentFile=-/x",
    "EnvironmentFile=x",
    "PIDFile=x.pid",
    "StandardOutput=null",
    "StandardOutput=file:/x",
    "StandardInput=tty",
    "StateDirectory=a",
    "StateDirectory=../a",
    "SuccessExitStatus=1 SIGKILL",
    "ProtectSystem=strict",
    "ProtectHome=tmpfs",
    "PrivateTmp=yes",
    "NoNewPrivileges=1",
    "CapabilityBoundingSet=CAP_KILL",
    "CapabilityBoundingSet=~CAP_SYS_ADMIN",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@mount:EPERM",
    "RestrictNamespaces=~user",
    "RestrictAddressFamilies=AF_UNIX",
    "ReadOnlyPaths=/ -/opt",
    "BindPaths=/a:/b",
    "DynamicUser=yes",
    "Slice=a-b.slice",
    "Slice=x",
    "Delegate=yes",
    "CPUAffinity=0-1",
    "IOSchedulingClass=idle",
    "OOMScoreAdjust=100",
    "WatchdogSec=5",
    "NotifyAccess=all",
    "ExecStop=/bin/true",
    "ExecStop=x/y",
    "ExecStartPre=-/bin/true",
    "ExecReload=/bin/kill $MAINPID",
    "ExecCondition=/bin/true",
    "ExecStopPost=@/bin/true",
    "Foo=bar",
    "X-Foo=bar",
];

const UNIT: &[&str] = &[
    "Description=x",
    "Description=%z",
    "After=a.service",
    "After=nonsense",
    "Requires=a.service b@.service",
    "Wants=a@%n.service",
    "Conflicts=x.target",
    "ConditionPathExists=/x",
    "ConditionPathExists=x",
    "ConditionFoo=x",
    "StartLimitBurst=x",
    "SuccessAction=exit",
    "DefaultDependencies=no",
    "RequiresMountsFor=/x y",
    "Documentation=man:a(1)",
    "OnFailure=a.service",
    "JobTimeoutSec=x",
];

const TIMER: &[&str] = &[
    "OnCalendar=daily",
    "OnCalendar=25:00",
    "OnCalendar=",
    "OnBootSec=5",
    "OnBootSec=x",
    "OnActiveSec=1h",
    "OnUnitActiveSec=",
    "Unit=a.target",
    "Unit=a.timer",
    "Unit=x",
    "Persistent=yes",
    "AccuracySec=1",
    "OnClockChange=yes",
    "OnTimezoneChange=no",
    "RandomizedDelaySec=5",
    "Foo=1",
];

const SOCKET: &[&str] = &[
    "ListenStream=80",
    "ListenStream=99999",
    "ListenStream=0",
    "ListenStream=/run/a",
    "ListenStream=",
    "ListenStream=[::1]:5",
    "ListenDatagram=@a",
    "ListenDatagram=1.2.3.4:5",
    "ListenFIFO=/run/f",
    "ListenFIFO=f",
    "ListenSequentialPacket=/run/s",
    "ListenSequentialPacket=80",
    "ListenNetlink=route 1",
    "ListenSpecial=/dev/null",
    "Accept=yes",
    "Accept=no",
    "Accept=x",
    "Service=a.service",
    "Service=a.timer",
    "MaxConnections=0",
    "MaxConnections=7",
    "SocketMode=0600",
    "SocketMode=x",
    "SocketUser=root",
    "Symlinks=/run/l",
    "FileDescriptorName=a",
    "FileDescriptorName=a:b",
    "FreeBind=yes",
    "BindIPv6Only=both",
    "BindIPv6Only=x",
    "Backlog=5",
    "ExecStartPre=/bin/true",
    "ExecStopPre=./x",
    "NoDelay=yes",
    "TimeoutSec=5",
    "IPTOS=low-delay",
];

const PATH: &[&str] = &[
    "PathExists=/a",
    "PathExists=a",
    "PathExistsGlob=/a/*",
    "PathChanged=/b",
    "PathModified=",
    "DirectoryNotEmpty=/c",
    "MakeDirectory=yes",
    "Unit=a.service",
    "Unit=x",
    "DirectoryMode=0700",
    "TriggerLimitBurst=5",
    "Foo=x",
];

const MOUNT: &[&str] = &[
    "What=/dev/vdb",
    "What=/dev/vdb",
    "What=tmpfs",
    "What=",
    "Where=@",
    "Where=@",
    "Where=/other",
    "Where=rel",
    "Type=ext4",
    "Options=ro,_netdev",
    "TimeoutSec=5",
    "DirectoryMode=x",
    "LazyUnmount=yes",
    "Options=%z",
    "Nice=5",
    "LimitNOFILE=1",
];

const SLICE: &[&str] = &[
    "MemoryMax=1G",
    "MemoryMax=x",
    "CPUWeight=50",
    "TasksMax=5",
    "Foo=1",
];

fn lines(list: &'static [&'static str], most: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(line(list), 0..most).prop_map(|lines| lines.join("\n"))
}

/// A suffix and a text; `@` stands for the path that fits the name.
fn file() -> impl Strategy<Value = (&'static str, String)> {
    let service = (
        prop::collection::vec(line(COMMANDS), 0..3),
        lines(SERVICE, 4),
    )
        .prop_map(|(commands, rest)| {
            let starts: Vec<String> = commands.iter().map(|c| format!("ExecStart={c}")).collect();
            (
                "service",
                format!("[Service]\n{}\n{rest}\n", starts.join("\n")),
            )
        });
    let kind = prop_oneof![
        8 => service,
        2 => lines(TIMER, 4).prop_map(|l| ("timer", format!("[Timer]\n{l}\n"))),
        3 => lines(SOCKET, 5).prop_map(|l| ("socket", format!("[Socket]\n{l}\n"))),
        1 => lines(PATH, 4).prop_map(|l| ("path", format!("[Path]\n{l}\n"))),
        2 => lines(MOUNT, 5).prop_map(|l| ("mount", format!("[Mount]\n{l}\n"))),
        1 => lines(SLICE, 3).prop_map(|l| ("slice", format!("[Slice]\n{l}\n"))),
    ];
    (kind, lines(UNIT, 3))
        .prop_map(|((suffix, text), unit)| (suffix, format!("[Unit]\n{unit}\n{text}")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn generated_units_load_with_both_or_with_neither(files in prop::collection::vec(file(), 60)) {
        let files: Vec<(String, String)> = files
            .into_iter()
            .enumerate()
            .map(|(n, (suffix, text))| (format!("gen{n}.{suffix}"), text.replace('@', "\u{0}").replace("Where=\u{0}", &format!("Where=/gen{n}")).replace('\u{0}', "@")))
            .collect();
        let refused = refused(&files);
        let mut differences = Vec::new();
        for (name, text) in &files {
            let (ours, problems) = loads(name, text);
            if ours == refused.contains(name) {
                differences.push(format!("{name}: ours {ours}, {problems:?}\n{text}"));
            }
        }
        prop_assert!(differences.is_empty(), "{}", differences.join("\n"));
    }
}
