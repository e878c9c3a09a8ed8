//! `v3lockpb.Lock` and `v3electionpb.Election`: keys below a name, one a lease, whose order of creation is the order of
//! turns. Whoever works under a lock must fence what it does with the key's create revision: a lease may end unnoticed.

use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::kv::mismatch;
use super::shared::Shared;
use crate::command::Command;
use crate::mvcc::write::Answer;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp,
    ResponseHeader, TxnRequest, TxnResponse, request_op, response_op,
};
use crate::proto::mvccpb::KeyValue;
use crate::proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse, election_server,
};
use crate::proto::v3lockpb::{
    LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server,
};

/// Seconds of the lease that is made for a request that names none (etcd's session).
const OWN_LEASE_SECONDS: i64 = 60;
/// Leaders that wait for the client to take them.
const OBSERVED_AHEAD: usize = 16;

/// A key that was put in a queue.
struct Turn {
    key: Vec<u8>,
    lease: i64,
    create_revision: i64,
    header: Option<ResponseHeader>,
}

fn prefix_of(name: &[u8]) -> Vec<u8> {
    let mut prefix = name.to_vec();
    prefix.push(b'/');
    prefix
}

/// The first key after all with this prefix, which ends with a slash.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    end.pop();
    end.push(b'/' + 1);
    end
}

fn was_created_at(key: &[u8], revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.to_vec(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Compare::default()
    }
}

fn op(request: request_op::Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn owner_is_gone() -> Status {
    Status::unknown("etcdserver: the session's lease has ended")
}

impl Shared {
    async fn transact(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        match self.propose(Command::Txn(request)).await? {
            Answer::Txn(response) => Ok(response),
            other => Err(mismatch(&other)),
        }
    }

    /// Puts the lease's key in the queue, unless it is there.
    async fn line_up(&self, name: &[u8], lease: i64, value: &[u8]) -> Result<Turn, Status> {
        let lease = match lease {
            0 => {
                let request = LeaseGrantRequest {
                    ttl: OWN_LEASE_SECONDS,
                    id: ((super::shared::random_u64() >> 1) as i64).max(1),
                };
                match self.propose(Command::LeaseGrant(request)).await? {
                    Answer::LeaseGrant(response) => response.id,
                    other => return Err(mismatch(&other)),
                }
            }
            lease => lease,
        };
        let mut key = prefix_of(name);
        key.extend_from_slice(format!("{lease:x}").as_bytes());
        let response = self
            .transact(TxnRequest {
                compare: vec![was_created_at(&key, 0)],
                success: vec![op(request_op::Request::RequestPut(PutRequest {
                    key: key.clone(),
                    value: value.to_vec(),
                    lease,
                    ..PutRequest::default()
                }))],
                failure: vec![op(request_op::Request::RequestRange(RangeRequest {
                    key: key.clone(),
                    ..RangeRequest::default()
                }))],
            })
            .await?;
        let present = match response.responses.first().and_then(|r| r.response.as_ref()) {
            Some(response_op::Response::ResponseRange(range)) => range.kvs.first(),
            _ => None,
        };
        let revision = response.header.as_ref().map_or(0, |h| h.revision);
        let create_revision = present.map_or(revision, |kv| kv.create_revision);
        if present.is_some_and(|kv| kv.value != value) {
            self.transact(TxnRequest {
                compare: vec![was_created_at(&key, create_revision)],
                success: vec![op(request_op::Request::RequestPut(PutRequest {
                    key: key.clone(),
                    value: value.to_vec(),
                    lease,
                    ..PutRequest::default()
                }))],
                failure: Vec::new(),
            })
            .await?;
        }
        Ok(Turn {
            key,
            lease,
            create_revision,
            header: response.header,
        })
    }

    fn first(&self, name: &[u8]) -> Result<Option<KeyValue>, Status> {
        let prefix = prefix_of(name);
        let response = self.reader()?.range(&RangeRequest {
            range_end: end_of(&prefix),
            key: prefix,
            limit: 1,
            sort_order: SortOrder::Ascend as i32,
            sort_target: SortTarget::Create as i32,
            ..RangeRequest::default()
        })?;
        Ok(response.kvs.into_iter().next())
    }

    /// Returns when all keys that were in the queue before are gone.
    async fn wait_for(&self, name: &[u8], turn: &mut Turn) -> Result<(), Status> {
        let mut revisions = self.revision.subscribe();
        loop {
            revisions.borrow_and_update();
            // This member has applied the key itself, so it sees all that came before it.
            let mine = self.reader()?.range(&RangeRequest {
                key: turn.key.clone(),
                ..RangeRequest::default()
            })?;
            if !mine
                .kvs
                .iter()
                .any(|kv| kv.create_revision == turn.create_revision)
            {
                return Err(owner_is_gone());
            }
            let first = self.first(name)?;
            if first.is_none_or(|kv| kv.create_revision >= turn.create_revision) {
                turn.header = self.present_header()?;
                return Ok(());
            }
            revisions
                .changed()
                .await
                .map_err(|_| Status::unavailable("etcdserver: server stopped"))?;
        }
    }

    /// Waits for the turn; a client that goes away gives it up.
    async fn take_turn(
        self: &Arc<Self>,
        name: &[u8],
        lease: i64,
        value: &[u8],
    ) -> Result<Turn, Status> {
        let mut turn = self.line_up(name, lease, value).await?;
        let mut given_up = GiveUp {
            shared: Arc::clone(self),
            key: Some(turn.key.clone()),
        };
        let waited = self.wait_for(name, &mut turn).await;
        given_up.key = None;
        waited.map(|()| turn)
    }

    async fn delete(&self, key: Vec<u8>) -> Result<Option<ResponseHeader>, Status> {
        let request = DeleteRangeRequest {
            key,
            ..DeleteRangeRequest::default()
        };
        match self.propose(Command::DeleteRange(request)).await? {
            Answer::DeleteRange(response) => Ok(response.header),
            other => Err(mismatch(&other)),
        }
    }
}

/// Takes a key out of the queue when whoever waits is dropped.
struct GiveUp {
    shared: Arc<Shared>,
    key: Option<Vec<u8>>,
}

impl Drop for GiveUp {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let shared = Arc::clone(&self.shared);
            // When this fails too, the key goes with its lease.
            tokio::spawn(async move { shared.delete(key).await });
        }
    }
}

#[derive(Debug)]
pub(super) struct Lock(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl lock_server::Lock for Lock {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let request = request.into_inner();
        let turn = self.0.take_turn(&request.name, request.lease, b"").await?;
        Ok(Response::new(LockResponse {
            header: turn.header,
            key: turn.key,
        }))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        let header = self.0.delete(request.into_inner().key).await?;
        Ok(Response::new(UnlockResponse { header }))
    }
}

#[derive(Debug)]
pub(super) struct Election(pub(super) Arc<Shared>);

fn leader_key(request: Option<LeaderKey>) -> Result<LeaderKey, Status> {
    request.ok_or_else(|| Status::invalid_argument("\"leader\" field must be provided"))
}

#[tonic::async_trait]
impl election_server::Election for Election {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let request = request.into_inner();
        let turn = self
            .0
            .take_turn(&request.name, request.lease, &request.value)
            .await?;
        Ok(Response::new(CampaignResponse {
            header: turn.header,
            leader: Some(LeaderKey {
                name: request.name,
                key: turn.key,
                rev: turn.create_revision,
                lease: turn.lease,
            }),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let request = request.into_inner();
        let leader = leader_key(request.leader)?;
        let response = self
            .0
            .transact(TxnRequest {
                compare: vec![was_created_at(&leader.key, leader.rev)],
                success: vec![op(request_op::Request::RequestPut(PutRequest {
                    key: leader.key,
                    value: request.value,
                    lease: leader.lease,
                    ..PutRequest::default()
                }))],
                failure: Vec::new(),
            })
            .await?;
        if !response.succeeded {
            return Err(Status::unknown("election: not leader"));
        }
        Ok(Response::new(ProclaimResponse {
            header: response.header,
        }))
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        self.0.read(false).await?;
        let first = self.0.first(&request.into_inner().name)?;
        let kv = first.ok_or_else(|| Status::unknown("election: no leader"))?;
        Ok(Response::new(LeaderResponse {
            header: self.0.present_header()?,
            kv: Some(kv),
        }))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let name = request.into_inner().name;
        self.0.read(false).await?;
        let (sender, leaders) = tokio::sync::mpsc::channel(OBSERVED_AHEAD);
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut revisions = shared.revision.subscribe();
            let mut told = None;
            loop {
                revisions.borrow_and_update();
                let now = match shared.first(&name) {
                    Ok(now) => now,
                    Err(status) => {
                        let _ = sender.send(Err(status)).await;
                        return;
                    }
                };
                if now.is_some() && now != told {
                    let response = LeaderResponse {
                        header: shared.present_header().unwrap_or_default(),
                        kv: now.clone(),
                    };
                    if sender.send(Ok(response)).await.is_err() {
                        return;
                    }
                    told = now;
                }
                tokio::select! {
                    changed = revisions.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(leaders))))
    }

    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let leader = leader_key(request.into_inner().leader)?;
        let response = self
            .0
            .transact(TxnRequest {
                compare: vec![was_created_at(&leader.key, leader.rev)],
                success: vec![op(request_op::Request::RequestDeleteRange(
                    DeleteRangeRequest {
                        key: leader.key,
                        ..DeleteRangeRequest::default()
                    },
                ))],
                failure: Vec::new(),
            })
            .await?;
        Ok(Response::new(ResignResponse {
            header: response.header,
        }))
    }
}
