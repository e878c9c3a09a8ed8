//! Tells the supervisor of this process how it is doing (sd_notify(3)).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The state could not be told.
#[derive(Debug, thiserror::Error)]
#[error("notify the supervisor at {socket:?}")]
pub struct Error {
    socket: OsString,
    source: io::Error,
}

/// Sends `state`, such as `READY=1`, to `$NOTIFY_SOCKET`; does nothing without that variable.
///
/// # Errors
/// [`Error`] when the datagram cannot be sent.
pub fn notify(state: &str) -> Result<(), Error> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(socket) if !socket.is_empty() => {
            send(&socket, state).map_err(|source| Error { socket, source })
        }
        _ => Ok(()),
    }
}

/// A name that begins with `@` is of the abstract namespace (unix(7)).
fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    // The supervisor may be the reader of what this process collects: waiting for it could be waiting for ourselves.
    datagram.set_nonblocking(true)?;
    datagram
        .send_to_addr(state.as_bytes(), &address)
        .map(|_| ())
}
