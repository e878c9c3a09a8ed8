//! `etcdserverpb.Maintenance`, and the health protocol.

use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::ETCD_VERSION;
use super::kv::mismatch;
use super::shared::Shared;
use crate::command::Command;
use crate::mvcc::write::Answer;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse, HashKvRequest,
    HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse,
    SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse, maintenance_server,
};
use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::{HealthCheckRequest, HealthCheckResponse, health_server};
use crate::refused::Refused;
use crate::snapshot::Saving;
use crate::state::STATE_FILE;

/// Bytes of one message of a snapshot, as near as its records allow.
const SNAPSHOT_PART_BYTES: usize = 64 << 10;
/// Messages of a snapshot that wait for the client.
const SNAPSHOT_PARTS_AHEAD: usize = 4;
/// How far what reads a snapshot steps back behind those who wait for an answer.
const SNAPSHOT_NICENESS: i32 = 15;

#[derive(Debug)]
pub(super) struct Maintenance(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl maintenance_server::Maintenance for Maintenance {
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        let request = request.into_inner();
        if request.action() != AlarmAction::Get {
            // An alarm for want of room that is cleared by hand comes back, unless there is room.
            return match self.0.propose(Command::Alarm(request)).await? {
                Answer::Alarm(response) => Ok(Response::new(response)),
                other => Err(mismatch(&other)),
            };
        }
        let mut roster = self.0.roster();
        let own = (self.0.owner.member, AlarmType::Nospace as i32);
        if self.0.status().full && !roster.alarms.contains(&own) {
            roster.alarms.push(own);
        }
        let mut response = roster.alarm(&request);
        response.header = self.0.present_header()?;
        Ok(Response::new(response))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let status = self.0.status();
        let size = std::fs::metadata(self.0.data_dir.join(STATE_FILE)).map_or(0, |m| m.len());
        let this = self.0.owner.member;
        let roster = self.0.roster();
        let mut full: Vec<u64> = roster.alarms.iter().map(|(member, _)| *member).collect();
        if status.full && !full.contains(&this) {
            full.push(this);
        }
        let mut errors: Vec<String> = full
            .into_iter()
            .map(|member| format!("memberID:{member} alarm:NOSPACE "))
            .collect();
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
            is_learner: roster.member(this).is_some_and(|m| m.is_learner),
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
        let mut saving = Saving::new(&self.0.database)?;
        let mut header = self.0.present_header()?;
        let (parts, stream) = tokio::sync::mpsc::channel(SNAPSHOT_PARTS_AHEAD);
        tokio::task::spawn_blocking(move || {
            // Of this thread alone (setpriority(2), "C library/kernel differences"). Without it, each of a put's few
            // threads waits its turn behind this one. Where it cannot be had, puts are slower meanwhile.
            let _ = rustix::process::setpriority_process(None, SNAPSHOT_NICENESS);
            loop {
                let part = match saving.part(SNAPSHOT_PART_BYTES) {
                    Ok(Some((blob, remaining_bytes))) => Ok(SnapshotResponse {
                        header: header.take(),
                        remaining_bytes,
                        blob,
                    }),
                    Ok(None) => return,
                    Err(err) => Err(Status::from(err)),
                };
                let failed = part.is_err();
                // The client may have gone.
                if parts.blocking_send(part).is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let to = request.into_inner().target_id;
        let leads_already = self.0.status().standing.leader == to;
        self.0.transfer(to).await?;
        // Clients tell by the header whether anything was moved.
        let header = self.0.present_header()?.filter(|_| !leads_already);
        Ok(Response::new(MoveLeaderResponse { header }))
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
