//! `etcdserverpb.Cluster`: one member, so far, which cannot be changed.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::shared::Shared;
use crate::proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, cluster_server,
};

#[derive(Debug)]
pub(super) struct Cluster(pub(super) Arc<Shared>);

fn fixed<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented(
        "etcdserver: this store has one member, which cannot be changed",
    ))
}

#[tonic::async_trait]
impl cluster_server::Cluster for Cluster {
    async fn member_list(
        &self,
        _request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        Ok(Response::new(MemberListResponse {
            header: self.0.header(0),
            members: self.0.members.clone(),
        }))
    }

    async fn member_add(
        &self,
        _request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        fixed()
    }

    async fn member_remove(
        &self,
        _request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        fixed()
    }

    async fn member_update(
        &self,
        _request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        fixed()
    }

    async fn member_promote(
        &self,
        _request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        fixed()
    }
}
