//! The two sides.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ServerConfig};

use crate::files::{Identity, PUBLIC_AUTHORITIES, TlsError, authorities, unfit_authority};
use crate::judge::{Judge, Verifier};

/// Which servers a client takes for the ones that it meant.
#[derive(Clone, Debug)]
pub enum Trust<'a> {
    /// Those whose certificate is for the name that they were called, and of an authority in this file; one of the public ones,
    /// [`PUBLIC_AUTHORITIES`], when none is named.
    Authority(Option<&'a Path>),
    /// Those that are judged right.
    Judge(Arc<dyn Judge>),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What takes certificates of the authorities in a file, for the names that are in them.
///
/// # Errors
/// The file cannot be used.
pub fn server_verifier(authority: &Path) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let roots = Arc::new(authorities(authority)?);
    WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|err| unfit_authority(authority, err))
}

/// The side that calls, which may show a certificate.
///
/// # Errors
/// A file cannot be used.
pub fn client(trust: &Trust<'_>, identity: Option<Identity<'_>>) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?;
    let builder = match trust {
        Trust::Judge(judge) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier {
                judge: Arc::clone(judge),
                provider,
            })),
        Trust::Authority(named) => {
            let path = named.unwrap_or(Path::new(PUBLIC_AUTHORITIES));
            if named.is_none() && !path.exists() {
                return Err(TlsError::NoAuthority);
            }
            builder.with_root_certificates(authorities(path)?)
        }
    };
    let Some(identity) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let (chain, key) = identity.read()?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|err| identity.unfit(err))
}

/// The side that is called. With an authority, callers must show a certificate of it.
///
/// # Errors
/// A file cannot be used.
pub fn server(identity: Identity<'_>, authority: Option<&Path>) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?;
    let builder = match authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let roots = Arc::new(authorities(authority)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(|err| unfit_authority(authority, err))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let (chain, key) = identity.read()?;
    builder
        .with_single_cert(chain, key)
        .map_err(|err| identity.unfit(err))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn told(result: Result<ClientConfig, TlsError>) -> String {
        result.expect_err("a file is wrong").to_string()
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_without_what_it_holds() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        orlop_testing::write_certificates(directory.path());
        let other = orlop_testing::Authority::new().and_then(|other| other.sign(&["a"]));
        fs::write(path("other"), other.expect("a certificate").key).expect("it is written");
        let key = fs::read_to_string(path("key")).expect("it is there");
        let secret: String = key.lines().skip(1).take(1).collect();
        let damaged = key.replace("-----END", "-----BEGIN");
        fs::write(path("damaged"), damaged).expect("it is written");
        fs::write(path("empty"), "").expect("it is written");

        let with = |authority: &str, certificate: &str, key: &str| {
            let (certificate, key) = (path(certificate), path(key));
            let identity = Identity {
                certificate: &certificate,
                key: &key,
            };
            client(&Trust::Authority(Some(&path(authority))), Some(identity))
        };
        assert!(with("ca", "crt", "key").is_ok());
        let in_directory = directory.path().display();
        for (files, wanted) in [
            (
                ("none", "crt", "key"),
                format!("read the authority's certificate from {in_directory}/none"),
            ),
            (
                ("key", "crt", "key"),
                format!("{in_directory}/key holds no authority's certificate: "),
            ),
            (
                ("ca", "empty", "key"),
                format!("{in_directory}/empty holds no certificate: "),
            ),
            (
                ("ca", "crt", "crt"),
                format!("{in_directory}/crt holds no private key: "),
            ),
            (
                ("ca", "crt", "damaged"),
                format!("the PEM in {in_directory}/damaged is damaged where the private key "),
            ),
            (
                ("ca", "crt", "other"),
                format!(
                    "use the certificate in {in_directory}/crt with the key in {in_directory}/other, "
                ),
            ),
        ] {
            let (authority, certificate, key) = files;
            let told = told(with(authority, certificate, key));
            assert!(told.starts_with(&wanted), "{files:?}: {told}");
            assert!(!told.contains(&secret), "{told}");
        }
    }
}
