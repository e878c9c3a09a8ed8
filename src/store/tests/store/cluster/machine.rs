//! One member in the simulation: its process, its disk, its clock.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use orlop_store::mvcc::Reader;
use orlop_store::node::{Input, Node, NodeError, Options, Outbox, Output};
use orlop_store::peer::PeerMessage;
use orlop_store::proto::etcdserverpb::Member;
use orlop_store::state::Genesis;

use crate::random::Random;
use crate::simulated_disk::SimulatedDisk;

pub(crate) const CLUSTER: u64 = 77;

/// What a machine is when its disk is empty.
#[derive(Debug, Clone)]
pub(crate) enum Role {
    /// One of the first members.
    Founder(Vec<Member>),
    /// Added later.
    Joiner,
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) id: u64,
    role: Role,
    pub(crate) disk: SimulatedDisk,
    pub(crate) node: Option<Node<usize>>,
    /// What its process has sent since it was last asked.
    sent: Arc<Mutex<Vec<PeerMessage>>>,
    /// What its clock shows more than the true time.
    pub(crate) ahead: Duration,
    /// It does nothing until then: its disk is slow, or it is stopped.
    pub(crate) busy_until: Duration,
    /// Its term, as it last told.
    pub(crate) term: u64,
    pub(crate) leads: bool,
    /// It was removed and has been told so.
    pub(crate) gone: bool,
}

pub(crate) fn member(id: u64) -> Member {
    Member {
        id,
        name: format!("m{id}"),
        peer_ur_ls: vec![format!("http://10.0.0.{id}:2380")],
        ..Member::default()
    }
}

impl Machine {
    pub(crate) fn new(id: u64, role: Role, ahead: Duration) -> Self {
        Self {
            id,
            role,
            disk: SimulatedDisk::default(),
            node: None,
            sent: Arc::default(),
            ahead,
            busy_until: Duration::ZERO,
            term: 0,
            leads: false,
            gone: false,
        }
    }

    /// Starts its process; `false` when its power went while it started.
    pub(crate) fn start(&mut self, now: Duration, random: &mut Random) -> bool {
        let options = Options {
            seed: random.next(),
            cache_bytes: 1 << 20,
            segment_bytes: 128 << 10,
            // So that states are sent, in several parts.
            checkpoint_time: Duration::from_millis(500 + random.below(2000)),
            keep_entries: random.below(30),
            part_bytes: 500,
            ..Options::default()
        };
        let sent = Arc::new(Mutex::new(Vec::new()));
        self.sent = Arc::clone(&sent);
        let outbox = Outbox::new(move |message| {
            sent.lock().expect("no one panics with it").push(message);
        });
        let members = match &self.role {
            Role::Founder(members) => members.clone(),
            Role::Joiner => Vec::new(),
        };
        let genesis = Genesis {
            cluster: CLUSTER,
            member: self.id,
            members,
        };
        let disk = Arc::new(self.disk.clone());
        let opened = Node::open(disk, options, now + self.ahead, outbox, || genesis);
        self.node = self.alive(opened);
        self.node.is_some()
    }

    /// A member fails only when its power is gone.
    fn alive<T>(&self, result: Result<T, NodeError>) -> Option<T> {
        match result {
            Ok(done) => Some(done),
            Err(_) if self.disk.is_dead() => None,
            Err(err) => panic!("member {}: {:#}", self.id, anyhow::Error::new(err)),
        }
    }

    /// Steps its process; `None` when its power went.
    pub(crate) fn step(
        &mut self,
        now: Duration,
        inputs: Vec<Input<usize>>,
    ) -> Option<Vec<Output<usize>>> {
        let stepped = self.node.as_mut()?.step(now + self.ahead, inputs);
        let stepped = self.alive(stepped);
        if stepped.is_none() {
            self.node = None;
        }
        stepped
    }

    /// When its process wants to be stepped next, in true time.
    pub(crate) fn wakes(&self) -> Option<Duration> {
        let next = self.node.as_ref()?.next_step();
        Some(next.saturating_sub(self.ahead).max(self.busy_until))
    }

    pub(crate) fn take_sent(&mut self) -> Vec<PeerMessage> {
        std::mem::take(&mut self.sent.lock().expect("no one panics with it"))
    }

    pub(crate) fn reader(&self) -> Option<Reader> {
        let node = self.node.as_ref()?;
        Some(Reader::new(&node.database()).expect("the state can be read"))
    }

    /// The power goes: what was not synced is lost or torn.
    pub(crate) fn lose_power(&mut self, random: &mut Random) {
        self.node = None;
        self.leads = false;
        self.disk = self.disk.after_crash(random);
    }
}
