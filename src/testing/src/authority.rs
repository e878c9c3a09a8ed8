//! Certificates for servers and clients under test.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// An authority that nobody trusts who is not told to.
#[derive(Debug)]
pub struct Authority {
    /// Its own certificate, in PEM.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Debug)]
pub struct Signed {
    /// The certificate.
    pub certificate: String,
    /// Its private key (PKCS#8).
    pub key: String,
}

impl Authority {
    /// Makes an authority with a new key.
    ///
    /// # Errors
    ///
    /// If the key cannot be made.
    pub fn new() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        Ok(Self {
            pem: params.self_signed(&key)?.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// A certificate for these names and addresses, for servers and clients alike.
    ///
    /// # Errors
    ///
    /// If a name cannot stand in a certificate.
    pub fn sign(&self, names: &[&str]) -> Result<Signed, rcgen::Error> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let params = CertificateParams::new(names)?;
        Ok(Signed {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// Writes an authority (`ca`), a certificate for 127.0.0.1 (`crt`) and its key (`key`), which serve both sides, into a directory.
///
/// # Panics
///
/// If they cannot be made or written.
pub fn write_certificates(directory: &Path) {
    let authority = Authority::new().expect("an authority");
    let signed = authority.sign(&["127.0.0.1"]).expect("a certificate");
    for (name, text) in [
        ("ca", &authority.pem),
        ("crt", &signed.certificate),
        ("key", &signed.key),
    ] {
        std::fs::write(directory.join(name), text).expect("it can be written");
    }
}
