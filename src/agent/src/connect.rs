//! Connections to the store as its clients make them: an endpoint, TLS, and names asked for without the C library.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use orlop_tls::{Identity, Io, Judge, Presented, Trust};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;

use crate::agent::chain;

/// What gRPC speaks, by its name in TLS (RFC 7301).
pub const HTTP2: &[u8] = b"h2";

/// Which certificates are used; nothing given: no TLS but at `https://`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFlags {
    /// The authority of the server's certificate, PEM.
    pub authority: Option<PathBuf>,
    /// The certificate that is shown, PEM.
    pub certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
    /// Take any certificate.
    pub unverified: bool,
}

impl TlsFlags {
    fn is_given(&self) -> bool {
        self.authority.is_some() || self.certificate.is_some() || self.key.is_some()
    }
}

/// Where the store is reached.
#[derive(Clone)]
pub struct Target {
    /// As it was given.
    pub name: String,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.name).finish()
    }
}

impl Target {
    /// `HOST:PORT`, with `http://` or `https://` before it or not. `alpn` is the protocol that TLS names.
    ///
    /// # Errors
    /// It is none, or the certificates cannot be used.
    pub fn new(endpoint: &str, flags: &TlsFlags, alpn: &[u8]) -> Result<Self, String> {
        let (secure, rest) = match endpoint.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => return Err(format!("{endpoint:?}: {scheme}:// is not supported")),
            None => (flags.is_given(), endpoint),
        };
        let rest = rest.trim_end_matches('/');
        let wrong = || format!("{endpoint:?} is no endpoint such as 127.0.0.1:2379");
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') || host.starts_with('[') => {
                (host, port.parse().map_err(|_| wrong())?)
            }
            _ => (rest, if secure { 443 } else { 80 }),
        };
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if host.is_empty() || host.contains(['/', ' ']) {
            return Err(wrong());
        }
        let tls = match secure {
            true => Some(connector(flags, alpn)?),
            false => None,
        };
        Ok(Self {
            name: endpoint.to_owned(),
            host,
            port,
            tls,
        })
    }

    /// Host and port, as a request's head names them.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// The host has no address, cannot be reached, or shows a wrong certificate.
    pub async fn open(&self) -> io::Result<Io> {
        let host = self.host.clone();
        let addresses = match host.parse() {
            Ok(address) => vec![address],
            // A name server is asked with blocking calls.
            Err(_) => tokio::task::spawn_blocking(move || orlop_update::dns::resolve(&host))
                .await
                .map_err(io::Error::other)?
                .map_err(io::Error::other)?,
        };
        let mut failed = io::Error::from(io::ErrorKind::NotFound);
        for address in addresses {
            let stream = match TcpStream::connect((address, self.port)).await {
                Ok(stream) => stream,
                Err(err) => {
                    failed = err;
                    continue;
                }
            };
            stream.set_nodelay(true)?;
            let Some(tls) = &self.tls else {
                return Ok(Io::Plain(stream));
            };
            let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
            let stream = tls.connect(name, stream).await?;
            return Ok(Io::secure(stream));
        }
        Err(failed)
    }
}

fn connector(flags: &TlsFlags, alpn: &[u8]) -> Result<TlsConnector, String> {
    let trust = match flags.unverified {
        true => Trust::Judge(Arc::new(Anyone)),
        false => Trust::Authority(flags.authority.as_deref()),
    };
    let identity = match (&flags.certificate, &flags.key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
        _ => return Err("KeyFile and CertFile must both be present".into()),
    };
    let mut config = orlop_tls::client(&trust, identity).map_err(|err| chain(&err))?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Takes any certificate, as `--insecure-skip-tls-verify` says.
#[derive(Debug)]
struct Anyone;

impl Judge for Anyone {
    fn judge(&self, _: &Presented<'_>) -> Result<(), rustls::Error> {
        Ok(())
    }
}

/// Opens connections for a channel.
#[derive(Clone, Debug)]
pub struct Opener(pub Arc<Target>);

impl Service<Uri> for Opener {
    type Response = TokioIo<Io>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Io>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let target = Arc::clone(&self.0);
        Box::pin(async move { target.open().await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_hosts_with_ports() {
        let target = |text| Target::new(text, &TlsFlags::default(), b"h2");
        let read = |text| target(text).map(|t| (t.authority(), t.tls.is_some()));
        assert_eq!(read("127.0.0.1:1"), Ok(("127.0.0.1:1".into(), false)));
        assert_eq!(read("http://[::1]:2379/"), Ok(("[::1]:2379".into(), false)));
        assert_eq!(read("name"), Ok(("name:80".into(), false)));
        for wrong in ["", "unix://x", "a:b", "http://", "a b:1", "ftp://a:1"] {
            assert!(target(wrong).is_err(), "{wrong:?}");
        }
    }
}
