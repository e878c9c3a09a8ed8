//! Updates on a disk with two slots.

use orlop_update::apply::{ApplyError, Phase, apply};
use orlop_update::signature::SecretKey;
use orlop_update::slots::{Options, Refusal};
use orlop_update::storage::{Disk, Esp as _};

use crate::simulation::boots;
use crate::world::{Machine, ROOT_SLOT_BYTES, Release, open};

const DEFAULT: Options = Options {
    allow_downgrade: false,
    retry: false,
};

fn update(
    machine: &mut Machine,
    release: &Release,
    options: Options,
) -> Result<&'static str, ApplyError> {
    let key = SecretKey::generate().unwrap();
    let bytes = release.payload(&key);
    let payload = open(&bytes, &key);
    let mut last = None;
    let applied = apply(
        payload,
        &mut machine.disk,
        &mut machine.esp,
        &machine.running,
        options,
        &mut |progress| last = Some(progress),
    )?;
    let last = last.unwrap();
    assert_eq!(last.phase, Phase::ReadBack);
    assert_eq!(last.done_bytes, last.total_bytes, "the bar ends at 100 %");
    Ok(applied.slot)
}

/// The update is refused with that text and nothing was written.
fn refused(machine: &Machine, release: &Release, options: Options) -> String {
    let mut tried = machine.clone();
    let error = update(&mut tried, release, options).unwrap_err();
    assert!(matches!(error, ApplyError::Refused(_)), "{error}");
    assert!(
        tried.disk.bytes() == machine.disk.bytes(),
        "the disk was written to"
    );
    assert_eq!(tried.esp.contents(), machine.esp.contents());
    error.to_string()
}

#[test]
fn updates_go_to_the_slots_in_turn() {
    let releases: Vec<Release> = ["1.0", "1.1", "1.2", "1.3"].map(Release::new).into();
    let mut machine = Machine::new(&releases[0]);
    for (pair, slot) in releases.windows(2).zip(["b", "a", "b"]) {
        assert_eq!(update(&mut machine, &pair[1], DEFAULT).unwrap(), slot);
        let all: Vec<&Release> = releases.iter().collect();
        assert_eq!(
            boots(&machine.disk, &machine.esp, &all).unwrap(),
            pair[1].version
        );
        let counted = format!("orlop_{}+3.efi", pair[1].version);
        assert_eq!(
            machine.esp.names(),
            [format!("orlop_{}.efi", pair[0].version), counted.clone()]
        );
        // It was started, and found good.
        machine = machine.reboot_into(&pair[1]);
        machine
            .esp
            .rename(&counted, &format!("orlop_{}.efi", pair[1].version));
    }
}

#[test]
fn what_must_not_be_installed_is_refused_with_nothing_written() {
    let (old, new) = (Release::new("1.0"), Release::new("1.1"));
    let machine = Machine::new(&old);
    let key = SecretKey::generate().unwrap();

    let mut other = machine.clone();
    other.running.architecture = "aarch64".to_owned();
    assert_eq!(
        refused(&other, &new, DEFAULT),
        "it is for x86_64; this machine is aarch64"
    );

    assert_eq!(refused(&machine, &old, DEFAULT), "1.0 is what runs");
    let older = refused(&machine, &Release::new("0.9"), DEFAULT);
    assert!(
        older.contains("older than 1.0") && older.contains("--allow-downgrade"),
        "{older}"
    );
    let downgrade = Options {
        allow_downgrade: true,
        ..DEFAULT
    };
    assert_eq!(
        update(&mut machine.clone(), &Release::new("0.9"), downgrade).unwrap(),
        "b"
    );

    let mut big = new.clone();
    big.root.resize(ROOT_SLOT_BYTES as usize + 4096, 7);
    assert_eq!(
        refused(&machine, &big, DEFAULT),
        "root has 135168 bytes, and the slot has room for 131072"
    );
    let mut big = new.clone();
    big.verity.resize((64 << 10) + 4096, 7);
    assert!(refused(&machine, &big, DEFAULT).starts_with("verity has 69632 bytes"));

    let mut full = machine.clone();
    full.esp.write_at("filler", &[0; 300_000], 0).unwrap();
    assert!(refused(&full, &new, DEFAULT).starts_with("the EFI system partition has"));

    let mut in_memory = machine.clone();
    in_memory.running.root_hash = None;
    assert!(refused(&in_memory, &new, DEFAULT).contains("runs from memory"));
    let elsewhere = machine.clone().reboot_into(&Release::new("0.1"));
    assert!(refused(&elsewhere, &new, DEFAULT).contains("neither slot"));

    // A wrong signature does not even give a plan: see payload.rs. A damaged part is found before it is made bootable.
    let mut bytes = new.payload(&key);
    let at = bytes.len() - 1000;
    bytes[at] ^= 1;
    let mut damaged = machine.clone();
    let error = apply(
        open(&bytes, &key),
        &mut damaged.disk,
        &mut damaged.esp,
        &machine.running,
        DEFAULT,
        &mut |_| {},
    );
    assert!(matches!(error, Err(ApplyError::Payload(_))), "{error:?}");
    assert_eq!(damaged.esp.contents(), machine.esp.contents());
    assert_eq!(
        boots(&damaged.disk, &damaged.esp, &[&old, &new]).unwrap(),
        "1.0"
    );
}

#[test]
fn the_last_good_version_and_the_failed_one_are_remembered() {
    let (old, new, newer) = (
        Release::new("1.0"),
        Release::new("1.1"),
        Release::new("1.2"),
    );
    let mut machine = Machine::new(&old);
    update(&mut machine, &new, DEFAULT).unwrap();
    assert_eq!(
        refused(&machine, &new, DEFAULT),
        "1.1 is in the other slot already; a reboot starts it"
    );

    // On trial: the old one is the last good one.
    let mut trial = machine.clone().reboot_into(&new);
    trial.esp.rename("orlop_1.1+3.efi", "orlop_1.1+2-1.efi");
    let said = refused(&trial, &newer, DEFAULT);
    assert!(
        said.contains("1.1 runs on trial") && said.contains("1.0, the last good"),
        "{said}"
    );

    // It failed, and the old one runs again.
    machine.esp.rename("orlop_1.1+3.efi", "orlop_1.1+0-3.efi");
    assert_eq!(
        refused(&machine, &new, DEFAULT),
        "1.1 failed on this machine before; --retry takes it all the same"
    );
    update(
        &mut machine.clone(),
        &new,
        Options {
            retry: true,
            ..DEFAULT
        },
    )
    .unwrap();
    update(&mut machine, &newer, DEFAULT).unwrap();
    assert_eq!(machine.esp.names(), ["orlop_1.0.efi", "orlop_1.2+3.efi"]);
}

#[test]
fn entries_that_boot_something_else_stay() {
    let (old, new) = (Release::new("1.0"), Release::new("1.1"));
    let mut machine = Machine::new(&old);
    machine.esp.write_at("memtest.efi", b"MZ", 0).unwrap();
    machine.esp.write_at("recovery.efi", &old.uki, 0).unwrap();
    // Left from an update that was cut short, and an image of what is to be overwritten under a foreign name.
    machine
        .esp
        .write_at("orlop_1.1+3.efi", &[0; 100], 0)
        .unwrap();
    update(&mut machine, &new, DEFAULT).unwrap();
    assert_eq!(
        machine.esp.names(),
        [
            "memtest.efi",
            "orlop_1.0.efi",
            "orlop_1.1+3.efi",
            "recovery.efi"
        ]
    );
    machine.esp.write_at("rescue-1.1.efi", &new.uki, 0).unwrap();
    machine.esp.rename("orlop_1.1+3.efi", "orlop_1.1+0-3.efi");
    update(&mut machine, &Release::new("1.2"), DEFAULT).unwrap();
    assert_eq!(
        machine.esp.names(),
        [
            "memtest.efi",
            "orlop_1.0.efi",
            "orlop_1.2+3.efi",
            "recovery.efi"
        ]
    );
}

#[test]
fn a_medium_that_does_not_keep_what_it_is_given_is_found_out() {
    let (old, new) = (Release::new("1.0"), Release::new("1.1"));
    let machine = Machine::new(&old);
    let key = SecretKey::generate().unwrap();
    let bytes = new.payload(&key);
    let (mut disk, mut esp) = (Forgetful(machine.disk.clone()), machine.esp.clone());
    let error = apply(
        open(&bytes, &key),
        &mut disk,
        &mut esp,
        &machine.running,
        DEFAULT,
        &mut |_| {},
    )
    .unwrap_err();
    assert!(matches!(error, ApplyError::BadMedium(_)), "{error}");
    assert_eq!(esp.names(), ["orlop_1.0.efi"]);
    assert!(!matches!(error, ApplyError::Refused(Refusal::Running(_))));
}

/// A disk with a bit that sticks at 0 in slot b.
#[derive(Debug)]
struct Forgetful(crate::simulation::SimDisk);

impl Disk for Forgetful {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
    fn sector_bytes(&self) -> u64 {
        self.0.sector_bytes()
    }
    fn read_at(&self, into: &mut [u8], at: u64) -> std::io::Result<()> {
        self.0.read_at(into, at)?;
        if at > 256 << 10 && into.len() > 4096 {
            into[77] ^= 1;
        }
        Ok(())
    }
    fn write_at(&mut self, bytes: &[u8], at: u64) -> std::io::Result<()> {
        self.0.write_at(bytes, at)
    }
    fn sync(&mut self) -> std::io::Result<()> {
        self.0.sync()
    }
}
