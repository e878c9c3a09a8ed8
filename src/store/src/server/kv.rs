//! `etcdserverpb.KV`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::shared::Shared;
use crate::command::Command;
use crate::mvcc::write::Answer;
use crate::mvcc::{check, txn};
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse, kv_server,
};

#[derive(Debug)]
pub(super) struct Kv(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl kv_server::Kv for Kv {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        check::range(&request)?;
        let reader = self.0.read(request.serializable).await?;
        let mut response = reader.range(&request)?;
        self.0.complete(response.header.get_or_insert_default());
        Ok(Response::new(response))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let request = request.into_inner();
        check::put(&request)?;
        match self.0.propose(Command::Put(request)).await? {
            Answer::Put(response) => Ok(Response::new(response)),
            other => Err(mismatch(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        check::delete(&request)?;
        match self.0.propose(Command::DeleteRange(request)).await? {
            Answer::DeleteRange(response) => Ok(Response::new(response)),
            other => Err(mismatch(&other)),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let request = request.into_inner();
        check::txn(&request)?;
        if check::is_read_only(&request) {
            let reader = self.0.read(check::is_serializable(&request)).await?;
            let mut response = txn::read_txn(&reader.view(), &request)?;
            self.0.complete(response.header.get_or_insert_default());
            return Ok(Response::new(response));
        }
        match self.0.propose(Command::Txn(request)).await? {
            Answer::Txn(response) => Ok(Response::new(response)),
            other => Err(mismatch(&other)),
        }
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        match self
            .0
            .propose(Command::Compact(request.into_inner()))
            .await?
        {
            Answer::Compact(response) => Ok(Response::new(response)),
            other => Err(mismatch(&other)),
        }
    }
}

/// The member answered another question, which its request numbers rule out.
pub(super) fn mismatch(answer: &Answer) -> Status {
    Status::internal(format!("an answer of another kind: {answer:?}"))
}
