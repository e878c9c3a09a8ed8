//! Reading the keyspace at a revision.

use std::cmp::Ordering;
use std::ops::Bound;

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable};

use super::table::{CURRENT, HISTORY, LEASE_KEYS, LEASES, META, Pointer, REVISIONS, Record};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::{
    Compare, LeaseStatus, RangeRequest, RangeResponse, ResponseHeader, compare,
};
use crate::proto::mvccpb::event::EventType;
use crate::proto::mvccpb::{Event, KeyValue};
use crate::refused::Refused;
use crate::state::{Database, During, StateError, meta_i64};
use crate::v2::Action;

/// A read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The request cannot be answered.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The state cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
}

/// From the first key to the last.
pub(crate) type KeyRange<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The keys that a request means; `None` when it can mean none.
pub(crate) fn bounds<'a>(key: &'a [u8], range_end: &'a [u8]) -> Option<KeyRange<'a>> {
    match range_end {
        [] => Some((Bound::Included(key), Bound::Included(key))),
        [0] => Some((Bound::Included(key), Bound::Unbounded)),
        end => (end > key).then_some((Bound::Included(key), Bound::Excluded(end))),
    }
}

/// Whether the request for these keys means `key`.
pub(crate) fn covers(start: &[u8], range_end: &[u8], key: &[u8]) -> bool {
    match range_end {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && key < end,
    }
}

/// The keyspace as of some tables, which may be those of an open write.
#[derive(Debug)]
pub(crate) struct View<'a, C, H, R> {
    pub(crate) current: &'a C,
    pub(crate) history: &'a H,
    pub(crate) revisions: &'a R,
    /// The present revision.
    pub(crate) revision: i64,
    /// Reads below it fail.
    pub(crate) compact_revision: i64,
}

impl<C, H, R> View<'_, C, H, R>
where
    C: ReadableTable<&'static [u8], Pointer>,
    H: ReadableTable<(&'static [u8], i64, i64), ()>,
    R: ReadableTable<(i64, i64), &'static [u8]>,
{
    /// Answers a range request; the header has just the revision.
    pub(crate) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ReadError> {
        let at = self.revision_of(request.revision)?;
        let order = SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None);
        let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        let keys_in_order = order != SortOrder::Descend && target == SortTarget::Key;
        let limit = usize::try_from(request.limit)
            .ok()
            .filter(|l| *l > 0)
            .unwrap_or(usize::MAX);
        let load = match (request.count_only, keys_in_order && filters == [0; 4]) {
            (true, _) => 0,
            (false, true) => limit,
            (false, false) => usize::MAX,
        };
        let values = !request.keys_only || target == SortTarget::Value;
        let (mut kvs, count) = self.scan(&request.key, &request.range_end, at, load, values)?;
        let mut more = !request.count_only && (load as u128) < (count as u128);
        if filters != [0; 4] {
            let [min_mod, max_mod, min_create, max_create] = filters;
            let within = |value: i64, min: i64, max: i64| {
                (min == 0 || value >= min) && (max == 0 || value <= max)
            };
            kvs.retain(|kv| {
                within(kv.mod_revision, min_mod, max_mod)
                    && within(kv.create_revision, min_create, max_create)
            });
        }
        if !keys_in_order {
            sort(&mut kvs, order, target);
        }
        if kvs.len() > limit {
            kvs.truncate(limit);
            more = true;
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        let header = Some(ResponseHeader {
            revision: self.revision,
            ..ResponseHeader::default()
        });
        Ok(RangeResponse {
            header,
            kvs,
            more,
            count: count as i64,
        })
    }

    /// The revision to read at for one that was asked for.
    pub(crate) fn revision_of(&self, asked: i64) -> Result<i64, Refused> {
        if asked > self.revision {
            return Err(Refused::FutureRevision);
        }
        if asked <= 0 {
            return Ok(self.revision);
        }
        if asked < self.compact_revision {
            return Err(Refused::Compacted);
        }
        Ok(asked)
    }

    /// The first `load` keys of a range at a revision, in order, and the number of all.
    fn scan(
        &self,
        key: &[u8],
        range_end: &[u8],
        at: i64,
        load: usize,
        values: bool,
    ) -> Result<(Vec<KeyValue>, usize), StateError> {
        let Some(bounds) = bounds(key, range_end) else {
            return Ok((Vec::new(), 0));
        };
        if at >= self.revision {
            self.scan_current(bounds, load, values)
        } else {
            self.scan_past(bounds, at, load)
        }
    }

    fn scan_current(
        &self,
        bounds: KeyRange<'_>,
        load: usize,
        values: bool,
    ) -> Result<(Vec<KeyValue>, usize), StateError> {
        let mut kvs = Vec::new();
        let mut count = 0;
        for item in self.current.range::<&[u8]>(bounds).during("read keys")? {
            let (key, pointer) = item.during("read keys")?;
            count += 1;
            if kvs.len() >= load {
                continue;
            }
            let (revision, sub, create_revision, version, lease) = pointer.value();
            kvs.push(if values {
                self.record(revision, sub)?
                    .ok_or(StateError::Damaged { revision })?
            } else {
                KeyValue {
                    key: key.value().to_vec(),
                    create_revision,
                    mod_revision: revision,
                    version,
                    value: Vec::new(),
                    lease,
                }
            });
        }
        Ok((kvs, count))
    }

    fn scan_past(
        &self,
        bounds: KeyRange<'_>,
        at: i64,
        load: usize,
    ) -> Result<(Vec<KeyValue>, usize), StateError> {
        let start = bounds.0.map(|key| (key, i64::MIN, i64::MIN));
        let end = match bounds.1 {
            Bound::Included(key) => Bound::Included((key, i64::MAX, i64::MAX)),
            Bound::Excluded(key) => Bound::Excluded((key, i64::MIN, i64::MIN)),
            Bound::Unbounded => Bound::Unbounded,
        };
        let mut kvs = Vec::new();
        let mut count = 0;
        // The newest entry of the present key that is old enough.
        let mut newest: Option<(Vec<u8>, i64, i64)> = None;
        let mut take = |newest: &mut Option<(Vec<u8>, i64, i64)>| -> Result<(), StateError> {
            let Some((_, revision, sub)) = newest.take() else {
                return Ok(());
            };
            if let Some(kv) = self.record(revision, sub)? {
                count += 1;
                if kvs.len() < load {
                    kvs.push(kv);
                }
            }
            Ok(())
        };
        for item in self
            .history
            .range::<(&[u8], i64, i64)>((start, end))
            .during("read history")?
        {
            let (place, _) = item.during("read history")?;
            let (key, revision, sub) = place.value();
            if newest.as_ref().is_some_and(|n| n.0 != key) {
                take(&mut newest)?;
            }
            if revision <= at {
                newest = Some((key.to_vec(), revision, sub));
            }
        }
        take(&mut newest)?;
        Ok((kvs, count))
    }

    /// The key that was written at a place; `None` for a deletion.
    pub(crate) fn record(&self, revision: i64, sub: i64) -> Result<Option<KeyValue>, StateError> {
        let bytes = self
            .revisions
            .get((revision, sub))
            .during("read a revision")?
            .ok_or(StateError::Damaged { revision })?;
        let record = Record::decode(bytes.value(), revision)?;
        Ok((!record.action.deletes()).then(|| record.to_key_value(revision)))
    }

    /// A key as it stood at a revision; `None` too when that has been compacted.
    pub(crate) fn key_at(&self, key: &[u8], at: i64) -> Result<Option<KeyValue>, StateError> {
        if at < self.compact_revision {
            return Ok(None);
        }
        let mut places = self
            .history
            .range((key, i64::MIN, i64::MIN)..=(key, at, i64::MAX))
            .during("read history")?;
        let Some(place) = places.next_back() else {
            return Ok(None);
        };
        let (place, _) = place.during("read history")?;
        let (_, revision, sub) = place.value();
        self.record(revision, sub)
    }

    /// Whether a comparison holds.
    pub(crate) fn compare(&self, compare: &Compare) -> Result<bool, StateError> {
        let (kvs, _) = self.scan(
            &compare.key,
            &compare.range_end,
            self.revision,
            usize::MAX,
            true,
        )?;
        if kvs.is_empty() {
            // A key that is not there has no value, not even the empty one; all its numbers are 0.
            return Ok(compare.target() != compare::CompareTarget::Value
                && holds(compare, &KeyValue::default()));
        }
        Ok(kvs.iter().all(|kv| holds(compare, kv)))
    }
}

fn holds(compare: &Compare, kv: &KeyValue) -> bool {
    use compare::{CompareResult, CompareTarget, TargetUnion};
    let given = compare.target_union.as_ref();
    let number = |actual: i64, given: Option<i64>| actual.cmp(&given.unwrap_or(0));
    let ordering = match compare.target() {
        CompareTarget::Value => {
            let given = if let Some(TargetUnion::Value(v)) = given {
                v.as_slice()
            } else {
                &[]
            };
            kv.value.as_slice().cmp(given)
        }
        CompareTarget::Version => number(
            kv.version,
            if let Some(TargetUnion::Version(v)) = given {
                Some(*v)
            } else {
                None
            },
        ),
        CompareTarget::Create => number(
            kv.create_revision,
            if let Some(TargetUnion::CreateRevision(v)) = given {
                Some(*v)
            } else {
                None
            },
        ),
        CompareTarget::Mod => number(
            kv.mod_revision,
            if let Some(TargetUnion::ModRevision(v)) = given {
                Some(*v)
            } else {
                None
            },
        ),
        CompareTarget::Lease => number(
            kv.lease,
            if let Some(TargetUnion::Lease(v)) = given {
                Some(*v)
            } else {
                None
            },
        ),
    };
    match compare.result() {
        CompareResult::Equal => ordering == Ordering::Equal,
        CompareResult::NotEqual => ordering != Ordering::Equal,
        CompareResult::Greater => ordering == Ordering::Greater,
        CompareResult::Less => ordering == Ordering::Less,
    }
}

fn sort(kvs: &mut [KeyValue], order: SortOrder, target: SortTarget) {
    let by = |a: &KeyValue, b: &KeyValue| match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    if order == SortOrder::Descend {
        kvs.sort_by(|a, b| by(b, a))
    } else {
        kvs.sort_by(by)
    }
}

/// A view of what is committed.
pub(crate) type ReadView<'a> = View<
    'a,
    ReadOnlyTable<&'static [u8], Pointer>,
    ReadOnlyTable<(&'static [u8], i64, i64), ()>,
    ReadOnlyTable<(i64, i64), &'static [u8]>,
>;

/// One write or deletion, with what it was to v2.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) revision: i64,
    pub(crate) action: Action,
    pub(crate) create_revision: i64,
    pub(crate) lease: i64,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// One consistent sight of the whole state.
pub struct Reader {
    transaction: ReadTransaction,
    current: ReadOnlyTable<&'static [u8], Pointer>,
    history: ReadOnlyTable<(&'static [u8], i64, i64), ()>,
    revisions: ReadOnlyTable<(i64, i64), &'static [u8]>,
    /// The present revision.
    pub revision: i64,
    /// Reads below it fail.
    pub compact_revision: i64,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// Looks at the state as it is now.
    ///
    /// # Errors
    /// Of the database.
    pub fn new(database: &Database) -> Result<Self, StateError> {
        let transaction = database.begin_read()?;
        let open = "open a table";
        let meta = transaction.open_table(META).during(open)?;
        Ok(Self {
            current: transaction.open_table(CURRENT).during(open)?,
            history: transaction.open_table(HISTORY).during(open)?,
            revisions: transaction.open_table(REVISIONS).during(open)?,
            revision: meta_i64(&meta, "revision")?,
            compact_revision: meta_i64(&meta, "compact_revision")?,
            transaction,
        })
    }

    pub(crate) fn view(&self) -> ReadView<'_> {
        View {
            current: &self.current,
            history: &self.history,
            revisions: &self.revisions,
            revision: self.revision,
            compact_revision: self.compact_revision,
        }
    }

    /// Answers a range request; the header has just the revision.
    ///
    /// # Errors
    /// [`Refused::Compacted`], [`Refused::FutureRevision`], or of the database.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ReadError> {
        self.view().range(request)
    }

    /// A key as it stood at a revision; `None` too when that has been compacted.
    ///
    /// # Errors
    /// Of the database.
    pub fn key_at(&self, key: &[u8], at: i64) -> Result<Option<KeyValue>, StateError> {
        self.view().key_at(key, at)
    }

    /// The changes from revision `from` to `to`, whole revisions only, until about `max_bytes` have been gathered; and the
    /// revision to go on from.
    ///
    /// # Errors
    /// Of the database.
    pub fn changes(
        &self,
        from: i64,
        to: i64,
        max_bytes: usize,
    ) -> Result<(Vec<Event>, i64), StateError> {
        let mut events: Vec<Event> = Vec::new();
        let mut bytes = 0;
        for item in self
            .revisions
            .range((from, i64::MIN)..=(to, i64::MAX))
            .during("read changes")?
        {
            let (place, record) = item.during("read changes")?;
            let (revision, _) = place.value();
            let last = events
                .last()
                .and_then(|e| e.kv.as_ref())
                .map(|kv| kv.mod_revision);
            if bytes >= max_bytes && last.is_some_and(|last| last < revision) {
                return Ok((events, revision));
            }
            let record = Record::decode(record.value(), revision)?;
            bytes += record.key.len() + record.value.len() + 64;
            let kind = if record.action.deletes() {
                EventType::Delete
            } else {
                EventType::Put
            };
            events.push(Event {
                r#type: kind as i32,
                kv: Some(record.to_key_value(revision)),
                prev_kv: None,
            });
        }
        Ok((events, to + 1))
    }

    /// As [`Reader::changes`], for v2, which has only keys that begin with a slash.
    pub(crate) fn written(
        &self,
        from: i64,
        to: i64,
        max_bytes: usize,
    ) -> Result<(Vec<Written>, i64), StateError> {
        let mut all = Vec::new();
        let mut bytes = 0;
        let mut last = from;
        for item in self
            .revisions
            .range((from, i64::MIN)..=(to, i64::MAX))
            .during("read changes")?
        {
            let (place, record) = item.during("read changes")?;
            let (revision, _) = place.value();
            if bytes >= max_bytes && last < revision {
                return Ok((all, revision));
            }
            last = revision;
            let record = Record::decode(record.value(), revision)?;
            bytes += record.key.len() + record.value.len() + 64;
            if record.key.starts_with(b"/") {
                all.push(Written {
                    revision,
                    action: record.action,
                    create_revision: record.create_revision,
                    lease: record.lease,
                    key: record.key.to_vec(),
                    value: record.value.to_vec(),
                });
            }
        }
        Ok((all, to + 1))
    }

    /// All leases, by id.
    ///
    /// # Errors
    /// Of the database.
    pub fn leases(&self) -> Result<Vec<LeaseStatus>, StateError> {
        let leases = self.transaction.open_table(LEASES).during("open a table")?;
        let mut out = Vec::new();
        for item in leases.range::<i64>(..).during("read leases")? {
            out.push(LeaseStatus {
                id: item.during("read leases")?.0.value(),
            });
        }
        Ok(out)
    }

    /// The keys that hang on a lease, in order.
    ///
    /// # Errors
    /// Of the database.
    pub fn lease_keys(&self, lease: i64) -> Result<Vec<Vec<u8>>, StateError> {
        let table = self
            .transaction
            .open_table(LEASE_KEYS)
            .during("open a table")?;
        super::write::keys_of_lease(&table, lease)
    }

    /// A checksum of the keyspace up to a revision: equal on members that have applied and compacted the same.
    ///
    /// # Errors
    /// [`Refused::Compacted`], [`Refused::FutureRevision`], or of the database.
    pub fn hash(&self, at: i64) -> Result<u32, ReadError> {
        let at = self.view().revision_of(at)?;
        let mut hasher = crc32fast::Hasher::new();
        let failed = "read changes";
        for item in self.revisions.range(..=(at, i64::MAX)).during(failed)? {
            let (place, record) = item.during(failed)?;
            let (revision, sub) = place.value();
            hasher.update(&revision.to_le_bytes());
            hasher.update(&sub.to_le_bytes());
            hasher.update(record.value());
        }
        Ok(hasher.finalize())
    }
}
