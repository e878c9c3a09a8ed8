//! TLS of clients and members: rustls with ring, certificates of the cluster's own authority.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

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

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there, or holds something else.
    #[error("read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        err: pem::Error,
    },
    /// A file holds no certificate.
    #[error("{} holds no certificate", .0.display())]
    Empty(PathBuf),
    /// What the files hold does not fit together.
    #[error("use the certificate {}: {reason}", path.display())]
    Unfit {
        /// The certificate.
        path: PathBuf,
        /// The cause, in the library's words.
        reason: String,
    },
    /// Members without an authority cannot tell who is one.
    #[error("members need the authority of their certificates (peer-trusted-ca-file)")]
    NoAuthority,
}

/// A connection, with TLS or without.
#[derive(Debug)]
pub(super) enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = |err| TlsError::File {
        path: path.to_owned(),
        err,
    };
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(file)?.collect();
    let all = all.map_err(file)?;
    if all.is_empty() {
        return Err(TlsError::Empty(path.to_owned()));
    }
    Ok(all)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|err| TlsError::File {
        path: path.to_owned(),
        err,
    })
}

fn authorities(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|err| TlsError::Unfit {
            path: path.to_owned(),
            reason: err.to_string(),
        })?;
    }
    Ok(Arc::new(roots))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

impl TlsFiles {
    fn unfit(&self, err: impl std::fmt::Display) -> TlsError {
        TlsError::Unfit {
            path: self.certificate.clone(),
            reason: err.to_string(),
        }
    }

    /// The side that is called. With an authority, callers must have a certificate of it.
    ///
    /// # Errors
    /// [`TlsError`].
    fn server(&self) -> Result<ServerConfig, TlsError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|err| self.unfit(err))?;
        let builder = match &self.authority {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let roots = authorities(authority)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                    .build()
                    .map_err(|err| self.unfit(err))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        builder
            .with_single_cert(certificates(&self.certificate)?, key(&self.key)?)
            .map_err(|err| self.unfit(err))
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
    /// [`TlsError`].
    pub(super) fn for_peers(&self) -> Result<PeerTls, TlsError> {
        let authority = self.authority.as_ref().ok_or(TlsError::NoAuthority)?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(authorities(authority)?, provider())
                .build()
                .map_err(|err| self.unfit(err))?;
        let client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|err| self.unfit(err))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(MemberVerifier(verifier)))
            .with_client_auth_cert(certificates(&self.certificate)?, key(&self.key)?)
            .map_err(|err| self.unfit(err))?;
        Ok(PeerTls {
            acceptor: TlsAcceptor::from(Arc::new(self.server()?)),
            connector: TlsConnector::from(Arc::new(client)),
        })
    }
}

/// Takes a certificate of the authority for a member's when it has the address that was called, or [`MEMBER_NAME`].
#[derive(Debug)]
struct MemberVerifier(Arc<WebPkiServerVerifier>);

fn member_name() -> ServerName<'static> {
    // It is a valid name, so the address never comes in.
    ServerName::try_from(MEMBER_NAME)
        .unwrap_or(ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into()))
}

impl ServerCertVerifier for MemberVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |name: &ServerName<'_>| {
            self.0
                .verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
        };
        match verify(server_name) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => verify(&member_name()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
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
        Ok(Io::Tls(Box::new(TlsStream::Client(stream))))
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
        Ok(Io::Tls(Box::new(TlsStream::Server(stream))))
    }
}

/// Is called by a client.
pub(super) async fn accept_client(tls: &TlsAcceptor, stream: TcpStream) -> io::Result<Io> {
    let stream = in_time(tls.accept(stream)).await?;
    Ok(Io::Tls(Box::new(TlsStream::Server(stream))))
}
