//! Ours beside Debian's etcd-server: one machine, one run, one client, turn by turn.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::cluster::{Cluster, Server};
use crate::{Work, failover, load, messages, million, sync, watchers};

/// Clients of the rows.
const CLIENTS: [usize; 3] = [1, 64, 256];
/// Runs of each, of which the best counts: other work on the machine only makes them slower.
const RUNS: usize = 2;

/// Prints a row of the table: what was measured, ours, etcd's, and the first by the second.
pub(crate) fn row(what: &str, ours: f64, etcd: f64) {
    println!("{what:<46} {ours:>9.0} {etcd:>9.0} {:>7.2}", ours / etcd);
}

/// Prints a row for each kind of work, number of clients and size of cluster, and then what happens to servers in their lives.
///
/// # Errors
/// A server does not start or does not answer.
pub(crate) async fn compare(directory: &Path, time: Duration) -> Result<()> {
    let heading = "operations a second";
    println!("{heading:<46} {:>9} {:>9} {:>7}", "ours", "etcd", "ratio");
    for count in [1, 3] {
        let ours = Cluster::start(Server::Ours, count, directory)?;
        let etcd = Cluster::start(Server::Etcd, count, directory)?;
        for work in [Work::Put, Work::Get, Work::SerializableGet] {
            for clients in CLIENTS {
                let (mut best_ours, mut best_etcd) = (0_f64, 0_f64);
                for _ in 0..RUNS {
                    let rate = load(work, &ours.leader().await?, clients, time).await?;
                    best_ours = best_ours.max(rate.per_second());
                    let rate = load(work, &etcd.leader().await?, clients, time).await?;
                    best_etcd = best_etcd.max(rate.per_second());
                }
                let what = format!("{work:?}, {clients} clients, members: {count}");
                row(&what, best_ours, best_etcd);
            }
        }
    }
    one_put(directory, time).await?;
    watchers::compare(directory).await?;
    failover::compare(directory).await?;
    million::compare(directory).await
}

/// What one put after the other takes, beside one write and `fdatasync` of the same bytes after the other, in µs; and beside the least that a
/// put over a connection can take: that, and a message to another process and back.
async fn one_put(directory: &Path, time: Duration) -> Result<()> {
    let ours = Cluster::start(Server::Ours, 1, directory)?;
    let leader = ours.leader().await?;
    let (mut put, mut disk, mut message) = (Duration::MAX, Duration::MAX, Duration::MAX);
    for _ in 0..RUNS {
        disk = disk.min(sync(directory, time)?.median());
        message = message.min(messages(time)?.median());
        put = put.min(load(Work::Put, &leader, 1, time).await?.median());
    }
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    println!();
    println!(
        "{:<46} {:>9} {:>9} {:>7}",
        "in µs", "ours", "least", "ratio"
    );
    row("one put beside one fdatasync", us(put), us(disk));
    row(
        "    and a message there and back",
        us(put),
        us(disk + message),
    );
    Ok(())
}
