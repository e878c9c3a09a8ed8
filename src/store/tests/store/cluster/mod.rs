//! Whole clusters from a seed: every acknowledged write is there, the history is linearizable, members are equal,
//! watches have no gap and no repeat, leases end neither early nor never.

mod clients;
pub(crate) mod history;
mod machine;
mod watching;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::random::Random;
pub(crate) use machine::member;
use world::{Fault, Weather, World};

/// Seeds that are run; `ORLOP_SIMULATION_SEEDS` in the environment asks for another number, `ORLOP_SIMULATION_FIRST` for
/// another first one.
const SEEDS: u64 = 8;

fn weather(seed: u64) -> Weather {
    Weather::drawn(&mut Random(seed ^ 0x5eed))
}

/// Runs a world; what its checks find is told together with the seed.
fn run(seed: u64, weather: &Weather) -> Result<World, String> {
    let mut world = World::new(seed, weather.clone());
    let done = catch_unwind(AssertUnwindSafe(|| world.run()));
    match done {
        Ok(()) => Ok(world),
        Err(panic) => {
            let said = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_default();
            Err(format!("seed {seed}: {said}\n{weather:?}"))
        }
    }
}

#[test]
fn clusters_keep_their_promises_whatever_happens() {
    let number =
        |name: &str, default| std::env::var(name).map_or(default, |n| n.parse().expect("a number"));
    let first = number("ORLOP_SIMULATION_FIRST", 0);
    let count = number("ORLOP_SIMULATION_SEEDS", SEEDS);
    let (mut elections, mut jumps, mut crashes, mut operations) = (0, 0, 0, 0);
    let mut damages = 0;
    let mut wrong = Vec::new();
    for seed in first..first + count {
        match run(seed, &weather(seed)) {
            Ok(world) => {
                elections += world.elections;
                jumps += world.jumps;
                crashes += world.crashes;
                damages += world.damages;
                operations += world.history.operations.len() as u64;
            }
            Err(err) => wrong.push(err),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {count}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    println!(
        "{count} seeds: {operations} operations, {elections} elections, {crashes} crashes, {damages} disks damaged, {jumps} states sent"
    );
    assert!(
        elections > count && crashes >= count && operations > 100 * count,
        "the simulation does not do its work"
    );
}

#[test]
fn a_seed_replays_to_the_same_trace() {
    for seed in [3, 4] {
        let traces: Vec<u64> = (0..2)
            .map(|_| run(seed, &weather(seed)).expect("it holds").trace())
            .collect();
        assert_eq!(traces[0], traces[1], "seed {seed}");
    }
}

/// Runs until the checks find the fault.
fn found(fault: Fault, weather: &Weather) -> Option<String> {
    let weather = Weather {
        fault,
        ..weather.clone()
    };
    (0..40).find_map(|seed| run(seed, &weather).err())
}

#[test]
fn a_store_that_answers_before_its_sync_is_found_out() {
    let weather = Weather {
        members: 3,
        loss: 0,
        duplicates: 0,
        delay_ms: 1,
        partitions: false,
        crashes: true,
        pauses: false,
        clock_jumps: false,
        churn: false,
        damage: false,
        storm: Duration::from_secs(8),
        fault: Fault::None,
    };
    let found = found(Fault::AnswersBeforeSync, &weather);
    println!("{found:?}");
    assert!(found.is_some());
}

#[test]
fn a_store_that_skips_a_term_check_is_found_out() {
    let weather = Weather {
        members: 3,
        loss: 20,
        duplicates: 0,
        delay_ms: 80,
        partitions: true,
        crashes: false,
        pauses: true,
        clock_jumps: false,
        churn: false,
        damage: false,
        storm: Duration::from_secs(12),
        fault: Fault::None,
    };
    let found = found(Fault::SkipsTermCheck, &weather);
    println!("{found:?}");
    assert!(found.is_some());
}

#[test]
fn members_whose_disks_are_damaged_are_replaced_and_nothing_is_lost() {
    let first = std::env::var("ORLOP_SIMULATION_FIRST").map_or(0, |n| n.parse().expect("a number"));
    let count = std::env::var("ORLOP_SIMULATION_SEEDS").map_or(4, |n| n.parse().expect("a number"));
    let mut damages = 0;
    for seed in first..first + count {
        let weather = Weather {
            members: 3 + seed % 3,
            loss: 0,
            duplicates: 0,
            delay_ms: 10,
            partitions: false,
            crashes: true,
            pauses: false,
            clock_jumps: false,
            churn: false,
            damage: true,
            storm: Duration::from_secs(12),
            fault: Fault::None,
        };
        match run(seed, &weather) {
            Ok(world) => damages += world.damages,
            Err(err) => panic!("{err}"),
        }
    }
    println!("{damages} members replaced");
    assert!(damages > 0, "no damage was found");
}
