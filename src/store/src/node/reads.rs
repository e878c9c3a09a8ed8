//! Reads, and questions about leases: both wait until the leader is known to lead.

use std::collections::BTreeMap;
use std::time::Duration;

use super::requests::REQUEST_TIMEOUT;
use super::{Node, Reply, TICK};
use crate::consensus::Consensus;
use crate::peer::Body;
use crate::refused::Refused;

/// Time after which a read, or a question to the leader, is asked again.
const ASK_AGAIN: Duration = TICK.saturating_mul(5);

/// Who wants to know of a lease.
#[derive(Debug)]
enum Asker<T> {
    Here(T),
    Member { member: u64, number: u64 },
}

/// What waits for a place in the log.
#[derive(Debug)]
enum Wanted<T> {
    Read(T),
    /// A leader must know that it still leads before it speaks of leases.
    Lease {
        id: i64,
        renew: bool,
        asker: Asker<T>,
    },
}

#[derive(Debug)]
struct Asked<T> {
    since: Duration,
    at: Duration,
    wanted: Vec<Wanted<T>>,
}

/// Reads on their way.
#[derive(Debug)]
pub(super) struct Reads<T> {
    /// Not yet asked for.
    new: Vec<Wanted<T>>,
    /// Asked for, by number.
    asked: BTreeMap<u64, Asked<T>>,
    /// Whose place in the log is known.
    placed: Vec<(u64, Asked<T>)>,
    count: u32,
}

impl<T> Default for Reads<T> {
    fn default() -> Self {
        Self {
            new: Vec::new(),
            asked: BTreeMap::new(),
            placed: Vec::new(),
            count: 0,
        }
    }
}

impl<T> Reads<T> {
    /// Someone wants to read.
    pub(super) fn add(&mut self, ticket: T) {
        self.new.push(Wanted::Read(ticket));
    }

    /// Consensus has found the place of these reads.
    pub(super) fn placed(&mut self, number: u64, index: u64) {
        if let Some(asked) = self.asked.remove(&number) {
            self.placed.push((index, asked));
        }
    }
}

#[derive(Debug)]
struct Question<T> {
    since: Duration,
    sent: Option<Duration>,
    id: i64,
    renew: bool,
    ticket: T,
}

/// Questions about leases for the leader, by number.
#[derive(Debug)]
pub(super) struct Questions<T> {
    open: BTreeMap<u64, Question<T>>,
    count: u32,
}

impl<T> Default for Questions<T> {
    fn default() -> Self {
        Self {
            open: BTreeMap::new(),
            count: 0,
        }
    }
}

impl<T> Node<T> {
    pub(super) fn ask_for_reads(&mut self) {
        if self.reads.new.is_empty() || self.consensus.standing().leader == 0 {
            return;
        }
        let wanted = std::mem::take(&mut self.reads.new);
        self.ask_for_read(self.now, wanted);
    }

    fn ask_for_read(&mut self, since: Duration, wanted: Vec<Wanted<T>>) {
        self.reads.count = self.reads.count.wrapping_add(1);
        let number = (u64::from(self.life) << 32) | u64::from(self.reads.count);
        let asked = Asked {
            since,
            at: self.now,
            wanted,
        };
        self.reads.asked.insert(number, asked);
        self.consensus.read(number);
    }

    /// Answers the reads whose place in the log has been reached.
    pub(super) fn release_reads(&mut self) {
        let applied = self.state.applied.0;
        for (index, asked) in std::mem::take(&mut self.reads.placed) {
            if index > applied {
                self.reads.placed.push((index, asked));
                continue;
            }
            for wanted in asked.wanted {
                match wanted {
                    Wanted::Read(ticket) => self.reply(ticket, Ok(Reply::Read)),
                    Wanted::Lease { id, renew, asker } => self.tell_of_lease(id, renew, asker),
                }
            }
        }
    }

    pub(super) fn ask_of_lease(&mut self, id: i64, renew: bool, ticket: T) {
        self.questions.count = self.questions.count.wrapping_add(1);
        let number = (u64::from(self.life) << 32) | u64::from(self.questions.count);
        let question = Question {
            since: self.now,
            sent: None,
            id,
            renew,
            ticket,
        };
        self.questions.open.insert(number, question);
        self.send_question(number);
    }

    fn send_question(&mut self, number: u64) {
        let standing = self.consensus.standing();
        if standing.leader == 0 {
            return;
        }
        if standing.leads {
            if let Some(question) = self.questions.open.remove(&number) {
                let (id, renew) = (question.id, question.renew);
                let asker = Asker::Here(question.ticket);
                self.reads.new.push(Wanted::Lease { id, renew, asker });
            }
            return;
        }
        if let Some(question) = self.questions.open.get_mut(&number) {
            question.sent = Some(self.now);
            let (id, renew) = (question.id, question.renew);
            self.send(standing.leader, Body::Lease { number, id, renew });
        }
    }

    /// Tells of a lease, now that this member is known to lead.
    fn tell_of_lease(&mut self, id: i64, renew: bool, asker: Asker<T>) {
        let leads = self.serving_term == Some(self.consensus.standing().term);
        if !leads {
            // A member asks again by itself.
            if let Asker::Here(ticket) = asker {
                self.ask_of_lease(id, renew, ticket);
            }
            return;
        }
        let times = if renew {
            self.leases.renew(id, self.now).map(|ttl| (ttl, ttl))
        } else {
            self.leases.time_to_live(id, self.now)
        };
        let revision = self.state.revision;
        match asker {
            Asker::Here(ticket) => self.reply(ticket, Ok(lease_reply(renew, revision, times))),
            Asker::Member { member, number } => {
                let body = Body::LeaseIs {
                    number,
                    revision,
                    times,
                };
                self.send(member, body);
            }
        }
    }

    /// Another member asks of a lease.
    pub(super) fn asked_of_lease(&mut self, member: u64, number: u64, id: i64, renew: bool) {
        let asker = Asker::Member { member, number };
        self.reads.new.push(Wanted::Lease { id, renew, asker });
    }

    /// The leader has told of a lease.
    pub(super) fn told_of_lease(&mut self, number: u64, revision: i64, times: Option<(i64, i64)>) {
        if let Some(question) = self.questions.open.remove(&number) {
            let reply = lease_reply(question.renew, revision, times);
            self.reply(question.ticket, Ok(reply));
        }
    }

    /// Asks the present leader all that is open.
    pub(super) fn send_questions(&mut self) {
        let open: Vec<u64> = self.questions.open.keys().copied().collect();
        for number in open {
            self.send_question(number);
        }
    }

    /// Asks again what was not answered, and gives up what has waited for too long.
    pub(super) fn tick_reads(&mut self) {
        let now = self.now;
        let late = |since: &Duration| now.saturating_sub(*since) > REQUEST_TIMEOUT;
        let late_questions: Vec<u64> = self
            .questions
            .open
            .iter()
            .filter(|(_, q)| late(&q.since))
            .map(|(number, _)| *number)
            .collect();
        for number in late_questions {
            if let Some(question) = self.questions.open.remove(&number) {
                self.reply(question.ticket, Err(Refused::TimedOut));
            }
        }
        let again = |at: Duration| now.saturating_sub(at) >= ASK_AGAIN;
        let unsent: Vec<u64> = self
            .questions
            .open
            .iter()
            .filter(|(_, q)| q.sent.is_none_or(again))
            .map(|(number, _)| *number)
            .collect();
        for number in unsent {
            self.send_question(number);
        }
        let stale: Vec<u64> = self
            .reads
            .asked
            .iter()
            .filter(|(_, asked)| again(asked.at))
            .map(|(number, _)| *number)
            .collect();
        for number in stale {
            let Some(asked) = self.reads.asked.remove(&number) else {
                continue;
            };
            if late(&asked.since) {
                self.give_up(asked.wanted);
            } else {
                self.ask_for_read(asked.since, asked.wanted);
            }
        }
        for (index, asked) in std::mem::take(&mut self.reads.placed) {
            if late(&asked.since) {
                self.give_up(asked.wanted);
            } else {
                self.reads.placed.push((index, asked));
            }
        }
    }

    fn give_up(&mut self, wanted: Vec<Wanted<T>>) {
        for wanted in wanted {
            match wanted {
                Wanted::Read(ticket)
                | Wanted::Lease {
                    asker: Asker::Here(ticket),
                    ..
                } => self.reply(ticket, Err(Refused::TimedOut)),
                Wanted::Lease { .. } => {}
            }
        }
    }
}

fn lease_reply(renew: bool, revision: i64, times: Option<(i64, i64)>) -> Reply {
    if renew {
        Reply::Renewed {
            revision,
            ttl: times.map(|(_, granted)| granted),
        }
    } else {
        Reply::TimeToLive { revision, times }
    }
}
