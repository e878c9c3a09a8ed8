//! Brings batches to a destination.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use super::tls::Stream;
use super::{Destination, Protocol, loki, syslog};
use crate::reader::Record;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the other side may take to read, and to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// So much of an HTTP answer is read.
const ANSWER_MAX_BYTES: u64 = 8192;

/// Why a batch is not delivered, in words.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may be later.
    Failed(String),
    /// It would not be later either.
    Refused(String),
}

/// A destination and the connection to it.
pub(super) struct Sender {
    destination: Destination,
    hostname: String,
    stream: Option<Stream>,
    datagrams: Option<UdpSocket>,
}

type Resolve = fn(&str) -> Result<Vec<IpAddr>, String>;

impl Sender {
    pub(super) fn new(destination: Destination, hostname: String) -> Self {
        Self {
            destination,
            hostname,
            stream: None,
            datagrams: None,
        }
    }

    /// Sends the batch. After [`Failure::Failed`] a part of it may have arrived.
    pub(super) fn send(&mut self, batch: &[Record], resolve: Resolve) -> Result<(), Failure> {
        let sent = match self.destination.protocol {
            Protocol::SyslogUdp => self.send_datagrams(batch, resolve),
            Protocol::SyslogTcp => self.send_stream(batch, resolve),
            Protocol::Loki => self.push(batch, resolve),
        };
        if sent.is_err() {
            self.stream = None;
            self.datagrams = None;
        }
        sent
    }

    fn send_datagrams(&mut self, batch: &[Record], resolve: Resolve) -> Result<(), Failure> {
        let socket = match self.datagrams.take() {
            Some(socket) => socket,
            None => self.each_address(resolve, open_datagrams)?,
        };
        for record in batch {
            let mut message = syslog::message(record, &self.hostname);
            message.truncate(syslog::DATAGRAM_MAX_BYTES);
            socket.send(&message).map_err(|err| failed("send", &err))?;
        }
        self.datagrams = Some(socket);
        Ok(())
    }

    fn send_stream(&mut self, batch: &[Record], resolve: Resolve) -> Result<(), Failure> {
        let open = self
            .stream
            .take()
            .and_then(|mut old| old.is_open().then_some(old));
        let mut stream = match open {
            Some(stream) => stream,
            None => self.connect(resolve)?,
        };
        let mut bytes = Vec::new();
        for record in batch {
            syslog::counted(&syslog::message(record, &self.hostname), &mut bytes);
        }
        stream
            .write_all(&bytes)
            .and_then(|()| stream.flush())
            .map_err(|err| failed("send", &err))?;
        self.stream = Some(stream);
        Ok(())
    }

    fn push(&mut self, batch: &[Record], resolve: Resolve) -> Result<(), Failure> {
        let mut stream = self.connect(resolve)?;
        let Destination {
            host, port, path, ..
        } = &self.destination;
        let path = if path.trim_matches('/').is_empty() {
            loki::PATH
        } else {
            path
        };
        let request = loki::request(host, *port, path, &loki::body(batch, &self.hostname));
        stream
            .write_all(&request)
            .and_then(|()| stream.flush())
            .map_err(|err| failed("send", &err))?;
        let mut bytes = Vec::new();
        let read = stream.take(ANSWER_MAX_BYTES).read_to_end(&mut bytes);
        match (loki::answer(&bytes), read) {
            (Some(loki::Answer::Taken), _) => Ok(()),
            (Some(loki::Answer::Later(why)), _) => Err(Failure::Failed(why)),
            (Some(loki::Answer::Never(why)), _) => Err(Failure::Refused(why)),
            (None, Err(err)) => Err(failed("read the answer", &err)),
            (None, Ok(_)) => Err(Failure::Failed("the answer is no HTTP".to_owned())),
        }
    }

    /// A new stream, with TLS where the destination wants it.
    fn connect(&self, resolve: Resolve) -> Result<Stream, Failure> {
        let socket = self.each_address(resolve, connect)?;
        match &self.destination.tls {
            None => Ok(Stream::Plain(socket)),
            Some(tls) => {
                Stream::secure(socket, &self.destination.host, tls).map_err(Failure::Failed)
            }
        }
    }

    /// What `open` makes of the first address of the host with which it works.
    fn each_address<T>(
        &self,
        resolve: Resolve,
        open: fn(SocketAddr) -> io::Result<T>,
    ) -> Result<T, Failure> {
        let addresses = resolve(&self.destination.host).map_err(Failure::Failed)?;
        let mut failure = Failure::Failed(format!("{} has no address", self.destination.host));
        for address in addresses {
            match open(SocketAddr::new(address, self.destination.port)) {
                Ok(opened) => return Ok(opened),
                Err(err) => failure = failed(&format!("connect to {address}"), &err),
            }
        }
        Err(failure)
    }
}

fn failed(what: &str, err: &io::Error) -> Failure {
    Failure::Failed(format!("{what}: {err}"))
}

fn open_datagrams(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(to)?;
    Ok(socket)
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT)?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}
