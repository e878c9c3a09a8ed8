//! Many watchers of one key.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use orlop_store::proto::etcdserverpb::kv_client::KvClient;
use orlop_store::proto::etcdserverpb::watch_client::WatchClient;
use orlop_store::proto::etcdserverpb::watch_request::RequestUnion;
use orlop_store::proto::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest};

use crate::cluster::{Cluster, Server};
use crate::compare::row;
use crate::connection::connect;

const WATCHERS: usize = 1000;
const WATCHERS_PER_CONNECTION: usize = 50;
/// Puts to the key; each watcher gets each.
const EVENTS: usize = 200;
const KEY: &[u8] = b"watched";

/// Prints events a second that reach their watchers.
///
/// # Errors
/// A server does not start, or an event does not arrive.
pub(crate) async fn compare(directory: &Path) -> Result<()> {
    let mut rates = Vec::new();
    for server in Server::BOTH {
        let cluster = Cluster::start(server, 1, directory)?;
        rates.push(events_per_second(&cluster.leader().await?).await?);
    }
    println!();
    let heading = "events a second";
    println!("{heading:<46} {:>9} {:>9} {:>7}", "ours", "etcd", "ratio");
    row("1,000 watchers of one key", rates[0], rates[1]);
    Ok(())
}

async fn events_per_second(address: &str) -> Result<f64> {
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: KEY.to_vec(),
            ..WatchCreateRequest::default()
        })),
    };
    let mut watchers = tokio::task::JoinSet::new();
    for _ in 0..WATCHERS / WATCHERS_PER_CONNECTION {
        let connection = connect(address).await?;
        for _ in 0..WATCHERS_PER_CONNECTION {
            let (requests, stream) = tokio::sync::mpsc::channel(1);
            requests.send(create.clone()).await?;
            let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
            let mut answers = WatchClient::new(connection.clone())
                .watch(stream)
                .await?
                .into_inner();
            let created = answers.message().await?.context("the stream ended")?;
            if !created.created {
                bail!("no watcher was made: {created:?}");
            }
            watchers.spawn(async move {
                // Dropped, it would end the stream.
                let _requests = requests;
                let mut seen = 0;
                while seen < EVENTS {
                    let answer = answers.message().await?.context("the stream ended")?;
                    seen += answer.events.len();
                }
                anyhow::Ok(())
            });
        }
    }
    let begun = Instant::now();
    let mut writer = KvClient::new(connect(address).await?);
    for _ in 0..EVENTS {
        let put = PutRequest {
            key: KEY.to_vec(),
            value: vec![7; crate::VALUE_BYTES],
            ..PutRequest::default()
        };
        writer.put(put).await?;
    }
    while let Some(done) = watchers.join_next().await {
        done??;
    }
    #[expect(clippy::cast_precision_loss, reason = "a number below a million")]
    let events = (WATCHERS * EVENTS) as f64;
    Ok(events / begun.elapsed().as_secs_f64())
}
