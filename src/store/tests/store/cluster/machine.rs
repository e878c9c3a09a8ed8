//! One member in the simulation: its process, its disk, its clock.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use orlop_store::mvcc::Reader;
use orlop_store::node::{Input, Node, NodeError, Options, Outbox, Output};
use orlop_store::peer::PeerMessage;
use orlop_store::proto::etcdserverpb::Member;
use orlop_store::state::{Genesis, STATE_FILE};

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
    /// It was removed and has been told so, or its data was found damaged.
    pub(crate) gone: bool,
    /// Its disk was damaged while it was off.
    pub(crate) damaged: bool,
}

/// What came of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Started {
    Runs,
    /// Its power went.
    PowerWent,
    /// It found damage, and will never be the same member again.
    Damaged,
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
            damaged: false,
        }
    }

    /// Starts its process.
    pub(crate) fn start(&mut self, now: Duration, random: &mut Random) -> Started {
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
        let open = || Node::open(disk, options, now + self.ahead, outbox, || genesis);
        let opened = if self.damaged {
            match catch_unwind(AssertUnwindSafe(open)) {
                Ok(Err(err)) if err.is_damage() => return Started::Damaged,
                // The database's own code meets some damage with a fault.
                Err(_) => return Started::Damaged,
                Ok(opened) => opened,
            }
        } else {
            open()
        };
        self.node = self.alive(opened);
        match self.node {
            Some(_) => Started::Runs,
            None => Started::PowerWent,
        }
    }

    /// Flips a bit of what it has written, or loses a sector. The last block of the log stays: nothing tells damage to it
    /// from a write that never ended.
    pub(crate) fn damage(&mut self, random: &mut Random) {
        let names = self.disk.names();
        let is_log = |name: &&String| name.starts_with("wal-0");
        let name = match names.iter().rfind(is_log) {
            Some(last) if random.once_in(2) => last.clone(),
            _ => STATE_FILE.to_owned(),
        };
        if !names.contains(&name) {
            return;
        }
        let mut bytes = self.disk.bytes(&name);
        let mut used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        if name != STATE_FILE {
            let end = used.last().copied().unwrap_or(0);
            used.retain(|at| *at < end / 2 && end > 6 << 10);
        }
        if used.is_empty() {
            return;
        }
        let at = used[random.below(used.len() as u64) as usize];
        if random.once_in(3) {
            let sector = at / 512 * 512;
            bytes[sector..].iter_mut().take(512).for_each(|b| *b = 0);
        } else {
            bytes[at] ^= 1 << random.below(8);
        }
        self.disk.put(&name, bytes);
        self.damaged = true;
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
