//! The fuzz targets, driven with input that looks like what they read.

mod targets;

use proptest::prelude::*;

/// Keys of every section, taken from systemd's pages.
const KEYS: &[&str] = &[
    "After",
    "Wants",
    "Requires",
    "BindsTo",
    "Conflicts",
    "Before",
    "ConditionPathExists",
    "RequiresMountsFor",
    "OnFailure",
    "Upholds",
    "ExecStart",
    "ExecStop",
    "Environment",
    "EnvironmentFile",
    "Type",
    "Restart",
    "User",
    "LimitNOFILE",
    "LimitNICE",
    "MemoryMax",
    "CPUQuota",
    "SystemCallFilter",
    "CapabilityBoundingSet",
    "AmbientCapabilities",
    "RestrictNamespaces",
    "RestrictAddressFamilies",
    "ReadOnlyPaths",
    "BindPaths",
    "SetCredential",
    "LoadCredential",
    "DeviceAllow",
    "TemporaryFileSystem",
    "CPUAffinity",
    "StateDirectory",
    "StandardInputText",
    "OnCalendar",
    "OnBootSec",
    "Unit",
    "ListenStream",
    "ListenDatagram",
    "ListenNetlink",
    "Service",
    "Accept",
    "Symlinks",
    "What",
    "Where",
    "Options",
    "PathExists",
    "DirectoryNotEmpty",
    "Slice",
    "WantedBy",
    "Alias",
    "Also",
    "DefaultInstance",
    "Image",
    "Exec",
    "Volume",
    "RestartSteps",
    "RestartMaxDelaySec",
    "SystemCallArchitectures",
];

const VALUES: &[&str] = &[
    "/bin/true",
    "a.service",
    "b@.service",
    "yes",
    "no",
    "/a /b",
    "-/x",
    "~",
    "~CAP_KILL",
    "CAP_KILL",
    "@system-service",
    "~@mount:EPERM",
    "none",
    "AF_UNIX",
    "net",
    "5min",
    "1G",
    "10%",
    "80",
    "@a",
    "/a:/b:norbind",
    "daily",
    "Mon *:0/5",
    "%i",
    "%z",
    "'a",
    "\"a b\"",
    "\\x41",
    "\\",
    "$A ${B}",
    "+!/x",
    "0-3",
    "1:2",
    "infinity",
    "",
    "a:b",
    "/dev/x rw",
    "\u{fffd}",
    "x=y",
];

fn file() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        2 => prop::sample::select(vec![
            "[Unit]", "[Service]", "[Timer]", "[Socket]", "[Mount]", "[Path]", "[Slice]", "[Install]", "[Container]", "[X-A]", "[",
        ]).prop_map(str::to_owned),
        12 => (prop::sample::select(KEYS), prop::sample::select(VALUES)).prop_map(|(key, value)| format!("{key}={value}")),
        4 => (prop::sample::select(KEYS), ".{0,20}").prop_map(|(key, value)| format!("{key}={value}")),
        1 => ".{0,20}",
    ];
    prop::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n").into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn unit_files(bytes in prop_oneof![9 => file(), 1 => prop::collection::vec(any::<u8>(), 0..200)]) {
        targets::unit_file(&bytes);
    }

    #[test]
    fn calendar_expressions(text in "([0-9*,./:~@ -]|[0-9]{1,2}|\\.\\.|Mon|Fri| UTC|\\*-){0,16}") {
        targets::calendar(text.as_bytes());
    }

    #[test]
    fn small_values(text in "([0-9.]|s|min|ms|M|y| |K|=|\\n|\\*|\\[|enable|a@b|\\.service|\\\\x2d|-|\"){0,12}") {
        targets::values(text.as_bytes());
    }
}
