//! `etcdserverpb.Lease`.

use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::kv::mismatch;
use super::shared::{Shared, random_u64};
use crate::command::Command;
use crate::mvcc::write::Answer;
use crate::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, lease_server,
};

#[derive(Debug)]
pub(super) struct Lease(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl lease_server::Lease for Lease {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let mut request = request.into_inner();
        if request.id == 0 {
            // Positive, so that clients may print it as they like.
            request.id = ((random_u64() >> 1) as i64).max(1);
        }
        match self.0.propose(Command::LeaseGrant(request)).await? {
            Answer::LeaseGrant(response) => Ok(Response::new(response)),
            other => Err(mismatch(&other)),
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        match self
            .0
            .propose(Command::LeaseRevoke(request.into_inner()))
            .await?
        {
            Answer::LeaseRevoke(response) => Ok(Response::new(response)),
            other => Err(mismatch(&other)),
        }
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let shared = Arc::clone(&self.0);
        let answers = request.into_inner().then(move |request| {
            let shared = Arc::clone(&shared);
            async move {
                let id = request?.id;
                let (revision, ttl) = shared.renew(id).await?;
                Ok(LeaseKeepAliveResponse {
                    header: shared.header(revision),
                    id,
                    ttl: ttl.unwrap_or(0),
                })
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let (revision, times) = self.0.time_to_live(id).await?;
        let (ttl, granted_ttl) = times.unwrap_or((-1, 0));
        let keys = if keys && times.is_some() {
            self.0.read(true).await?.lease_keys(id)?
        } else {
            Vec::new()
        };
        Ok(Response::new(LeaseTimeToLiveResponse {
            header: self.0.header(revision),
            id,
            ttl,
            granted_ttl,
            keys,
        }))
    }

    async fn lease_leases(
        &self,
        _request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let reader = self.0.read(false).await?;
        Ok(Response::new(LeaseLeasesResponse {
            header: self.0.header(reader.revision),
            leases: reader.leases()?,
        }))
    }
}
