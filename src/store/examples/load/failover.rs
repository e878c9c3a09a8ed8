//! How long a cluster of three has no leader after `kill -9` of the one it had.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cluster::{Cluster, Server};
use crate::compare::row;

const ROUNDS: usize = 5;
/// How long a member that was started again has to catch up.
const SETTLE: Duration = Duration::from_secs(2);

/// Prints the median and the longest.
///
/// # Errors
/// A server does not start or does not answer.
pub(crate) async fn compare(directory: &Path) -> Result<()> {
    let mut results = Vec::new();
    for server in Server::BOTH {
        let mut cluster = Cluster::start(server, 3, directory)?;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let leader = cluster.leader().await?;
            tokio::time::sleep(SETTLE).await;
            cluster.kill(&leader)?;
            let begun = Instant::now();
            cluster.leader_besides(Some(&leader)).await?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            cluster.restart(&leader)?;
        }
        times.sort_by(f64::total_cmp);
        results.push((times[ROUNDS / 2], times[ROUNDS - 1]));
    }
    println!();
    println!("{:<46} {:>9} {:>9} {:>7}", "in ms", "ours", "etcd", "ratio");
    row("without a leader, median", results[0].0, results[1].0);
    row("without a leader, longest", results[0].1, results[1].1);
    Ok(())
}
