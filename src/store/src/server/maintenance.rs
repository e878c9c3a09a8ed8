//! `etcdserverpb.Maintenance`, and the health protocol.

use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::ETCD_VERSION;
use super::shared::Shared;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
    maintenance_server,
};
use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::{HealthCheckRequest, HealthCheckResponse, health_server};
use crate::refused::Refused;
use crate::state::STATE_FILE;

#[derive(Debug)]
pub(super) struct Maintenance(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl maintenance_server::Maintenance for Maintenance {
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        let request = request.into_inner();
        let member = self.0.owner.member;
        let asked = (request.member_id == 0 || request.member_id == member)
            && request.alarm() != AlarmType::Corrupt;
        // The alarm is the want of room itself: it cannot be raised or cleared by hand, and it clears itself.
        let raised = self.0.status().full && asked && request.action() == AlarmAction::Get;
        let alarms = raised
            .then_some(AlarmMember {
                member_id: member,
                alarm: AlarmType::Nospace as i32,
            })
            .into_iter()
            .collect();
        Ok(Response::new(AlarmResponse {
            header: self.0.present_header()?,
            alarms,
        }))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let status = self.0.status();
        let size = std::fs::metadata(self.0.data_dir.join(STATE_FILE)).map_or(0, |m| m.len());
        let mut errors = Vec::new();
        if status.full {
            errors.push(format!("memberID:{} alarm:NOSPACE ", self.0.owner.member));
        }
        if status.standing.leader == 0 {
            errors.push(Refused::NoLeader.to_string());
        }
        Ok(Response::new(StatusResponse {
            header: self.0.present_header()?,
            version: ETCD_VERSION.into(),
            db_size: size as i64,
            leader: status.standing.leader,
            raft_index: status.standing.commit,
            raft_term: status.standing.term,
            raft_applied_index: status.applied_index,
            errors,
            db_size_in_use: status.live_bytes,
            is_learner: false,
        }))
    }

    async fn defragment(
        &self,
        _request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        // The database uses its free pages again by itself: there is nothing to do, and nothing stalls.
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, _request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let reader = self.0.read(true).await?;
        Ok(Response::new(HashResponse {
            header: self.0.header(reader.revision),
            hash: reader.hash(0)?,
        }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        let reader = self.0.read(true).await?;
        let hash = reader.hash(request.into_inner().revision)?;
        Ok(Response::new(HashKvResponse {
            header: self.0.header(reader.revision),
            hash,
            compact_revision: reader.compact_revision,
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        _request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented(
            "etcdserver: snapshots are not supported",
        ))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        if request.into_inner().target_id != self.0.owner.member {
            return Err(Refused::MemberNotFound.into());
        }
        Ok(Response::new(MoveLeaderResponse {
            header: self.0.present_header()?,
        }))
    }
}

#[derive(Debug)]
pub(super) struct Health(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.into_inner().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        let status = if self.0.status().serves {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        Ok(Response::new(HealthCheckResponse {
            status: status as i32,
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("ask with Check"))
    }
}
