//! Clients that watch everything, at one member after another, and must see each change once and in order.

use std::collections::{BTreeMap, VecDeque};

use orlop_store::mvcc::Reader;
use orlop_store::proto::etcdserverpb::{WatchCreateRequest, WatchResponse};
use orlop_store::proto::mvccpb::Event;
use orlop_store::watch::{Hub, StreamId};

use super::history::{History, changes};
use crate::random::Random;

#[derive(Debug)]
struct Watcher {
    /// The first revision that it has not seen.
    next: i64,
    /// Where it watches: member, process, stream.
    at: Option<(u64, u64, StreamId)>,
    waiting: VecDeque<WatchResponse>,
}

#[derive(Debug)]
pub(crate) struct Watching {
    watchers: Vec<Watcher>,
    /// By member: its process, and the watches there.
    hubs: BTreeMap<u64, (u64, Hub)>,
}

impl Watching {
    pub(crate) fn new(count: usize) -> Self {
        let watcher = || Watcher {
            next: 1,
            at: None,
            waiting: VecDeque::new(),
        };
        Self {
            watchers: (0..count).map(|_| watcher()).collect(),
            hubs: BTreeMap::new(),
        }
    }

    pub(crate) fn changed(
        &mut self,
        id: u64,
        revision: i64,
        events: &[Event],
        reader: &dyn Fn() -> Option<Reader>,
    ) {
        let Some((_, hub)) = self.hubs.get_mut(&id) else {
            return;
        };
        if revision <= hub.revision() {
            // The hub was made after this was applied.
            return;
        }
        let mut out = Vec::new();
        let reader = || Ok(reader().expect("it runs"));
        hub.publish(revision, events, &reader, &mut out)
            .expect("the state can be read");
        self.hand_out(id, out);
    }

    pub(crate) fn compacted(&mut self, id: u64, revision: i64) {
        if let Some((_, hub)) = self.hubs.get_mut(&id) {
            hub.compacted(revision);
        }
    }

    pub(crate) fn jumped(&mut self, id: u64, revision: i64, compact_revision: i64) {
        if let Some((_, hub)) = self.hubs.get_mut(&id) {
            hub.jumped(revision, compact_revision);
        }
    }

    fn hand_out(&mut self, id: u64, out: Vec<(StreamId, WatchResponse)>) {
        for (stream, response) in out {
            for watcher in &mut self.watchers {
                if watcher.at.is_some_and(|(at, _, s)| at == id && s == stream) {
                    watcher.waiting.push_back(response.clone());
                }
            }
        }
    }

    /// Watchers at this member read; some come here, some go.
    pub(crate) fn read(
        &mut self,
        id: u64,
        process: u64,
        reader: &Reader,
        random: &mut Random,
        history: &History,
    ) {
        if self.hubs.get(&id).is_none_or(|(p, _)| *p != process) {
            let hub = Hub::new(reader.revision, reader.compact_revision);
            self.hubs.insert(id, (process, hub));
            for watcher in &mut self.watchers {
                watcher.at = watcher.at.filter(|(at, ..)| *at != id);
            }
        }
        for place in 0..self.watchers.len() {
            let watcher = &mut self.watchers[place];
            let Some((_, hub)) = self.hubs.get_mut(&id) else {
                return;
            };
            match watcher.at {
                None => {
                    let stream = hub.open();
                    watcher.at = Some((id, process, stream));
                    watcher.waiting.clear();
                    let request = WatchCreateRequest {
                        key: vec![0],
                        range_end: vec![0],
                        start_revision: watcher.next,
                        ..WatchCreateRequest::default()
                    };
                    let mut out = Vec::new();
                    hub.create(stream, request, &mut out);
                    self.hand_out(id, out);
                }
                Some((at, _, stream)) if at == id => {
                    if random.once_in(60) {
                        hub.close(stream);
                        watcher.at = None;
                        continue;
                    }
                    if hub.can_catch_up(stream) {
                        let mut out = Vec::new();
                        hub.catch_up(stream, reader, &mut out)
                            .expect("the state can be read");
                        self.hand_out(id, out);
                    }
                    self.look(place, id, stream, history);
                }
                Some(_) => {}
            }
        }
    }

    fn look(&mut self, place: usize, id: u64, stream: StreamId, history: &History) {
        let watcher = &mut self.watchers[place];
        let Some((_, hub)) = self.hubs.get_mut(&id) else {
            return;
        };
        while let Some(response) = watcher.waiting.pop_front() {
            hub.drained(stream);
            if response.canceled {
                assert!(
                    response.compact_revision > watcher.next,
                    "cancelled without a reason"
                );
                watcher.next = response.compact_revision;
                hub.close(stream);
                watcher.at = None;
                watcher.waiting.clear();
                return;
            }
            let mut events = response.events.as_slice();
            while let Some(first) = events.first() {
                let revision = first.kv.as_ref().map_or(0, |kv| kv.mod_revision);
                let of_it = |e: &Event| e.kv.as_ref().is_some_and(|kv| kv.mod_revision == revision);
                let count = events.iter().take_while(|e| of_it(e)).count();
                let (now, rest) = events.split_at(count);
                events = rest;
                assert!(revision >= watcher.next, "a change was told twice");
                // Between two revisions that are told there is none that is not.
                let missed = history.changes.range(watcher.next..revision).next();
                assert!(
                    missed.is_none(),
                    "a watch has a gap before {revision}: {missed:?}"
                );
                assert_eq!(
                    history.changes.get(&revision),
                    Some(&changes(now)),
                    "a watch tells what was not, at {revision}"
                );
                watcher.next = revision + 1;
            }
        }
    }

    /// In the end each has seen everything.
    pub(crate) fn check(&self, history: &History, members: &[u64]) {
        let last = history.changes.last_key_value().map_or(1, |(r, _)| *r);
        for watcher in &self.watchers {
            let at_work = watcher.at.is_some_and(|(id, ..)| members.contains(&id));
            assert!(
                watcher.next > last || !at_work || history.changes.is_empty(),
                "a watch at {:?} has seen up to {}, of {last}",
                watcher.at,
                watcher.next
            );
        }
    }
}
