//! Whose certificate it is, decided by whoever connects.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme, crypto};

/// What a server shows, and to whom.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// Its certificate.
    pub certificate: &'a CertificateDer<'a>,
    /// Those between it and an authority's.
    pub intermediates: &'a [CertificateDer<'a>],
    /// What the server was called.
    pub name: &'a ServerName<'a>,
    /// What it says of the certificate's revocation (RFC 6960); mostly empty.
    pub ocsp_response: &'a [u8],
    /// The time.
    pub now: UnixTime,
}

/// Decides whether a certificate is the right one. That the server has its key is seen to besides.
pub trait Judge: fmt::Debug + Send + Sync {
    /// Looks at what a server shows.
    ///
    /// # Errors
    /// It is not the one that was meant.
    fn judge(&self, presented: &Presented<'_>) -> Result<(), rustls::Error>;
}

/// Leaves to a judge what is his, and the rest to the cryptography.
#[derive(Debug)]
pub(crate) struct Verifier {
    pub(crate) judge: Arc<dyn Judge>,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = Presented {
            certificate: end_entity,
            intermediates,
            name: server_name,
            ocsp_response,
            now,
        };
        self.judge.judge(&presented)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, cert, dss, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
