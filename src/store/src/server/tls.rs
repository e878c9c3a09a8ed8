//! TLS of clients and members: rustls with ring, certificates of the cluster's own authority.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orlop_tls::{Identity, Io, Judge, Presented, TlsError, Trust};
use tokio::net::TcpStream;
use tokio_rustls::rustls::client::danger::ServerCertVerifier as _;
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{self, CertificateError, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::ServeError;

/// The name in the certificates of members, which may be at any address.
pub const MEMBER_NAME: &str = "orlop-store";
/// Time that a handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// Where certificates are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and what it is signed by, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The authority of the other side's certificates, PEM. With clients: whether they need one.
    pub authority: Option<PathBuf>,
}

impl TlsFiles {
    fn identity(&self) -> Identity<'_> {
        Identity {
            certificate: &self.certificate,
            key: &self.key,
        }
    }

    /// The side that is called. With an authority, callers must have a certificate of it.
    fn server(&self) -> Result<ServerConfig, TlsError> {
        orlop_tls::server(self.identity(), self.authority.as_deref())
    }

    /// For clients.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(super) fn for_clients(&self) -> Result<TlsAcceptor, TlsError> {
        let mut config = self.server()?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// For members.
    ///
    /// # Errors
    /// [`ServeError::NoPeerAuthority`], [`ServeError::Tls`].
    pub(super) fn for_peers(&self) -> Result<PeerTls, ServeError> {
        let authority = self.authority.as_deref();
        let authority = authority.ok_or(ServeError::NoPeerAuthority)?;
        let judge = MemberJudge(orlop_tls::server_verifier(authority)?);
        let trust = Trust::Judge(Arc::new(judge));
        let client = orlop_tls::client(&trust, Some(self.identity()))?;
        Ok(PeerTls {
            acceptor: TlsAcceptor::from(Arc::new(self.server()?)),
            connector: TlsConnector::from(Arc::new(client)),
        })
    }
}

/// Takes a certificate of the authority for a member's when it has the address that was called, or [`MEMBER_NAME`].
#[derive(Debug)]
struct MemberJudge(Arc<WebPkiServerVerifier>);

fn member_name() -> ServerName<'static> {
    // It is a valid name, so the address never comes in.
    ServerName::try_from(MEMBER_NAME)
        .unwrap_or(ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into()))
}

impl Judge for MemberJudge {
    fn judge(&self, shown: &Presented<'_>) -> Result<(), rustls::Error> {
        let verify = |name: &ServerName<'_>| {
            let verified = self.0.verify_server_cert(
                shown.certificate,
                shown.intermediates,
                name,
                shown.ocsp_response,
                shown.now,
            );
            verified.map(drop)
        };
        match verify(shown.name) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => verify(&member_name()),
            other => other,
        }
    }
}

/// TLS between members: both sides show a certificate of the same authority.
#[derive(Clone)]
pub(super) struct PeerTls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl std::fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerTls")
    }
}

async fn in_time<T>(handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(HANDSHAKE_TIME, handshake)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

impl PeerTls {
    /// Calls a member.
    pub(super) async fn connect(&self, stream: TcpStream, to: SocketAddr) -> io::Result<Io> {
        let name = ServerName::IpAddress(to.ip().into());
        let stream = in_time(self.connector.connect(name, stream)).await?;
        Ok(Io::secure(stream))
    }

    /// Is called by a member. A client's certificate of the same authority is not enough.
    pub(super) async fn accept(&self, stream: TcpStream, from: SocketAddr) -> io::Result<Io> {
        let stream = in_time(self.acceptor.accept(stream)).await?;
        let shown = stream.get_ref().1.peer_certificates();
        let shown = shown
            .and_then(<[_]>::first)
            .ok_or_else(|| io::Error::other("it shows no certificate"))?;
        let shown = ParsedCertificate::try_from(shown).map_err(io::Error::other)?;
        let is_for = |name: &ServerName<'_>| verify_server_name(&shown, name).is_ok();
        if !is_for(&member_name()) && !is_for(&ServerName::IpAddress(from.ip().into())) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "its certificate is no member's",
            ));
        }
        Ok(Io::secure(stream))
    }
}

/// Is called by a client.
pub(super) async fn accept_client(tls: &TlsAcceptor, stream: TcpStream) -> io::Result<Io> {
    let stream = in_time(tls.accept(stream)).await?;
    Ok(Io::secure(stream))
}
