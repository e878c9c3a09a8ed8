//! The power is cut after every write of an update, many times: what boots is the old version or the new one, whole.

use orlop_update::apply::{ApplyError, apply};
use orlop_update::signature::SecretKey;
use orlop_update::slots::{Options, Refusal};

use crate::simulation::{Power, Random, boots};
use crate::world::{Machine, Release, open};

/// How often each write is the last one.
const ROUNDS: u64 = 6;

/// Cuts updates of `machine` to `new`. Until it is done one of `old` boots; `releases` are all that were ever on the machine.
fn cut_everywhere(machine: &Machine, old: &[&Release], new: &Release, releases: &[&Release]) {
    let key = SecretKey::generate().unwrap();
    let bytes = new.payload(&key);
    let update = |machine: &mut Machine| {
        let options = Options {
            retry: true,
            ..Options::default()
        };
        apply(
            open(&bytes, &key),
            &mut machine.disk,
            &mut machine.esp,
            &machine.running,
            options,
            &mut |_| {},
        )
    };
    let supply = Power::new(1 << 20);
    let mut whole = machine.clone();
    (whole.disk.power, whole.esp.power) = (supply.clone(), supply.clone());
    update(&mut whole).unwrap();
    let operations = (1 << 20) - supply.left();
    assert!(operations > 15, "{operations}");
    let mut seen = (0, 0);
    for cut in 0..operations {
        for round in 0..ROUNDS {
            let seed = cut << 32 | round;
            let mut random = Random(seed);
            let supply = Power::new(cut);
            let mut tried = machine.clone();
            (tried.disk.power, tried.esp.power) = (supply.clone(), supply);
            update(&mut tried).unwrap_err();
            let mut left = Machine {
                disk: tried.disk.cut(&mut random),
                esp: tried.esp.cut(&mut random),
                running: machine.running.clone(),
            };
            let booted = boots(&left.disk, &left.esp, releases).unwrap_or_else(|why| {
                panic!("after a cut at {cut} of {operations}, seed {seed:#x}: {why}")
            });
            let is_old = old.iter().any(|old| old.version == booted);
            assert!(
                is_old || booted == new.version,
                "seed {seed:#x} boots {booted}"
            );
            if is_old {
                seen.0 += 1
            } else {
                seen.1 += 1
            }

            // And the update can be done again.
            match update(&mut left) {
                Ok(_) | Err(ApplyError::Refused(Refusal::Installed(_))) => {}
                Err(error) => panic!("seed {seed:#x}: {error}"),
            }
            assert_eq!(
                boots(&left.disk, &left.esp, releases).as_ref(),
                Ok(&new.version),
                "seed {seed:#x}"
            );
        }
    }
    assert!(seen.0 > 0 && seen.1 > 0, "{seen:?}");
}

#[test]
fn no_cut_of_a_first_update_leaves_a_machine_that_does_not_boot() {
    let (old, new) = (Release::new("1.0"), Release::new("1.1"));
    cut_everywhere(&Machine::new(&old), &[&old], &new, &[&old, &new]);
}

/// The other slot holds a version that failed; its entry has to go before its root does.
#[test]
fn no_cut_of_an_update_over_another_version_does_either() {
    let (old, bad, new) = (
        Release::new("1.0"),
        Release::new("1.1"),
        Release::new("1.2"),
    );
    let mut machine = Machine::new(&old);
    let key = SecretKey::generate().unwrap();
    let bytes = bad.payload(&key);
    apply(
        open(&bytes, &key),
        &mut machine.disk,
        &mut machine.esp,
        &machine.running,
        Options::default(),
        &mut |_| {},
    )
    .unwrap();
    machine.esp.rename("orlop_1.1+3.efi", "orlop_1.1+0-3.efi");
    cut_everywhere(&machine, &[&old], &new, &[&old, &bad, &new]);
}

/// The other slot holds a good version that is newer than what runs, after a rollback by hand: the loader would take it at any moment.
#[test]
fn no_cut_of_an_update_over_a_good_version_does_either() {
    let (old, good, new) = (
        Release::new("1.0"),
        Release::new("1.1"),
        Release::new("1.2"),
    );
    let mut machine = Machine::new(&old);
    let key = SecretKey::generate().unwrap();
    let bytes = good.payload(&key);
    apply(
        open(&bytes, &key),
        &mut machine.disk,
        &mut machine.esp,
        &machine.running,
        Options::default(),
        &mut |_| {},
    )
    .unwrap();
    machine.esp.rename("orlop_1.1+3.efi", "orlop_1.1.efi");
    cut_everywhere(&machine, &[&old, &good], &new, &[&old, &good, &new]);
}

/// With one copy of the partition table damaged, the other one is all there is.
#[test]
fn no_cut_of_an_update_with_a_damaged_table_does_either() {
    let (old, new) = (Release::new("1.0"), Release::new("1.1"));
    for at in [600, 1024 + 77] {
        let mut machine = Machine::new(&old);
        machine.disk.flip(at);
        cut_everywhere(&machine, &[&old], &new, &[&old, &new]);
    }
}
