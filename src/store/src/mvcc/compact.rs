//! Giving old revisions up, a piece at a time.
//!
//! After a compaction to revision *c* every key keeps its newest write or deletion at or below *c* and all later ones,
//! but a deletion below *c* goes too. One at *c* itself stays until the next compaction: a watch may begin at *c*.

use redb::{ReadableTable, WriteTransaction};

use super::table::{HISTORY, REVISIONS, Record};
use crate::state::{During, StateError};

/// Removes what no read at or above `target` can see, looking at about `limit` records, when all below `done` has been
/// removed already. Returns up to where it is done, and
/// the bytes of the records that went.
pub(crate) fn step(
    transaction: &WriteTransaction,
    done: i64,
    target: i64,
    limit: usize,
) -> Result<(i64, i64), StateError> {
    let mut freed_bytes = 0;
    let mut revisions = transaction.open_table(REVISIONS).during("open a table")?;
    let mut history = transaction.open_table(HISTORY).during("open a table")?;
    let mut seen: Vec<(i64, i64, Vec<u8>, bool)> = Vec::new();
    let mut end = target;
    for item in revisions
        .range((done, i64::MIN)..=(target, i64::MAX))
        .during("read revisions")?
    {
        let (place, record) = item.during("read revisions")?;
        let (revision, sub) = place.value();
        let last = seen.last().map(|(revision, ..)| *revision);
        if seen.len() >= limit && last.is_some_and(|last| last > done && last < revision) {
            end = last.unwrap_or(done);
            break;
        }
        let record = Record::decode(record.value(), revision)?;
        seen.push((revision, sub, record.key.to_vec(), record.action.deletes()));
    }
    for (revision, sub, key, deleted) in seen {
        if revision > done {
            let before = {
                let mut places = history
                    .range((key.as_slice(), i64::MIN, i64::MIN)..(key.as_slice(), revision, sub))
                    .during("read history")?;
                match places.next_back() {
                    Some(place) => {
                        let (place, _) = place.during("read history")?;
                        let (_, revision, sub) = place.value();
                        Some((revision, sub))
                    }
                    None => None,
                }
            };
            if let Some((revision, sub)) = before {
                freed_bytes += revisions
                    .remove((revision, sub))
                    .during("remove a revision")?
                    .map_or(0, |r| r.value().len() as i64);
                history
                    .remove((key.as_slice(), revision, sub))
                    .during("remove history")?;
            }
        }
        if deleted && revision < end {
            freed_bytes += revisions
                .remove((revision, sub))
                .during("remove a revision")?
                .map_or(0, |r| r.value().len() as i64);
            history
                .remove((key.as_slice(), revision, sub))
                .during("remove history")?;
        }
    }
    Ok((end, freed_bytes))
}
