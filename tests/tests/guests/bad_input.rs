//! What is wrong with the input is one clear line, and the machine still comes up so far that somebody can see it.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use orlop_qemu::guest::{BOOT_PATIENCE, Guest, Network};
use orlop_qemu::image::Project;
use orlop_qemu::seed;
use orlop_tests::{Scenario, project_file};

/// Exactly one line of the console holds all of `parts`.
fn one_line(guest: &Guest, parts: &[&str]) -> Result<()> {
    let text = guest.log.text();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| parts.iter().all(|part| line.contains(part)))
        .collect();
    ensure!(
        lines.len() == 1,
        "{} lines hold {parts:?}: {lines:#?}",
        lines.len()
    );
    Ok(())
}

fn let_in(scenario: &mut Scenario) {
    scenario.need("the machine comes up and lets its operator in", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
}

#[test]
fn a_broken_yaml_is_one_line_and_the_machine_comes_up() {
    let user_data = "#cloud-config\nhostname: wreck\ncoreos:\n  units: [\n    - name: a\n";
    let mut wreck = Scenario::start("test-broken-yaml", user_data, |_| Ok(()));
    let_in(&mut wreck);
    wreck.check("one line names the file, line and column", |guest| {
        let text = guest.log.text();
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("user-data:") && line.contains("error"))
            .collect();
        ensure!(lines.len() == 1, "{lines:#?}");
        let place = lines[0]
            .split_once("user-data:")
            .map_or("", |(_, rest)| rest);
        let mut numbers = place.split(':');
        for what in ["line", "column"] {
            let number = numbers.next().unwrap_or_default();
            ensure!(
                number.trim().parse::<u32>().is_ok_and(|n| n > 0),
                "no {what} in {:?}",
                lines[0]
            );
        }
        Ok(())
    });
    wreck.power_off();
    wreck.finish();
}

#[test]
fn each_wrong_part_of_a_configuration_is_one_line_and_the_rest_works() {
    let user_data = "\
#cloud-config
hostname: leaky
hostnam: typo
sysctl:
  net.core.no_such_key: 1
  net.core.somaxconn: 2048
coreos:
  units:
    - name: absent.service
      command: start
      content: |
        [Service]
        ExecStart=/usr/bin/no-such-program
    - name: odd.service
      command: start
      content: |
        [Service]
        ExecStart=/bin/sleep 1000
        NoSuchDirective=1
    - name: rotten.container
      content: |
        [Container]
        Image=docker-archive:/run/orlop/cidata/rotten.tar
        [Install]
        WantedBy=multi-user.target
";
    let mut leaky = Scenario::start("test-wrong-parts", user_data, |machine| {
        let rotten = machine.directory.join("rotten.tar");
        rotten_archive(&rotten)?;
        machine.write_seed_with(&seed::Seed {
            user_data: user_data.as_bytes().to_vec(),
            keys: vec![machine.key.public.clone()],
            files: vec![("rotten.tar".to_owned(), rotten)],
        })
    });
    let_in(&mut leaky);
    leaky.check("the unknown key is named with its place", |guest| {
        one_line(guest, &["user-data:3:1", "hostnam"])
    });
    leaky.check(
        "the sysctl that does not exist is named with its place",
        |guest| one_line(guest, &["net.core.no_such_key", "user-data:5:"]),
    );
    leaky.command(
        "the sysctl after it is set",
        "cat /proc/sys/net/core/somaxconn",
        |text| text.trim() == "2048",
    );
    leaky.command_becomes(
        "the missing program is named in the unit's log",
        "journalctl --no-pager -u absent.service",
        |text| text.contains("/usr/bin/no-such-program"),
    );
    leaky.command(
        "the unit that lacks its program has failed",
        "systemctl is-active absent.service || true",
        |text| text.trim() == "failed",
    );
    leaky.command(
        "a unit with a directive that nobody knows runs",
        "systemctl is-active odd.service",
        |text| text.trim() == "active",
    );
    leaky.command(
        "the directive is named with its file and line",
        "journalctl --no-pager",
        |text| {
            text.lines()
                .any(|line| line.contains("odd.service:3:") && line.contains("NoSuchDirective"))
        },
    );
    leaky.command_becomes(
        "the image whose digest does not fit is refused, with both digests' kind named",
        "journalctl --no-pager -u rotten.service",
        |text| text.contains("sha256:"),
    );
    leaky.command(
        "its container does not run",
        "systemctl is-active rotten.service || true",
        |text| text.trim() != "active",
    );
    leaky.power_off();
    leaky.finish();
}

/// The sample image with one byte changed in the middle of a layer.
fn rotten_archive(path: &std::path::Path) -> Result<()> {
    let whole = seed::web_archive(&Project::here())?;
    let mut bytes = std::fs::read(&whole).context("read the sample image")?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

#[test]
fn a_disk_that_holds_something_else_is_not_touched() {
    let mut foreign = Scenario::start(
        "test-foreign-disk",
        &project_file("configs/demo.yaml"),
        |machine| {
            let disk = machine.data_disk();
            std::fs::File::create(&disk)?.set_len(64 << 20)?;
            let status = Command::new("/sbin/mke2fs")
                .args(["-q", "-t", "ext4", "-L", "precious"])
                .arg(&disk)
                .status()
                .context("start mke2fs")?;
            ensure!(status.success(), "mke2fs: {status}");
            std::fs::copy(&disk, machine.directory.join("before.raw"))?;
            Ok(())
        },
    );
    let_in(&mut foreign);
    foreign.check("one line says what was found, and how to go on", |guest| {
        one_line(guest, &["ext4", "wipe: true"])
    });
    foreign.command("/var is in memory", "grep ' /var ' /proc/mounts", |text| {
        text.contains(" tmpfs ")
    });
    foreign.power_off();
    let directory = foreign.machine.directory.clone();
    let same = std::fs::read(directory.join("before.raw")).ok()
        == std::fs::read(directory.join("data.raw")).ok();
    foreign.finish();
    assert!(same, "the disk was written to");
}

#[test]
fn a_full_data_disk_is_named_and_the_machine_comes_up() {
    let mut full = Scenario::start(
        "test-full-disk",
        &project_file("configs/demo.yaml"),
        |machine| {
            machine.data_bytes = Some(192 << 20);
            Ok(())
        },
    );
    let_in(&mut full);
    full.need("the page is there", |guest| {
        guest.wait_for_page("/").map(|_| ())
    });
    full.command(
        "the disk can be filled",
        "sudo sh -c 'dd if=/dev/zero of=/var/fill bs=1M; dd if=/dev/zero of=/var/fill2 bs=4k; sync' 2>&1; true",
        |text| text.contains("No space left on device"),
    );
    full.need("it restarts when told to", |guest| {
        let from = guest.log.text().len();
        guest.ssh()?.output("sudo systemctl reboot")?;
        guest.wait_for_console("Linux version", from, BOOT_PATIENCE)?;
        guest.wait_for_ssh().map(|_| ())
    });
    full.command_becomes(
        "somebody says that there is no space left",
        "{ dmesg; journalctl --no-pager; } | grep -i 'no space left'",
        |text| !text.is_empty(),
    );
    full.command(
        "units can be looked at",
        "systemctl list-units --no-pager",
        |text| text.contains("sshd.service"),
    );
    full.power_off();
    full.finish();
}

#[test]
fn a_machine_without_a_network_comes_up() {
    let mut alone = Scenario::start(
        "test-no-network",
        &project_file("configs/demo.yaml"),
        |machine| {
            machine.network = Network::Absent;
            machine.command_line.push_str(" orlop.shell=ttyS0");
            Ok(())
        },
    );
    alone.need("the console has a shell", |guest| {
        let mut shell = guest.shell()?;
        let deadline = Instant::now() + BOOT_PATIENCE;
        let units = shell.run("systemctl list-units --no-pager", deadline)?;
        ensure!(units.contains("sshd.service"), "{units}");
        Ok(())
    });
    alone.check("the network's log says that there is no link", |guest| {
        let mut shell = guest.shell()?;
        let deadline = Instant::now() + BOOT_PATIENCE;
        // It waits a few seconds for a link before it complains.
        let log = shell.run(
            "until journalctl --no-pager -u orlop-net.service | grep 'no network'; do sleep 1; done",
            deadline,
        )?;
        ensure!(log.contains("link"), "{log}");
        Ok(())
    });
    alone.check("the container runs all the same", |guest| {
        let mut shell = guest.shell()?;
        let deadline = Instant::now() + BOOT_PATIENCE;
        let page = shell.run(
            "until grep -q starts: /var/lib/web/www/index.html; do sleep 1; done; cat /var/lib/web/www/index.html",
            deadline,
        )?;
        ensure!(page.contains("starts: 1"), "{page}");
        Ok(())
    });
    alone.power_off();
    alone.finish();
}
