//! Puts a load on an etcd-speaking server: `load put ADDRESS CLIENTS SECONDS` or `load get ADDRESS CLIENTS SECONDS`.
//! `load serve ADDRESS DIRECTORY` serves a member to put it on; `load sync DIRECTORY SECONDS` tells what the same bytes cost
//! the disk, one write and one `fdatasync` at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use orlop_store::proto::etcdserverpb::kv_client::KvClient;
use orlop_store::proto::etcdserverpb::{PutRequest, RangeRequest};
use tonic::transport::{Channel, Endpoint};

/// Clients that share a connection.
const CLIENTS_PER_CONNECTION: usize = 4;
const VALUE_BYTES: usize = 256;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", address, directory] => serve(address, directory),
        ["sync", directory, seconds] => sync(directory, Duration::from_secs(seconds.parse()?)),
        [what @ ("put" | "get"), address, clients, seconds] => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(load(
                what == "put",
                address,
                clients.parse()?,
                Duration::from_secs(seconds.parse()?),
            ))
        }
        _ => bail!(
            "usage: load put|get ADDRESS CLIENTS SECONDS | load serve ADDRESS DIRECTORY | load sync DIRECTORY SECONDS"
        ),
    }
}

fn serve(address: &str, directory: &str) -> Result<()> {
    let settings = orlop_store::server::Settings {
        name: "load".into(),
        data_dir: directory.into(),
        listen: vec![address.parse()?],
        client_urls: vec![format!("http://{address}")],
        peer_listen: Vec::new(),
        peer_urls: Vec::new(),
        bootstrap: orlop_store::server::Bootstrap::Alone,
        tls: orlop_store::server::Tls::default(),
        options: orlop_store::node::Options::default(),
    };
    Ok(orlop_store::server::run(&settings, |_| println!("ready"))?)
}

/// Bytes of the log's block for one put of the load.
const BLOCK_BYTES: usize = 368;

fn sync(directory: &str, time: Duration) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let path = std::path::Path::new(directory).join("sync-test");
    let file = std::fs::File::create(&path)?;
    file.write_all_at(&vec![0; 4 << 20], 0)?;
    file.sync_all()?;
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < time {
        let begun = Instant::now();
        let offset = (times.len() * BLOCK_BYTES) % (4 << 20);
        file.write_all_at(&[7; BLOCK_BYTES], offset as u64)?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    std::fs::remove_file(path)?;
    tell(times, start.elapsed(), 1);
    Ok(())
}

async fn load(put: bool, address: &str, clients: usize, time: Duration) -> Result<()> {
    let mut channels = Vec::new();
    for _ in 0..clients.div_ceil(CLIENTS_PER_CONNECTION) {
        let endpoint: Endpoint =
            Channel::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
        channels.push(endpoint.connect().await.context("connect")?);
    }
    let numbers = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let mut kv = KvClient::new(channels[client / CLIENTS_PER_CONNECTION].clone());
        let numbers = Arc::clone(&numbers);
        tasks.spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < time {
                let key = format!("{:08}", numbers.fetch_add(1, Ordering::Relaxed)).into_bytes();
                let begun = Instant::now();
                if put {
                    kv.put(PutRequest {
                        key,
                        value: vec![7; VALUE_BYTES],
                        ..PutRequest::default()
                    })
                    .await?;
                } else {
                    kv.range(RangeRequest {
                        key: b"00000000".to_vec(),
                        ..RangeRequest::default()
                    })
                    .await?;
                }
                times.push(begun.elapsed());
            }
            Ok::<_, tonic::Status>(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    tell(times, start.elapsed(), clients);
    Ok(())
}

fn tell(mut times: Vec<Duration>, time: Duration, clients: usize) {
    times.sort_unstable();
    let at = |part: usize| {
        times
            .get(times.len() * part / 100)
            .copied()
            .unwrap_or_default()
    };
    let rate = times.len() as f64 / time.as_secs_f64();
    println!(
        "{rate:.0}/s, p50 {:?}, p99 {:?}, {} clients",
        at(50),
        at(99),
        clients
    );
}
