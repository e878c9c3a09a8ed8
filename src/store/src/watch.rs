//! Watches: who is told of which change, without gaps and without repeats.
//!
//! [`Hub`] is a deterministic machine without I/O. Changes go in as they are applied; responses come out. A watcher is
//! either *abreast*, and told of each change as it comes, or *behind*, and fed from the state in pieces until it is abreast.
//! Each stream takes only so many responses that its client has not yet read; with none left its watchers fall behind.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use prost::Message;

use crate::mvcc::Reader;
use crate::mvcc::view::covers;
use crate::proto::etcdserverpb::watch_create_request::FilterType;
use crate::proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse};
use crate::proto::mvccpb::Event;
use crate::proto::mvccpb::event::EventType;
use crate::state::StateError;

/// Responses of one stream that its client has not read yet.
pub const WINDOW: usize = 64;
/// Bytes of changes that one response to a watcher behind gathers.
const PIECE_BYTES: usize = 256 << 10;
/// Responses above this size are split where the client allows it: etcd's limit on requests, and 512 KiB.
const FRAGMENT_BYTES: usize = super::node::MAX_REQUEST_BYTES + (512 << 10);
/// Time after which a watcher that asked for it and has been told nothing is told that it is abreast.
const PROGRESS_TIME: Duration = Duration::from_secs(600);

/// A stream of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u64);

/// A response and the stream that it is for.
pub type Outgoing = (StreamId, WatchResponse);

#[derive(Debug)]
struct Watcher {
    key: Vec<u8>,
    range_end: Vec<u8>,
    /// No change below this revision is (any more) to be told.
    next: i64,
    abreast: bool,
    prev_kv: bool,
    no_put: bool,
    no_delete: bool,
    progress: bool,
    fragment: bool,
    last_told: Duration,
}

impl Watcher {
    fn wants(&self, event: &Event) -> bool {
        let deleted = event.r#type == EventType::Delete as i32;
        let Some(kv) = &event.kv else { return false };
        kv.mod_revision >= self.next
            && !(if deleted { self.no_delete } else { self.no_put })
            && covers(&self.key, &self.range_end, &kv.key)
    }

    /// Whether it may be told that it is as far as this revision. One that begins later would be sent back: its client goes on
    /// from where it was last told that it is.
    fn is_at(&self, revision: i64) -> bool {
        self.abreast && self.next <= revision + 1
    }
}

#[derive(Debug)]
struct Stream {
    watchers: BTreeMap<i64, Watcher>,
    next_id: i64,
    window: usize,
}

/// All watches of one member.
#[derive(Debug)]
pub struct Hub {
    streams: BTreeMap<StreamId, Stream>,
    next_stream: u64,
    /// Watchers of one key each, by key.
    single: HashMap<Vec<u8>, Vec<(StreamId, i64)>>,
    /// Watchers of ranges.
    ranges: Vec<(StreamId, i64)>,
    /// Streams that have a watcher behind.
    behind: HashSet<StreamId>,
    /// Streams whose client waits to be told how far they are.
    asked: BTreeSet<StreamId>,
    /// The last revision that was told of.
    revision: i64,
    compact_revision: i64,
    now: Duration,
}

impl Hub {
    /// Starts at the revision of a state whose later changes will all be given to [`Hub::publish`].
    pub fn new(revision: i64, compact_revision: i64) -> Self {
        Self {
            streams: BTreeMap::new(),
            next_stream: 1,
            single: HashMap::new(),
            ranges: Vec::new(),
            behind: HashSet::new(),
            asked: BTreeSet::new(),
            revision,
            compact_revision,
            now: Duration::ZERO,
        }
    }

    /// The last revision that was told of.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            revision: self.revision,
            ..ResponseHeader::default()
        })
    }

    /// A client opened a stream.
    pub fn open(&mut self) -> StreamId {
        let id = StreamId(self.next_stream);
        self.next_stream += 1;
        self.streams.insert(
            id,
            Stream {
                watchers: BTreeMap::new(),
                next_id: 0,
                window: WINDOW,
            },
        );
        id
    }

    /// A stream ended.
    pub fn close(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(&id) {
            for (watch, watcher) in stream.watchers {
                self.unlink(id, watch, &watcher);
            }
        }
        self.behind.remove(&id);
        self.asked.remove(&id);
    }

    fn unlink(&mut self, stream: StreamId, watch: i64, watcher: &Watcher) {
        let this = (stream, watch);
        if !watcher.range_end.is_empty() {
            self.ranges.retain(|w| *w != this);
        } else if let Some(list) = self.single.get_mut(&watcher.key) {
            list.retain(|w| *w != this);
            if list.is_empty() {
                self.single.remove(&watcher.key);
            }
        }
    }

    /// A client asks for a watch. If it is behind, [`Hub::catch_up`] feeds it.
    pub fn create(
        &mut self,
        id: StreamId,
        mut request: WatchCreateRequest,
        out: &mut Vec<Outgoing>,
    ) {
        let header = self.header();
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if request.key.is_empty() {
            request.key = vec![0];
        }
        let empty = !request.range_end.is_empty()
            && request.range_end != [0]
            && request.range_end <= request.key;
        let refused = if empty {
            Some("mvcc: watcher range is empty")
        } else if request.watch_id != 0 && stream.watchers.contains_key(&request.watch_id) {
            Some("mvcc: duplicate watch ID provided on the WatchStream")
        } else {
            None
        };
        if let Some(reason) = refused {
            let response = WatchResponse {
                header,
                watch_id: -1,
                created: true,
                canceled: true,
                cancel_reason: reason.into(),
                ..WatchResponse::default()
            };
            out.push((id, response));
            return;
        }
        let watch = if request.watch_id != 0 {
            request.watch_id
        } else {
            while stream.watchers.contains_key(&stream.next_id) {
                stream.next_id += 1;
            }
            stream.next_id += 1;
            stream.next_id - 1
        };
        let next = if request.start_revision > 0 {
            request.start_revision
        } else {
            self.revision + 1
        };
        let abreast = next > self.revision;
        let no = |filter: FilterType| request.filters.contains(&(filter as i32));
        let watcher = Watcher {
            next,
            abreast,
            prev_kv: request.prev_kv,
            no_put: no(FilterType::Noput),
            no_delete: no(FilterType::Nodelete),
            progress: request.progress_notify,
            fragment: request.fragment,
            last_told: self.now,
            key: request.key,
            range_end: request.range_end,
        };
        if watcher.range_end.is_empty() {
            self.single
                .entry(watcher.key.clone())
                .or_default()
                .push((id, watch));
        } else {
            self.ranges.push((id, watch));
        }
        stream.watchers.insert(watch, watcher);
        if !abreast {
            self.behind.insert(id);
        }
        out.push((
            id,
            WatchResponse {
                header,
                watch_id: watch,
                created: true,
                ..WatchResponse::default()
            },
        ));
    }

    /// A client ends a watch. One that is not there gets no answer, as in etcd.
    pub fn cancel(&mut self, id: StreamId, watch: i64, out: &mut Vec<Outgoing>) {
        let Some(watcher) = self
            .streams
            .get_mut(&id)
            .and_then(|s| s.watchers.remove(&watch))
        else {
            return;
        };
        self.unlink(id, watch, &watcher);
        out.push((
            id,
            WatchResponse {
                header: self.header(),
                watch_id: watch,
                canceled: true,
                ..WatchResponse::default()
            },
        ));
    }

    /// A client asks how far its stream is: it is told once all its watchers are abreast, and none is of a later revision.
    pub fn ask_progress(&mut self, id: StreamId, out: &mut Vec<Outgoing>) {
        self.asked.insert(id);
        self.answer_progress(out);
    }

    fn answer_progress(&mut self, out: &mut Vec<Outgoing>) {
        let (header, revision) = (self.header(), self.revision);
        let streams = &self.streams;
        self.asked.retain(|id| {
            let Some(stream) = streams.get(id) else {
                return false;
            };
            if !stream.watchers.values().all(|w| w.is_at(revision)) {
                return true;
            }
            let response = WatchResponse {
                header,
                watch_id: -1,
                ..WatchResponse::default()
            };
            out.push((*id, response));
            false
        });
    }

    /// The client has read a response of the stream.
    pub fn drained(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.window = (stream.window + 1).min(WINDOW);
        }
    }

    /// Whether [`Hub::catch_up`] has something to do for a stream.
    pub fn can_catch_up(&self, id: StreamId) -> bool {
        self.behind.contains(&id) && self.streams.get(&id).is_some_and(|s| s.window > 0)
    }

    /// All streams for which [`Hub::can_catch_up`] holds.
    pub fn to_catch_up(&self) -> Vec<StreamId> {
        let mut ids: Vec<StreamId> = self
            .behind
            .iter()
            .copied()
            .filter(|id| self.can_catch_up(*id))
            .collect();
        ids.sort_unstable();
        ids
    }

    /// Reads below `revision` fail from now on.
    pub fn compacted(&mut self, revision: i64) {
        self.compact_revision = self.compact_revision.max(revision);
    }

    /// The state has become a later one, without the changes in between being told: they are read from it.
    pub fn jumped(&mut self, revision: i64, compact_revision: i64) {
        for (id, stream) in &mut self.streams {
            for watcher in stream.watchers.values_mut().filter(|w| w.abreast) {
                watcher.next = watcher.next.max(self.revision + 1);
                watcher.abreast = watcher.next > revision;
                if !watcher.abreast {
                    self.behind.insert(*id);
                }
            }
        }
        self.revision = self.revision.max(revision);
        self.compacted(compact_revision);
    }

    /// The changes of one revision. They must come in order. `reader` sees them already.
    ///
    /// # Errors
    /// Of the state, when a watcher wants to know what was there before.
    pub fn publish(
        &mut self,
        revision: i64,
        events: &[Event],
        reader: &dyn Fn() -> Result<Reader, StateError>,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), StateError> {
        self.revision = revision;
        let mut told: BTreeMap<(StreamId, i64), Vec<Event>> = BTreeMap::new();
        for event in events {
            let Some(kv) = &event.kv else { continue };
            for (stream, watch) in self
                .single
                .get(&kv.key)
                .into_iter()
                .flatten()
                .chain(&self.ranges)
            {
                let watcher = self.streams.get(stream).and_then(|s| s.watchers.get(watch));
                if watcher.is_some_and(|w| w.abreast && w.wants(event)) {
                    told.entry((*stream, *watch))
                        .or_default()
                        .push(event.clone());
                }
            }
        }
        let mut opened = None;
        for ((id, watch), mut events) in told {
            let header = self.header();
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            let Some(watcher) = stream.watchers.get_mut(&watch) else {
                continue;
            };
            if stream.window == 0 {
                watcher.abreast = false;
                watcher.next = revision;
                self.behind.insert(id);
                continue;
            }
            if watcher.prev_kv {
                let reader = match &opened {
                    Some(reader) => reader,
                    None => opened.insert(reader()?),
                };
                add_previous(reader, &mut events)?;
            }
            watcher.last_told = self.now;
            stream.window -= 1;
            respond(id, watch, watcher.fragment, header, events, out);
        }
        self.answer_progress(out);
        Ok(())
    }

    /// Feeds the watchers of a stream that are behind, one piece each.
    ///
    /// # Errors
    /// Of the state.
    pub fn catch_up(
        &mut self,
        id: StreamId,
        reader: &Reader,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), StateError> {
        let header = self.header();
        let (revision, compact_revision) = (
            self.revision,
            self.compact_revision.max(reader.compact_revision),
        );
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        let mut lost = Vec::new();
        for (watch, watcher) in stream.watchers.iter_mut().filter(|(_, w)| !w.abreast) {
            if stream.window == 0 {
                break;
            }
            if watcher.next < compact_revision {
                lost.push(*watch);
                continue;
            }
            let (mut events, next) = reader.changes(watcher.next, revision, PIECE_BYTES)?;
            events.retain(|event| watcher.wants(event));
            if watcher.prev_kv {
                add_previous(reader, &mut events)?;
            }
            watcher.next = next;
            watcher.abreast = next > revision;
            if !events.is_empty() {
                watcher.last_told = self.now;
                stream.window -= 1;
                respond(id, *watch, watcher.fragment, header, events, out);
            }
        }
        for watch in lost {
            if let Some(watcher) = self
                .streams
                .get_mut(&id)
                .and_then(|s| s.watchers.remove(&watch))
            {
                self.unlink(id, watch, &watcher);
                let response = WatchResponse {
                    header,
                    watch_id: watch,
                    canceled: true,
                    compact_revision,
                    ..WatchResponse::default()
                };
                out.push((id, response));
            }
        }
        if self
            .streams
            .get(&id)
            .is_some_and(|s| s.watchers.values().all(|w| w.abreast))
        {
            self.behind.remove(&id);
            self.answer_progress(out);
        }
        Ok(())
    }

    /// Time passes: watchers that asked for it are told that there was nothing to tell.
    pub fn tick(&mut self, now: Duration, out: &mut Vec<Outgoing>) {
        self.now = now;
        self.answer_progress(out);
        let (header, revision) = (self.header(), self.revision);
        for (id, stream) in &mut self.streams {
            for (watch, watcher) in &mut stream.watchers {
                if watcher.progress
                    && watcher.is_at(revision)
                    && now.saturating_sub(watcher.last_told) >= PROGRESS_TIME
                {
                    watcher.last_told = now;
                    out.push((
                        *id,
                        WatchResponse {
                            header,
                            watch_id: *watch,
                            ..WatchResponse::default()
                        },
                    ));
                }
            }
        }
    }
}

fn add_previous(reader: &Reader, events: &mut [Event]) -> Result<(), StateError> {
    for event in events {
        if let Some(kv) = &event.kv {
            event.prev_kv = reader.key_at(&kv.key, kv.mod_revision - 1)?;
        }
    }
    Ok(())
}

/// One response, or several where it would be too large and the client allows it.
fn respond(
    id: StreamId,
    watch_id: i64,
    fragment: bool,
    header: Option<ResponseHeader>,
    events: Vec<Event>,
    out: &mut Vec<Outgoing>,
) {
    let whole = WatchResponse {
        header,
        watch_id,
        events,
        ..WatchResponse::default()
    };
    if !fragment || whole.encoded_len() < FRAGMENT_BYTES {
        out.push((id, whole));
        return;
    }
    let mut piece: Vec<Event> = Vec::new();
    let mut bytes = 0;
    for event in whole.events {
        let size = event.encoded_len();
        if !piece.is_empty() && bytes + size >= FRAGMENT_BYTES {
            out.push((
                id,
                WatchResponse {
                    header,
                    watch_id,
                    events: std::mem::take(&mut piece),
                    fragment: true,
                    ..WatchResponse::default()
                },
            ));
            bytes = 0;
        }
        bytes += size;
        piece.push(event);
    }
    out.push((
        id,
        WatchResponse {
            header,
            watch_id,
            events: piece,
            ..WatchResponse::default()
        },
    ));
}
