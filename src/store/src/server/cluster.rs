//! `etcdserverpb.Cluster`: who takes part.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::kv::mismatch;
use super::peers::address_of;
use super::shared::{Shared, random_u64};
use crate::command::{Change, Command};
use crate::consensus::MemberChange;
use crate::mvcc::write::Answer;
use crate::proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, cluster_server,
};
use crate::refused::Refused;

#[derive(Debug)]
pub(super) struct Cluster(pub(super) Arc<Shared>);

fn check_urls(urls: &[String]) -> Result<(), Refused> {
    if urls.is_empty() || urls.iter().any(|url| address_of(url).is_none()) {
        return Err(Refused::BadMemberUrl);
    }
    Ok(())
}

#[tonic::async_trait]
impl cluster_server::Cluster for Cluster {
    async fn member_list(
        &self,
        _request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        Ok(Response::new(MemberListResponse {
            header: self.0.header(0),
            members: self.0.members(),
        }))
    }

    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let request = request.into_inner();
        check_urls(&request.peer_ur_ls)?;
        // Every member begins as a learner: until it has caught up, its vote could only do harm.
        let id = random_u64().max(1);
        let change = Change {
            kind: MemberChange::AddLearner(id),
            promote: !request.is_learner,
            member: Member {
                id,
                peer_ur_ls: request.peer_ur_ls,
                ..Member::default()
            },
        };
        let list = self.0.change(change).await?;
        Ok(Response::new(MemberAddResponse {
            header: list.header,
            member: list.members.iter().find(|m| m.id == id).cloned(),
            members: list.members,
        }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let list = self
            .0
            .change(Change {
                kind: MemberChange::Remove(request.into_inner().id),
                promote: false,
                member: Member::default(),
            })
            .await?;
        Ok(Response::new(MemberRemoveResponse {
            header: list.header,
            members: list.members,
        }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let request = request.into_inner();
        check_urls(&request.peer_ur_ls)?;
        let said = Member {
            id: request.id,
            peer_ur_ls: request.peer_ur_ls,
            ..Member::default()
        };
        match self.0.propose(Command::MovePeer(said)).await? {
            Answer::Members(list) => Ok(Response::new(MemberUpdateResponse {
                header: list.header,
                members: list.members,
            })),
            other => Err(mismatch(&other)),
        }
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let list = self
            .0
            .change(Change {
                kind: MemberChange::Promote(request.into_inner().id),
                promote: false,
                member: Member::default(),
            })
            .await?;
        Ok(Response::new(MemberPromoteResponse {
            header: list.header,
            members: list.members,
        }))
    }
}
