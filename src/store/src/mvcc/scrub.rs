//! Looking at every record, some at a time, for damage that no read has met yet.
//!
//! A record has a checksum, and says which key it is of: what `current` and `history` say of a key is held against it.

use std::ops::Bound;

use super::table::Record;
use super::view::Reader;
use crate::state::{During, StateError};

/// Where a look at all records goes on. Each step may be at another revision.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum Scrub {
    /// Nothing has been looked at.
    #[default]
    Begin,
    /// In `revisions`, after this one.
    Revisions(i64, i64),
    /// In `current`, after this key; none is the beginning.
    Current(Option<Vec<u8>>),
    /// In `history`, after this place.
    History(Vec<u8>, i64, i64),
    /// All has been looked at.
    Done,
}

impl Scrub {
    /// Looks at up to `limit` records more.
    ///
    /// # Errors
    /// [`StateError::Damaged`], or of the database.
    pub fn step(&mut self, reader: &Reader, limit: usize) -> Result<(), StateError> {
        let limit = limit.max(1);
        let next = match &*self {
            Self::Begin => Self::revisions(reader, Bound::Unbounded, limit)?,
            Self::Revisions(revision, sub) => {
                Self::revisions(reader, Bound::Excluded((*revision, *sub)), limit)?
            }
            Self::Current(key) => {
                let after = key.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                Self::current(reader, after, limit)?
            }
            Self::History(key, revision, sub) => {
                let after = Bound::Excluded((key.as_slice(), *revision, *sub));
                Self::history(reader, after, limit)?
            }
            Self::Done => Self::Done,
        };
        *self = next;
        Ok(())
    }

    fn revisions(
        reader: &Reader,
        after: Bound<(i64, i64)>,
        limit: usize,
    ) -> Result<Self, StateError> {
        let reading = "look at revisions";
        let mut items = reader
            .view()
            .revisions
            .range::<(i64, i64)>((after, Bound::Unbounded))
            .during(reading)?;
        let mut last = None;
        for item in items.by_ref().take(limit) {
            let (place, record) = item.during(reading)?;
            let (revision, sub) = place.value();
            Record::decode(record.value(), revision)?;
            last = Some((revision, sub));
        }
        Ok(match last.filter(|_| items.next().is_some()) {
            Some((revision, sub)) => Self::Revisions(revision, sub),
            None => Self::Current(None),
        })
    }

    fn current(reader: &Reader, after: Bound<&[u8]>, limit: usize) -> Result<Self, StateError> {
        let reading = "look at keys";
        let view = reader.view();
        let mut items = view
            .current
            .range::<&[u8]>((after, Bound::Unbounded))
            .during(reading)?;
        let mut last = None;
        for item in items.by_ref().take(limit) {
            let (key, pointer) = item.during(reading)?;
            let (revision, sub, create_revision, version, lease) = pointer.value();
            let said = (create_revision, version, lease, false);
            let of = |r: &Record<'_>| (r.create_revision, r.version, r.lease, r.action.deletes());
            held_against(reader, key.value(), (revision, sub), |r| of(r) == said)?;
            last = Some(key.value().to_vec());
        }
        Ok(match last.filter(|_| items.next().is_some()) {
            Some(key) => Self::Current(Some(key)),
            None => Self::History(Vec::new(), i64::MIN, i64::MIN),
        })
    }

    fn history(
        reader: &Reader,
        after: Bound<(&[u8], i64, i64)>,
        limit: usize,
    ) -> Result<Self, StateError> {
        let reading = "look at history";
        let view = reader.view();
        let mut items = view
            .history
            .range::<(&[u8], i64, i64)>((after, Bound::Unbounded))
            .during(reading)?;
        let mut last = None;
        for item in items.by_ref().take(limit) {
            let (place, ()) = {
                let (place, nothing) = item.during(reading)?;
                (place, nothing.value())
            };
            let (key, revision, sub) = place.value();
            held_against(reader, key, (revision, sub), |_| true)?;
            last = Some((key.to_vec(), revision, sub));
        }
        Ok(match last.filter(|_| items.next().is_some()) {
            Some((key, revision, sub)) => Self::History(key, revision, sub),
            None => Self::Done,
        })
    }
}

/// Whether the record at a place is of this key, and as it should be.
fn held_against(
    reader: &Reader,
    key: &[u8],
    (revision, sub): (i64, i64),
    is_right: impl FnOnce(&Record<'_>) -> bool,
) -> Result<(), StateError> {
    let damaged = || StateError::Damaged { revision };
    let bytes = reader
        .view()
        .revisions
        .get((revision, sub))
        .during("look at a revision")?
        .ok_or_else(damaged)?;
    let record = Record::decode(bytes.value(), revision)?;
    if record.key == key && is_right(&record) {
        Ok(())
    } else {
        Err(damaged())
    }
}
