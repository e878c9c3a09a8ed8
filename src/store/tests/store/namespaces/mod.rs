//! Members as real processes on hosts of their own, killed, stopped and cut off from one another while clients ask them:
//! what the simulation promises holds of the kernel's sockets, files and clocks too.

mod clients;
mod members;
mod network;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use tonic::Status;

use crate::cluster::history::{History, Operation};
use crate::random::Random;
use clients::{Changes, Load, ask, block_on, catch_up, hash, present, watch};
use members::Members;
use network::Network;

/// How long members may take to be one cluster again when nothing is wrong any more.
const PATIENCE: Duration = Duration::from_secs(90);
const CLIENTS: u64 = 8;

/// `ORLOP_SEED`, or the clock's; it is printed, to be given again.
fn seed() -> u64 {
    let given = std::env::var("ORLOP_SEED").ok();
    let seed = given.map_or_else(
        || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.expect("it is after 1970").as_secs()
        },
        |seed| seed.parse().expect("a number"),
    );
    println!("ORLOP_SEED={seed}");
    seed
}

/// Asks again until there is an answer.
fn insist<T>(what: &str, mut question: impl AsyncFnMut() -> Result<T, Status>) -> T {
    let end = Instant::now() + PATIENCE;
    block_on(async {
        loop {
            match question().await {
                Ok(answer) => return answer,
                Err(err) => assert!(Instant::now() < end, "{what}: {err}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
}

/// All members are one cluster, and answer.
fn wait_for_all(members: &Members) {
    members.network.at_the_bridge(|| {
        for member in 0..members.count() {
            insist(&format!("m{member} answers"), || present(member));
        }
    });
}

fn promises_hold(count: usize, storm: Duration) {
    if let Some(missing) = Network::missing() {
        eprintln!("SKIPPED: {missing}");
        return;
    }
    let seed = seed();
    let mut members = Members::start(count);
    wait_for_all(&members);
    let network = Arc::clone(&members.network);
    let load = Load {
        begun: Instant::now(),
        ended: false.into(),
        values: 0.into(),
    };
    let own = |number: u64| Random(seed ^ (number << 32));
    let (operations, watched) = thread::scope(|scope| {
        let (network, load) = (&network, &load);
        let askers: Vec<_> = (1..=CLIENTS)
            .map(|n| {
                let work = move || block_on(ask(count, own(n), load));
                scope.spawn(move || network.at_the_bridge(work))
            })
            .collect();
        let work = move || block_on(watch(count, own(CLIENTS + 1), load));
        let watcher = scope.spawn(move || network.at_the_bridge(work));
        // Whatever happens here, the clients must end, or the scope does not.
        let harmed = catch_unwind(AssertUnwindSafe(|| {
            members.harm_for(storm, &mut Random(seed));
            let healed = Instant::now();
            wait_for_all(&members);
            println!(
                "all answer again {:?} after the last repair",
                healed.elapsed()
            );
        }));
        load.ended.store(true, Ordering::SeqCst);
        let operations = askers.into_iter().flat_map(|a| a.join().expect("a client"));
        let operations: Vec<Operation> = operations.collect();
        let watched = watcher.join().expect("the watcher");
        if let Err(panic) = harmed {
            resume_unwind(panic);
        }
        (operations, watched)
    });
    println!(
        "{} operations, {} changes watched, {:?}",
        operations.len(),
        watched.len(),
        members.done
    );
    assert!(!operations.is_empty(), "nothing was ever answered");
    let history = network.at_the_bridge(|| gather(count, operations, watched));
    history.check();
}

/// Puts together what clients saw and what each member holds; members must not differ.
fn gather(count: usize, operations: Vec<Operation>, watched: Changes) -> History {
    // Nothing that was acknowledged is later than this; what no one waits for any more may be.
    let last = insist("the present revision", || present(0));
    let mut history = History::default();
    history.operations = operations;
    let tell = |changes: Changes, history: &mut History| {
        for (revision, changes) in changes {
            if revision <= last {
                history.apply(revision, changes, Duration::ZERO);
            }
        }
    };
    // A watch that went from member to member has left out nothing, and told nothing twice.
    assert!(
        watched.is_sorted_by(|(a, _), (b, _)| a < b),
        "a watch has told a change again"
    );
    tell(watched, &mut history);
    let mut hashes = Vec::new();
    for member in 0..count {
        insist(&format!("m{member} answers"), || present(member));
        let mut seen = Changes::new();
        insist(&format!("m{member} tells all changes"), async || {
            catch_up(member, &mut seen, last).await
        });
        tell(seen, &mut history);
        hashes.push(insist("a hash", || hash(member, last)));
    }
    let held = history.changes.last_key_value().map(|(last, _)| *last);
    assert_eq!(held, Some(last), "the last change was not told");
    hashes.dedup();
    assert_eq!(hashes.len(), 1, "members hold other things: {hashes:?}");
    history
}

#[test]
fn three_processes_keep_their_promises_when_killed_stopped_and_cut_off() {
    promises_hold(3, Duration::from_secs(15));
}

#[test]
#[ignore = "takes two minutes"]
fn five_processes_keep_their_promises_when_killed_stopped_and_cut_off() {
    promises_hold(5, Duration::from_secs(120));
}
