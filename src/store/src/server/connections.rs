//! Clients' connections: HTTP/1.1 and HTTP/2 on one port.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use orlop_tls::Io;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service as _};

use super::authority::Lenient;
use super::kv::Kv;
use super::tls::accept_client;
use crate::proto::etcdserverpb::kv_server::{KvServer, SERVICE_NAME};

/// Connections that are accepted before they are served.
const ACCEPT_AHEAD: usize = 64;
/// Pause after a failure to accept.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What answers requests. Nearly all that is ever asked is of the keyspace: that gets to its service at once, without the
/// router's layers, which would cost a seventh of what serving a put does.
#[derive(Debug, Clone)]
pub(super) struct Front {
    pub(super) keyspace: KvServer<Kv>,
    pub(super) others: axum::Router,
}

impl hyper::service::Service<Request<Incoming>> for Front {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let path = request.uri().path().strip_prefix('/');
        let method = path.and_then(|path| path.strip_prefix(SERVICE_NAME));
        if method.is_some_and(|method| method.starts_with('/')) {
            return self.keyspace.clone().call(request);
        }
        let answer = self.others.clone().call(request);
        Box::pin(async { answer.await.map(|response| response.map(Body::new)) })
    }
}

/// Gives clients to `take` as they connect, for as long as it is polled. A handshake that has begun
/// goes on afterwards.
pub(super) async fn accept<F>(
    listener: &TcpListener,
    tls: Option<TlsAcceptor>,
    take: impl Fn(Io) -> F + Clone + Send + 'static,
) where
    F: Future<Output = ()> + Send,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small, and clients wait for them.
                let _ = stream.set_nodelay(true);
                let Some(tls) = tls.clone() else {
                    take(Io::Plain(stream)).await;
                    continue;
                };
                let take = take.clone();
                // A client that is slow to shake hands keeps no other one waiting.
                tokio::spawn(async move {
                    match accept_client(&tls, stream).await {
                        Ok(stream) => take(stream).await,
                        Err(err) => log::debug!("a client's TLS: {err}"),
                    }
                });
            }
            Err(err) => {
                log::warn!("accept a client: {err}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// Clients, as they connect.
pub(super) fn clients(
    listener: Arc<TcpListener>,
    tls: Option<TlsAcceptor>,
) -> impl Stream<Item = Io> {
    let (sender, streams) = mpsc::channel(ACCEPT_AHEAD);
    tokio::spawn(async move {
        let served = sender.clone();
        let accept = accept(&listener, tls, move |client| {
            let sender = sender.clone();
            // Nothing is sent to a server that has stopped.
            async move { drop(sender.send(client).await) }
        });
        tokio::select! {
            () = accept => {}
            () = served.closed() => {}
        }
    });
    ReceiverStream::new(streams)
}

/// Serves clients as they come, until it is to stop and they have gone.
pub(super) async fn serve(
    clients: impl Stream<Item = Io>,
    front: Front,
    stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    {
        tokio::pin!(clients);
        loop {
            tokio::select! {
                client = clients.next() => match client {
                    Some(client) => {
                        connections.spawn(connection(client, front.clone(), stop.clone()));
                    }
                    None => break,
                },
                Some(_) = connections.join_next() => {}
                () = stopped(stop.clone()) => break,
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

/// Serves one client until it goes. When the server stops, what was asked is still answered.
async fn connection(client: Io, front: Front, stop: watch::Receiver<bool>) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        // As etcd: each watch and each wait is a stream for as long as it lasts, and no answer has a date.
        .max_concurrent_streams(None)
        .auto_date_header(false);
    // With a timer, whoever begins a request without an end is given up after 30 s.
    builder.http1().timer(TokioTimer::new());
    let served = builder.serve_connection(TokioIo::new(Lenient::new(client)), front);
    tokio::pin!(served);
    let result = tokio::select! {
        result = &mut served => result,
        () = stopped(stop) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(err) = result {
        log::debug!("a client's connection: {err}");
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error says that the sender is gone, which is an end too.
    let _ = stop.wait_for(|stop| *stop).await;
}
