//! Telling the supervisor how things are: sd_notify(3).

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The supervisor's socket, when it wants to be told.
#[derive(Debug)]
pub struct Supervisor(Option<(UnixDatagram, SocketAddr)>);

impl Supervisor {
    /// The one that `NOTIFY_SOCKET` names, if any.
    #[must_use]
    pub fn from_environment() -> Self {
        Self::at(env::var_os("NOTIFY_SOCKET").as_deref())
    }

    /// The one at a socket's name; a name that starts with `@` is abstract.
    #[must_use]
    pub fn at(name: Option<&OsStr>) -> Self {
        Self(name.and_then(|name| {
            let address = match name.as_bytes() {
                [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
                _ => SocketAddr::from_pathname(name),
            };
            Some((UnixDatagram::unbound().ok()?, address.ok()?))
        }))
    }

    /// Sends assignments, one a line. Nobody listening is no error: the network works without.
    pub(super) fn tell(&self, assignments: &str) {
        if let Some((socket, address)) = &self.0
            && let Err(err) = socket.send_to_addr(assignments.as_bytes(), address)
        {
            log::debug!("cannot tell the supervisor: {err}");
        }
    }
}
