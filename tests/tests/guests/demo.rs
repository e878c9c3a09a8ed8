//! The machine of `configs/demo.yaml`: everything that a newcomer is shown, and that it is still there the next time.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use orlop_qemu::guest::{BOOT_PATIENCE, Guest};
use orlop_qemu::image::Project;
use orlop_tests::{Scenario, number_after, project_file};

#[test]
fn the_demo_machine_serves_its_page_and_keeps_its_data() {
    let mut demo = Scenario::start("test-demo", &project_file("configs/demo.yaml"), |_| Ok(()));
    demo.need(
        "the container's page says that this is its first start",
        |guest| {
            let page = guest.wait_for_page("/")?;
            ensure!(number_after(&page, "starts: ")? == 1, "{page}");
            Ok(())
        },
    );
    demo.need("core gets in with its key", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    the_configuration_is_applied(&mut demo);
    units_can_be_looked_at_and_moved(&mut demo);
    the_container_is_contained(&mut demo);
    demo.check("etcdctl puts and gets", |guest| {
        etcdctl(guest, &["put", "/cargo", "tea"])?;
        let got = etcdctl(guest, &["get", "--print-value-only", "/cargo"])?;
        ensure!(got.trim() == "tea", "{got}");
        Ok(())
    });
    demo.check("a visit is counted", |guest| {
        let visit = guest.wait_for_page("/cgi-bin/visit")?;
        ensure!(number_after(&visit, "visits: ")? == 1, "{visit}");
        Ok(())
    });

    let before = identity(&mut demo);
    demo.need("it restarts when told to", |guest| {
        let from = guest.log.text().len();
        guest.ssh()?.output("sudo systemctl reboot")?;
        guest.wait_for_console("Linux version", from, BOOT_PATIENCE)?;
        guest.wait_for_ssh().map(|_| ())
    });
    kept(&mut demo, 2, 2, &before);
    demo.command(
        "the log of the boot before is kept",
        "journalctl -u web.service --no-pager",
        |log| log.contains("start 1, serving") && log.contains("start 2, serving"),
    );

    demo.cut_power();
    demo.switch_on();
    demo.need("it comes back after the power was cut", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    kept(&mut demo, 3, 3, &before);
    demo.power_off();

    let toml = format!("#orlop\n{}", project_file("configs/demo.toml"));
    demo.machine
        .write_seed(&Project::here(), toml.as_bytes())
        .unwrap_or_else(|error| panic!("{error:#}"));
    demo.switch_on();
    demo.need(
        "the same configuration in TOML makes the same machine",
        |guest| guest.wait_for_ssh().map(|_| ()),
    );
    kept(&mut demo, 4, 4, &before);
    the_configuration_is_applied(&mut demo);
    demo.check("`sudo poweroff` powers it off in order", |guest| {
        guest.ssh()?.output("sudo poweroff")?;
        guest.wait_for_end()
    });
    demo.finish();
}

fn the_configuration_is_applied(demo: &mut Scenario) {
    demo.command("it has its name", "hostname", |name| name.trim() == "demo");
    demo.command("it greets", "cat /etc/motd", |text| {
        text.contains("This machine was made from configs/demo.yaml.")
    });
    for (key, value) in [
        ("net/core/somaxconn", "4096"),
        ("net/ipv4/ip_local_port_range", "1025\t65000"),
        ("kernel/panic", "10"),
        ("net/netfilter/nf_conntrack_max", "262144"),
        ("net/netfilter/nf_conntrack_generic_timeout", "120"),
        ("net/netfilter/nf_conntrack_tcp_timeout_established", "7200"),
        // A quarter of the connections, since the configuration does not say.
        ("net/netfilter/nf_conntrack_buckets", "65536"),
    ] {
        demo.command(
            &format!("{key} is {value:?}"),
            &format!("cat /proc/sys/{key}"),
            |text| text.trim() == value,
        );
    }
    demo.command(
        "/var is an ext4 on the blank disk",
        "grep ' /var ' /proc/mounts",
        |mount| mount.starts_with("/dev/vd") && mount.contains(" ext4 "),
    );
    demo.command(
        "the root cannot be written",
        "grep ' / ' /proc/mounts; sudo touch /usr/x 2>&1 || echo refused",
        |text| text.contains(" ro,") && text.contains("refused"),
    );
    demo.command("core is no root", "id -u", |id| id.trim() == "500");
    demo.command("core is root by sudo", "sudo id -u", |id| id.trim() == "0");
    demo.check("nobody gets in without a key", |guest| {
        let port = guest.ssh()?.port.to_string();
        let output = Command::new("ssh")
            .args([
                "-F",
                "none",
                "-p",
                &port,
                "-o",
                "BatchMode=yes",
                "-o",
                "IdentityFile=none",
            ])
            .args(["-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"])
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ])
            .args(["core@127.0.0.1", "true"])
            .output()
            .context("start ssh")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "it let us in");
        ensure!(said.contains("Permission denied (publickey)"), "{said}");
        Ok(())
    });
    demo.command_becomes(
        "PID 1 and every role of Orlop together are small at rest",
        "sudo sh -c 'for p in /proc/[0-9]*; do [ \"$(readlink $p/exe)\" = /usr/bin/orlop ] && \
         grep -w Rss: $p/smaps_rollup; done | awk \"{ n += \\$2 } NR == 1 { print \\$2 } END { print n }\"'",
        |text| {
            let sizes: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
            matches!(sizes[..], [first, all] if first < 4 << 10 && all < 48 << 10)
        },
    );
    demo.command("boot-times shows steps", "orlop boot-times", |text| {
        text.contains("setup.data-volume")
    });
}

fn units_can_be_looked_at_and_moved(demo: &mut Scenario) {
    demo.command(
        "list-units shows the container as running",
        "systemctl list-units --no-pager",
        |text| {
            text.lines().any(|line| {
                line.contains("web.service") && line.contains("active") && line.contains("running")
            })
        },
    );
    demo.command(
        "status shows its state, its main process and its last lines",
        "systemctl status --no-pager web.service",
        |text| {
            [
                "The web page",
                "active (running)",
                "Main PID",
                "start 1, serving on port 80",
            ]
            .iter()
            .all(|part| text.contains(part))
        },
    );
    demo.command(
        "journalctl -u shows what it said",
        "journalctl --no-pager -u web.service",
        |text| text.contains("start 1, serving on port 80"),
    );
    demo.command(
        "a unit is in a cgroup of its own",
        "cat /sys/fs/cgroup/system.slice/sshd.service/cgroup.procs",
        |text| !text.trim().is_empty(),
    );
    demo.command(
        "a unit that is written at run time starts",
        "sudo sh -c 'mkdir -p /run/systemd/system && cd /run/systemd/system && \
         printf \"[Service]\\nExecStart=/bin/sh -c \\\"echo instance %%i; exec sleep 1000\\\"\\n\" >lamp@.service' && \
         sudo systemctl daemon-reload && sudo systemctl start lamp@bow.service && \
         systemctl is-active lamp@bow.service",
        |text| text.trim() == "active",
    );
    demo.command_becomes(
        "its output is kept",
        "journalctl --no-pager -u lamp@bow.service",
        |text| text.contains("instance bow"),
    );
    demo.command(
        "it stops in time",
        "sudo systemctl stop lamp@bow.service && { systemctl is-active lamp@bow.service; true; }",
        |text| text.trim() == "inactive",
    );
    demo.command(
        "a unit that fails is said to have failed",
        "sudo sh -c 'printf \"[Service]\\nType=oneshot\\nExecStart=/bin/false\\n\" >/run/systemd/system/leak.service'; \
         sudo systemctl daemon-reload; sudo systemctl start leak.service 2>&1 && echo wrong; systemctl is-active leak.service; true",
        |text| text.contains("failed") && !text.contains("wrong"),
    );
    demo.command(
        "modprobe loads by name",
        "sudo modprobe dummy && grep -c '^dummy ' /proc/modules",
        |text| text.trim() == "1",
    );
}

fn the_container_is_contained(demo: &mut Scenario) {
    // The one of the unit's processes that is number 1 in its own namespace.
    const PROCESS: &str = "pid=$(cd /sys/fs/cgroup/system.slice/web.service && \
        for p in $(find . -name cgroup.procs -exec cat {} +); do \
        grep -sq 'NSpid:.*[[:space:]]1$' /proc/$p/status && echo $p; done);";
    demo.command(
        "its first process is a child of PID 1",
        &format!("{PROCESS} grep PPid: /proc/$pid/status"),
        |text| text.split_whitespace().eq(["PPid:", "1"]),
    );
    demo.command(
        "it has namespaces of its own",
        &format!(
            "{PROCESS} sudo sh -c \"for n in mnt pid net ipc uts cgroup; do \
             [ \\$(readlink /proc/$pid/ns/\\$n) != \\$(readlink /proc/1/ns/\\$n) ] && echo \\$n; done\""
        ),
        |text| text.split_whitespace().count() == 6,
    );
    demo.command(
        "it cannot gain privileges and has a seccomp filter",
        &format!("{PROCESS} grep -E 'NoNewPrivs|Seccomp:' /proc/$pid/status"),
        |text| {
            text.split_whitespace()
                .eq(["NoNewPrivs:", "1", "Seccomp:", "2"])
        },
    );
    demo.command("docker ps shows it", "sudo docker ps", |text| {
        text.contains("web")
    });
}

/// What makes the machine the same one after a restart.
fn identity(demo: &mut Scenario) -> String {
    let mut identity = String::new();
    demo.check("it has a machine-id and host keys", |guest| {
        identity = guest.ssh()?.run(
            "cat /etc/machine-id; sudo sh -c 'cat /var/lib/orlop/ssh/*_host_key | sha256sum'",
        )?;
        let id = identity.lines().next().unwrap_or_default();
        ensure!(
            id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()),
            "{identity}"
        );
        Ok(())
    });
    identity
}

fn kept(demo: &mut Scenario, starts: u64, visits: u64, identity: &str) {
    demo.check("the container's volume kept its counts", |guest| {
        let page = guest.wait_for_page("/")?;
        ensure!(number_after(&page, "starts: ")? == starts, "{page}");
        let visit = guest.wait_for_page("/cgi-bin/visit")?;
        ensure!(number_after(&visit, "visits: ")? == visits, "{visit}");
        Ok(())
    });
    demo.command(
        "it is the same machine as before",
        "cat /etc/machine-id; sudo sh -c 'cat /var/lib/orlop/ssh/*_host_key | sha256sum'",
        |now| now == identity,
    );
    demo.check("the store kept what was put", |guest| {
        let got = etcdctl(guest, &["get", "--print-value-only", "/cargo"])?;
        ensure!(got.trim() == "tea", "{got}");
        Ok(())
    });
}

/// Runs the host's etcdctl against the guest's store, which listens on the guest's own loopback.
fn etcdctl(guest: &mut Guest, arguments: &[&str]) -> Result<String> {
    let port = orlop_testing::free_port()?;
    let _forwarded = guest.ssh()?.forward(port, 2379)?;
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &format!("127.0.0.1:{port}")])
        .args(["--dial-timeout", "60s", "--command-timeout", "60s"])
        .args(arguments)
        .output()
        .context("start etcdctl")?;
    if !output.status.success() {
        bail!(
            "etcdctl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
