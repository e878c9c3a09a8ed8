//! Clients that ask all members in turn and note what they are told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use orlop_store::proto::etcdserverpb as pb;
use orlop_store::proto::mvccpb::Event;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_client::WatchClient;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::members::client_url;
use crate::cluster::history::{Change, Done, Operation, changes};
use crate::random::Random;

/// After that a client turns to another member, and never knows.
const ANSWER_TIME: Duration = Duration::from_secs(1);
const CONNECT_TIME: Duration = Duration::from_millis(500);
const KEYS: u64 = 4;

/// What changed, by revision.
pub(super) type Changes = Vec<(i64, Vec<Change>)>;

/// Until when clients ask, and what they share.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) begun: Instant,
    pub(super) ended: AtomicBool,
    pub(super) values: AtomicU64,
}

fn channel(member: usize) -> Channel {
    Endpoint::from_shared(client_url(member))
        .expect("a URL")
        .connect_timeout(CONNECT_TIME)
        .connect_lazy()
}

/// Runs on this thread alone, so that its connections are in the thread's namespace.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(work)
}

/// Writes, deletes and reads few keys; what was answered is returned.
pub(super) async fn ask(members: usize, mut random: Random, load: &Load) -> Vec<Operation> {
    let channels: Vec<Channel> = (0..members).map(channel).collect();
    let mut operations = Vec::new();
    while !load.ended.load(Ordering::SeqCst) {
        let member = random.below(members as u64) as usize;
        let key = vec![b'a' + random.below(KEYS) as u8];
        let mut client = KvClient::new(channels[member].clone());
        let asked = load.begun.elapsed();
        let work = once(&mut client, key.clone(), &mut random, load);
        let pause = match timeout(ANSWER_TIME, work).await {
            Ok(Ok(done)) => {
                operations.push(Operation {
                    key,
                    asked,
                    answered: load.begun.elapsed(),
                    done,
                });
                random.below(10)
            }
            _ => 20,
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    operations
}

async fn once(
    client: &mut KvClient<Channel>,
    key: Vec<u8>,
    random: &mut Random,
    load: &Load,
) -> Result<Done, Status> {
    let revision = |header: Option<pb::ResponseHeader>| header.unwrap_or_default().revision;
    match random.below(10) {
        0..=4 => {
            let number = load.values.fetch_add(1, Ordering::SeqCst);
            let value = format!("v{number}").into_bytes();
            let put = pb::PutRequest {
                key,
                value: value.clone(),
                ..pb::PutRequest::default()
            };
            let response = client.put(put).await?.into_inner();
            Ok(Done::Wrote {
                revision: revision(response.header),
                value: Some(value),
            })
        }
        5 => {
            let delete = pb::DeleteRangeRequest {
                key,
                ..pb::DeleteRangeRequest::default()
            };
            let response = client.delete_range(delete).await?.into_inner();
            let revision = revision(response.header);
            Ok(match response.deleted {
                0 => Done::Read {
                    revision,
                    value: None,
                },
                _ => Done::Wrote {
                    revision,
                    value: None,
                },
            })
        }
        _ => {
            let range = pb::RangeRequest {
                key,
                ..pb::RangeRequest::default()
            };
            let response = client.range(range).await?.into_inner();
            Ok(Done::Read {
                revision: revision(response.header),
                value: response.kvs.into_iter().next().map(|kv| kv.value),
            })
        }
    }
}

/// Follows all changes at one member, until one of a revision has been told or nothing comes any more.
async fn follow(member: usize, seen: &mut Changes, until: i64) -> Result<(), Status> {
    let next = seen.last().map_or(1, |(revision, _)| *revision) + 1;
    let create = pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(
            pb::WatchCreateRequest {
                range_end: vec![0],
                key: vec![0],
                start_revision: next,
                ..pb::WatchCreateRequest::default()
            },
        )),
    };
    // The stream of requests has no end: a member may end the watches of one that has.
    let requests =
        tokio_stream::StreamExt::chain(tokio_stream::iter([create]), tokio_stream::pending());
    let mut client = WatchClient::new(channel(member));
    let mut responses = client.watch(requests).await?.into_inner();
    while seen.last().is_none_or(|(revision, _)| *revision < until) {
        let Ok(response) = timeout(ANSWER_TIME, responses.message()).await else {
            return Err(Status::deadline_exceeded("nothing comes any more"));
        };
        let Some(response) = response? else {
            return Err(Status::unavailable("the stream has ended"));
        };
        let of = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        for events in response.events.chunk_by(|a, b| of(a) == of(b)) {
            seen.push((of(&events[0]), changes(events)));
        }
    }
    Ok(())
}

/// Watches everything from the first revision on, now at one member, then at another one.
pub(super) async fn watch(members: usize, mut random: Random, load: &Load) -> Changes {
    let mut seen = Changes::new();
    while !load.ended.load(Ordering::SeqCst) {
        let member = random.below(members as u64) as usize;
        // It ends when the member does, or is silent, or has nothing to tell.
        let time = Duration::from_millis(500 + random.below(5000));
        let _ = timeout(time, follow(member, &mut seen, i64::MAX)).await;
    }
    seen
}

/// Goes on where a watch has ended, until it has told all changes up to a revision.
pub(super) async fn catch_up(member: usize, seen: &mut Changes, until: i64) -> Result<(), Status> {
    match seen.last() {
        Some((revision, _)) if *revision >= until => Ok(()),
        _ => follow(member, seen, until).await,
    }
}

/// The present revision as a member answers it after asking the others.
pub(super) async fn present(member: usize) -> Result<i64, Status> {
    let range = pb::RangeRequest {
        key: b"a".to_vec(),
        ..pb::RangeRequest::default()
    };
    let mut client = KvClient::new(channel(member));
    let response = timeout(ANSWER_TIME, client.range(range)).await;
    let response = response.map_err(|_| Status::deadline_exceeded("no answer"))??;
    Ok(response.into_inner().header.unwrap_or_default().revision)
}

/// The hash of all that a member holds as of a revision.
pub(super) async fn hash(member: usize, revision: i64) -> Result<u32, Status> {
    let mut client = MaintenanceClient::new(channel(member));
    let request = pb::HashKvRequest { revision };
    let response = timeout(ANSWER_TIME, client.hash_kv(request)).await;
    let response = response.map_err(|_| Status::deadline_exceeded("no answer"))??;
    Ok(response.into_inner().hash)
}
