//! Reading the keyspace as a tree.

use redb::ReadableTable;

use super::{KEY_NOT_FOUND, NOT_A_DIRECTORY, Node, V2Error, clean, directory_key, prefix_end};
use crate::mvcc::table::Pointer;
use crate::mvcc::view::{ReadError, View};
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::mvccpb::KeyValue;
use crate::state::StateError;

/// What is at a path.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Found {
    /// A key.
    File(KeyValue),
    /// A directory, with its own key if it was made.
    Directory(Option<KeyValue>),
}

impl<C, H, R> View<'_, C, H, R>
where
    C: ReadableTable<&'static [u8], Pointer>,
    H: ReadableTable<(&'static [u8], i64, i64), ()>,
    R: ReadableTable<(i64, i64), &'static [u8]>,
{
    fn keys(
        &self,
        key: Vec<u8>,
        range_end: Vec<u8>,
        limit: i64,
    ) -> Result<Vec<KeyValue>, StateError> {
        let request = RangeRequest {
            key,
            range_end,
            limit,
            ..RangeRequest::default()
        };
        match self.range(&request) {
            Ok(response) => Ok(response.kvs),
            Err(ReadError::State(err)) => Err(err),
            // The present is never refused.
            Err(ReadError::Refused(_)) => Ok(Vec::new()),
        }
    }

    /// What is at one path, whatever is above it.
    pub(crate) fn at_path(&self, path: &str) -> Result<Option<Found>, StateError> {
        if path != "/"
            && let Some(file) = self.keys(path.into(), Vec::new(), 1)?.pop()
        {
            return Ok(Some(Found::File(file)));
        }
        let key = directory_key(path);
        let first = self.keys(key.clone(), prefix_end(&key), 1)?.pop();
        Ok(match first {
            Some(first) if first.key == key && path != "/" => Some(Found::Directory(Some(first))),
            None if path != "/" => None,
            _ => Some(Found::Directory(None)),
        })
    }

    /// What is at a path, or what is wrong on the way there.
    pub(crate) fn walk(&self, path: &str) -> Result<Result<Found, V2Error>, StateError> {
        let mut last = Found::Directory(None);
        let mut at = String::new();
        for segment in path.split('/').filter(|s| !s.is_empty()) {
            if matches!(last, Found::File(_)) {
                return Ok(Err(V2Error::new(NOT_A_DIRECTORY, at)));
            }
            at = format!("{at}/{segment}");
            match self.at_path(&at)? {
                Some(found) => last = found,
                None => return Ok(Err(V2Error::new(KEY_NOT_FOUND, at))),
            }
        }
        Ok(Ok(last))
    }

    /// All keys below a directory, its own one too.
    pub(crate) fn below(&self, path: &str) -> Result<Vec<KeyValue>, StateError> {
        let key = directory_key(path);
        let end = prefix_end(&key);
        self.keys(key, end, 0)
    }

    /// What GET answers with.
    pub(crate) fn show(
        &self,
        path: &str,
        recursive: bool,
    ) -> Result<Result<Node, V2Error>, StateError> {
        let found = match self.walk(path)? {
            Ok(found) => found,
            Err(err) => return Ok(Err(err)),
        };
        let mut node = node_of(path, &found);
        if node.dir {
            let below = self.below(path)?;
            node.nodes = children(path, &below, recursive);
            if node.created_index == 0 && path != "/" {
                (node.created_index, node.modified_index) = implied(&below);
            }
        }
        Ok(Ok(node))
    }
}

/// The indexes of a directory that was not made by itself.
pub(crate) fn implied(below: &[KeyValue]) -> (i64, i64) {
    let first = below.iter().map(|kv| kv.create_revision).min();
    let first = first.unwrap_or(0);
    (first, first)
}

/// A node without its children.
pub(crate) fn node_of(path: &str, found: &Found) -> Node {
    let key = if path == "/" {
        String::new()
    } else {
        path.to_owned()
    };
    match found {
        Found::File(kv) => Node {
            key,
            value: Some(String::from_utf8_lossy(&kv.value).into_owned()),
            modified_index: kv.mod_revision,
            created_index: kv.create_revision,
            lease: kv.lease,
            ..Node::default()
        },
        Found::Directory(made) => Node {
            key,
            dir: true,
            // A new time to live does not count as a change of a directory.
            modified_index: made.as_ref().map_or(0, |kv| kv.create_revision),
            created_index: made.as_ref().map_or(0, |kv| kv.create_revision),
            lease: made.as_ref().map_or(0, |kv| kv.lease),
            ..Node::default()
        },
    }
}

/// The nodes in a directory, in order; hidden ones are left out. `below` are all keys below it, in order.
fn children(path: &str, below: &[KeyValue], recursive: bool) -> Vec<Node> {
    let prefix = directory_key(path);
    let mut nodes: Vec<Node> = Vec::new();
    let segment_of = |kv: &KeyValue| -> Option<(String, bool)> {
        let rest = std::str::from_utf8(kv.key.get(prefix.len()..)?).ok()?;
        let (segment, deeper) = rest
            .split_once('/')
            .map_or((rest, false), |(segment, _)| (segment, true));
        // Keys of v3 that are no path of v2 are not shown.
        let shown = !segment.is_empty() && segment != "." && segment != "..";
        shown.then(|| (segment.to_owned(), deeper))
    };
    let mut rest = below;
    while let Some(first) = rest.first() {
        let Some((segment, deeper)) = segment_of(first) else {
            rest = &rest[1..];
            continue;
        };
        let same = |kv: &KeyValue| segment_of(kv).is_some_and(|(s, d)| s == segment && d == deeper);
        let count = rest.iter().take_while(|kv| same(kv)).count().max(1);
        let (group, after) = rest.split_at(count);
        rest = after;
        if segment.starts_with('_') {
            continue;
        }
        let child = clean(&format!("{path}/{segment}"));
        if !deeper {
            nodes.push(node_of(&child, &Found::File(first.clone())));
            continue;
        }
        if nodes.iter().any(|n| n.key == child) {
            // A key of v3 has the name of a directory: the key is what v2 shows.
            continue;
        }
        let made = group.iter().find(|kv| kv.key == directory_key(&child));
        let mut node = node_of(&child, &Found::Directory(made.cloned()));
        if made.is_none() {
            (node.created_index, node.modified_index) = implied(group);
        }
        if recursive {
            node.nodes = children(&child, group, true);
        }
        nodes.push(node);
    }
    nodes.sort_by(|a, b| a.key.cmp(&b.key));
    nodes
}
