//! Updates by HTTP: what a machine takes, what it refuses, and the way back.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use orlop_qemu::guest::{BOOT_PATIENCE, Machine, Network, Start};
use orlop_qemu::http::server::{Content, Server};
use orlop_qemu::image::{self, Key, Project};
use orlop_qemu::process;
use orlop_qemu::system::{SystemDisk, Version};
use orlop_tests::Scenario;
use orlop_update::hex::Hash;
use orlop_update::manifest::Manifest;
use orlop_update::signature::SecretKey;

/// A version whose image has no header yet.
const UNFINISHED: &str = "0.9.0";

/// A machine that looks for updates at `url`.
pub(crate) fn configuration(url: &str) -> String {
    format!(
        "#cloud-config
hostname: hull
update:
  url: {url}
  healthy: [network-online.target]
  healthy_for: 1
  boot_deadline: 200
"
    )
}

/// Makes the machine's disk, with 0.1.0 in its first slot and nothing in the other.
pub(crate) fn prepare(machine: &mut Machine) -> Result<SystemDisk> {
    machine.data_bytes = None;
    machine.memory_mib = 768;
    machine.network = Network::Open;
    machine.start = Start::Firmware;
    // A start that panics is tried again.
    machine.may_panic = true;
    let good = Version {
        name: "0.1.0",
        tries: None,
        words: "",
    };
    SystemDisk::make(&Project::here(), machine, &[good], 64)
}

/// Makes the payload of `version` in `directory`.
pub(crate) fn payload(
    machine: &Machine,
    key: &Key,
    version: &str,
    directory: &Path,
) -> Result<PathBuf> {
    let project = Project::here();
    let slots = machine.directory.join("slots");
    let number = version.parse()?;
    let slot = image::slot(&project, &machine.products, &number, "", &slots)?;
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let path = directory.join(format!("orlop-{version}.update"));
    image::payload(&slot, &machine.products.loader, key, &path)?;
    Ok(path)
}

/// A payload with another manifest (docs/update-payload.md has the format), signed anew where there is a key.
fn forged(
    payload: &[u8],
    key: Option<&SecretKey>,
    change: impl FnOnce(&mut Manifest),
) -> Result<Vec<u8>> {
    const HEADER: usize = 32;
    let length = |at: usize| -> Result<usize> {
        let bytes = payload.get(at..at + 4).context("a header")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let (signature, manifest) = (length(12)?, length(16)?);
    let area = payload
        .get(HEADER..HEADER + signature)
        .context("signatures")?;
    let rest = &payload[HEADER + signature..];
    let (text, parts) = rest.split_at_checked(manifest).context("a manifest")?;
    let mut manifest = Manifest::parse(text)?;
    change(&mut manifest);
    let text = manifest.to_text();
    let mut area = area.to_vec();
    if let Some(key) = key {
        area.fill(0);
        let signature = key.sign(&text, "forged");
        area[..signature.len()].copy_from_slice(signature.as_bytes());
    }
    let mut header = payload[..HEADER].to_vec();
    header[16..20].copy_from_slice(&u32::try_from(text.len())?.to_le_bytes());
    Ok([&header, &area, &text, parts].concat())
}

/// Both outputs of a command, for people.
pub(crate) fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// `command` fails and says `why`, and the boot entries stay as they are.
fn is_refused(hull: &mut Scenario, disk: &SystemDisk, what: &str, command: &str, why: &str) {
    hull.check(&format!("refused: {what}"), |guest| {
        let before = disk.entries()?;
        let output = guest.ssh()?.output(command)?;
        let said = said(&output);
        ensure!(
            !output.status.success() && said.contains(why),
            "no {why:?} in {said}"
        );
        // What an update left that was cut short is room for the next one.
        let whole = |entries: Vec<String>| -> Vec<String> {
            entries
                .into_iter()
                .filter(|entry| !entry.contains(UNFINISHED))
                .collect()
        };
        let (before, after) = (whole(before), whole(disk.entries()?));
        ensure!(before == after, "{before:?} became {after:?}");
        Ok(())
    });
}

/// The machine comes to run `version`, and calls it good.
fn comes_to_run(hull: &mut Scenario, version: &str) {
    let entry = format!("\"entry\":\"orlop_{version}.efi\"");
    hull.need(&format!("{version} runs, and is good"), |guest| {
        let ssh = guest.ssh()?;
        let mut last = String::new();
        let deadline = Instant::now() + 2 * BOOT_PATIENCE;
        process::poll("the version", deadline, || {
            guest.alive()?;
            let output = ssh.output("sudo orlop slots --json")?;
            last = said(&output);
            let mut slots = last.split("},{");
            let is_there =
                slots.any(|slot| slot.contains(&entry) && slot.contains("\"running\":true"));
            if !is_there {
                std::thread::sleep(Duration::from_millis(500));
            }
            Ok((output.status.success() && is_there).then_some(()))
        })
        .with_context(|| last)
    });
}

#[test]
fn an_update_comes_by_http_and_the_way_back_is_by_hand() {
    let server = Server::start().expect("a server");
    let key = Key::of_project(&Project::here()).expect("a key");
    let secret = key.secret().expect("a key that signs");
    let mut made = None;
    let mut hull = Scenario::start("test-update", &configuration(&server.url("/")), |machine| {
        let disk = prepare(machine)?;
        // What an update leaves that was cut short: nobody takes it for an image.
        let unfinished = machine.directory.join("unfinished.efi");
        let mut image = std::fs::read(&disk.slots[0].uki).context("read the image")?;
        image[..512].fill(0);
        std::fs::write(&unfinished, image).context("write an image")?;
        disk.put(&unfinished, &format!("EFI/Linux/orlop_{UNFINISHED}+3.efi"))?;
        let directory = machine.directory.join("served");
        let path = payload(machine, &key, "0.2.0", &directory)?;
        image::list(std::slice::from_ref(&path), &key)?;
        made = Some((disk, path));
        Ok(())
    });
    let (disk, path) = made.expect("a disk");
    let served = |name: &str| {
        let path = path.with_file_name(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let bytes = served("orlop-0.2.0.update");
    let list = served("latest.json");
    // No answer brings more than a third of it.
    server.serve(
        "/orlop-0.2.0.update",
        Content::Flaky(path.clone(), bytes.len() as u64 / 3 + 1),
    );
    let hidden = String::from_utf8_lossy(&list).replace("0.2.0", "0.1.0");
    server.serve("/latest.json", Content::Bytes(hidden.into_bytes()));
    comes_to_run(&mut hull, "0.1.0");

    // What a server may try.
    let check = "sudo orlop update check";
    let unsigned = "latest.json, so that it is not believed";
    is_refused(
        &mut hull,
        &disk,
        "a list without a signature",
        check,
        unsigned,
    );
    let signature = served("latest.json.minisig");
    server.serve("/latest.json.minisig", Content::Bytes(signature));
    let changed = "was changed after it was signed";
    is_refused(
        &mut hull,
        &disk,
        "a list that hides a version",
        check,
        changed,
    );
    server.serve("/latest.json", Content::Bytes(list));

    let stranger = SecretKey::generate().expect("a key");
    type Change = fn(&mut Manifest);
    let newer: Change = |manifest| manifest.version = "0.9.0".parse().expect("a version");
    let cases: [(&str, Option<&SecretKey>, Change, &str); 6] = [
        ("a changed manifest", None, newer, changed),
        ("a foreign key", Some(&stranger), newer, "does not trust"),
        (
            "another architecture",
            Some(secret),
            |manifest| manifest.architecture = "riscv64".to_owned(),
            "it is for riscv64; this machine is x86_64",
        ),
        (
            "an older version",
            Some(secret),
            |manifest| manifest.version = "0.0.9".parse().expect("a version"),
            "it brings 0.0.9, which is older than 0.1.0 that runs; --allow-downgrade",
        ),
        (
            "a root that is larger than the slot",
            Some(secret),
            |manifest| manifest.parts.root.bytes = 1 << 30,
            "root has 1073741824 bytes, and the slot has room for 268435456",
        ),
        (
            "a kernel image with another hash",
            Some(secret),
            |manifest| manifest.parts.uki.sha256 = Hash([7; 32]),
            "uki is damaged: its SHA-256 is",
        ),
    ];
    for (number, (what, key, change, why)) in cases.into_iter().enumerate() {
        let name = format!("/case-{number}.update");
        let content = forged(&bytes, key, change).expect("a payload");
        server.serve(&name, Content::Bytes(content));
        let command = format!("sudo orlop update apply {}", server.url(&name));
        is_refused(&mut hull, &disk, what, &command, why);
    }
    hull.command(
        "the EFI system partition is filled up",
        "sudo sh -c 'mkdir -p /run/esp && mount -t vfat /dev/vda1 /run/esp && \
         { dd if=/dev/zero of=/run/esp/filler bs=1M count=400 2>/dev/null; umount /run/esp; }'",
        |_| true,
    );
    let apply = "sudo orlop update apply";
    let full = "bytes to spare, and the kernel image needs";
    is_refused(
        &mut hull,
        &disk,
        "no room for the kernel image",
        apply,
        full,
    );
    hull.command(
        "and emptied",
        "sudo sh -c 'mount -t vfat /dev/vda1 /run/esp && rm /run/esp/filler && umount /run/esp'",
        |_| true,
    );

    hull.command("the channel's news are told", check, |text| {
        text.contains("0.1.0 runs; stable has 0.2.0 (")
    });
    hull.check(
        "the channel's version is put into the other slot, by a connection that breaks twice",
        |guest| {
            let earlier = server.requests().len();
            let said = said(&guest.ssh()?.output(apply)?);
            let signer = key.public().id.to_string();
            let words = [
                "writing: 100 %",
                "comparing: 100 %",
                "0.2.0 is in slot b",
                &signer,
            ];
            ensure!(words.iter().all(|word| said.contains(word)), "{said}");
            let requests = server.requests();
            let asked = requests[earlier..]
                .iter()
                .filter(|path| path.ends_with("/orlop-0.2.0.update"));
            ensure!(asked.count() == 3, "asked for {requests:?}\n{said}");
            let entries = disk.entries()?;
            ensure!(
                entries == ["orlop_0.1.0.efi", "orlop_0.2.0+3.efi"],
                "{entries:?}"
            );
            Ok(())
        },
    );
    hull.command("doing it twice is doing it once", apply, |text| {
        text.contains("0.2.0 is in the other slot already")
    });
    hull.command("the slots tell it", "sudo orlop slots", |text| {
        let line = |version: &str, words: &[&str]| {
            let mut lines = text.lines().filter(|line| line.starts_with(version));
            lines.any(|line| words.iter().all(|word| line.contains(word)))
        };
        line("0.1.0", &["good", "running"]) && line("0.2.0", &["on trial, 3 tries left", "next"])
    });
    hull.check("it reboots", |guest| {
        guest.ssh()?.output("sudo reboot").map(|_| ())
    });
    comes_to_run(&mut hull, "0.2.0");
    hull.check("there is nothing newer", |guest| {
        let output = guest.ssh()?.output(check)?;
        let said = said(&output);
        ensure!(
            output.status.code() == Some(1)
                && said.contains("0.2.0 runs; stable has nothing newer"),
            "{said}"
        );
        Ok(())
    });
    hull.check("back by hand", |guest| {
        // The reboot may end the connection before the command does.
        let said = said(&guest.ssh()?.output("sudo orlop rollback")?);
        ensure!(said.contains("the next start is of 0.1.0"), "{said}");
        Ok(())
    });
    comes_to_run(&mut hull, "0.1.0");
    hull.command("the slots tell that too", "sudo orlop slots", |text| {
        text.contains("it was rolled back by hand")
    });
    let failed = "0.2.0 failed on this machine before; --retry";
    let again = format!("{apply} {}", server.url("/orlop-0.2.0.update"));
    is_refused(
        &mut hull,
        &disk,
        "a version that was given up",
        &again,
        failed,
    );
    let older = format!("{apply} --allow-downgrade {}", server.url("/case-3.update"));
    hull.check(
        "an older version that is asked for is started next",
        |guest| {
            let said = said(&guest.ssh()?.output(&older)?);
            ensure!(said.contains("0.0.9 is in slot b"), "{said}");
            let entries = disk.entries()?;
            ensure!(
                entries == ["orlop_0.0.9+3.efi", "orlop_0.1.0+0-1.efi"],
                "{entries:?}"
            );
            Ok(())
        },
    );
    hull.power_off();
    hull.finish();
}
