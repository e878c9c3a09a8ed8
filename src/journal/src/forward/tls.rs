//! Streams to destinations: plain ones, and such with TLS (RFC 5425 for syslog, HTTPS for Loki).

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orlop_tls::{Identity, Trust};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::writer::chain;

/// How long a server is given to refuse a certificate. With TLS 1.3 it does so after the handshake, and what is written
/// before it has spoken would be lost unseen (RFC 8446 section 4.4.2.4 and appendix A.1); nearly all of them send a ticket at once
/// when they are content.
const OBJECTION_TIMEOUT: Duration = Duration::from_millis(500);

/// The files that a destination with TLS needs. They are read for each connection, so that renewed ones are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The authorities, of which one has to have signed the server's certificate; the system's public ones when not given.
    pub authority: Option<PathBuf>,
    /// The certificate that is shown to the server, and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// What is needed for connections, or why they cannot be made.
    fn configuration(&self) -> Result<ClientConfig, String> {
        let files = self.certificate.as_ref();
        let identity = files.map(|(certificate, key)| Identity { certificate, key });
        let trust = Trust::Authority(self.authority.as_deref());
        orlop_tls::client(&trust, identity).map_err(|err| chain(&err))
    }
}

/// A stream to a destination.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// Agrees on keys with the server called `host`, over `socket`.
    pub(super) fn secure(socket: TcpStream, host: &str, tls: &Tls) -> Result<Self, String> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| format!("{host:?} can be in no certificate"))?;
        let connection = ClientConnection::new(Arc::new(tls.configuration()?), name)
            .map_err(|err| err.to_string())?;
        let mut stream = StreamOwned::new(connection, socket);
        settle(&mut stream).map_err(|err| format!("TLS: {err}"))?;
        Ok(Self::Tls(Box::new(stream)))
    }

    /// Whether the other side has not closed the connection; written to one that it has, a batch would be lost unseen.
    pub(super) fn is_open(&mut self) -> bool {
        match self {
            Self::Plain(socket) => {
                let mut byte = [0];
                without_waiting(socket, |socket| {
                    socket.peek(&mut byte).map(|count| count > 0)
                })
                .unwrap_or(false)
            }
            Self::Tls(stream) => {
                let StreamOwned { conn, sock } = stream.as_mut();
                without_waiting(sock, |socket| hear(conn, socket)).unwrap_or(false)
            }
        }
    }
}

/// Ends the handshake, and waits for the server's first word after it, if one comes soon.
fn settle(stream: &mut StreamOwned<ClientConnection, TcpStream>) -> io::Result<()> {
    let StreamOwned { conn, sock } = stream;
    while conn.is_handshaking() || conn.wants_write() {
        conn.complete_io(sock)?;
    }
    let patience = sock.read_timeout()?;
    sock.set_read_timeout(Some(OBJECTION_TIMEOUT))?;
    let heard = hear(conn, sock);
    sock.set_read_timeout(patience)?;
    match heard? {
        true => Ok(()),
        false => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

/// Reads what the server has sent, once; whether it has not closed the connection. Nothing within the socket's time-out is no
/// objection.
fn hear(conn: &mut ClientConnection, socket: &mut TcpStream) -> io::Result<bool> {
    match conn.read_tls(socket) {
        Ok(0) => return Ok(false),
        Ok(_) => {}
        Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(true),
        Err(err) => return Err(err),
    }
    let state = conn.process_new_packets().map_err(io::Error::other)?;
    Ok(!state.peer_has_closed())
}

fn without_waiting(
    socket: &mut TcpStream,
    look: impl FnOnce(&mut TcpStream) -> io::Result<bool>,
) -> io::Result<bool> {
    socket.set_nonblocking(true)?;
    let seen = match look(socket) {
        Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(true),
        seen => seen,
    };
    socket.set_nonblocking(false)?;
    seen
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
