//! What the keyspace should do, in the plainest way: every version of every key in a map.

use std::collections::BTreeMap;

use orlop_store::command::Command;
use orlop_store::mvcc::Answer;
use orlop_store::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use orlop_store::proto::etcdserverpb::request_op::Request;
use orlop_store::proto::etcdserverpb::response_op::Response;
use orlop_store::proto::etcdserverpb::{
    CompactionResponse, Compare, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantResponse,
    LeaseRevokeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader,
    ResponseOp, TxnRequest, TxnResponse,
};
use orlop_store::proto::mvccpb::KeyValue;
use orlop_store::refused::Refused;

/// A key as it became at a revision; `None` when it was deleted.
pub(crate) type Version = (i64, Option<KeyValue>);

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Model {
    pub(crate) keys: BTreeMap<Vec<u8>, Vec<Version>>,
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) leases: BTreeMap<i64, i64>,
    /// Keys that the command at hand has changed.
    changed: usize,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            keys: BTreeMap::new(),
            revision: 1,
            compact_revision: 0,
            leases: BTreeMap::new(),
            changed: 0,
        }
    }
}

fn within(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        b"" => key == start,
        b"\0" => key >= start,
        end => start <= key && key < end,
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..ResponseHeader::default()
    })
}

impl Model {
    /// The changes from a revision on, in order of revision and key.
    pub(crate) fn changes(&self, from: i64) -> Vec<(i64, Vec<u8>, Option<KeyValue>)> {
        let mut out: Vec<_> = self
            .keys
            .iter()
            .flat_map(|(key, versions)| {
                versions
                    .iter()
                    .map(move |(revision, kv)| (*revision, key.clone(), kv.clone()))
            })
            .filter(|(revision, ..)| *revision >= from)
            .collect();
        out.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        out
    }

    fn found(&self, start: &[u8], end: &[u8], at: i64) -> Vec<KeyValue> {
        let newest = |versions: &Vec<Version>| {
            versions
                .iter()
                .rev()
                .find(|(r, _)| *r <= at)
                .and_then(|(_, kv)| kv.clone())
        };
        self.keys
            .iter()
            .filter(|(key, _)| within(key, start, end))
            .filter_map(|(_, versions)| newest(versions))
            .collect()
    }

    fn now(&self) -> i64 {
        self.revision + i64::from(self.changed > 0)
    }

    pub(crate) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Refused> {
        let at = match request.revision {
            ..=0 => self.now(),
            asked if asked > self.now() => return Err(Refused::FutureRevision),
            asked if asked < self.compact_revision => return Err(Refused::Compacted),
            asked => asked,
        };
        let mut kvs = self.found(&request.key, &request.range_end, at);
        let count = kvs.len() as i64;
        if request.count_only {
            return Ok(RangeResponse {
                header: header(self.now()),
                kvs: Vec::new(),
                more: false,
                count,
            });
        }
        let out =
            |value: i64, min: i64, max: i64| min != 0 && value < min || max != 0 && value > max;
        kvs.retain(|kv| {
            !out(
                kv.mod_revision,
                request.min_mod_revision,
                request.max_mod_revision,
            )
        });
        kvs.retain(|kv| {
            !out(
                kv.create_revision,
                request.min_create_revision,
                request.max_create_revision,
            )
        });
        let by = |a: &KeyValue, b: &KeyValue| match request.sort_target {
            0 => a.key.cmp(&b.key),
            1 => a.version.cmp(&b.version),
            2 => a.create_revision.cmp(&b.create_revision),
            3 => a.mod_revision.cmp(&b.mod_revision),
            _ => a.value.cmp(&b.value),
        };
        match request.sort_order {
            2 => kvs.sort_by(|a, b| by(b, a)),
            _ => kvs.sort_by(by),
        }
        let limit = if request.limit > 0 {
            request.limit as usize
        } else {
            usize::MAX
        };
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        Ok(RangeResponse {
            header: header(self.now()),
            kvs,
            more,
            count,
        })
    }

    pub(crate) fn apply(&mut self, command: &Command) -> Result<Answer, Refused> {
        self.changed = 0;
        let answer = match command {
            Command::Put(request) => {
                self.check(request)?;
                Answer::Put(self.put(request))
            }
            Command::DeleteRange(request) => Answer::DeleteRange(self.delete(request)),
            Command::Txn(request) => {
                let before = self.clone();
                self.check_all(request, &before)?;
                Answer::Txn(self.txn(request, &before))
            }
            Command::Compact(request) if request.revision <= self.compact_revision => {
                return Err(Refused::Compacted);
            }
            Command::Compact(request) if request.revision > self.revision => {
                return Err(Refused::FutureRevision);
            }
            Command::Compact(request) => {
                self.compact_revision = request.revision;
                Answer::Compact(CompactionResponse::default())
            }
            Command::LeaseGrant(request) => {
                if self.leases.contains_key(&request.id) {
                    return Err(Refused::LeaseExists);
                }
                let ttl = request.ttl.max(2);
                self.leases.insert(request.id, ttl);
                Answer::LeaseGrant(LeaseGrantResponse {
                    id: request.id,
                    ttl,
                    ..LeaseGrantResponse::default()
                })
            }
            Command::LeaseRevoke(request) => {
                self.leases
                    .remove(&request.id)
                    .ok_or(Refused::LeaseNotFound)?;
                for kv in self
                    .found(b"\0", b"\0", self.revision)
                    .into_iter()
                    .filter(|kv| kv.lease == request.id)
                {
                    self.write(kv.key, None);
                }
                Answer::LeaseRevoke(LeaseRevokeResponse::default())
            }
            Command::Alarm(_) | Command::Publish(_) | Command::MovePeer(_) | Command::V2(_) => {
                unreachable!("the model is about the keyspace")
            }
        };
        self.revision = self.now();
        self.changed = 0;
        let mut answer = answer;
        if let Some(header) = answer.header_mut() {
            header.revision = self.revision;
        }
        Ok(answer)
    }

    fn write(&mut self, key: Vec<u8>, kv: Option<KeyValue>) {
        self.changed += 1;
        self.keys
            .entry(key)
            .or_default()
            .push((self.revision + 1, kv));
    }

    fn check(&self, request: &PutRequest) -> Result<(), Refused> {
        if request.lease != 0 && !self.leases.contains_key(&request.lease) {
            return Err(Refused::LeaseNotFound);
        }
        if (request.ignore_lease || request.ignore_value)
            && self.found(&request.key, b"", self.now()).is_empty()
        {
            return Err(Refused::KeyNotFound);
        }
        Ok(())
    }

    fn put(&mut self, request: &PutRequest) -> PutResponse {
        let before = self.found(&request.key, b"", self.now()).pop();
        let old = before.clone().unwrap_or(KeyValue {
            create_revision: self.revision + 1,
            ..KeyValue::default()
        });
        let kv = KeyValue {
            key: request.key.clone(),
            create_revision: old.create_revision,
            mod_revision: self.revision + 1,
            version: old.version + 1,
            value: if request.ignore_value {
                old.value
            } else {
                request.value.clone()
            },
            lease: if request.ignore_lease {
                old.lease
            } else {
                request.lease
            },
        };
        self.write(request.key.clone(), Some(kv));
        PutResponse {
            header: None,
            prev_kv: before.filter(|_| request.prev_kv),
        }
    }

    fn delete(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let found = self.found(&request.key, &request.range_end, self.now());
        for kv in &found {
            self.write(kv.key.clone(), None);
        }
        DeleteRangeResponse {
            header: None,
            deleted: found.len() as i64,
            prev_kvs: if request.prev_kv { found } else { Vec::new() },
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let kvs = self.found(&compare.key, &compare.range_end, self.revision);
        let one = |kv: &KeyValue| {
            let number = |actual: i64, given: i64| actual.cmp(&given);
            let order = match (compare.target(), &compare.target_union) {
                (CompareTarget::Version, Some(TargetUnion::Version(v))) => number(kv.version, *v),
                (CompareTarget::Version, _) => number(kv.version, 0),
                (CompareTarget::Create, Some(TargetUnion::CreateRevision(v))) => {
                    number(kv.create_revision, *v)
                }
                (CompareTarget::Create, _) => number(kv.create_revision, 0),
                (CompareTarget::Mod, Some(TargetUnion::ModRevision(v))) => {
                    number(kv.mod_revision, *v)
                }
                (CompareTarget::Mod, _) => number(kv.mod_revision, 0),
                (CompareTarget::Lease, Some(TargetUnion::Lease(v))) => number(kv.lease, *v),
                (CompareTarget::Lease, _) => number(kv.lease, 0),
                (CompareTarget::Value, Some(TargetUnion::Value(v))) => kv.value.cmp(v),
                (CompareTarget::Value, _) => kv.value.cmp(&Vec::new()),
            };
            match compare.result() {
                CompareResult::Equal => order.is_eq(),
                CompareResult::Greater => order.is_gt(),
                CompareResult::Less => order.is_lt(),
                CompareResult::NotEqual => order.is_ne(),
            }
        };
        if kvs.is_empty() {
            compare.target() != CompareTarget::Value && one(&KeyValue::default())
        } else {
            kvs.iter().all(one)
        }
    }

    fn check_all(&self, request: &TxnRequest, before: &Self) -> Result<(), Refused> {
        let holds = request.compare.iter().all(|c| before.holds(c));
        for op in if holds {
            &request.success
        } else {
            &request.failure
        } {
            match &op.request {
                Some(Request::RequestPut(put)) => before.check(put)?,
                Some(Request::RequestRange(range)) => {
                    before.range(range)?;
                }
                Some(Request::RequestTxn(txn)) => self.check_all(txn, before)?,
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn txn(&mut self, request: &TxnRequest, before: &Self) -> TxnResponse {
        let succeeded = request.compare.iter().all(|c| before.holds(c));
        let mut responses = Vec::new();
        for op in if succeeded {
            &request.success
        } else {
            &request.failure
        } {
            let response = match &op.request {
                Some(Request::RequestPut(put)) => {
                    let response = self.put(put);
                    Response::ResponsePut(PutResponse {
                        header: header(self.now()),
                        ..response
                    })
                }
                Some(Request::RequestDeleteRange(delete)) => {
                    let response = self.delete(delete);
                    Response::ResponseDeleteRange(DeleteRangeResponse {
                        header: header(self.now()),
                        ..response
                    })
                }
                Some(Request::RequestRange(range)) => {
                    Response::ResponseRange(self.range(range).unwrap_or_default())
                }
                Some(Request::RequestTxn(txn)) => Response::ResponseTxn(self.txn(txn, before)),
                None => continue,
            };
            responses.push(ResponseOp {
                response: Some(response),
            });
        }
        TxnResponse {
            header: Some(ResponseHeader::default()),
            succeeded,
            responses,
        }
    }
}
