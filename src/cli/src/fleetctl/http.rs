//! The little of HTTP/1.1 that fleet's API takes, over TCP, a socket in the file system, or ssh.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

/// The longest answer that is read.
const MAX_BYTES: u64 = 256 << 20;

/// Where the API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A socket in the file system.
    Unix(String),
    /// HOST:PORT, where HOST is an address.
    Tcp(SocketAddr),
    /// A socket on another machine, reached by this command.
    Tunnel {
        /// The program with its arguments, to which the socket's path is added.
        command: Vec<String>,
        socket: String,
    },
}

/// A client of the API.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    pub(crate) endpoint: Endpoint,
    pub(crate) timeout: Duration,
}

/// An answer: its status and its body, null when there is none.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Endpoint {
    /// Reads `unix:///PATH` or `http://ADDRESS:PORT`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix://") {
            return Ok(Self::Unix(path.to_owned()));
        }
        let Some(rest) = text.strip_prefix("http://") else {
            bail!(
                "{text:?} is no endpoint such as unix:///run/fleet.sock or http://127.0.0.1:49153"
            );
        };
        let address = rest.trim_end_matches('/').replace("localhost", "127.0.0.1");
        let address = address
            .parse()
            .map_err(|_| anyhow!("{text:?}: an address and a port are needed, no name"))?;
        Ok(Self::Tcp(address))
    }
}

/// Both ends of a program's pipes.
struct Pipes {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Read for Pipes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.output.read(buffer)
    }
}

impl Write for Pipes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.input.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.flush()
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        // The answer has been read; the program has nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

impl Http {
    fn connect(&self) -> Result<Box<dyn Stream>> {
        // A write is answered when it is seen: that may take its own time beside the connection's.
        let patience = Some(self.timeout + Duration::from_secs(5));
        Ok(match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream =
                    UnixStream::connect(path).with_context(|| format!("connect to {path}"))?;
                stream.set_read_timeout(patience)?;
                Box::new(stream)
            }
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, self.timeout)
                    .with_context(|| format!("connect to {address}"))?;
                stream.set_read_timeout(patience)?;
                Box::new(stream)
            }
            Endpoint::Tunnel { command, socket } => {
                let (program, arguments) = command.split_first().context("no tunnel")?;
                let mut child = Command::new(program)
                    .args(arguments)
                    .arg(format!("fleetctl fd-forward {socket}"))
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .with_context(|| format!("run {program}"))?;
                let (input, output) = (child.stdin.take(), child.stdout.take());
                Box::new(Pipes {
                    child,
                    input: input.context("no pipe")?,
                    output: output.context("no pipe")?,
                })
            }
        })
    }

    /// Makes a request.
    pub(crate) fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let mut stream = self.connect()?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: fleet\r\nConnection: close\r\nAccept: application/json\r\n"
        );
        if !body.is_empty() {
            let length = body.len();
            request.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {length}\r\n"
            ));
        }
        request.push_str("\r\n");
        request.push_str(&body);
        stream
            .write_all(request.as_bytes())
            .context("send the request")?;
        stream.flush().context("send the request")?;
        let mut text = Vec::new();
        let mut part = [0_u8; 8192];
        // The whole answer counts, not whether the connection ends well behind it.
        while !is_complete(&text) && (text.len() as u64) < MAX_BYTES {
            match stream.read(&mut part) {
                Ok(0) => break,
                Ok(length) => text.extend_from_slice(part.get(..length).unwrap_or_default()),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err).context("wait for the answer"),
            }
        }
        parse(&text)
    }
}

/// The head of an answer and what follows it.
fn split(text: &[u8]) -> Option<(&str, &[u8])> {
    let end = text.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(text.get(..end)?).ok()?;
    Some((head, text.get(end + 4..)?))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn is_complete(text: &[u8]) -> bool {
    let Some((head, rest)) = split(text) else {
        return false;
    };
    match header(head, "content-length").and_then(|l| l.parse::<usize>().ok()) {
        Some(length) => rest.len() >= length,
        None => {
            head.split_whitespace().nth(1) == Some("204")
                || (is_chunked(head) && chunks(rest).is_some())
        }
    }
}

fn is_chunked(head: &str) -> bool {
    header(head, "transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"))
}

/// The content of a chunked body (RFC 9112 §7.1), once its last chunk is there.
fn chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n")?;
        let line = std::str::from_utf8(rest.get(..end)?).ok()?;
        let size = line.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = rest.get(end + 2..)?;
        if size == 0 {
            return Some(content);
        }
        content.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size.checked_add(2)?..)?;
    }
}

fn parse(text: &[u8]) -> Result<Answer> {
    let (head, rest) = split(text).context("the answer broke off")?;
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("the answer is not HTTP")?;
    let body = if is_chunked(head) {
        chunks(rest).context("the answer broke off")?
    } else {
        match header(head, "content-length").and_then(|l| l.parse::<usize>().ok()) {
            Some(length) => rest.get(..length).context("the answer broke off")?.to_vec(),
            None => rest.to_vec(),
        }
    };
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body).context("the answer is not JSON")?
    };
    Ok(Answer { status, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        let plain = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}";
        assert!(is_complete(plain) && !is_complete(&plain[..plain.len() - 1]));
        assert_eq!(parse(plain).unwrap().body["a"], 1);
        assert!(parse(&plain[..plain.len() - 1]).is_err());
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n4;x\r\n\":1}\r\n0\r\n\r\n";
        assert!(is_complete(chunked));
        assert_eq!(parse(chunked).unwrap().body["a"], 1);
        let empty = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert!(is_complete(empty));
        assert_eq!(parse(empty).unwrap().status, 204);
        assert!(parse(b"junk").is_err());
    }

    #[test]
    fn endpoints_are_sockets_or_addresses() {
        assert_eq!(
            Endpoint::parse("unix:///run/x").unwrap(),
            Endpoint::Unix("/run/x".into())
        );
        let tcp = Endpoint::parse("http://localhost:49153/").unwrap();
        assert_eq!(tcp, Endpoint::Tcp("127.0.0.1:49153".parse().unwrap()));
        assert!(Endpoint::parse("ftp://x").is_err());
        assert!(Endpoint::parse("http://example.org:1").is_err());
    }
}
