//! Elections among members whose consensus is all there is of them.

use std::collections::BTreeMap;

use orlop_store::consensus::raft::{ELECTION_TICKS, HEARTBEAT_TICKS, RaftConsensus, Start};
use orlop_store::consensus::{Consensus as _, Members};

type Cluster = BTreeMap<u64, RaftConsensus>;

fn cluster(voters: u64, seed: u64) -> Cluster {
    let members = Members {
        voters: (1..=voters).collect(),
        learners: Vec::new(),
    };
    let member = |id| {
        let start = Start {
            member: id,
            members: members.clone(),
            seed,
            election_ticks: ELECTION_TICKS,
            heartbeat_ticks: HEARTBEAT_TICKS,
            ..Start::default()
        };
        (id, RaftConsensus::new(start).unwrap())
    };
    (1..=voters).map(member).collect()
}

/// Lets all that there is to do be done: disks take no time, and no message is lost but those to who is not there.
fn settle(cluster: &mut Cluster) {
    loop {
        let mut messages = Vec::new();
        for member in cluster.values_mut() {
            while let Some(work) = member.work() {
                messages.extend(work.send);
                messages.extend(work.send_after_write);
                member.written(work.number);
                if let Some(last) = work.committed.last() {
                    member.applied(last.index, last.term);
                }
            }
        }
        if messages.is_empty() {
            return;
        }
        for message in messages {
            if let Some(member) = cluster.get_mut(&message.to()) {
                member.receive(message);
            }
        }
    }
}

fn leader(cluster: &Cluster) -> Option<u64> {
    let leads = |(id, member): (&u64, &RaftConsensus)| member.standing().leads.then_some(*id);
    cluster.iter().find_map(leads)
}

/// The leader, and the ticks until there was one.
fn elect(cluster: &mut Cluster, most: usize) -> Option<(u64, usize)> {
    for ticks in 0..=most {
        if let Some(leader) = leader(cluster) {
            return Some((leader, ticks));
        }
        for id in cluster.keys().copied().collect::<Vec<_>>() {
            if let Some(member) = cluster.get_mut(&id) {
                member.tick();
            }
            settle(cluster);
        }
    }
    None
}

#[test]
fn a_leader_whose_connections_break_is_followed_by_another_at_once() {
    for seed in 0..200 {
        for voters in [3, 5] {
            let mut cluster = cluster(voters, seed);
            let (first, _) = elect(&mut cluster, 20 * ELECTION_TICKS).expect("a leader");
            cluster.remove(&first);
            for member in cluster.values_mut() {
                member.lost(first);
            }
            let next = elect(&mut cluster, 2);
            assert!(next.is_some(), "seed {seed}, {voters} voters");
        }
    }
}

#[test]
fn a_leader_that_one_alone_has_lost_goes_on_leading() {
    for seed in 0..200 {
        let mut cluster = cluster(3, seed);
        let (first, _) = elect(&mut cluster, 20 * ELECTION_TICKS).expect("a leader");
        let term = cluster[&first].standing().term;
        let doubter = first % 3 + 1;
        cluster.get_mut(&doubter).expect("a member").lost(first);
        for _ in 0..3 * ELECTION_TICKS {
            for member in cluster.values_mut() {
                member.tick();
            }
            settle(&mut cluster);
        }
        assert_eq!(leader(&cluster), Some(first), "seed {seed}");
        assert_eq!(cluster[&first].standing().term, term, "seed {seed}");
    }
}
