//! Ours beside Debian's etcd-server: one machine, one run, one client, turn by turn.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use orlop_store::proto::etcdserverpb::StatusRequest;
use orlop_store::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::transport::Channel;

use crate::{Work, load};

/// Clients of the rows.
const CLIENTS: [usize; 3] = [1, 64, 256];
/// Runs of each, of which the best counts: other work on the machine only makes them slower.
const RUNS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster, ended with this.
struct Cluster {
    addresses: Vec<String>,
    processes: Vec<Child>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn free_address() -> Result<String> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok(address.to_string())
}

impl Cluster {
    fn start(ours: bool, count: usize, directory: &Path) -> Result<Self> {
        let mut cluster = Self {
            addresses: Vec::new(),
            processes: Vec::new(),
        };
        let peers = (0..count)
            .map(|_| free_address())
            .collect::<Result<Vec<_>>>()?;
        let members: Vec<String> = peers
            .iter()
            .enumerate()
            .map(|(i, peer)| format!("m{i}=http://{peer}"))
            .collect();
        let members = members.join(",");
        for (i, peer) in peers.iter().enumerate() {
            let address = free_address()?;
            let data = directory.join(format!(
                "{}-{count}-{i}",
                if ours { "ours" } else { "etcd" }
            ));
            let mut command = if ours {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["serve", &address]).arg(&data);
                command.args([&format!("m{i}"), peer, &members]);
                command
            } else {
                let (client, peer) = (format!("http://{address}"), format!("http://{peer}"));
                let mut command = Command::new("etcd");
                command.args(["--logger=zap", "--log-level=error"]);
                command.args(["--name", &format!("m{i}"), "--initial-cluster", &members]);
                command.args([
                    "--listen-client-urls",
                    &client,
                    "--advertise-client-urls",
                    &client,
                ]);
                command.args([
                    "--listen-peer-urls",
                    &peer,
                    "--initial-advertise-peer-urls",
                    &peer,
                ]);
                command.arg("--data-dir").arg(&data);
                command
            };
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let process = command
                .spawn()
                .context("start a member (etcd: Debian's package etcd-server)")?;
            cluster.processes.push(process);
            cluster.addresses.push(address);
        }
        Ok(cluster)
    }

    /// The address of the member that leads, once one does.
    async fn leader(&self) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            for address in &self.addresses {
                if leads(address).await.unwrap_or(false) {
                    return Ok(address.clone());
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("none of {:?} leads after {PATIENCE:?}", self.addresses);
    }
}

async fn leads(address: &str) -> Result<bool> {
    let channel = Channel::from_shared(format!("http://{address}"))?
        .connect()
        .await?;
    let status = MaintenanceClient::new(channel)
        .status(StatusRequest {})
        .await?
        .into_inner();
    Ok(status
        .header
        .is_some_and(|h| h.member_id == status.leader && status.leader != 0))
}

/// Prints a row for each kind of work, number of clients and size of cluster.
///
/// # Errors
/// A server does not start or does not answer.
pub(crate) async fn compare(directory: &Path, time: Duration) -> Result<()> {
    println!(
        "{:<46} {:>9} {:>9} {:>7}",
        "operations a second", "ours", "etcd", "ratio"
    );
    for count in [1, 3] {
        let ours = Cluster::start(true, count, directory)?;
        let etcd = Cluster::start(false, count, directory)?;
        for work in [Work::Put, Work::Get, Work::SerializableGet] {
            for clients in CLIENTS {
                let (mut best_ours, mut best_etcd) = (0_f64, 0_f64);
                for _ in 0..RUNS {
                    let rate = load(work, &ours.leader().await?, clients, time).await?;
                    best_ours = best_ours.max(rate.per_second());
                    let rate = load(work, &etcd.leader().await?, clients, time).await?;
                    best_etcd = best_etcd.max(rate.per_second());
                }
                println!(
                    "{:<46} {best_ours:>9.0} {best_etcd:>9.0} {:>7.2}",
                    format!("{work:?}, {clients} clients, members: {count}"),
                    best_ours / best_etcd
                );
            }
        }
    }
    Ok(())
}
