//! A server with a million keys: its memory, what holds up its clients, and how long it takes to start.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use orlop_store::proto::etcdserverpb::kv_client::KvClient;
use orlop_store::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use orlop_store::proto::etcdserverpb::request_op::Request;
use orlop_store::proto::etcdserverpb::{
    CompactionRequest, PutRequest, RangeRequest, RequestOp, SnapshotRequest, TxnRequest,
};

use crate::cluster::{Cluster, Server};
use crate::compare::row;
use crate::connection::{Connection, connect};

const KEYS: usize = 1_000_000;
/// Puts in one transaction; etcd takes 128.
const BATCH: usize = 100;
const WRITERS: usize = 16;
/// Keys that are written a second time, for a compaction to remove the first.
const REWRITTEN: usize = 200_000;
/// How long a server is left alone before it is looked at: garbage is collected, caches are given back.
const REST: Duration = Duration::from_secs(10);
/// How long a client writes while nothing else happens.
const QUIET: Duration = Duration::from_secs(3);

/// Of one server.
struct Figures {
    memory_mib: f64,
    anonymous_mib: f64,
    quiet_ms: f64,
    compaction_ms: f64,
    snapshot_ms: f64,
    restart_ms: f64,
}

/// Prints what a million keys take.
///
/// # Errors
/// A server does not start or does not answer.
pub(crate) async fn compare(directory: &Path) -> Result<()> {
    let ours = measure(Server::Ours, directory).await?;
    let etcd = measure(Server::Etcd, directory).await?;
    println!();
    let heading = "1,000,000 keys";
    println!("{heading:<46} {:>9} {:>9} {:>7}", "ours", "etcd", "ratio");
    for (what, ours, etcd) in [
        ("memory, MiB", ours.memory_mib, etcd.memory_mib),
        (
            "memory without pages of files, MiB",
            ours.anonymous_mib,
            etcd.anonymous_mib,
        ),
        (
            "longest put, nothing else happens, ms",
            ours.quiet_ms,
            etcd.quiet_ms,
        ),
        (
            "longest put while a compaction runs, ms",
            ours.compaction_ms,
            etcd.compaction_ms,
        ),
        (
            "longest put while a snapshot is fetched, ms",
            ours.snapshot_ms,
            etcd.snapshot_ms,
        ),
        (
            "start until it answers a read, ms",
            ours.restart_ms,
            etcd.restart_ms,
        ),
    ] {
        row(what, ours, etcd);
    }
    Ok(())
}

async fn measure(server: Server, directory: &Path) -> Result<Figures> {
    let mut cluster = Cluster::start(server, 1, directory)?;
    let address = cluster.leader().await?;
    fill(&address, KEYS).await?;
    tokio::time::sleep(REST).await;
    let (memory_mib, anonymous_mib) = cluster.memory_mib(&address)?;
    let quiet_ms = longest_put(&address, tokio::time::sleep(QUIET)).await?.0;
    fill(&address, REWRITTEN).await?;
    let connection = connect(&address).await?;
    let (compaction_ms, compacted) = longest_put(&address, compact(connection.clone())).await?;
    compacted?;
    let (snapshot_ms, fetched) = longest_put(&address, snapshot(connection)).await?;
    fetched?;
    cluster.kill(&address)?;
    cluster.restart(&address)?;
    let begun = Instant::now();
    while read(&address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(Figures {
        memory_mib,
        anonymous_mib,
        quiet_ms,
        compaction_ms,
        snapshot_ms,
        restart_ms: begun.elapsed().as_secs_f64() * 1e3,
    })
}

fn put(number: usize) -> PutRequest {
    PutRequest {
        key: format!("/registry/things/{number:08}").into_bytes(),
        value: vec![7; crate::VALUE_BYTES],
        ..PutRequest::default()
    }
}

/// Writes the first `count` keys.
async fn fill(address: &str, count: usize) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let mut kv = KvClient::new(connect(address).await?);
        let next = Arc::clone(&next);
        writers.spawn(async move {
            loop {
                let first = next.fetch_add(BATCH, Ordering::Relaxed);
                if first >= count {
                    return Ok::<_, tonic::Status>(());
                }
                let puts = (first..first + BATCH).map(|number| RequestOp {
                    request: Some(Request::RequestPut(put(number))),
                });
                let success = puts.collect();
                kv.txn(TxnRequest {
                    success,
                    ..TxnRequest::default()
                })
                .await?;
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done??;
    }
    Ok(())
}

/// How long the longest of the puts took that one client made, one after the other, until `work` was done, in ms; and what
/// came of the work.
async fn longest_put<T>(address: &str, work: impl Future<Output = T>) -> Result<(f64, T)> {
    let is_done = Arc::new(AtomicBool::new(false));
    let mut kv = KvClient::new(connect(address).await?);
    let stop = Arc::clone(&is_done);
    let client = tokio::spawn(async move {
        let mut longest = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            kv.put(put(KEYS)).await?;
            longest = longest.max(begun.elapsed());
        }
        Ok::<_, tonic::Status>(longest)
    });
    let done = work.await;
    is_done.store(true, Ordering::Relaxed);
    let longest = client.await.context("the client ended")??;
    Ok((longest.as_secs_f64() * 1e3, done))
}

/// Compacts to the present revision, and waits until what is removed is removed.
async fn compact(connection: Connection) -> Result<()> {
    let mut kv = KvClient::new(connection);
    let answer = kv.range(one()).await?.into_inner();
    let revision = answer.header.context("no header")?.revision;
    let physical = true;
    kv.compact(CompactionRequest { revision, physical }).await?;
    Ok(())
}

/// Fetches a snapshot, and throws it away.
async fn snapshot(connection: Connection) -> Result<()> {
    let mut maintenance = MaintenanceClient::new(connection);
    let asked = maintenance.snapshot(SnapshotRequest::default());
    let mut parts = asked.await?.into_inner();
    while parts.message().await?.is_some() {}
    Ok(())
}

fn one() -> RangeRequest {
    RangeRequest {
        key: put(0).key,
        ..RangeRequest::default()
    }
}

async fn read(address: &str) -> Result<()> {
    KvClient::new(connect(address).await?).range(one()).await?;
    Ok(())
}
