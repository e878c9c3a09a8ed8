//! One connection to a server for tonic's clients: streams, and what is asked seldom. It is HTTP/2 and no more: what the client
//! takes of the machine is missing to both servers.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, Result};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::uri::{Authority, Scheme};
use tonic::codegen::http::{Request, Response, Uri};

/// A connection that many clients share.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: SendRequest<Body>,
    authority: Authority,
}

/// A stream of bytes to the server at `address`, on which small requests do not wait for more.
pub(crate) async fn dial(address: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection to the server at `address`.
pub(crate) async fn connect(address: &str) -> Result<Connection> {
    let stream = dial(address).await?;
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // Its end is an error of each request that is on the way.
    tokio::spawn(connection);
    Ok(Connection {
        sender,
        authority: address.parse()?,
    })
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.authority.clone());
        // A path is all that it had, and is still there.
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        Box::pin(self.sender.send_request(request))
    }
}
