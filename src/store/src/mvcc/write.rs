//! Applying commands to the keyspace. Same commands, same result, on every member.

use redb::{ReadableTable, Table, WriteTransaction};

use super::table::{CURRENT, HISTORY, LEASE_KEYS, LEASES, Pointer, REVISIONS, Record};
use super::txn::{branch, choose};
use super::view::{ReadError, View, bounds};
use crate::command::{Change, Command};
use crate::consensus::MemberChange;
use crate::lease::{MAX_TTL_SECONDS, MIN_TTL_SECONDS};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    AlarmResponse, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest,
    LeaseGrantResponse, LeaseRevokeResponse, MemberListResponse, PutRequest, PutResponse,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use crate::proto::mvccpb::event::EventType;
use crate::proto::mvccpb::{Event, KeyValue};
use crate::refused::Refused;
use crate::roster::Roster;
use crate::state::{During, StateError};
use crate::v2::apply::is_own_lease;
use crate::v2::{self, Action};

/// The answer to a command; headers have just the revision.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To [`Command::Put`].
    Put(PutResponse),
    /// To [`Command::DeleteRange`].
    DeleteRange(DeleteRangeResponse),
    /// To [`Command::Txn`].
    Txn(TxnResponse),
    /// To [`Command::Compact`].
    Compact(CompactionResponse),
    /// To [`Command::LeaseGrant`].
    LeaseGrant(LeaseGrantResponse),
    /// To [`Command::LeaseRevoke`].
    LeaseRevoke(LeaseRevokeResponse),
    /// To [`Command::Alarm`].
    Alarm(AlarmResponse),
    /// To [`Command::Publish`], [`Command::MovePeer`] and changes of members: all members now.
    Members(MemberListResponse),
    /// To [`Command::V2`]: what it did and whether that made what was not there, or why it was refused.
    V2(Box<Result<(v2::Event, bool), v2::V2Error>>),
}

/// A change of the set of leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    /// A lease was made.
    Granted {
        /// Its id.
        id: i64,
        /// Its time to live in seconds.
        ttl: i64,
    },
    /// A lease has ended.
    Revoked {
        /// Its id.
        id: i64,
    },
}

/// What applying one command did.
#[derive(Debug)]
pub struct Applied {
    /// The answer for whoever asked.
    pub answer: Result<Answer, Refused>,
    /// The changes, all of one revision; empty when no key changed.
    pub events: Vec<Event>,
    /// The leases that came or went.
    pub leases: Vec<LeaseChange>,
    /// Whether old revisions were given up.
    pub compacted: bool,
    /// Whether the record of a member, or an alarm, has changed.
    pub members_changed: bool,
    /// Who takes part has changed in this way.
    pub change: Option<MemberChange>,
}

/// A view of what a write has made so far.
type WriteView<'a, 't> = View<
    'a,
    Table<'t, &'static [u8], Pointer>,
    Table<'t, (&'static [u8], i64, i64), ()>,
    Table<'t, (i64, i64), &'static [u8]>,
>;

/// The tables of an open write.
pub(crate) struct Writer<'t> {
    pub(crate) current: Table<'t, &'static [u8], Pointer>,
    history: Table<'t, (&'static [u8], i64, i64), ()>,
    revisions: Table<'t, (i64, i64), &'static [u8]>,
    pub(crate) leases: Table<'t, i64, i64>,
    lease_keys: Table<'t, (i64, &'static [u8]), ()>,
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    /// Bytes of all records.
    pub(crate) live_bytes: i64,
    /// Who takes part, and the alarms.
    pub(crate) roster: Roster,
    /// The changes of the command that is being applied.
    events: Vec<Event>,
    /// The leases that came or went with it.
    pub(crate) lease_changes: Vec<LeaseChange>,
}

impl<'t> Writer<'t> {
    pub(crate) fn new(
        transaction: &'t WriteTransaction,
        revision: i64,
        compact_revision: i64,
        live_bytes: i64,
        roster: Roster,
    ) -> Result<Self, StateError> {
        let open = "open a table";
        Ok(Self {
            current: transaction.open_table(CURRENT).during(open)?,
            history: transaction.open_table(HISTORY).during(open)?,
            revisions: transaction.open_table(REVISIONS).during(open)?,
            leases: transaction.open_table(LEASES).during(open)?,
            lease_keys: transaction.open_table(LEASE_KEYS).during(open)?,
            revision,
            compact_revision,
            live_bytes,
            roster,
            events: Vec::new(),
            lease_changes: Vec::new(),
        })
    }

    pub(crate) fn view(&self) -> WriteView<'_, 't> {
        View {
            current: &self.current,
            history: &self.history,
            revisions: &self.revisions,
            // Within a transaction a read of the present sees what the transaction has written.
            revision: self.revision + i64::from(!self.events.is_empty()),
            compact_revision: self.compact_revision,
        }
    }

    /// Applies one command. A refusal changes nothing.
    pub(crate) fn apply(&mut self, command: &Command) -> Result<Applied, StateError> {
        let mut compacted = false;
        let mut members_changed = false;
        let answer = match command {
            Command::Put(request) => self.checked_put(request).map(Answer::Put),
            Command::DeleteRange(request) => self
                .delete_range(request)
                .map(Answer::DeleteRange)
                .map_err(ReadError::State),
            Command::Txn(request) => self.txn(request).map(Answer::Txn),
            Command::Compact(request) => {
                let done = self.compact(request.revision);
                compacted = done.is_ok();
                done.map(|()| Answer::Compact(CompactionResponse::default()))
                    .map_err(ReadError::Refused)
            }
            Command::LeaseGrant(request) => self.grant(request).map(Answer::LeaseGrant),
            Command::LeaseRevoke(request) => self.revoke(request.id).map(Answer::LeaseRevoke),
            Command::V2(request) => self
                .v2(request)
                .map(|outcome| Answer::V2(Box::new(outcome)))
                .map_err(ReadError::State),
            Command::Alarm(request) => {
                let before = self.roster.alarms.len();
                let response = self.roster.alarm(request);
                members_changed = before != self.roster.alarms.len();
                Ok(Answer::Alarm(response))
            }
            Command::Publish(member) => {
                let done = self.roster.publish(member);
                members_changed = done.is_ok();
                done.map(Answer::Members).map_err(ReadError::Refused)
            }
            Command::MovePeer(member) => {
                let done = self.roster.move_peer(member);
                members_changed = done.is_ok();
                done.map(Answer::Members).map_err(ReadError::Refused)
            }
        };
        let events = std::mem::take(&mut self.events);
        let leases = std::mem::take(&mut self.lease_changes);
        if !events.is_empty() {
            self.revision += 1;
        }
        let answer = match answer {
            Ok(mut answer) => {
                answer.set_revision(self.revision);
                Ok(answer)
            }
            Err(ReadError::Refused(refused)) => Err(refused),
            Err(ReadError::State(err)) => return Err(err),
        };
        Ok(Applied {
            answer,
            events,
            leases,
            compacted,
            members_changed,
            change: None,
        })
    }

    /// Applies a change of members. A refusal changes nothing.
    pub(crate) fn apply_change(&mut self, change: &Change) -> Applied {
        let answer = self.roster.apply(change).map(|mut response| {
            response.header = Some(self.header());
            Answer::Members(response)
        });
        Applied {
            change: answer.is_ok().then_some(change.kind),
            members_changed: answer.is_ok(),
            answer,
            events: Vec::new(),
            leases: Vec::new(),
            compacted: false,
        }
    }

    fn checked_put(&mut self, request: &PutRequest) -> Result<PutResponse, ReadError> {
        self.check_put(request)?;
        Ok(self.put(request)?)
    }

    /// Refuses a put that names what is not there.
    fn check_put(&self, request: &PutRequest) -> Result<(), ReadError> {
        let keeps = request.ignore_value || request.ignore_lease;
        if request.lease != 0
            && self
                .leases
                .get(request.lease)
                .during("read a lease")?
                .is_none()
        {
            return Err(Refused::LeaseNotFound.into());
        }
        if keeps
            && self
                .current
                .get(request.key.as_slice())
                .during("read a key")?
                .is_none()
        {
            return Err(Refused::KeyNotFound.into());
        }
        Ok(())
    }

    fn put(&mut self, request: &PutRequest) -> Result<PutResponse, StateError> {
        self.put_as(request, Action::Set)
    }

    pub(crate) fn put_as(
        &mut self,
        request: &PutRequest,
        action: Action,
    ) -> Result<PutResponse, StateError> {
        let key = request.key.as_slice();
        let (revision, sub) = (self.revision + 1, self.events.len() as i64);
        let before = self
            .current
            .get(key)
            .during("read a key")?
            .map(|p| p.value());
        let before_kv = match before {
            Some((at, sub, ..)) if request.prev_kv || request.ignore_value => {
                self.view().record(at, sub)?
            }
            _ => None,
        };
        let (create_revision, version, old_lease) = before
            .map_or((revision, 0, 0), |(_, _, create, version, lease)| {
                (create, version, lease)
            });
        let lease = if request.ignore_lease {
            old_lease
        } else {
            request.lease
        };
        let value = match &before_kv {
            Some(kv) if request.ignore_value => kv.value.clone(),
            _ => request.value.clone(),
        };
        let kv = KeyValue {
            key: request.key.clone(),
            create_revision,
            mod_revision: revision,
            version: version + 1,
            value,
            lease,
        };
        self.write(&kv, sub, action)?;
        self.current
            .insert(key, (revision, sub, create_revision, version + 1, lease))
            .during("write a key")?;
        if old_lease != lease {
            self.detach(old_lease, key)?;
            if lease != 0 {
                self.lease_keys
                    .insert((lease, key), ())
                    .during("attach a key to a lease")?;
            }
        }
        self.events.push(Event {
            r#type: EventType::Put as i32,
            kv: Some(kv),
            prev_kv: None,
        });
        Ok(PutResponse {
            header: None,
            prev_kv: before_kv.filter(|_| request.prev_kv),
        })
    }

    /// Adds a record to `revisions` and `history`.
    fn write(&mut self, kv: &KeyValue, sub: i64, action: Action) -> Result<(), StateError> {
        let record = Record {
            action,
            create_revision: kv.create_revision,
            version: kv.version,
            lease: kv.lease,
            key: &kv.key,
            value: &kv.value,
        };
        let record = record.encode();
        self.live_bytes += record.len() as i64;
        self.revisions
            .insert((kv.mod_revision, sub), record.as_slice())
            .during("write a revision")?;
        self.history
            .insert((kv.key.as_slice(), kv.mod_revision, sub), ())
            .during("write history")?;
        Ok(())
    }

    pub(crate) fn detach(&mut self, lease: i64, key: &[u8]) -> Result<(), StateError> {
        if lease != 0 {
            self.lease_keys
                .remove((lease, key))
                .during("detach a key from a lease")?;
        }
        Ok(())
    }

    fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, StateError> {
        let mut response = DeleteRangeResponse::default();
        let Some(bounds) = bounds(&request.key, &request.range_end) else {
            return Ok(response);
        };
        let mut found = Vec::new();
        for item in self.current.range::<&[u8]>(bounds).during("read keys")? {
            let (key, pointer) = item.during("read keys")?;
            found.push((key.value().to_vec(), pointer.value()));
        }
        for (key, pointer) in found {
            if request.prev_kv {
                response
                    .prev_kvs
                    .extend(self.view().record(pointer.0, pointer.1)?);
            }
            self.delete(key, pointer.4, Action::Delete)?;
            response.deleted += 1;
        }
        Ok(response)
    }

    /// Deletes a key.
    pub(crate) fn delete(
        &mut self,
        key: Vec<u8>,
        lease: i64,
        action: Action,
    ) -> Result<(), StateError> {
        let sub = self.events.len() as i64;
        self.current.remove(key.as_slice()).during("delete a key")?;
        self.detach(lease, &key)?;
        let kv = KeyValue {
            key,
            mod_revision: self.revision + 1,
            ..KeyValue::default()
        };
        self.write(&kv, sub, action)?;
        self.events.push(Event {
            r#type: EventType::Delete as i32,
            kv: Some(kv),
            prev_kv: None,
        });
        Ok(())
    }

    fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, ReadError> {
        // All comparisons, nested ones too, look at the keyspace as it was before the first operation.
        let mut path = Vec::new();
        choose(&self.view(), request, &mut path)?;
        self.check_branch(request, &mut path.iter().copied())?;
        Ok(self.run(request, &mut path.iter().copied())?)
    }

    /// Refuses what the chosen operations cannot do, before the first of them has changed anything.
    fn check_branch(
        &self,
        request: &TxnRequest,
        path: &mut dyn Iterator<Item = bool>,
    ) -> Result<(), ReadError> {
        for op in branch(request, path.next()) {
            match &op.request {
                Some(Request::RequestRange(r)) => {
                    self.view().revision_of(r.revision)?;
                }
                Some(Request::RequestPut(r)) => self.check_put(r)?,
                Some(Request::RequestTxn(r)) => self.check_branch(r, path)?,
                Some(Request::RequestDeleteRange(_)) | None => {}
            }
        }
        Ok(())
    }

    fn run(
        &mut self,
        request: &TxnRequest,
        path: &mut dyn Iterator<Item = bool>,
    ) -> Result<TxnResponse, StateError> {
        let taken = path.next();
        let mut responses = Vec::new();
        for op in branch(request, taken) {
            let response = match &op.request {
                Some(Request::RequestRange(r)) => match self.view().range(r) {
                    Ok(response) => Response::ResponseRange(response),
                    Err(ReadError::State(err)) => return Err(err),
                    // The revision was checked before, and no operation compacts.
                    Err(ReadError::Refused(_)) => Response::ResponseRange(Default::default()),
                },
                Some(Request::RequestPut(r)) => {
                    let response = self.put(r)?;
                    Response::ResponsePut(PutResponse {
                        header: Some(self.header()),
                        ..response
                    })
                }
                Some(Request::RequestDeleteRange(r)) => {
                    let response = self.delete_range(r)?;
                    Response::ResponseDeleteRange(DeleteRangeResponse {
                        header: Some(self.header()),
                        ..response
                    })
                }
                Some(Request::RequestTxn(r)) => Response::ResponseTxn(self.run(r, path)?),
                None => continue,
            };
            responses.push(ResponseOp {
                response: Some(response),
            });
        }
        Ok(TxnResponse {
            header: Some(ResponseHeader::default()),
            succeeded: taken == Some(true),
            responses,
        })
    }

    /// The header of an operation within a transaction: it counts what the transaction has changed so far.
    fn header(&self) -> ResponseHeader {
        ResponseHeader {
            revision: self.revision + i64::from(!self.events.is_empty()),
            ..ResponseHeader::default()
        }
    }

    fn compact(&mut self, revision: i64) -> Result<(), Refused> {
        if revision <= self.compact_revision {
            return Err(Refused::Compacted);
        }
        if revision > self.revision {
            return Err(Refused::FutureRevision);
        }
        self.compact_revision = revision;
        Ok(())
    }

    fn grant(&mut self, request: &LeaseGrantRequest) -> Result<LeaseGrantResponse, ReadError> {
        if request.ttl > MAX_TTL_SECONDS {
            return Err(Refused::LeaseTooLong.into());
        }
        let ttl = request.ttl.max(MIN_TTL_SECONDS);
        if self
            .leases
            .get(request.id)
            .during("read a lease")?
            .is_some()
        {
            return Err(Refused::LeaseExists.into());
        }
        self.leases
            .insert(request.id, ttl)
            .during("write a lease")?;
        self.lease_changes.push(LeaseChange::Granted {
            id: request.id,
            ttl,
        });
        Ok(LeaseGrantResponse {
            header: None,
            id: request.id,
            ttl,
            error: String::new(),
        })
    }

    fn revoke(&mut self, id: i64) -> Result<LeaseRevokeResponse, ReadError> {
        if self.leases.remove(id).during("remove a lease")?.is_none() {
            return Err(Refused::LeaseNotFound.into());
        }
        self.lease_changes.push(LeaseChange::Revoked { id });
        for key in keys_of_lease(&self.lease_keys, id)? {
            let directory = key.strip_suffix(b"/").filter(|_| is_own_lease(id));
            let path = directory.map(|path| String::from_utf8_lossy(path).into_owned());
            self.delete(key.clone(), id, Action::Expire)?;
            let Some(path) = path else { continue };
            // A directory of v2 ends with all that is in it.
            for kv in self.view().below(&path)? {
                self.v2_end_lease(kv.lease)?;
                self.delete(kv.key, kv.lease, Action::DeleteBelow)?;
            }
        }
        Ok(LeaseRevokeResponse::default())
    }
}

impl Answer {
    fn set_revision(&mut self, revision: i64) {
        let header = match self {
            Self::Put(r) => &mut r.header,
            Self::DeleteRange(r) => &mut r.header,
            Self::Txn(r) => &mut r.header,
            Self::Compact(r) => &mut r.header,
            Self::LeaseGrant(r) => &mut r.header,
            Self::LeaseRevoke(r) => &mut r.header,
            Self::Alarm(r) => &mut r.header,
            Self::Members(r) => &mut r.header,
            Self::V2(_) => return,
        };
        header.get_or_insert_default().revision = revision;
    }

    /// The outermost header; v2 has none.
    pub fn header_mut(&mut self) -> Option<&mut ResponseHeader> {
        Some(match self {
            Self::Put(r) => r.header.get_or_insert_default(),
            Self::DeleteRange(r) => r.header.get_or_insert_default(),
            Self::Txn(r) => r.header.get_or_insert_default(),
            Self::Compact(r) => r.header.get_or_insert_default(),
            Self::LeaseGrant(r) => r.header.get_or_insert_default(),
            Self::LeaseRevoke(r) => r.header.get_or_insert_default(),
            Self::Alarm(r) => r.header.get_or_insert_default(),
            Self::Members(r) => r.header.get_or_insert_default(),
            Self::V2(_) => return None,
        })
    }
}

/// The keys that hang on a lease, in order.
pub(crate) fn keys_of_lease(
    table: &impl ReadableTable<(i64, &'static [u8]), ()>,
    lease: i64,
) -> Result<Vec<Vec<u8>>, StateError> {
    let mut keys = Vec::new();
    for item in table
        .range::<(i64, &[u8])>((lease, &[][..])..)
        .during("read a lease's keys")?
    {
        let (place, _) = item.during("read a lease's keys")?;
        let (of, key) = place.value();
        if of != lease {
            break;
        }
        keys.push(key.to_vec());
    }
    Ok(keys)
}
