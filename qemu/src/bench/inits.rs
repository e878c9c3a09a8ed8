//! The inits that are measured beside one another: what a root of each holds, for the same services.
//!
//! Each runs every service in a cgroup of its own and, of several, keeps what they write, where the init can do that at all: runit and s6 by a
//! line of shell and a logger each, as their users do; busybox's init by a line of shell and a file.

use std::path::Path;

use anyhow::Result;

use super::boots::{UP, end};
use super::marker;
use crate::image::{self, Bare, Products, Project, Rival};

/// An init.
#[derive(Debug)]
pub(super) struct Init {
    pub(super) name: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Orlop,
    Systemd,
    Runit,
    S6,
    Busybox,
}

pub(super) const ORLOP: Init = Init {
    name: "orlop",
    kind: Kind::Orlop,
};
pub(super) const SYSTEMD: Init = Init {
    name: "systemd",
    kind: Kind::Systemd,
};
pub(super) const RUNIT: Init = Init {
    name: "runit",
    kind: Kind::Runit,
};
pub(super) const S6: Init = Init {
    name: "s6",
    kind: Kind::S6,
};
pub(super) const BUSYBOX: Init = Init {
    name: "busybox",
    kind: Kind::Busybox,
};

const UNIT: &str = "[Unit]\nDescription=Measured service %i\n\n[Service]\nExecStart=/usr/bin/marker\nRestart=always\nRestartSec=0\n";
const END_UNIT: &str = "[Unit]\nDescription=End of the measurement\nAfter=multi-user.target\n\n[Service]\nExecStart=/bin/sh /end\n";

/// What a boot of a plain init begins with.
const MOUNTS: &str = "#!/bin/sh\nmount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev\n\
    mount -t tmpfs run /run; mount -t cgroup2 cgroup2 /sys/fs/cgroup\n";

impl Init {
    /// Writes a root of it with `services` services to `path`.
    pub(super) fn write(
        &self,
        project: &Project,
        products: &Products,
        services: usize,
        path: &Path,
    ) -> Result<()> {
        let program = marker::program(&format!("<6>{UP}\n"));
        let mut rival = match self.kind {
            Kind::Orlop => return orlop(project, products, services, &program, path),
            Kind::Systemd => systemd(services),
            Kind::Runit => runit(services),
            Kind::S6 => s6(services),
            Kind::Busybox => busybox(services),
        };
        rival
            .files
            .push(("/usr/bin/marker".to_owned(), 0o755, program));
        image::rival(project, &rival, path)
    }
}

/// Whether what the services write is kept: a single one is there to show how soon PID 1 comes to start it.
fn keeps_output(services: usize) -> bool {
    services > 1
}

fn file(path: impl Into<String>, text: impl Into<String>) -> (String, u32, Vec<u8>) {
    (path.into(), 0o755, text.into().into_bytes())
}

fn link(path: impl Into<String>, target: impl Into<String>) -> (String, String) {
    (path.into(), target.into())
}

/// Enters the cgroup of service `number` and becomes it.
fn in_cgroup(number: usize) -> String {
    format!(
        "mkdir -p /sys/fs/cgroup/{number}; echo $$ >/sys/fs/cgroup/{number}/cgroup.procs; exec marker"
    )
}

fn orlop(
    project: &Project,
    products: &Products,
    services: usize,
    program: &[u8],
    path: &Path,
) -> Result<()> {
    let wants = "/etc/systemd/system/multi-user.target.wants";
    let mut links = vec![link(
        format!("{wants}/bench-end.service"),
        "../bench-end.service",
    )];
    if keeps_output(services) {
        links.push(link(
            format!("{wants}/orlop-journal.service"),
            "/usr/lib/orlop/units/orlop-journal.service",
        ));
    }
    for number in 1..=services {
        links.push(link(
            format!("{wants}/bench@{number}.service"),
            "../bench@.service",
        ));
    }
    // Nothing that a measurement of PID 1 alone does not need.
    for name in ["sshd.service", "docker.service"] {
        links.push(link(format!("/etc/systemd/system/{name}"), "/dev/null"));
    }
    let links: Vec<(&str, &str)> = links
        .iter()
        .map(|(path, target)| (path.as_str(), target.as_str()))
        .collect();
    image::bare(
        project,
        &products.binary,
        &Bare {
            units: &[("bench@.service", UNIT), ("bench-end.service", END_UNIT)],
            files: &[
                ("/usr/bin/marker", 0o755, program),
                // By signal: a command line's start would be measured with it.
                ("/end", 0o755, end("kill -PWR 1").as_bytes()),
            ],
            links: &links,
            roles: if keeps_output(services) {
                &["orlop-journal.service"]
            } else {
                &[]
            },
        },
        path,
    )
}

/// Without udev, logind and D-Bus: its PID 1 and its journal.
fn systemd(services: usize) -> Rival<'static> {
    let units = "/lib/systemd/system";
    let wants = "/etc/systemd/system/multi-user.target.wants";
    let mut links = vec![
        link("/init", "lib/systemd/systemd"),
        link(
            "/etc/systemd/system/default.target",
            format!("{units}/multi-user.target"),
        ),
        link(format!("{wants}/bench-end.service"), "../bench-end.service"),
    ];
    if keeps_output(services) {
        links.push(link(
            "/etc/systemd/system/sysinit.target.wants/systemd-journald.service",
            format!("{units}/systemd-journald.service"),
        ));
        for socket in ["systemd-journald.socket", "systemd-journald-dev-log.socket"] {
            links.push(link(
                format!("/etc/systemd/system/sockets.target.wants/{socket}"),
                format!("{units}/{socket}"),
            ));
        }
    }
    for number in 1..=services {
        links.push(link(
            format!("{wants}/bench@{number}.service"),
            "../bench@.service",
        ));
    }
    Rival {
        programs: &[
            "/lib/systemd/systemd",
            "/lib/systemd/systemd-journald",
            "/lib/systemd/systemd-shutdown",
            "/bin/systemctl",
        ],
        copies: &[
            "/lib/systemd/system/basic.target",
            "/lib/systemd/system/final.target",
            "/lib/systemd/system/local-fs.target",
            "/lib/systemd/system/multi-user.target",
            "/lib/systemd/system/paths.target",
            "/lib/systemd/system/poweroff.target",
            "/lib/systemd/system/shutdown.target",
            "/lib/systemd/system/slices.target",
            "/lib/systemd/system/sockets.target",
            "/lib/systemd/system/sysinit.target",
            "/lib/systemd/system/systemd-journald-dev-log.socket",
            "/lib/systemd/system/systemd-journald.service",
            "/lib/systemd/system/systemd-journald.socket",
            "/lib/systemd/system/systemd-poweroff.service",
            "/lib/systemd/system/timers.target",
            "/lib/systemd/system/umount.target",
        ],
        files: vec![
            file("/etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
            file("/etc/systemd/system/bench@.service", UNIT),
            file("/etc/systemd/system/bench-end.service", END_UNIT),
            // SIGRTMIN+4, as systemd(1) has it.
            file("/end", end("kill -38 1")),
        ],
        links,
        ..Rival::default()
    }
}

fn runit(services: usize) -> Rival<'static> {
    let mut files = vec![
        file("/etc/runit/1", format!("{MOUNTS}touch /run/runit.stopit\n")),
        file("/etc/runit/2", "#!/bin/sh\nexec runsvdir -P /service\n"),
        file(
            "/etc/runit/3",
            "#!/bin/sh\nsv -w 5 force-stop /service/* >/dev/null\nsync\n",
        ),
        file(
            "/service/end/run",
            format!(
                "#!/bin/sh\n{}exec sleep 1000\n",
                end(
                    // As Debian's runit-init does.
                    "chmod 100 /run/runit.stopit; touch /run/runit.reboot; chmod 0 /run/runit.reboot; kill -CONT 1"
                )
            ),
        ),
    ];
    for number in 1..=services {
        files.push(file(
            format!("/service/{number}/run"),
            format!("#!/bin/sh\n{}\n", in_cgroup(number)),
        ));
        files.push(file(
            format!("/service/{number}/log/run"),
            format!("#!/bin/sh\nmkdir -p /var/log/{number}\nexec svlogd /var/log/{number}\n"),
        ));
    }
    Rival {
        packages: &["runit"],
        programs: &[
            "/sbin/runit",
            "/usr/bin/runsvdir",
            "/usr/bin/runsv",
            "/usr/bin/sv",
            "/usr/bin/svlogd",
        ],
        files,
        links: vec![link("/init", "sbin/runit")],
        ..Rival::default()
    }
}

fn s6(services: usize) -> Rival<'static> {
    let mut files = vec![
        file(
            "/init",
            format!("{MOUNTS}exec s6-svscan -c 2500 /service\n"),
        ),
        file(
            "/service/.s6-svscan/finish",
            "#!/bin/sh\nsync\nexec poweroff -f\n",
        ),
        file(
            "/service/end/run",
            format!(
                "#!/bin/sh\n{}exec sleep 1000\n",
                end("s6-svscanctl -t /service")
            ),
        ),
    ];
    for number in 1..=services {
        files.push(file(
            format!("/service/{number}/run"),
            format!("#!/bin/sh\n{}\n", in_cgroup(number)),
        ));
        files.push(file(
            format!("/service/{number}/log/run"),
            format!("#!/bin/sh\nexec s6-log n3 s100000 /var/log/{number}\n"),
        ));
    }
    Rival {
        packages: &["s6", "libs6-2.11", "libskarnet2.13", "libexecline2.9"],
        programs: &[
            "/usr/bin/s6-svscan",
            "/usr/bin/s6-svscanctl",
            "/usr/bin/s6-supervise",
            "/usr/bin/s6-log",
        ],
        files,
        ..Rival::default()
    }
}

fn busybox(services: usize) -> Rival<'static> {
    let mut inittab = "::sysinit:/mounts\n::once:/bin/sh /end\n::shutdown:/bin/sync\n".to_owned();
    let mut files = vec![file("/mounts", MOUNTS), file("/end", end("kill -USR2 1"))];
    for number in 1..=services {
        inittab.push_str(&format!("::respawn:/service/{number}\n"));
        files.push(file(
            format!("/service/{number}"),
            format!(
                "#!/bin/sh\nexec >/var/log/{number} 2>&1\n{}\n",
                in_cgroup(number)
            ),
        ));
    }
    files.push(file("/etc/inittab", inittab));
    Rival {
        files,
        links: vec![link("/init", "bin/busybox")],
        ..Rival::default()
    }
}
