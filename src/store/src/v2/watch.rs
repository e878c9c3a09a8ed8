//! What a v2 watch is told, read from the history of the keyspace.

use super::tree::{Found, node_of};
use super::{Event, Node};
use crate::mvcc::Reader;
use crate::mvcc::view::Written;
use crate::state::StateError;

/// Bytes of history that are looked at in one piece.
const PIECE_BYTES: usize = 256 << 10;

/// What someone waits for.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    /// The path.
    pub(crate) path: String,
    /// What is below it too.
    pub(crate) recursive: bool,
}

impl Watch {
    /// Whether a change at `path` is to be told.
    fn wants(&self, path: &str, deletes: bool) -> bool {
        if path == self.path {
            return true;
        }
        let below = |path: &str, of: &str| -> Option<String> {
            let rest = path.strip_prefix(of.trim_end_matches('/'))?;
            rest.strip_prefix('/').map(str::to_owned)
        };
        if let Some(rest) = below(path, &self.path) {
            // Hidden ones are seen only by those who name them.
            return self.recursive && !rest.split('/').any(|segment| segment.starts_with('_'));
        }
        // With a directory all goes that is in it.
        deletes && below(&self.path, path).is_some()
    }

    /// The first change from an index on, and where to go on after it; without one, where to go on.
    pub(crate) fn next(
        &self,
        reader: &Reader,
        from: i64,
    ) -> Result<(Option<Event>, i64), StateError> {
        let mut from = from;
        while from <= reader.revision {
            let (written, next) = reader.written(from, reader.revision, PIECE_BYTES)?;
            for change in &written {
                let Some(word) = change.action.word() else {
                    continue;
                };
                let (path, dir) = path_of(&change.key);
                if self.wants(&path, change.action.deletes()) {
                    let event = event(reader, change, word, &path, dir)?;
                    return Ok((Some(event), change.revision + 1));
                }
            }
            from = next;
        }
        Ok((None, from))
    }
}

/// The path of a key, and whether it is a directory.
fn path_of(key: &[u8]) -> (String, bool) {
    let text = String::from_utf8_lossy(key).into_owned();
    match text.strip_suffix('/') {
        Some(path) if !path.is_empty() => (path.to_owned(), true),
        _ => (text, false),
    }
}

fn event(
    reader: &Reader,
    change: &Written,
    word: &'static str,
    path: &str,
    dir: bool,
) -> Result<Event, StateError> {
    let before = reader.key_at(&change.key, change.revision - 1)?;
    let shown = |kv| {
        let found = if dir {
            Found::Directory(Some(kv))
        } else {
            Found::File(kv)
        };
        node_of(path, &found)
    };
    let prev_node = before.map(shown);
    let node = Node {
        key: path.to_owned(),
        value: (!dir && !change.action.deletes())
            .then(|| String::from_utf8_lossy(&change.value).into_owned()),
        dir,
        modified_index: change.revision,
        created_index: if change.action.deletes() {
            prev_node.as_ref().map_or(0, |n| n.created_index)
        } else {
            change.create_revision
        },
        lease: change.lease,
        ..Node::default()
    };
    Ok(Event {
        action: word,
        node: Some(node),
        prev_node,
    })
}
