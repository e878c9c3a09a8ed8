//! Certificates, keys and authorities, as PEM files have them (RFC 7468).

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Where the authorities of public certificates are, on machines that have them.
pub const PUBLIC_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why TLS cannot be used. Never with what a file holds: it may be a key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read the {item} from {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What it is to hold.
        item: Item,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// A file has nothing of what is looked for.
    #[error("{} holds no {item}: what is needed is one in PEM, which begins with -----BEGIN {}-----", path.display(), item.label())]
    Missing {
        /// Which.
        path: PathBuf,
        /// What it is to hold.
        item: Item,
    },
    /// A file is not whole, or has been edited.
    #[error("the PEM in {} is damaged where the {item} should be: put the file there anew", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What it is to hold.
        item: Item,
    },
    /// No authority is named, and there are no public ones.
    #[error(
        "no authority is named for the other side's certificate, and there are no public ones in {PUBLIC_AUTHORITIES}: name the file that has it"
    )]
    NoAuthority,
    /// Certificates cannot be used as authorities.
    #[error("use the certificates in {} as authorities", path.display())]
    Authority {
        /// Where they are.
        path: PathBuf,
        /// The cause.
        #[source]
        err: Box<dyn Error + Send + Sync>,
    },
    /// A certificate and a key cannot be used together.
    #[error("use the certificate in {} with the key in {}, which has to be the one it was made for", certificate.display(), key.display())]
    Identity {
        /// Where the certificate is.
        certificate: PathBuf,
        /// Where the key is.
        key: PathBuf,
        /// The cause.
        #[source]
        err: rustls::Error,
    },
    /// The cryptography that the program is built with has nothing for any version of TLS.
    #[error("begin TLS")]
    Versions(#[source] rustls::Error),
}

/// What a file is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A certificate, and those of the authorities between it and one that is trusted.
    Certificate,
    /// The certificates of authorities.
    Authority,
    /// A private key.
    Key,
}

impl Item {
    /// How its first line calls it.
    fn label(self) -> &'static str {
        match self {
            Self::Certificate | Self::Authority => "CERTIFICATE",
            Self::Key => "PRIVATE KEY",
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Authority => "authority's certificate",
            Self::Key => "private key",
        })
    }
}

/// Where the certificate that is shown to the other side is.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The certificate and what it is signed by, PEM.
    pub certificate: &'a Path,
    /// Its private key, PEM.
    pub key: &'a Path,
}

impl Identity<'_> {
    /// What the files hold.
    pub(crate) fn read(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let chain = certificates(self.certificate, Item::Certificate)?;
        let key = PrivateKeyDer::from_pem_file(self.key)
            .map_err(|err| unreadable(self.key, Item::Key, err))?;
        Ok((chain, key))
    }

    /// It cannot be used.
    pub(crate) fn unfit(&self, err: rustls::Error) -> TlsError {
        TlsError::Identity {
            certificate: self.certificate.to_owned(),
            key: self.key.to_owned(),
            err,
        }
    }
}

/// The authorities in a file; there is at least one.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, Item::Authority)? {
        roots
            .add(certificate)
            .map_err(|err| unfit_authority(path, err))?;
    }
    Ok(roots)
}

pub(crate) fn unfit_authority(
    path: &Path,
    err: impl Into<Box<dyn Error + Send + Sync>>,
) -> TlsError {
    TlsError::Authority {
        path: path.to_owned(),
        err: err.into(),
    }
}

/// All certificates of a file; there is at least one.
fn certificates(path: &Path, item: Item) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, pem::Error> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match found {
        Ok(found) if found.is_empty() => Err(unreadable(path, item, pem::Error::NoItemsFound)),
        Ok(found) => Ok(found),
        Err(err) => Err(unreadable(path, item, err)),
    }
}

fn unreadable(path: &Path, item: Item, err: pem::Error) -> TlsError {
    let path = path.to_owned();
    match err {
        pem::Error::Io(err) => TlsError::Read { path, item, err },
        pem::Error::NoItemsFound => TlsError::Missing { path, item },
        _ => TlsError::Damaged { path, item },
    }
}
