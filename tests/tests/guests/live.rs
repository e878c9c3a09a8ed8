//! The live medium: it starts from a drive, installs what it carries, and the disk starts by itself.

use anyhow::ensure;
use orlop_qemu::guest::{BOOT_PATIENCE, Start};
use orlop_tests::Scenario;

/// The same for the live machine and, by `--config`, for the disk.
const CONFIGURATION: &str = "#cloud-config
hostname: stowaway
update:
  healthy_for: 3
recovery:
  shell: true
";

#[test]
fn the_live_medium_installs_and_the_disk_starts_by_itself() {
    let mut stowaway = Scenario::start("test-live", CONFIGURATION, |machine| {
        machine.start = Start::Firmware;
        machine.data_bytes = None;
        machine.memory_mib = 512;
        machine.medium = Some(machine.products.iso.clone());
        machine.add_blank_system_disk(1 << 30)
    });
    stowaway.need("a shell is on the serial line", |guest| {
        let mut shell = crate::reset::prompt(guest, 0)?;
        let said = shell.run(
            "grep -c orlop.live /proc/cmdline",
            std::time::Instant::now() + BOOT_PATIENCE,
        )?;
        ensure!(said.contains('1'), "{said}");
        shell.leave()
    });
    stowaway.need("the operator of the volume's keys gets in", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    stowaway.command(
        "what the medium carries is put on the disk",
        "sudo orlop install size=largest; ls /run/orlop/live",
        |text| text.contains("is on /dev/vda") && text.contains("orlop.update"),
    );
    stowaway.check("a second time it is refused", |guest| {
        let output = guest.ssh()?.output("sudo orlop install /dev/vda")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && said.contains("is installed on /dev/vda already"),
            "{said}"
        );
        Ok(())
    });
    stowaway.power_off();

    // Neither the medium nor the volume with the configuration is there any more.
    stowaway.machine.medium = None;
    let _ = std::fs::remove_file(stowaway.machine.directory.join("cidata.img"));
    stowaway.switch_on();
    stowaway.need("the disk starts, with the same configuration", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    stowaway.command("it has its name", "hostname", |name| {
        name.trim() == "stowaway"
    });
    stowaway.command_becomes("its version is good", "sudo orlop slots --json", |text| {
        text.contains("\"entry\":\"orlop_0.1.0.efi\"")
    });
    crate::reset::the_operator_resets_and_recovers(&mut stowaway);
    stowaway.power_off();
    stowaway.finish();
}
