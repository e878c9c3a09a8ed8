//! `lock` and `elect`: a name that one at a time holds, by a lease that this process keeps.

use std::process::Command;

use orlop_store::proto::etcdserverpb as pb;
use orlop_store::proto::v3electionpb as election;
use orlop_store::proto::v3electionpb::election_client::ElectionClient;
use orlop_store::proto::v3lockpb::lock_client::LockClient;
use orlop_store::proto::v3lockpb::{LockRequest, UnlockRequest};
use pb::lease_client::LeaseClient;
use tokio::signal::unix::{SignalKind, signal};

use super::channel::text_of;
use super::flags::Flag;
use super::keys::client;
use super::lease::keep;
use super::{Call, Failure, Outcome};

pub(super) const LOCK: &[Flag] = &[Flag::value(
    "ttl",
    "10",
    "seconds after which the lock is free if this process is gone",
)];
pub(super) const ELECT: &[Flag] =
    &[Flag::switch("listen", "tell who leads, and do not stand").short('l')];

/// Seconds after which a candidate that is gone leads no more.
const ELECTION_TTL: i64 = 60;

async fn interrupted() -> Outcome {
    let hear = |kind| signal(kind).map_err(|err| Failure::new(1, err.to_string()));
    let mut terminate = hear(SignalKind::terminate())?;
    let mut interrupt = hear(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn grant(call: &Call, ttl: i64) -> Result<i64, Failure> {
    let request = pb::LeaseGrantRequest { ttl, id: 0 };
    let asked = call
        .client
        .ask(async |channel| LeaseClient::new(channel).lease_grant(request).await);
    let granted = asked.await.map_err(|err| Failure::new(1, err))?;
    Ok(granted.id)
}

/// Does what needs a lease while that is kept, and gives the lease up. A signal ends it early, and well.
async fn holding(call: &Call, lease: i64, work: impl Future<Output = Outcome>) -> Outcome {
    let outcome = tokio::select! {
        outcome = work => outcome,
        outcome = interrupted() => outcome,
        outcome = keep(call, lease, |_| Ok(())) => {
            outcome.and(Err(Failure::new(1, "session expired")))
        }
    };
    let request = pb::LeaseRevokeRequest { id: lease };
    let revoked = call
        .client
        .ask(async |channel| LeaseClient::new(channel).lease_revoke(request).await);
    // It ends by itself if this fails.
    let _ = revoked.await;
    outcome
}

async fn show_key(call: &Call, key: Vec<u8>) -> Outcome {
    let request = pb::RangeRequest {
        key,
        ..pb::RangeRequest::default()
    };
    let asked = call
        .client
        .ask(async |channel| client(channel).range(request).await);
    let answer = asked.await.map_err(|err| Failure::new(1, err))?;
    if answer.kvs.is_empty() {
        return Err(Failure::new(1, "lock lost on init"));
    }
    let printer = call.printer()?;
    printer.show(printer.get(&answer))
}

pub(super) fn lock(call: &Call) -> Outcome {
    let Some((name, program)) = call.given.words.split_first() else {
        return Err(Failure::bad_arguments(
            "lock takes a lock name argument and an optional command to execute",
        ));
    };
    let ttl = call.given.number("ttl")?;
    call.run(async {
        let lease = grant(call, ttl).await?;
        holding(call, lease, async {
            let channel = call.client.patient_channel().await;
            let request = LockRequest {
                name: name.as_bytes().to_vec(),
                lease,
            };
            let locked = LockClient::new(channel.clone()).lock(request).await;
            let locked = locked
                .map_err(|status| Failure::new(1, text_of(&status)))?
                .into_inner();
            let Some((path, words)) = program.split_first() else {
                show_key(call, locked.key).await?;
                return std::future::pending().await;
            };
            let key = String::from_utf8_lossy(&locked.key).into_owned();
            let revision = locked.header.unwrap_or_default().revision;
            let mut command = Command::new(path);
            command
                .args(words)
                .env("ETCD_LOCK_KEY", key)
                .env("ETCD_LOCK_REV", revision.to_string());
            let ended = tokio::task::spawn_blocking(move || command.status()).await;
            let request = UnlockRequest { key: locked.key };
            let unlocked = LockClient::new(channel).unlock(request).await;
            match ended.map_err(|err| Failure::new(1, err.to_string()))? {
                Ok(status) if status.success() => unlocked
                    .map(|_| ())
                    .map_err(|status| Failure::new(1, text_of(&status))),
                Ok(status) => Err(Failure::new(1, status.to_string().replace(':', ""))),
                Err(err) => Err(Failure::new(1, format!("{path}: {err}"))),
            }
        })
        .await
    })
}

pub(super) fn elect(call: &Call) -> Outcome {
    let listen = call.given.is_set("listen");
    match call.given.words.as_slice() {
        [name] if listen => call.run(async {
            tokio::select! {
                outcome = observe(call, name) => outcome,
                outcome = interrupted() => outcome,
            }
        }),
        [_] => Err(Failure::bad_arguments(
            "no proposal argument but -l not set",
        )),
        [_, _] if listen => Err(Failure::bad_arguments("proposal given but -l is set")),
        [name, value] => call.run(campaign(call, name, value)),
        _ => Err(Failure::bad_arguments(
            "elect takes one election name argument and an optional proposal argument",
        )),
    }
}

async fn observe(call: &Call, name: &str) -> Outcome {
    let failed = |status: tonic::Status| Failure::new(1, text_of(&status));
    let channel = call.client.patient_channel().await;
    let request = election::LeaderRequest {
        name: name.as_bytes().to_vec(),
    };
    let mut client = ElectionClient::new(channel);
    let mut leaders = client.observe(request).await.map_err(failed)?.into_inner();
    let printer = call.printer()?;
    while let Some(told) = leaders.message().await.map_err(failed)? {
        printer.show(printer.get(&pb::RangeResponse {
            header: told.header,
            kvs: told.kv.into_iter().collect(),
            ..pb::RangeResponse::default()
        }))?;
    }
    Err(Failure::new(1, "elect: observer lost"))
}

async fn campaign(call: &Call, name: &str, value: &str) -> Outcome {
    let lease = grant(call, ELECTION_TTL).await?;
    holding(call, lease, async {
        let channel = call.client.patient_channel().await;
        let request = election::CampaignRequest {
            name: name.as_bytes().to_vec(),
            lease,
            value: value.as_bytes().to_vec(),
        };
        let elected = ElectionClient::new(channel).campaign(request).await;
        let elected = elected.map_err(|status| Failure::new(1, text_of(&status)))?;
        let leader = elected.into_inner().leader.unwrap_or_default();
        show_key(call, leader.key).await?;
        std::future::pending().await
    })
    .await
}
