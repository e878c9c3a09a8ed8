//! How long decisions take: `cargo run --release -p orlop-schedule --example pass [MACHINES UNITS]`.
//!
//! The last two lines, `whole MS` and `incremental MS`, are what `make bench` reads: the slower of the whole passes, and the
//! slowest pass after one change, in milliseconds of a CPU.

#[path = "../tests/cluster/mod.rs"]
#[allow(dead_code, reason = "the simulation needs more of it")]
mod cluster;

use std::time::{Duration, Instant};

use orlop_schedule::{Job, Scheduler};

fn main() {
    let arguments: Vec<u64> = std::env::args()
        .skip(1)
        .filter_map(|a| a.parse().ok())
        .collect();
    let machines = arguments.first().copied().unwrap_or(1000);
    let units = arguments.get(1).copied().unwrap_or(20_000);
    let jobs: Vec<Job> = (0..units).map(cluster::unit).collect();
    let loaded = || {
        let mut scheduler = Scheduler::new();
        for number in 0..machines {
            scheduler.set_machine(cluster::machine(number));
        }
        for job in &jobs {
            scheduler.set_unit(job.clone());
        }
        scheduler
    };
    println!("{machines} machines, {units} units");
    let mut scheduler = loaded();
    let mut whole = report("whole pass, nothing placed", || {
        scheduler.decide(Duration::ZERO).len()
    });
    println!("  waiting: {}", scheduler.waiting().count());
    let mut again = loaded();
    for placement in scheduler.placements() {
        again.set_placement(&placement);
    }
    whole = whole.max(report("whole pass, all placed", || {
        again.decide(Duration::ZERO).len()
    }));
    let mut incremental = worst("one new unit", |n| {
        let job = cluster::unit(units + n);
        scheduler.set_unit(job);
        scheduler.decide(Duration::ZERO).len()
    });
    incremental = incremental.max(worst("one unit destroyed", |n| {
        scheduler.remove_unit(&jobs[(n * 37 % units) as usize].name);
        scheduler.decide(Duration::ZERO).len()
    }));
    // Two passes, of which each may take the time of one.
    let lost = worst("one machine lost and returned", |n| {
        let now = Duration::from_secs(20 * (n + 1));
        scheduler.set_machine(cluster::silent(n % machines, now));
        let moved = scheduler.decide(now + Duration::from_secs(15)).len();
        scheduler.set_machine(cluster::machine(n % machines));
        moved + scheduler.decide(now + Duration::from_secs(15)).len()
    });
    let waiting = scheduler.waiting().next().cloned();
    if let Some(unit) = waiting {
        report("why one unit waits", || {
            scheduler.why(&unit, Duration::ZERO).machines.len()
        });
    }
    println!("whole {:.3}", whole.as_secs_f64() * 1e3);
    incremental = incremental.max(lost / 2);
    println!("incremental {:.3}", incremental.as_secs_f64() * 1e3);
}

/// The time that this thread has had a CPU (Documentation/scheduler/sched-stats.rst): others' work does not count.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(first.unwrap_or_default())
}

fn report(what: &str, run: impl FnOnce() -> usize) -> Duration {
    let (start, cpu) = (Instant::now(), cpu_time());
    let count = run();
    let taken = cpu_time() - cpu;
    println!(
        "  {what}: {:.3} ms, {:.3} ms of a CPU, {count} results",
        start.elapsed().as_secs_f64() * 1e3,
        taken.as_secs_f64() * 1e3
    );
    taken
}

/// The worst and the mean of a hundred; gives the worst.
fn worst(what: &str, mut run: impl FnMut(u64) -> usize) -> Duration {
    let (mut longest, mut total, mut results) = (Duration::ZERO, Duration::ZERO, 0);
    for n in 0..100 {
        let start = cpu_time();
        results += run(n);
        let taken = cpu_time() - start;
        longest = longest.max(taken);
        total += taken;
    }
    println!(
        "  {what}: mean {:.3} ms, worst {:.3} ms of a CPU, {results} results",
        total.as_secs_f64() * 10.0,
        longest.as_secs_f64() * 1e3
    );
    longest
}
