//! What clients saw, what members applied, and whether both fit together.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use orlop_store::mvcc::Reader;
use orlop_store::proto::mvccpb::Event;

/// A key and its new value; `None` when it was deleted.
pub(crate) type Change = (Vec<u8>, Option<Vec<u8>>);

/// What a client did.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Done {
    /// It wrote this value, which no one else writes, or deleted the key (`None`).
    Wrote {
        revision: i64,
        value: Option<Vec<u8>>,
    },
    /// It read the key as of a revision.
    Read {
        revision: i64,
        value: Option<Vec<u8>>,
    },
}

/// One request that was answered.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) key: Vec<u8>,
    pub(crate) asked: Duration,
    pub(crate) answered: Duration,
    pub(crate) done: Done,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) operations: Vec<Operation>,
    /// All changes that any member has applied, by revision.
    pub(crate) changes: BTreeMap<i64, Vec<Change>>,
    /// Revisions of which nothing is known but that they were.
    unknown: BTreeSet<i64>,
    /// When a revision was first seen applied.
    pub(crate) first_seen: BTreeMap<i64, Duration>,
}

pub(crate) fn changes(events: &[Event]) -> Vec<Change> {
    let change = |event: &Event| {
        let kv = event.kv.clone().unwrap_or_default();
        (kv.key, (event.r#type == 0).then_some(kv.value))
    };
    events.iter().map(change).collect()
}

impl History {
    /// A member applied a revision: all must apply the same.
    pub(crate) fn applied(&mut self, revision: i64, events: &[Event], now: Duration) {
        self.apply(revision, changes(events), now);
    }

    /// As [`Self::applied`].
    pub(crate) fn apply(&mut self, revision: i64, changes: Vec<Change>, now: Duration) {
        if self.unknown.remove(&revision) {
            self.changes.insert(revision, changes);
        } else if let Some(before) = self.changes.get(&revision) {
            assert_eq!(*before, changes, "members differ in revision {revision}");
        } else {
            let last = self.changes.last_key_value().map_or(1, |(r, _)| *r);
            assert_eq!(revision, last + 1, "a revision was left out");
            self.changes.insert(revision, changes);
            self.first_seen.insert(revision, now);
        }
    }

    /// Takes over what a member's state holds and no one has told.
    pub(crate) fn fill(&mut self, reader: &Reader, now: Duration) {
        let last = self.changes.last_key_value().map_or(1, |(r, _)| *r);
        if reader.revision <= last {
            return;
        }
        let (events, _) = reader
            .changes(last + 1, reader.revision, usize::MAX)
            .expect("the state can be read");
        let of = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        for events in events.chunk_by(|a, b| of(a) == of(b)) {
            let revision = of(&events[0]);
            // What was compacted before it was told stays unknown.
            let last = self.changes.last_key_value().map_or(1, |(r, _)| *r);
            for unknown in last + 1..revision {
                self.changes.insert(unknown, Vec::new());
                self.unknown.insert(unknown);
            }
            self.applied(revision, events, now);
        }
    }

    fn value_at(&self, key: &[u8], revision: i64) -> Option<Vec<u8>> {
        let past = self.changes.range(..=revision).rev();
        past.flat_map(|(_, changes)| changes.iter().rev())
            .find(|(k, _)| k == key)
            .and_then(|(_, value)| value.clone())
    }

    /// Proves the clients' history linearizable: revisions are the order of the writes, each read stands right after the
    /// revision that it was told, every answer is what that order gives, and no request stands before one that was
    /// answered before it was asked.
    pub(crate) fn check(&self) {
        let mut written = BTreeSet::new();
        for (revision, changes) in &self.changes {
            for value in changes.iter().filter_map(|(_, value)| value.as_ref()) {
                assert!(
                    written.insert(value),
                    "the write of {value:?} was done twice, the second time at {revision}"
                );
            }
        }
        for operation in &self.operations {
            match &operation.done {
                Done::Wrote { revision, value } => {
                    let found = self.changes.get(revision);
                    let wanted = (operation.key.clone(), value.clone());
                    assert!(
                        found.is_some_and(|changes| changes.contains(&wanted)),
                        "an acknowledged write is lost: {operation:?}, at its revision stands {found:?}"
                    );
                }
                Done::Read { revision, value } => {
                    let held = self.value_at(&operation.key, *revision);
                    assert_eq!(held, *value, "a read saw what was not there: {operation:?}");
                }
            }
        }
        // Places in the order: a write of revision r at 2r, a read as of r at 2r + 1.
        let place = |operation: &Operation| match operation.done {
            Done::Wrote { revision, .. } => 2 * revision,
            Done::Read { revision, .. } => 2 * revision + 1,
        };
        let mut by_answer: Vec<&Operation> = self.operations.iter().collect();
        by_answer.sort_by_key(|o| o.answered);
        let mut by_question = by_answer.clone();
        by_question.sort_by_key(|o| o.asked);
        let mut answered = by_answer.into_iter().peekable();
        let mut latest: Option<&Operation> = None;
        for operation in by_question {
            while let Some(before) = answered.next_if(|o| o.answered < operation.asked) {
                if latest.is_none_or(|l| place(l) < place(before)) {
                    latest = Some(before);
                }
            }
            if let Some(before) = latest {
                assert!(
                    place(before) <= place(operation),
                    "not linearizable: {before:?} was answered before {operation:?} was asked"
                );
            }
        }
    }
}
