//! Puts a load on an etcd-speaking server: `load put ADDRESS CLIENTS SECONDS` or `load get ADDRESS CLIENTS SECONDS`.
//! `load serve ADDRESS DIRECTORY` serves a member to put it on; `load sync DIRECTORY SECONDS` tells what the same bytes cost
//! the disk, one write and one `fdatasync` at a time. `load compare DIRECTORY SECONDS` starts ours and Debian's etcd, of one
//! member and of three, in empty directories below DIRECTORY, and prints what each does in turn: so many seconds a figure. `load million
//! DIRECTORY`, `load watchers DIRECTORY` and `load failover DIRECTORY` are parts of that by themselves.

mod cluster;
mod compare;
mod connection;
mod disk;
mod echo;
mod failover;
mod million;
mod unary;
mod watchers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use disk::Disk;
use echo::Echo;
use orlop_store::proto::etcdserverpb::{PutRequest, PutResponse, RangeRequest, RangeResponse};
use unary::{Connection, Method};

/// Clients that share a connection.
const CLIENTS_PER_CONNECTION: usize = 4;
const VALUE_BYTES: usize = 256;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", address, directory] => serve(address, directory, None),
        ["serve", address, directory, name, peer, members] => {
            serve(address, directory, Some([name, peer, members]))
        }
        ["sync", directory, seconds] => {
            sync(directory.as_ref(), Duration::from_secs(seconds.parse()?))?.tell();
            Ok(())
        }
        ["echo", address] => echo::serve(address),
        ["million", directory] => runtime()?.block_on(million::compare(directory.as_ref())),
        ["watchers", directory] => runtime()?.block_on(watchers::compare(directory.as_ref())),
        ["failover", directory] => runtime()?.block_on(failover::compare(directory.as_ref())),
        ["compare", directory, seconds] => {
            let time = Duration::from_secs(seconds.parse()?);
            runtime()?.block_on(compare::compare(directory.as_ref(), time))
        }
        [what @ ("put" | "get"), address, clients, seconds] => {
            let work = if what == "put" { Work::Put } else { Work::Get };
            let time = Duration::from_secs(seconds.parse()?);
            let rate = runtime()?.block_on(load(work, address, clients.parse()?, time))?;
            rate.tell();
            Ok(())
        }
        _ => bail!(
            "usage: load put|get ADDRESS CLIENTS SECONDS | load compare DIRECTORY SECONDS | \
             load million|watchers|failover DIRECTORY | \
             load serve ADDRESS DIRECTORY [NAME PEER NAME=URL,…] | load sync DIRECTORY SECONDS"
        ),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

fn serve(address: &str, directory: &str, cluster: Option<[&str; 3]>) -> Result<()> {
    let [name, peer, members] = cluster.unwrap_or(["load", "", ""]);
    let members = members
        .split(',')
        .filter_map(|member| member.split_once('='))
        .map(|(name, url)| (name.to_owned(), vec![url.to_owned()]))
        .collect();
    let peer = Some(peer).filter(|p| !p.is_empty());
    let settings = orlop_store::server::Settings {
        name: name.into(),
        data_dir: directory.into(),
        listen: vec![address.parse()?],
        client_urls: vec![format!("http://{address}")],
        peer_listen: peer.map(str::parse).transpose()?.into_iter().collect(),
        peer_urls: peer.map(|p| format!("http://{p}")).into_iter().collect(),
        bootstrap: match peer {
            None => orlop_store::server::Bootstrap::Alone,
            Some(_) => orlop_store::server::Bootstrap::New {
                members,
                token: "load".into(),
            },
        },
        tls: orlop_store::server::Tls::default(),
        options: orlop_store::node::Options::default(),
    };
    Ok(orlop_store::server::run(&settings, |_| println!("ready"))?)
}

/// One write and one `fdatasync` after the other.
fn sync(directory: &std::path::Path, time: Duration) -> Result<Rate> {
    let mut disk = Disk::new(directory)?;
    one_by_one(time, || disk.sync())
}

/// One message to another process and its answer after the other.
fn messages(time: Duration) -> Result<Rate> {
    let mut echo = Echo::start()?;
    one_by_one(time, || echo.ask())
}

fn one_by_one(time: Duration, mut act: impl FnMut() -> Result<Duration>) -> Result<Rate> {
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < time {
        times.push(act()?);
    }
    times.sort_unstable();
    Ok(Rate {
        times,
        time: start.elapsed(),
        clients: 1,
    })
}

/// Keeps so many clients busy for that time. They are divided among as many threads as the machine has processors: clients of one
/// thread are answered and ask again all together, and the server would have nothing to do meanwhile.
async fn load(work: Work, address: &str, clients: usize, time: Duration) -> Result<Rate> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let connections = clients.div_ceil(CLIENTS_PER_CONNECTION);
    let threads = threads.min(connections);
    let numbers = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut parts = tokio::task::JoinSet::new();
    for thread in 0..threads {
        let share = |all: usize| (all + threads - 1 - thread) / threads;
        let (address, numbers) = (address.to_owned(), Arc::clone(&numbers));
        let (connections, clients) = (share(connections), share(clients));
        parts.spawn_blocking(move || {
            runtime()?.block_on(clients_of_a_thread(
                work,
                &address,
                connections,
                clients,
                numbers,
                start + time,
            ))
        });
    }
    let mut times = Vec::new();
    while let Some(done) = parts.join_next().await {
        times.extend(done??);
    }
    times.sort_unstable();
    Ok(Rate {
        times,
        time: start.elapsed(),
        clients,
    })
}

/// Keeps clients busy until `end`, and gives the time that each operation took.
async fn clients_of_a_thread(
    work: Work,
    address: &str,
    connections: usize,
    clients: usize,
    numbers: Arc<AtomicU64>,
    end: Instant,
) -> Result<Vec<Duration>> {
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(Connection::open(address).await?);
    }
    let put = Method::new(address, "/etcdserverpb.KV/Put")?;
    let range = Method::new(address, "/etcdserverpb.KV/Range")?;
    let mut tasks = tokio::task::JoinSet::new();
    for connection in open.iter().cycle().take(clients) {
        let (connection, put, range) = (connection.clone(), put.clone(), range.clone());
        let numbers = Arc::clone(&numbers);
        tasks.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                let key = format!("{:08}", numbers.fetch_add(1, Ordering::Relaxed)).into_bytes();
                let begun = Instant::now();
                if work == Work::Put {
                    let request = PutRequest {
                        key,
                        value: vec![7; VALUE_BYTES],
                        ..PutRequest::default()
                    };
                    connection.call::<PutResponse>(&put, &request).await?;
                } else {
                    let request = RangeRequest {
                        key: b"00000000".to_vec(),
                        serializable: work == Work::SerializableGet,
                        ..RangeRequest::default()
                    };
                    connection.call::<RangeResponse>(&range, &request).await?;
                }
                times.push(begun.elapsed());
            }
            Ok::<_, anyhow::Error>(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    Ok(times)
}

/// What clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// New keys.
    Put,
    /// One key, with all that was acknowledged before.
    Get,
    /// One key, as the member knows it.
    SerializableGet,
}

/// What came of it.
struct Rate {
    /// Of each operation, in rising order.
    times: Vec<Duration>,
    time: Duration,
    clients: usize,
}

impl Rate {
    fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.time.as_secs_f64()
    }

    /// What `part` hundredths of the operations took at most.
    fn at(&self, part: usize) -> Duration {
        let place = self.times.len() * part / 100;
        self.times.get(place).copied().unwrap_or_default()
    }

    fn median(&self) -> Duration {
        self.at(50)
    }

    fn tell(&self) {
        println!(
            "{:.0}/s, p50 {:?}, p99 {:?}, {} clients",
            self.per_second(),
            self.median(),
            self.at(99),
            self.clients
        );
    }
}
