//! TLS with certificates from files, for both sides: rustls with ring.

mod config;
mod files;
#[cfg(feature = "tokio")]
mod io;
mod judge;

pub use config::{Trust, client, server, server_verifier};
pub use files::{Identity, Item, PUBLIC_AUTHORITIES, TlsError};
#[cfg(feature = "tokio")]
pub use io::Io;
pub use judge::{Judge, Presented};
