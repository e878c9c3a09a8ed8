//! Servers to be measured, as processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use orlop_store::proto::etcdserverpb::StatusRequest;
use orlop_store::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use orlop_testing::free_address;

use crate::connection::connect;

const PATIENCE: Duration = Duration::from_secs(60);

/// Whose server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    Ours,
    Etcd,
}

impl Server {
    pub(crate) const BOTH: [Self; 2] = [Self::Ours, Self::Etcd];
}

/// One server.
struct Member {
    name: String,
    address: String,
    peer: String,
    data: PathBuf,
    process: Child,
}

/// A cluster in directories of its own, ended with this.
pub(crate) struct Cluster {
    server: Server,
    /// `NAME=URL,…`
    peers: String,
    members: Vec<Member>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            // It may have ended by itself.
            let _ = member.process.kill();
            let _ = member.process.wait();
            let _ = fs::remove_dir_all(&member.data);
        }
    }
}

impl Cluster {
    /// Starts `count` servers of a kind.
    pub(crate) fn start(server: Server, count: usize, directory: &Path) -> Result<Self> {
        let peers: Vec<String> = (0..count).map(|_| free_address().to_string()).collect();
        let named = peers.iter().enumerate();
        let urls: Vec<String> = named.map(|(i, p)| format!("m{i}=http://{p}")).collect();
        let mut cluster = Self {
            server,
            peers: urls.join(","),
            members: Vec::new(),
        };
        for (i, peer) in peers.into_iter().enumerate() {
            let (name, address) = (format!("m{i}"), free_address().to_string());
            let data = directory.join(format!("{server:?}-{count}-{i}"));
            let process = cluster.run(&name, &address, &peer, &data)?;
            cluster.members.push(Member {
                name,
                address,
                peer,
                data,
                process,
            });
        }
        Ok(cluster)
    }

    fn run(&self, name: &str, address: &str, peer: &str, data: &Path) -> Result<Child> {
        let (client, url) = (format!("http://{address}"), format!("http://{peer}"));
        let mut command = match self.server {
            Server::Ours => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["serve", address]).arg(data);
                command.args([name, peer, &self.peers]);
                command
            }
            Server::Etcd => {
                let mut command = Command::new("etcd");
                command.args(["--logger=zap", "--log-level=error"]);
                command.args(["--name", name, "--initial-cluster", &self.peers]);
                command.args(["--listen-client-urls", &client]);
                command.args(["--advertise-client-urls", &client]);
                command.args(["--listen-peer-urls", &url]);
                command.args(["--initial-advertise-peer-urls", &url]);
                command.arg("--data-dir").arg(data);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
            .spawn()
            .context("start a member (etcd: Debian's package etcd-server)")
    }

    /// The address of the member that leads, once one does.
    pub(crate) async fn leader(&self) -> Result<String> {
        self.leader_besides(None).await
    }

    /// The same of all members but one.
    pub(crate) async fn leader_besides(&self, other: Option<&str>) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        let addresses = || self.members.iter().map(|member| member.address.as_str());
        while Instant::now() < end {
            for address in addresses().filter(|address| Some(*address) != other) {
                if leads(address).await.unwrap_or(false) {
                    return Ok(address.to_owned());
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let addresses: Vec<&str> = addresses().collect();
        bail!("none of {addresses:?} leads after {PATIENCE:?}");
    }

    fn member(&mut self, address: &str) -> Result<&mut Member> {
        let found = self.members.iter_mut().find(|m| m.address == address);
        found.with_context(|| format!("no member at {address}"))
    }

    /// Ends the member at `address` with `SIGKILL`.
    pub(crate) fn kill(&mut self, address: &str) -> Result<()> {
        let process = &mut self.member(address)?.process;
        process.kill().context("kill a member")?;
        process.wait().context("wait for a member's end")?;
        Ok(())
    }

    /// Starts the member at `address` again.
    pub(crate) fn restart(&mut self, address: &str) -> Result<()> {
        let Member {
            name, peer, data, ..
        } = self.member(address)?;
        let (name, peer, data) = (name.clone(), peer.clone(), data.clone());
        let process = self.run(&name, address, &peer, &data)?;
        self.member(address)?.process = process;
        Ok(())
    }

    /// Resident memory of the member at `address` in MiB: all of it, and without the pages of files.
    pub(crate) fn memory_mib(&mut self, address: &str) -> Result<(f64, f64)> {
        let path = format!("/proc/{}/status", self.member(address)?.process.id());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let field = |name: &str| -> Result<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
            Ok(value.with_context(|| format!("no {name} in {path}"))? / 1024.0)
        };
        Ok((field("VmRSS:")?, field("RssAnon:")?))
    }
}

/// Whether the member at `address` leads its cluster.
async fn leads(address: &str) -> Result<bool> {
    let connection = connect(address).await?;
    let status = MaintenanceClient::new(connection)
        .status(StatusRequest {})
        .await?
        .into_inner();
    Ok(status
        .header
        .is_some_and(|h| h.member_id == status.leader && status.leader != 0))
}
