//! Slots on a disk: a good start is blessed, and whatever befalls a version, the machine ends in a good one and says why.
//!
//! Those that are ignored are of `make torture`.

use std::time::Duration;

use anyhow::{Result, ensure};
use orlop_qemu::guest::{BOOT_PATIENCE, Guest, Machine, Start};
use orlop_qemu::image::{MachineKind, Products, Project};
use orlop_qemu::system::{SystemDisk, Version};
use orlop_tests::Scenario;

/// A unit that does to the machine what a word of the version's kernel command line says.
const CONFIGURATION: &str = "#cloud-config
hostname: hull
update:
  healthy: [network-online.target, probe.service]
  healthy_for: 3
  boot_deadline: 75
units:
  - name: probe.service
    command: start
    content: |
      [Service]
      Type=oneshot
      RemainAfterExit=yes
      ExecStart=/bin/sh /run/probe
write_files:
  - path: /run/probe
    permissions: '0755'
    content: |
      freeze=/sys/fs/cgroup/frozen store=/sys/fs/cgroup/system.slice/orlop-store.service
      case \" $(cat /proc/cmdline) \" in
      *' fault=unit '*) exit 1 ;;
      *' fault=store '*) until grep -q . $store/cgroup.procs; do sleep 0.2; done; echo 1 > $store/cgroup.freeze ;;
      *' fault=panic '*) echo c > /proc/sysrq-trigger ;;
      *' fault=hang '*) mkdir $freeze && echo 1 > $freeze/cgroup.procs && echo 1 > $freeze/cgroup.freeze ;;
      esac
";

/// A version that has not been started yet.
fn fresh<'a>(name: &'a str, words: &'a str) -> Version<'a> {
    Version {
        name,
        tries: Some(3),
        words,
    }
}

/// A version that has one try left: a test need not wait for three.
fn last_try<'a>(name: &'a str, words: &'a str) -> Version<'a> {
    Version {
        name,
        tries: Some(1),
        words,
    }
}

/// A version that was healthy once.
fn good(name: &str) -> Version<'_> {
    Version {
        name,
        tries: None,
        words: "",
    }
}

/// Several boots, each slower than one without firmware.
const PATIENCE: Duration = Duration::from_secs(3 * BOOT_PATIENCE.as_secs());

/// A machine with a disk of `versions`, on which `befall` happens before it is switched on.
fn machine(
    name: &'static str,
    by_firmware: bool,
    versions: &[Version<'_>],
    befall: impl FnOnce(&mut Machine, &SystemDisk) -> Result<()>,
) -> Scenario {
    machine_of(orlop_tests::products(), name, by_firmware, versions, befall)
}

/// As [`machine`], with products of one's choice.
fn machine_of(
    products: &Products,
    name: &'static str,
    by_firmware: bool,
    versions: &[Version<'_>],
    befall: impl FnOnce(&mut Machine, &SystemDisk) -> Result<()>,
) -> Scenario {
    let has_roles = versions.iter().any(|v| v.words.contains("fault=store"));
    let configuration = if has_roles {
        // What is wanted where nothing is named.
        CONFIGURATION.replace("  healthy: [network-online.target, probe.service]\n", "")
    } else {
        CONFIGURATION.to_owned()
    };
    Scenario::start_on(products, name, &configuration, |machine| {
        machine.data_bytes = None;
        machine.memory_mib = 768;
        machine.may_panic = true;
        machine.start = if by_firmware {
            Start::Firmware
        } else {
            Start::Initramfs(machine.products.disk_initrd.clone())
        };
        let disk = SystemDisk::make(&Project::here(), machine, versions, 256)?;
        befall(machine, &disk)
    })
}

/// The console says that `version` was given up, and a reason that holds `reason`.
fn is_given_up(scenario: &mut Scenario, version: &str, reason: &str) {
    let sentence = format!("{version} is given up, and the console says why");
    scenario.need(&sentence, |guest: &mut Guest| {
        let mark = format!("version {version} was given up: ");
        let line = guest.wait_for_console(&mark, 0, PATIENCE)?;
        ensure!(line.contains(reason), "no {reason:?} in {line:?}");
        Ok(())
    });
}

/// The machine runs `version`, which is blessed, and `orlop slots` knows why `failed` is not.
fn runs_well(scenario: &mut Scenario, version: &str, failed: &[(&str, &str)]) {
    scenario.need("the operator gets in", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    let entry = format!("\"entry\":\"orlop_{version}.efi\"");
    scenario.command_becomes(
        "the version that runs is good",
        "sudo orlop slots --json",
        |text| text.contains(&entry) && text.contains("\"running\":true"),
    );
    scenario.command("the slots tell what failed", "sudo orlop slots", |text| {
        failed.iter().all(|(version, reason)| {
            let mut lines = text.lines().skip_while(|line| !line.starts_with(version));
            lines.next().is_some_and(|line| line.contains("bad"))
                && lines.next().is_some_and(|line| line.contains(reason))
        })
    });
    scenario.command(
        "the root is the verified device, read-only",
        "grep ' / ' /proc/mounts",
        |text| text.contains("/dev/dm-0 / erofs ro"),
    );
}

#[test]
fn a_version_that_is_not_healthy_makes_way_for_one_that_is() {
    let versions = [fresh("0.1.0", ""), last_try("0.2.0", "fault=unit")];
    let mut hull = machine("test-unhealthy", true, &versions, |_, disk| disk.fill_esp());
    is_given_up(&mut hull, "0.2.0", "probe.service failed");
    runs_well(
        &mut hull,
        "0.1.0",
        &[("0.2.0", "not healthy within 75 s: probe.service failed")],
    );
    hull.command(
        "/var is what was left of the disk",
        "df -m /var | tail -1",
        |text| {
            let size = text
                .split_whitespace()
                .nth(1)
                .and_then(|size| size.parse::<u32>().ok());
            text.starts_with("/dev/vda6") && size.is_some_and(|mib| (200..273).contains(&mib))
        },
    );
    hull.check("there is no way back to a version that failed", |guest| {
        let output = guest.ssh()?.output("sudo orlop rollback")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success() && said.contains("no good version"),
            "{said}"
        );
        Ok(())
    });
    hull.power_off();
    hull.finish();
}

#[test]
fn a_root_with_a_flipped_bit_is_not_entered() {
    let versions = [good("0.1.0"), last_try("0.2.0", "")];
    let mut hull = machine("test-flipped-root", true, &versions, |machine, disk| {
        // The superblock's own block: read before anything else.
        disk.flip("root-b", 1100)?;
        // The firmware mends the table from its backup.
        disk.damage_table()?;
        // An image that was cut off is none.
        let cut = machine.directory.join("cut.efi");
        let slot = &disk.slots[1];
        SystemDisk::cut_image(slot, 50, &cut)?;
        disk.put(&cut, "EFI/Linux/orlop_0.3.0+3.efi")
    });
    is_given_up(&mut hull, "0.2.0", "dm-verity device corrupted");
    runs_well(
        &mut hull,
        "0.1.0",
        &[
            ("0.2.0", "data block 0 is corrupted"),
            ("0.3.0", "its image"),
        ],
    );
    hull.power_off();
    hull.finish();
}

#[test]
fn without_a_loader_the_boot_stage_chooses() {
    let versions = [fresh("0.1.0", ""), fresh("0.2.0", "")];
    let mut hull = machine("test-direct", false, &versions, |machine, disk| {
        let cut = machine.directory.join("cut.efi");
        SystemDisk::cut_image(&disk.slots[1], 50, &cut)?;
        disk.put(&cut, "EFI/Linux/orlop_0.3.0+3.efi")?;
        disk.lose(4)?;
        disk.damage_table()
    });
    is_given_up(&mut hull, "0.2.0", "no partition of its root");
    is_given_up(&mut hull, "0.3.0", "is damaged");
    let failed = [
        ("0.2.0", "no partition of its root"),
        ("0.3.0", "its image"),
    ];
    runs_well(&mut hull, "0.1.0", &failed);
    hull.command(
        "the table is whole again",
        "sudo head -c 520 /dev/vda | tail -c 8",
        |text| text == "EFI PART",
    );
    hull.power_off();
    hull.finish();
}

#[test]
#[ignore = "torture"]
fn torture_the_same_input_gives_the_same_bytes_twice() {
    let sums = |products: &Products| {
        let path = products.disk.with_file_name("SHA256SUMS");
        std::fs::read_to_string(path).expect("sums")
    };
    let again = std::path::Path::new("build/again");
    let _ = std::fs::remove_dir_all(Project::here().path("build/again"));
    let second = orlop_tests::build_to(again, MachineKind::Virtual);
    assert_eq!(sums(orlop_tests::products()), sums(&second));
}

/// Ends a scenario in which 0.2.0 fails and 0.1.0 runs.
fn falls_back(mut hull: Scenario, reason: &str) {
    is_given_up(&mut hull, "0.2.0", reason);
    runs_well(&mut hull, "0.1.0", &[("0.2.0", reason)]);
    hull.power_off();
    hull.finish();
}

#[test]
#[ignore = "torture"]
fn torture_a_hash_tree_with_a_flipped_bit() {
    let versions = [good("0.1.0"), last_try("0.2.0", "")];
    let hull = machine("test-flipped-tree", true, &versions, |_, disk| {
        // The first block behind the superblock's: the tree's top.
        disk.flip("root-b-verity", 4096 + 7)
    });
    falls_back(hull, "dm-verity device corrupted");
}

#[test]
#[ignore = "torture"]
fn torture_an_image_that_lost_its_end() {
    let versions = [good("0.1.0")];
    let mut hull = machine("test-cut-image", true, &versions, |machine, disk| {
        let cut = machine.directory.join("cut.efi");
        SystemDisk::cut_image(&disk.slots[0], 95, &cut)?;
        disk.put(&cut, "EFI/Linux/orlop_0.3.0+3.efi")
    });
    let reason = "its image on the EFI system partition is damaged";
    is_given_up(&mut hull, "0.3.0", reason);
    runs_well(&mut hull, "0.1.0", &[("0.3.0", reason)]);
    hull.power_off();
    hull.finish();
}

#[test]
#[ignore = "torture"]
fn torture_a_root_that_is_missing() {
    let versions = [good("0.1.0"), last_try("0.2.0", "")];
    let hull = machine("test-missing-root", true, &versions, |_, disk| disk.lose(5));
    falls_back(hull, "no disk has the partitions");
}

#[test]
#[ignore = "torture"]
fn torture_a_kernel_that_panics() {
    let versions = [good("0.1.0"), last_try("0.2.0", "fault=panic")];
    let hull = machine("test-panic", true, &versions, |_, _| Ok(()));
    falls_back(hull, "sysrq triggered crash");
}

#[test]
#[ignore = "torture"]
fn torture_a_machine_that_hangs() {
    let versions = [good("0.1.0"), last_try("0.2.0", "fault=hang")];
    let hull = machine("test-hang", true, &versions, |_, _| Ok(()));
    falls_back(hull, "Watchdog");
}

#[test]
#[ignore = "torture"]
fn torture_a_server_that_hangs_is_reset_by_its_watchdog() {
    let versions = [good("0.1.0"), last_try("0.2.0", "fault=hang")];
    let products = orlop_tests::metal_products();
    let hull = machine_of(
        products,
        "test-hardware-watchdog",
        true,
        &versions,
        |machine, _| {
            machine.has_watchdog = true;
            Ok(())
        },
    );
    falls_back(
        hull,
        "the watchdog reset the machine, which hung, while its units ran",
    );
}

#[test]
#[ignore = "torture"]
fn torture_a_store_that_does_not_answer() {
    let versions = [good("0.1.0"), last_try("0.2.0", "fault=store")];
    let hull = machine("test-silent-store", true, &versions, |_, _| Ok(()));
    falls_back(hull, "orlop-store.service");
}

#[test]
#[ignore = "torture"]
fn torture_an_init_that_exits() {
    let versions = [good("0.1.0"), last_try("0.2.0", "rdinit=/sbin/modprobe")];
    let hull = machine("test-init-exits", true, &versions, |_, _| Ok(()));
    falls_back(hull, "never got to its boot stage");
}

#[test]
#[ignore = "torture"]
fn torture_a_good_version_whose_root_goes_bad() {
    let versions = [good("0.1.0"), good("0.2.0")];
    let hull = machine("test-good-goes-bad", true, &versions, |_, disk| {
        disk.flip("root-b", 1100)
    });
    falls_back(hull, "3 starts ended before its root was entered");
}

#[test]
#[ignore = "torture"]
fn torture_power_cuts_at_the_first_start() {
    let versions = [fresh("0.1.0", "")];
    let mut hull = machine("test-power-cuts", false, &versions, |_, _| Ok(()));
    let seed = seed();
    println!("seed {seed}");
    let mut state = seed;
    for cut in 1..=8 {
        // Xorshift: which moments are cut is to be told and repeated, nothing more.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let moment = Duration::from_millis(1500 + state % 9000);
        println!("cut {cut} after {moment:?}");
        std::thread::sleep(moment);
        hull.cut_power();
        hull.switch_on();
    }
    runs_well(&mut hull, "0.1.0", &[]);
    hull.power_off();
    hull.finish();
}

/// `ORLOP_SEED`, or the clock's.
fn seed() -> u64 {
    let given = std::env::var("ORLOP_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |now| now.as_secs() | 1)
    })
}
