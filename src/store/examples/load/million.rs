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
use crate::disk::Disk;

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
/// Pause between two looks at how long the disk takes.
const BETWEEN_SYNCS: Duration = Duration::from_millis(10);

/// Of one server.
struct Figures {
    memory_mib: f64,
    anonymous_mib: f64,
    quiet: Longest,
    compaction: Longest,
    snapshot: Longest,
    restart_ms: f64,
}

/// The longest put of some time, and beside it the longest sync of the same bytes in another file, made by a thread of its own: a
/// disk that pauses makes everyone wait.
#[derive(Clone, Copy)]
struct Longest {
    put_ms: f64,
    sync_ms: f64,
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
            "start until it answers a read, ms",
            ours.restart_ms,
            etcd.restart_ms,
        ),
    ] {
        row(what, ours, etcd);
    }
    println!();
    let heading = "the longest of a time, ms";
    println!("{heading:<46} {:>9} {:>9} {:>7}", "ours", "etcd", "ratio");
    for (when, ours, etcd) in [
        ("nothing else happens", ours.quiet, etcd.quiet),
        ("a compaction runs", ours.compaction, etcd.compaction),
        ("a snapshot is fetched", ours.snapshot, etcd.snapshot),
    ] {
        row(&format!("put while {when}"), ours.put_ms, etcd.put_ms);
        row(
            "    sync of another file meanwhile",
            ours.sync_ms,
            etcd.sync_ms,
        );
    }
    Ok(())
}

async fn measure(server: Server, directory: &Path) -> Result<Figures> {
    let mut cluster = Cluster::start(server, 1, directory)?;
    let address = cluster.leader().await?;
    fill(&address, KEYS).await?;
    tokio::time::sleep(REST).await;
    let (memory_mib, anonymous_mib) = cluster.memory_mib(&address)?;
    let rest = tokio::time::sleep(QUIET);
    let quiet = longest_put(&address, directory, rest).await?.0;
    fill(&address, REWRITTEN).await?;
    let connection = connect(&address).await?;
    let work = compact(connection.clone());
    let (compaction, compacted) = longest_put(&address, directory, work).await?;
    compacted?;
    let work = snapshot(connection);
    let (snapshot, fetched) = longest_put(&address, directory, work).await?;
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
        quiet,
        compaction,
        snapshot,
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

/// How long the longest of the puts took that one client made, one after the other, until `work` was done, and what came of the work.
async fn longest_put<T>(
    address: &str,
    directory: &Path,
    work: impl Future<Output = T>,
) -> Result<(Longest, T)> {
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
    let (disk, stop) = (directory.to_owned(), Arc::clone(&is_done));
    let disk = tokio::task::spawn_blocking(move || {
        let mut disk = Disk::new(&disk)?;
        let mut longest = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            longest = longest.max(disk.sync()?);
            std::thread::sleep(BETWEEN_SYNCS);
        }
        Ok::<_, anyhow::Error>(longest)
    });
    let done = work.await;
    is_done.store(true, Ordering::Relaxed);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let longest = Longest {
        put_ms: ms(client.await.context("the client ended")??),
        sync_ms: ms(disk.await.context("the look at the disk ended")??),
    };
    Ok((longest, done))
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
