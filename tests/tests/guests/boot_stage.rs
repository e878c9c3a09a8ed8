//! The boot stage before there is a root: what it says when there is none, and what works in its shell.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use orlop_qemu::guest::{BOOT_PATIENCE, Machine, Start};
use orlop_qemu::image::Archive;
use orlop_tests::Scenario;

#[test]
fn a_root_that_cannot_be_mounted_is_a_line_and_a_shell_where_one_is_asked_for() {
    let mut adrift = Scenario::start("test-no-root", "#cloud-config\n", |machine| {
        machine.data_bytes = None;
        machine.command_line.push_str(" orlop.rescue");
        spoil_root(machine)
    });
    adrift.need("the root that cannot be mounted is named", |guest| {
        let line = guest.wait_for_console("cannot mount the root", 0, BOOT_PATIENCE)?;
        ensure!(line.contains("/dev/loop0"), "{line}");
        Ok(())
    });
    adrift.check(
        "the kernel finds modprobe before there is a root",
        |guest| {
            guest.wait_for_console("a shell on the console", 0, BOOT_PATIENCE)?;
            let from = guest.log.text().len();
            let mut shell = guest.shell()?;
            let count = "busybox grep -c '^sd_mod ' /proc/modules";
            let said = shell.run(
                // Opening a disk of that number, which is not there, makes the kernel ask for its driver (block/bdev.c).
                &format!("busybox mknod /disk b 8 0; {count}; busybox head -c 1 /disk; {count}"),
                Instant::now() + BOOT_PATIENCE,
            )?;
            let counts: Vec<&str> = said
                .lines()
                .map(str::trim)
                .filter(|l| l.len() == 1)
                .collect();
            ensure!(counts == ["0", "1"], "{said}");
            shell.leave()?;
            guest
                .wait_for_console("boot: rebooting in 10 s", from, BOOT_PATIENCE)
                .map(|_| ())
        },
    );
    adrift.cut_power();
    adrift.finish();
}

/// Appends to the initramfs a root that is none, and a shell: of two files of one name the kernel unpacks the later one last.
fn spoil_root(machine: &mut Machine) -> Result<()> {
    let mut more = Archive::new();
    more.file("root.erofs", 0o644, vec![0xff; 1 << 16]);
    more.file(
        "bin/busybox",
        0o755,
        std::fs::read("/bin/busybox").context("read /bin/busybox")?,
    );
    more.link("bin/sh", "busybox");
    let mut initrd = std::fs::read(&machine.products.initrd).context("read the initramfs")?;
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(more.finish());
    let path = machine.directory.join("initrd");
    std::fs::write(&path, initrd).context("write the initramfs")?;
    machine.start = Start::Initramfs(path);
    Ok(())
}
