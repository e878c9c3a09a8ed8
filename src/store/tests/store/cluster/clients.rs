//! What clients ask for, and what they make of the answers.

use std::time::Duration;

use orlop_store::command::{Change, Command};
use orlop_store::consensus::MemberChange;
use orlop_store::mvcc::Answer;
use orlop_store::node::{Input, Reply};
use orlop_store::proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest,
};
use orlop_store::refused::Refused;

use super::history::{Done, Operation};
use super::machine::{Machine, member};
use super::world::{Event, World};

/// A request that was asked and not answered.
#[derive(Debug)]
pub(super) enum Asked {
    Write {
        key: Vec<u8>,
        value: Option<Vec<u8>>,
    },
    Read {
        key: Vec<u8>,
    },
    Grant {
        lease: i64,
    },
    Renew {
        lease: i64,
    },
    Other,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) client: usize,
    pub(super) asked: Duration,
    pub(super) what: Asked,
    pub(super) given_up: bool,
}

/// A lease that a client holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) key: Vec<u8>,
    /// When the last renewal that was granted was asked for.
    pub(super) renewed: Duration,
    pub(super) left: u64,
    pub(super) put: bool,
}

pub(super) const TTL: i64 = 3;
pub(super) const CLIENTS: usize = 5;
/// The client that changes members and compacts.
const OPERATOR: usize = CLIENTS;

impl World {
    fn ask(&mut self, client: usize, what: Asked, input: impl FnOnce(usize) -> Input<usize>) {
        let up: Vec<u64> = self
            .machines
            .values()
            .filter(|m| m.node.is_some() && m.busy_until <= self.now)
            .map(|m| m.id)
            .collect();
        if up.is_empty() {
            self.later(Duration::from_millis(50), Event::Client(client));
            return;
        }
        let id = up[self.random.below(up.len() as u64) as usize];
        self.next_request += 1;
        let ticket = self.next_request;
        let request = Request {
            client,
            asked: self.now,
            what,
            given_up: false,
        };
        self.requests.insert(ticket, request);
        self.step(id, vec![input(ticket)]);
        self.later(Duration::from_secs(3), Event::GiveUp(ticket));
    }

    fn propose(&mut self, client: usize, what: Asked, command: Command) {
        self.ask(client, what, |ticket| Input::Propose {
            command: Box::new(command),
            ticket,
        });
    }

    pub(super) fn client(&mut self, client: usize) {
        if client == OPERATOR && self.lost.is_some() {
            return self.replace();
        }
        if self.calm {
            return;
        }
        if client == OPERATOR {
            return self.operator();
        }
        if client == CLIENTS - 1 {
            return self.lease_client(client);
        }
        let key = vec![b'a' + self.random.below(4) as u8];
        match self.random.below(10) {
            0..=4 => {
                self.values += 1;
                let value = format!("v{}", self.values).into_bytes();
                let put = PutRequest {
                    key: key.clone(),
                    value: value.clone(),
                    ..PutRequest::default()
                };
                let what = Asked::Write {
                    key,
                    value: Some(value),
                };
                self.propose(client, what, Command::Put(put));
            }
            5 => {
                let delete = DeleteRangeRequest {
                    key: key.clone(),
                    ..DeleteRangeRequest::default()
                };
                let what = Asked::Write { key, value: None };
                self.propose(client, what, Command::DeleteRange(delete));
            }
            _ => self.ask(client, Asked::Read { key }, |ticket| Input::Read { ticket }),
        }
    }

    /// Takes leases, puts a key under each, renews some of them for a while.
    fn lease_client(&mut self, client: usize) {
        let next = self
            .leases
            .iter()
            .find(|(_, held)| held.left > 0 || !held.put);
        let Some((lease, held)) = next.map(|(lease, held)| (*lease, held)) else {
            let lease = 1 + self.leases.len() as i64;
            let grant = LeaseGrantRequest {
                ttl: TTL,
                id: lease,
            };
            self.propose(client, Asked::Grant { lease }, Command::LeaseGrant(grant));
            return;
        };
        if !held.put {
            let put = PutRequest {
                key: held.key.clone(),
                value: format!("lease{lease}").into_bytes(),
                lease,
                ..PutRequest::default()
            };
            if let Some(held) = self.leases.get_mut(&lease) {
                held.put = true;
            }
            self.propose(client, Asked::Other, Command::Put(put));
            return;
        }
        if let Some(held) = self.leases.get_mut(&lease) {
            held.left -= 1;
        }
        self.ask(client, Asked::Renew { lease }, |ticket| Input::Renew {
            id: lease,
            ticket,
        });
    }

    /// What a member that has lost its data asks the others to do.
    fn replace(&mut self) {
        let leader = self.machines.values().find(|m| m.leads && m.node.is_some());
        let roster = leader.and_then(|m| m.node.as_ref());
        let Some((roster, (old, new))) = roster.map(|node| node.roster()).zip(self.lost) else {
            self.later(Duration::from_millis(200), Event::Client(OPERATOR));
            return;
        };
        let kind = match new {
            _ if roster.member(old).is_some() => MemberChange::Remove(old),
            Some(new) if roster.member(new).is_some() || roster.removed.contains(&new) => {
                self.lost = None;
                self.later(Duration::from_millis(200), Event::Client(OPERATOR));
                return;
            }
            Some(new) => MemberChange::AddLearner(new),
            None => {
                let new = self.next_member;
                self.next_member += 1;
                self.lost = Some((old, Some(new)));
                MemberChange::AddLearner(new)
            }
        };
        let change = Change {
            kind,
            promote: true,
            member: new.map_or_else(|| member(self.next_member - 1), member),
        };
        self.ask(OPERATOR, Asked::Other, |ticket| Input::Change {
            change: Box::new(change),
            ticket,
        });
    }

    fn operator(&mut self) {
        let last = self.history.changes.last_key_value().map_or(1, |(r, _)| *r);
        if self.random.once_in(2) || !self.weather.churn {
            let compact = CompactionRequest {
                revision: (last - self.random.below(20) as i64).max(1),
                physical: self.random.once_in(2),
            };
            self.propose(OPERATOR, Asked::Other, Command::Compact(compact));
            return;
        }
        let ids: Vec<u64> = self
            .machines
            .values()
            .filter(|m| !m.gone)
            .map(|m| m.id)
            .collect();
        let kind = if ids.len() < 5 && self.random.once_in(2) {
            let id = self.next_member;
            self.next_member += 1;
            MemberChange::AddLearner(id)
        } else if ids.len() > 2 {
            let id = ids[self.random.below(ids.len() as u64) as usize];
            MemberChange::Remove(id)
        } else {
            self.later(Duration::from_millis(500), Event::Client(OPERATOR));
            return;
        };
        let id = self.next_member - 1;
        let change = Change {
            kind,
            promote: true,
            member: member(id),
        };
        self.ask(OPERATOR, Asked::Other, |ticket| Input::Change {
            change: Box::new(change),
            ticket,
        });
    }

    pub(super) fn answered(&mut self, id: u64, ticket: usize, result: Result<Reply, Refused>) {
        self.note((id, ticket, format!("{result:?}")));
        let Some(request) = self.requests.remove(&ticket) else {
            return;
        };
        let client = request.client;
        let pause = Duration::from_millis(if client >= CLIENTS - 1 {
            200 + self.random.below(600)
        } else {
            self.random.below(60)
        });
        if !request.given_up {
            self.later(pause, Event::Client(client));
        }
        let Ok(reply) = result else { return };
        let (key, done) = match (request.what, reply) {
            (Asked::Write { key, value }, Reply::Answer(Answer::Put(put))) => {
                let revision = put.header.unwrap_or_default().revision;
                (key, Done::Wrote { revision, value })
            }
            (Asked::Write { key, value }, Reply::Answer(Answer::DeleteRange(delete))) => {
                let revision = delete.header.unwrap_or_default().revision;
                let done = match delete.deleted {
                    0 => Done::Read {
                        revision,
                        value: None,
                    },
                    _ => Done::Wrote { revision, value },
                };
                (key, done)
            }
            (Asked::Read { key }, Reply::Read) => {
                let Some(reader) = self.machines.get(&id).and_then(Machine::reader) else {
                    return;
                };
                let range = RangeRequest {
                    key: key.clone(),
                    ..RangeRequest::default()
                };
                let response = reader.range(&range).expect("the present can be read");
                let value = response.kvs.into_iter().next().map(|kv| kv.value);
                let revision = reader.revision;
                (key, Done::Read { revision, value })
            }
            (Asked::Grant { lease }, Reply::Answer(_)) => {
                let held = Held {
                    key: format!("l{lease}").into_bytes(),
                    renewed: request.asked,
                    left: self.random.below(6),
                    put: false,
                };
                self.leases.insert(lease, held);
                return;
            }
            (Asked::Renew { lease }, Reply::Renewed { ttl: Some(_), .. }) => {
                if let Some(held) = self.leases.get_mut(&lease) {
                    held.renewed = request.asked;
                }
                return;
            }
            _ => return,
        };
        self.history.operations.push(Operation {
            key,
            asked: request.asked,
            answered: self.now,
            done,
        });
    }
}
