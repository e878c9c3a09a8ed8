//! Applying a v2 write to the keyspace.

use redb::ReadableTable;

use super::tree::{Found, implied, node_of};
use super::{
    Action, COMPARE_FAILED, DIRECTORY_NOT_EMPTY, Event, KEY_EXISTS, Kind, NOT_A_DIRECTORY,
    NOT_A_FILE, Node, ROOT_READ_ONLY, Request, V2Error, clean, directory_key,
};
use crate::lease::MAX_TTL_SECONDS;
use crate::mvcc::write::{LeaseChange, Writer};
use crate::proto::etcdserverpb::PutRequest;
use crate::state::{During, StateError};

/// The end of a write, and whether it made what was not there.
pub(crate) type Outcome = Result<(Event, bool), V2Error>;

impl Writer<'_> {
    /// Applies a v2 write. A refusal changes nothing.
    pub(crate) fn v2(&mut self, request: &Request) -> Result<Outcome, StateError> {
        let path = clean(&request.path);
        if path == "/" && request.kind != Kind::CreateInOrder {
            return Ok(Err(V2Error::new(ROOT_READ_ONLY, "/")));
        }
        match request.kind {
            Kind::Set | Kind::Create => self.v2_create(&path, request),
            Kind::CreateInOrder => {
                let name = clean(&format!("{path}/{:020}", self.revision + 1));
                self.v2_create(&name, request)
            }
            Kind::Update | Kind::CompareAndSwap => self.v2_change(&path, request),
            Kind::Delete | Kind::CompareAndDelete => self.v2_delete(&path, request),
        }
    }

    fn v2_create(&mut self, path: &str, request: &Request) -> Result<Outcome, StateError> {
        // The parents: they must be directories, and are made where they are missing.
        let mut missing = Vec::new();
        let mut at = String::new();
        let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
        for segment in segments.iter().take(segments.len().saturating_sub(1)) {
            at = format!("{at}/{segment}");
            match self.view().at_path(&at)? {
                Some(Found::File(_)) => return Ok(Err(V2Error::new(NOT_A_DIRECTORY, at))),
                Some(Found::Directory(Some(_))) => {}
                // One that only has keys below it is made now, so that it stays when they go.
                Some(Found::Directory(None)) | None => missing.push(at.clone()),
            }
        }
        let before = self.view().at_path(path)?;
        let replaces = request.kind == Kind::Set;
        match &before {
            Some(_) if !replaces => return Ok(Err(V2Error::new(KEY_EXISTS, path))),
            Some(Found::Directory(_)) => return Ok(Err(V2Error::new(NOT_A_FILE, path))),
            _ => {}
        }
        let previous = before.as_ref().map(|found| node_of(path, found));
        let action = if replaces {
            Action::Set
        } else {
            Action::Create
        };
        if let Some(previous) = &previous {
            // A new one takes its place, so its count of versions begins anew too.
            self.v2_end_lease(previous.lease)?;
            self.forget_key(path.as_bytes())?;
        }
        let lease = self.v2_lease(request.ttl)?;
        let key = if request.dir {
            if previous.is_some() {
                self.v2_remove(path.as_bytes().to_vec(), Action::DeleteBelow)?;
            }
            directory_key(path)
        } else {
            path.as_bytes().to_vec()
        };
        let value = if request.dir { "" } else { &request.value };
        self.v2_put(key, value, lease, action)?;
        for parent in missing {
            self.v2_put(directory_key(&parent), "", 0, Action::Parent)?;
        }
        let index = self.revision + 1;
        let node = Node {
            key: path.to_owned(),
            value: (!request.dir).then(|| value.to_owned()),
            dir: request.dir,
            modified_index: index,
            created_index: index,
            ttl: request.ttl.and_then(|ttl| i64::try_from(ttl).ok()),
            lease,
            ..Node::default()
        };
        let made = previous.is_none();
        let event = Event {
            action: action.word().unwrap_or_default(),
            node: Some(node),
            prev_node: previous,
        };
        Ok(Ok((event, made)))
    }

    /// What must hold before a conditional write.
    fn v2_compare(request: &Request, node: &Node) -> Result<(), V2Error> {
        let value = node.value.as_deref().unwrap_or_default();
        let index = node.modified_index.unsigned_abs();
        let value_fails = !request.prev_value.is_empty() && request.prev_value != value;
        let index_fails = request.prev_index != 0 && request.prev_index != index;
        let values = format!("[{} != {value}]", request.prev_value);
        let indexes = format!("[{} != {index}]", request.prev_index);
        let cause = match (value_fails, index_fails) {
            (false, false) => return Ok(()),
            (true, false) => values,
            (false, true) => indexes,
            (true, true) => format!("{values} {indexes}"),
        };
        Err(V2Error::new(COMPARE_FAILED, cause))
    }

    fn v2_change(&mut self, path: &str, request: &Request) -> Result<Outcome, StateError> {
        let found = match self.view().walk(path)? {
            Ok(found) => found,
            Err(err) => return Ok(Err(err)),
        };
        let previous = node_of(path, &found);
        let swaps = request.kind == Kind::CompareAndSwap;
        if previous.dir && (swaps || !request.value.is_empty()) {
            return Ok(Err(V2Error::new(NOT_A_FILE, path)));
        }
        if swaps && let Err(err) = Self::v2_compare(request, &previous) {
            return Ok(Err(err));
        }
        let value = match &previous.value {
            Some(value) if request.refresh => value.clone(),
            _ => request.value.clone(),
        };
        let action = match (request.refresh, swaps) {
            (true, _) => Action::Refresh,
            (false, true) => Action::CompareAndSwap,
            (false, false) => Action::Update,
        };
        self.v2_end_lease(previous.lease)?;
        let lease = self.v2_lease(request.ttl)?;
        let key = if previous.dir {
            directory_key(path)
        } else {
            path.as_bytes().to_vec()
        };
        self.v2_put(key, &value, lease, action)?;
        let node = Node {
            value: (!previous.dir).then_some(value),
            modified_index: self.revision + 1,
            ttl: request.ttl.and_then(|ttl| i64::try_from(ttl).ok()),
            lease,
            ..previous.clone()
        };
        let event = Event {
            action: if swaps { "compareAndSwap" } else { "update" },
            node: Some(node),
            prev_node: Some(previous),
        };
        Ok(Ok((event, false)))
    }

    fn v2_delete(&mut self, path: &str, request: &Request) -> Result<Outcome, StateError> {
        let found = match self.view().walk(path)? {
            Ok(found) => found,
            Err(err) => return Ok(Err(err)),
        };
        let mut previous = node_of(path, &found);
        let compares = request.kind == Kind::CompareAndDelete;
        let mut below = Vec::new();
        if previous.dir {
            if compares || !(request.dir || request.recursive) {
                return Ok(Err(V2Error::new(NOT_A_FILE, path)));
            }
            below = self.view().below(path)?;
            if previous.created_index == 0 {
                (previous.created_index, previous.modified_index) = implied(&below);
            }
            below.retain(|kv| kv.key != directory_key(path));
            if !below.is_empty() && !request.recursive {
                return Ok(Err(V2Error::new(DIRECTORY_NOT_EMPTY, path)));
            }
        } else if compares && let Err(err) = Self::v2_compare(request, &previous) {
            return Ok(Err(err));
        }
        let action = if compares {
            Action::CompareAndDelete
        } else {
            Action::Delete
        };
        self.v2_end_lease(previous.lease)?;
        let key = if previous.dir {
            directory_key(path)
        } else {
            path.as_bytes().to_vec()
        };
        self.v2_remove(key, action)?;
        for kv in below {
            self.v2_end_lease(kv.lease)?;
            self.v2_remove(kv.key, Action::DeleteBelow)?;
        }
        let node = Node {
            value: None,
            modified_index: self.revision + 1,
            lease: 0,
            ..previous.clone()
        };
        let event = Event {
            action: action.word().unwrap_or_default(),
            node: Some(node),
            prev_node: Some(previous),
        };
        Ok(Ok((event, false)))
    }
}

/// Whether a lease is the own one of a v2 key.
pub(crate) fn is_own_lease(id: i64) -> bool {
    id < 0
}

/// The keyspace's side of v2.
impl Writer<'_> {
    /// Puts a key for v2.
    pub(crate) fn v2_put(
        &mut self,
        key: Vec<u8>,
        value: &str,
        lease: i64,
        action: Action,
    ) -> Result<(), StateError> {
        let request = PutRequest {
            key,
            value: value.into(),
            lease,
            ..PutRequest::default()
        };
        self.put_as(&request, action).map(|_| ())
    }

    /// Deletes a key for v2; it need not be there, so that watches are told all the same.
    pub(crate) fn v2_remove(&mut self, key: Vec<u8>, action: Action) -> Result<(), StateError> {
        let lease = self.lease_of(&key)?;
        self.delete(key, lease, action)
    }

    fn lease_of(&self, key: &[u8]) -> Result<i64, StateError> {
        let pointer = self.current.get(key).during("read a key")?;
        Ok(pointer.map_or(0, |p| p.value().4))
    }

    /// Makes the present a key's beginning: what is put next is a new one.
    pub(crate) fn forget_key(&mut self, key: &[u8]) -> Result<(), StateError> {
        let lease = self.lease_of(key)?;
        self.detach(lease, key)?;
        self.current.remove(key).during("forget a key")?;
        Ok(())
    }

    /// A lease of a v2 key's own; 0 without a time to live.
    pub(crate) fn v2_lease(&mut self, ttl: Option<u64>) -> Result<i64, StateError> {
        let Some(ttl) = ttl else { return Ok(0) };
        let ttl = i64::try_from(ttl).unwrap_or(i64::MAX).min(MAX_TTL_SECONDS);
        // A revision makes at most one.
        let id = -(self.revision + 1);
        self.leases.insert(id, ttl).during("write a lease")?;
        self.lease_changes.push(LeaseChange::Granted { id, ttl });
        Ok(id)
    }

    /// A v2 key is changed or gone: its own lease has no more use.
    pub(crate) fn v2_end_lease(&mut self, id: i64) -> Result<(), StateError> {
        if is_own_lease(id) && self.leases.remove(id).during("remove a lease")?.is_some() {
            self.lease_changes.push(LeaseChange::Revoked { id });
        }
        Ok(())
    }
}
