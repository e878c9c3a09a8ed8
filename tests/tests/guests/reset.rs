//! Factory reset and recovery, on a machine that runs from its disk: from the command line and from the boot menu.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use orlop_qemu::console::Shell;
use orlop_qemu::guest::{BOOT_PATIENCE, Guest};
use orlop_qemu::process;
use orlop_tests::Scenario;

/// The loader's variable of the entry for the next start alone (systemd's Boot Loader Interface).
const ONE_SHOT: &str =
    "/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// Has the loader take `entry` at the next start: attributes of UEFI 2.10 §8.2 in a file of efivarfs, and text of 16 bits.
fn choose(guest: &mut Guest, entry: &str) -> Result<()> {
    let text: String = entry.chars().map(|c| format!("{c}\\0")).collect();
    let ssh = guest.ssh()?;
    ssh.run(&format!(
        "sudo sh -c 'grep -q efivarfs /proc/mounts || mount -t efivarfs efivarfs /sys/firmware/efi/efivars; \
         printf \"\\7\\0\\0\\0{text}\\0\\0\" > {ONE_SHOT}'"
    ))
    .map(|_| ())
}

fn boot_id(guest: &mut Guest) -> Result<String> {
    guest.ssh()?.run("cat /proc/sys/kernel/random/boot_id")
}

/// The root shell on the console, as soon as it asks for a command behind the first `from` bytes: what is typed before that is for the
/// firmware and the loader.
pub(crate) fn prompt(guest: &mut Guest, from: usize) -> Result<Shell> {
    let until = Instant::now() + 2 * BOOT_PATIENCE;
    process::poll("a prompt on the console", until, || {
        guest.alive()?;
        Ok(guest.log.text_from(from).contains("bash-").then_some(()))
    })?;
    guest.shell()
}

/// What the loader shows before the entry that is chosen: black on white.
const CHOSEN: &str = "\x1b[30m\x1b[47m";

/// Opens the loader's menu at the next start by a key, as one who stands before the machine does, and takes the entry called `title`.
/// The keyboard has to be kept until that is seen to start: with it goes what was pressed and not read yet.
fn pick(guest: &mut Guest, from: usize, title: &str) -> Result<Shell> {
    let mut keyboard = guest.shell()?;
    let mut pressed = Instant::now();
    let until = pressed + 2 * BOOT_PATIENCE;
    process::poll("the entry of the loader's menu", until, || {
        guest.alive()?;
        let text = guest.log.text_from(from);
        let chosen = text
            .rsplit_once(CHOSEN)
            .map(|(_, shown)| shown.trim_start());
        // The loader looks for a key a tenth of a second long, and a menu is drawn anew for each one.
        let (key, pause) = match chosen {
            Some(shown) if shown.starts_with(title) => return Ok(Some(())),
            Some(_) => ("\x1b[B", 1000),
            None if text.contains("BdsDxe: starting") => (" ", 80),
            None => return Ok(None),
        };
        if pressed.elapsed() >= Duration::from_millis(pause) {
            pressed = Instant::now();
            keyboard.press(key)?;
        }
        Ok(None)
    })?;
    keyboard.press("\r")?;
    Ok(keyboard)
}

/// Waits until it has restarted and lets the operator in.
fn restarted(guest: &mut Guest, before: &str) -> Result<()> {
    let ssh = guest.ssh()?;
    process::poll(
        "the machine to restart",
        Instant::now() + 2 * BOOT_PATIENCE,
        || {
            guest.alive()?;
            std::thread::sleep(Duration::from_millis(300));
            let output = ssh.output("cat /proc/sys/kernel/random/boot_id")?;
            let now = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok((output.status.success() && now != before).then_some(()))
        },
    )
}

/// Runs what ends in a restart, and waits for that.
pub(crate) fn restart(guest: &mut Guest, command: &str) -> Result<()> {
    let before = boot_id(guest)?;
    guest.ssh()?.output(command)?;
    restarted(guest, &before)
}

/// Resets parts by hand; opens the shell for recovery from the boot menu, and from it takes the menu's reset of everything.
pub(crate) fn the_operator_resets_and_recovers(machine: &mut Scenario) {
    machine.command(
        "there is something to lose",
        "sudo sh -c 'echo kept >/var/srv/cargo; echo lost >/var/opt/cargo; sync'",
        |_| true,
    );
    machine.need("named parts are reset at the next start", |guest| {
        restart(guest, "sudo orlop reset --only opt,images --yes --reboot")
    });
    machine.command(
        "those are gone and the others stay",
        "cat /var/srv/cargo; ls /var/opt/cargo 2>&1; true",
        |text| text.contains("kept") && text.contains("No such file"),
    );
    machine.command(
        "the image is as it was",
        "sudo orlop slots --json",
        |text| text.contains("\"entry\":\"orlop_0.1.0.efi\""),
    );
    machine.need("the boot menu's recovery is a shell on the console", |guest| {
        choose(guest, "orlop-recovery.conf")?;
        let before = boot_id(guest)?;
        let from = guest.log.text().len();
        guest.ssh()?.output("sudo systemctl reboot")?;
        let mut shell = prompt(guest, from)?;
        let until = Instant::now() + 2 * BOOT_PATIENCE;
        let said = shell.run(
            "cat /proc/sys/kernel/random/boot_id; systemctl is-active rescue.target; systemctl is-active sshd.service; cat /var/srv/cargo",
            until,
        )?;
        ensure!(!said.contains(before.trim()), "it did not restart: {said}");
        for line in ["active", "inactive", "kept"] {
            ensure!(said.lines().any(|l| l.trim() == line), "no {line}: {said}");
        }
        shell.run("{ (sleep 1; systemctl reboot) & }", until).map(|_| ())
    });
    machine.need("the start after that is one like any other", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    machine.need(
        "the boot menu's reset, taken by hand, wipes /var",
        |guest| {
            let before = boot_id(guest)?;
            let from = guest.log.text().len();
            guest.ssh()?.output("sudo systemctl reboot")?;
            let _keyboard = pick(guest, from, "Orlop: factory reset")?;
            restarted(guest, &before)
        },
    );
    machine.command(
        "all is gone, and the configuration is there",
        "ls /var/srv/cargo 2>&1; hostname; sudo orlop slots --json",
        |text| {
            text.contains("No such file")
                && text.contains("stowaway")
                && text.contains("\"entry\":\"orlop_0.1.0.efi\"")
        },
    );
}
