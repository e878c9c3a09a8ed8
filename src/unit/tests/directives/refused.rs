//! What has no effect here is named, with its place.

use super::message;

#[test]
fn unsupported_directives_are_named_by_tier() {
    for (line, expected) in [
        (
            "Type=dbus",
            "3:6: error: Type=: dbus is not supported: there is no message bus",
        ),
        (
            "PAMName=login",
            "3:1: error: PAMName= is not supported (there is no PAM), so the unit is not loaded",
        ),
        (
            "AppArmorProfile=x",
            "3:1: error: AppArmorProfile= is not supported (it confines the processes), so the unit is not loaded",
        ),
        (
            "RootImage=/x.raw",
            "3:1: error: RootImage= is not supported (it confines the processes), so the unit is not loaded",
        ),
        (
            "IPAddressDeny=any",
            "3:1: error: IPAddressDeny= is not supported (it restricts devices or networks), so the unit is not loaded",
        ),
        (
            "USBFunctionDescriptors=/x",
            "3:1: error: USBFunctionDescriptors= is not supported (USB functions), so the unit is not loaded",
        ),
        (
            "IOReadBandwidthMax=/dev/vda 1M",
            "3:1: warning: IOReadBandwidthMax= is not supported: there is no limit",
        ),
        (
            "NoSuchKey=1",
            "3:1: warning: unknown key NoSuchKey in section [Service], ignored",
        ),
    ] {
        let text = format!("[Service]\nExecStart=/bin/true\n{line}\n");
        assert_eq!(message("a.service", &text), expected);
    }
}

#[test]
fn values_that_mean_nothing_are_named_and_passed_over() {
    for (line, place) in [
        ("Restart=sometimes", "3:9"),
        ("TimeoutStartSec=soon", "3:17"),
        ("KillSignal=SIGNOT", "3:12"),
        ("Nice=40", "3:6"),
        ("MemoryMax=lots", "3:11"),
        ("CPUWeight=0", "3:11"),
        ("LimitNOFILE=5:1", "3:13"),
        ("UMask=9", "3:7"),
        ("StandardOutput=printer", "3:16"),
        ("CPUAffinity=x", "3:13"),
        ("IOSchedulingPriority=8", "3:22"),
        ("SuccessExitStatus=0 300", "3:21"),
        ("Environment=A=1 B", "3:17"),
        ("Sockets=a.service", "3:9"),
        ("LogLevelMax=loud", "3:13"),
    ] {
        let text = format!("[Service]\nExecStart=/bin/true\n{line}\n");
        let message = message("a.service", &text);
        assert!(
            message.starts_with(&format!("{place}: warning: ")),
            "{message}"
        );
    }
}
